// Holds every answer that a client got against what RFC 9111 forbids: literal, and from the origin's own memory of what it
// said. All times are of one clock, in milliseconds.

/** What clocks of whole seconds may make of an age or a lifetime. */
const TOLERANCE_S = 1

/** How long after a write is acknowledged by one pod the other may still serve what was there before. */
const ELSEWHERE_MS = 1000

/**
 * How long before a request the origin may have sent what still counts as sent for it: the fetch was under way, as long as
 * nobody had been given its answer (collapsing, 4).
 */
const IN_FLIGHT_MS = 100

/**
 * Whether the origin failed at this page while the request was under way, or just before: a fetch that fails is under way
 * until Weir hears of that, and who joins it meanwhile shares the failure, in another pod too.
 */
export const failed = ({ page, start, end }) => page.failures.some(({ from, to }) => from <= end && to >= start - IN_FLIGHT_MS)

const HEURISTIC = new Set([200, 203, 204, 300, 301, 308, 404, 405, 410, 414, 501])

/** Seconds of freshness (4.2.1, 4.2.2). */
function lifetime (says, answer) {
  for (const name of ['s-maxage', 'max-age', 'expires']) {
    // An Expires stays with what is stored when a 304 comes without one (4.3.4).
    const given = says[name] ?? (name === 'expires' ? answer.events[0].says.expires : undefined)
    if (given !== undefined) return given
  }
  if (says['no-cache'] || !answer.modified || !(HEURISTIC.has(answer.status) || says.public)) return 0
  return (answer.events[0].at - Date.parse(answer.modified)) / 10_000
}

/**
 * Why an answer may not be given to anybody but whom it was made for; null if it may. A 304 makes it anew for whoever asked:
 * that request's fields count then.
 */
function notShared ({ says, asker }) {
  if (says['no-store']) return 'no-store (5.2.2.5)'
  if (says.private) return 'private (5.2.2.7)'
  if (asker['no-store']) return "the request's no-store (5.2.1.5)"
  if (asker.authorization && !says.public && !says['must-revalidate'] && says['s-maxage'] === undefined) return 'authorization (3.5)'
  if (asker.method !== 'GET' && asker.method !== 'HEAD') return 'method (4)'
  return null
}

const isFor = ({ start }, { at, given }) => at >= start || (at >= start - IN_FLIGHT_MS && given >= start)

/** Why it may not be used now, by what was said at one event; `stale` is for how many seconds it has been. */
function notUsable (request, answer, event) {
  const { at, says } = event
  if (isFor(request, event)) return { why: null, stale: 0 }
  const { wants } = request
  const age = (says.age || 0) + (request.start - at) / 1000
  const left = lifetime(says, answer) - age
  if (says['no-cache']) return { why: 'no-cache (5.2.2.4)', stale: 0 }
  if (wants['no-cache']) return { why: "the request's no-cache (5.2.1.4)", stale: 0 }
  const strict = ['must-revalidate', 'proxy-revalidate'].find(name => says[name] !== undefined)
  // "Regardless of other freshness information" (RFC 5861, 4).
  if (failed(request) && !strict && -left <= (says['stale-if-error'] ?? -Infinity) + TOLERANCE_S) return { why: null, stale: Math.max(0, -left) }
  if (wants['max-age'] !== undefined && age > wants['max-age'] + TOLERANCE_S) return { why: "the request's max-age (5.2.1.1)", stale: 0 }
  if (wants['min-fresh'] !== undefined && left < wants['min-fresh'] - TOLERANCE_S) return { why: "the request's min-fresh (5.2.1.3)", stale: 0 }
  if (left > -TOLERANCE_S) return { why: null, stale: Math.max(0, -left) }
  if (strict) return { why: `stale in spite of ${strict} (4.2.4)`, stale: -left }
  if (-left <= (says['stale-while-revalidate'] || 0) + TOLERANCE_S) return { why: null, stale: -left }
  // It forbids stale use as proxy-revalidate does (5.2.2.10), but for what the origin itself allows beside it.
  if (says['s-maxage'] !== undefined) return { why: 'stale in spite of s-maxage (5.2.2.10)', stale: -left }
  return { why: -left <= (wants['max-stale'] ?? 0) + TOLERANCE_S ? null : 'stale (4.2.4)', stale: -left }
}

/** The first reason against giving `answer` to `request`; null if there is none. `seen` is what the client got. */
export function against (request, answer, seen, counts) {
  const { asker, page } = answer
  if (page !== request.page) return `another page's: ${page.target}`
  const other = answer.vary.find(name => asker[name] !== (request.fields[name] ?? null))
  const events = answer.events.filter(({ at }) => at <= request.end)
  events.forEach(event => { event.given = Math.min(event.given, request.end) })
  const mine = events.filter(event => event.asker.id === request.id)
  const own = asker.id === request.id
  if (request.wants['only-if-cached'] && (own || mine.length > 0)) return 'only-if-cached: asked the origin (5.2.1.7)'
  if (own && seen.status !== 304) {
    counts.own++
    return null
  }
  // The origin itself told this client that it has the answer.
  if (seen.status === 304 && (own || mine.length > 0)) {
    counts.own++
    return null
  }
  if (other) return `vary (4.1): ${other} was ${asker[other]}`
  const shared = events.map(notShared)
  if (shared.every(why => why !== null)) return shared.at(-1) || 'not made yet'
  const older = page.writes.find(({ version, pod, done }) => version > answer.version && done + (pod === request.pod ? 0 : ELSEWHERE_MS) < request.start)
  if (older) return `version ${answer.version} after a write made version ${older.version} (4.4)`
  // What was said last before the request began and forbids reuse does not bind a copy that another pod confirmed before.
  let last = null
  let best = null
  for (const [nth, event] of events.entries()) {
    if (shared[nth] !== null && !mine.includes(event)) continue
    const { why, stale } = notUsable(request, answer, event)
    last = why
    if (why === null && (best === null || event.at > best.event.at)) best = { event, stale }
  }
  if (!best) return last
  const ages = wrongAge(request, answer, seen, events)
  if (ages) return ages
  count(request, answer, events, best, seen, counts)
  return null
}

/** Age is there, and is what one of the events makes it (4, 4.2.3). */
function wrongAge (request, answer, seen, events) {
  if (events.some(event => isFor(request, event))) return null
  const text = seen.fields.get('age')
  if (text === undefined) return 'no Age in what was stored (4)'
  if (!/^\d+$/.test(text)) return `Age: ${text}`
  const age = Number(text)
  const plausible = events.some(({ at, says }) => {
    const base = says.age || 0
    return age >= base + (request.start - at) / 1000 - 1 - TOLERANCE_S && age <= base + (request.end - at) / 1000 + TOLERANCE_S
  })
  return plausible ? null : `Age: ${text} is not its age (4.2.3)`
}

function count (request, answer, events, { event, stale }, seen, counts) {
  const contacted = isFor(request, event)
  if (!contacted) counts.hits++
  if (!contacted && stale > 0) counts.stale++
  if (contacted && event === answer.events[0]) counts.collapsed++
  if (contacted && event !== answer.events[0]) counts.confirmed++
  if (answer.asker.pod !== String(request.pod)) counts.elsewhere++
  if (answer.vary.length > 0) counts.varied++
  if (answer.asker.authorization || answer.asker.cookie) counts['of a user']++
  if (request.method === 'HEAD') counts['HEAD hits']++
}

/** What is wrong with the answer's form: status, body, parts, validators. */
export function malformed (request, answer, seen) {
  const { status, body, fields } = seen
  const { method, conditions } = request
  if (method === 'HEAD' && body.length > 0) return 'a HEAD with a body'
  if (status === 304) {
    const { tags, since } = conditions
    if (tags) return answer.etag && tags.replaceAll('W/', '').includes(answer.etag.replace('W/', '')) ? null : '304 for another tag (RFC 9110, 13.1.2)'
    if (since) return answer.modified && Date.parse(since) >= Date.parse(answer.modified) ? null : '304 for another date (RFC 9110, 13.1.3)'
    return '304 without a condition'
  }
  const { range, ifRange } = conditions
  if (status === 416) {
    return range && range.from >= answer.body.length ? null : '416 for a range that there is'
  }
  if (status === 206) {
    if (!range || answer.status !== 200 || method !== 'GET') return '206 without a range'
    if (ifRange && (ifRange.startsWith('W/') || (ifRange !== answer.etag && ifRange !== answer.modified))) return '206 in spite of If-Range (RFC 9110, 13.1.5)'
    const to = Math.min(range.to ?? Infinity, answer.body.length - 1)
    if (fields.get('content-range') !== `bytes ${range.from}-${to}/${answer.body.length}`) return `Content-Range: ${fields.get('content-range')}`
    return body.latin1Slice() === answer.body.slice(range.from, to + 1) ? null : 'other bytes than those of the range'
  }
  if (status !== answer.status) return `status ${status} for an answer with ${answer.status}`
  if (method === 'HEAD') return null
  return body.latin1Slice() === answer.body ? null : 'another body'
}
