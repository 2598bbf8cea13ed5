// When a shared cache may use a stored answer, read literally from RFC 9111; nothing here is Weir's code. Dates and ages
// in the histories are far from every limit, so that this needs no exact clock.

/** Statuses that may be given a lifetime by a guess (RFC 9110, 15.1). */
const HEURISTIC = new Set([200, 203, 204, 206, 300, 301, 308, 404, 405, 410, 414, 501])

const SAFE = new Set(['GET', 'HEAD', 'OPTIONS', 'TRACE'])

export const values = (fields, name) => fields.filter(([other]) => other.toLowerCase() === name).map(([, value]) => value)

/** `[[name, argument], …]` of Cache-Control (RFC 9111, 5.2); an argument that is not there is null. */
export function directives (fields) {
  const all = []
  for (const value of values(fields, 'cache-control')) {
    for (const [, name, , quoted, plain] of value.matchAll(/([^\s,="]+)(\s*=\s*(?:"([^"]*)"|([^,]*)))?/g)) {
      all.push([name.toLowerCase(), quoted ?? plain?.trim() ?? null])
    }
  }
  return all
}

export const said = (fields, name) => directives(fields).some(([other]) => other === name)

/** Seconds that a directive gives: its first occurrence (4.2.1); NaN if that cannot be read, null if there is none. */
export function seconds (fields, name) {
  const first = directives(fields).find(([other]) => other === name)
  if (!first) return null
  return /^\d+$/.test(first[1] ?? '') ? Number(first[1]) : NaN
}

/** When a field's date is, in seconds from the answer; NaN if it cannot be read or comes more than once. */
function dateOf (fields, name, content) {
  const dates = values(fields, name)
  if (dates.length === 0) return null
  const [value] = dates
  if (dates.length > 1 || typeof value === 'string' || ['iso', 'offset', 'lower'].includes(value.form)) return NaN
  return 'at' in value ? value.at : 'from' in value ? value.from : value.changed + content
}

/** Where a lifetime comes from and how long it is, in seconds (4.2.1, 4.2.2). What cannot be read is no time at all. */
export function lifetime ({ status, fields, content }) {
  for (const name of ['s-maxage', 'max-age']) {
    const given = seconds(fields, name)
    if (given !== null) return { by: name, is: Number.isNaN(given) ? 0 : given, unreadable: Number.isNaN(given) }
  }
  const date = dateOf(fields, 'date', content)
  const base = date === null || Number.isNaN(date) ? 0 : date
  const expires = dateOf(fields, 'expires', content)
  if (expires !== null) return { by: 'expires', is: Math.max(0, (expires || 0) - base) || 0, unreadable: Number.isNaN(expires) }
  const modified = dateOf(fields, 'last-modified', content)
  if (modified !== null && modified < base && (HEURISTIC.has(status) || said(fields, 'public'))) {
    return { by: 'heuristic', is: (base - modified) / 10, unreadable: false }
  }
  return { by: 'none', is: 0, unreadable: false }
}

/** Age in seconds at receipt (4.2.3): the first member of Age (5.1), or what Date shows. */
export function firstAge ({ fields, content }) {
  const text = String(values(fields, 'age')[0] ?? '').split(',')[0].trim()
  const date = dateOf(fields, 'date', content)
  return Math.max(/^\d+$/.test(text) ? Number(text) : 0, date < 0 ? -date : 0)
}

const varies = fields => values(fields, 'vary').flatMap(value => value.toLowerCase().split(',').map(name => name.trim()))

/** Which answer a stored one is: the step at which its fields came. */
export function storedAt (seen, at) {
  if (seen[at].made !== null && seen[at].made < at) return seen[at].made
  for (let nth = at - 1; nth >= 0; nth--) {
    if (seen[nth].contacts.some(({ method }) => method === 'GET')) return nth
  }
  return null
}

/**
 * The answer that is used at `at`, with the request that it came for. What a 304 did not say is as it was before (4.3.4).
 */
export function storedAnswer (steps, seen, at) {
  const from = storedAt(seen, at)
  if (from === null) return null
  const { request, response } = steps[from]
  const before = seen[from].contacts.some(({ status }) => status === 304) ? storedAnswer(steps, seen, from) : null
  if (!before) return { from, request, response }
  // How old the confirmation is says its own Age, or none (4.2.3).
  const renewed = new Set(['age', 'Age', ...response.fields.map(([name]) => name)])
  const fields = [...before.response.fields.filter(([name]) => !renewed.has(name)), ...response.fields]
  return { from, request, response: { ...response, status: before.response.status, fields } }
}

/** Whether an unsafe method, or one of unknown safety, succeeded between two requests (4.4). */
export function invalidatedBetween (steps, seen, from, to) {
  return steps.some(({ request }, nth) => nth > from && nth < to && !SAFE.has(request.method) && seen[nth].status >= 200 && seen[nth].status < 400)
}

/** Null if what `seen` shows as an answer from the cache at `at` is allowed, else the rule that forbids it. */
export function mayReuse (steps, seen, at) {
  const { request } = steps[at]
  if (seen[at].status === 504 && said(request.fields, 'only-if-cached')) return null
  const used = storedAnswer(steps, seen, at)
  if (used === null) return 'nothing was stored'
  const { from, response, request: first } = used
  const { fields } = response
  if (!['GET', 'HEAD'].includes(request.method)) return 'method'
  const understood = ![299, 599].includes(response.status)
  if (said(fields, 'no-store') && !(said(fields, 'must-understand') && understood)) return 'no-store (5.2.2.5)'
  if (said(fields, 'private')) return 'private (5.2.2.7)'
  if (said(first.fields, 'no-store')) return "the request's no-store (5.2.1.5)"
  if (said(fields, 'must-understand') && !understood) return 'must-understand (5.2.2.3)'
  if (values(first.fields, 'authorization').length > 0 && !['public', 'must-revalidate', 's-maxage'].some(name => said(fields, name))) {
    return 'authorization (3.5)'
  }
  const names = varies(fields)
  if (names.includes('*')) return 'vary (4.1)'
  const same = name => values(first.fields, name).join() === values(request.fields, name).join()
  if (names.some(name => !same(name))) return 'vary (4.1)'
  if (invalidatedBetween(steps, seen, from, at)) return 'invalidated (4.4)'
  return notFreshEnough(request, response, (seen[at].at - seen[from].at) / 1000)
}

/** Null if an old answer in place of the origin's failure at `at` is allowed, else the rule that forbids it (4.2.4). */
export function mayServeOnError (steps, seen, at) {
  const { from, response } = storedAnswer(steps, seen, at)
  const { fields } = response
  if (!seen[at].contacts.some(({ status }) => status >= 500)) return 'the origin did not fail (4.2.4)'
  // The origin's own stale-if-error beside its s-maxage is taken at its word.
  const allowed = said(fields, 'stale-if-error') ? [] : ['s-maxage']
  const strict = ['no-cache', 'must-revalidate', 'proxy-revalidate', ...allowed].find(name => said(fields, name))
  if (strict) return `${strict}: not stale, whatever fails (4.2.4)`
  if (invalidatedBetween(steps, seen, from, at)) return 'invalidated (4.4)'
  const stale = firstAge(response) + (seen[at].at - seen[from].at) / 1000 - lifetime(response).is
  const most = Math.max(seconds(fields, 'stale-if-error') || 0, seconds(steps[at].request.fields, 'stale-if-error') || 0)
  return stale <= most + 1 ? null : 'stale-if-error has passed (RFC 5861, 4)'
}

function notFreshEnough (request, response, since) {
  const { fields } = response
  if (said(fields, 'no-cache')) return 'no-cache (5.2.2.4)'
  if (said(request.fields, 'no-cache')) return "the request's no-cache (5.2.1.4)"
  const age = firstAge(response) + since
  const left = lifetime(response).is - age
  const wanted = seconds(request.fields, 'max-age')
  if (wanted !== null && age > (wanted && wanted + 1)) return "the request's max-age (5.2.1.1)"
  const least = seconds(request.fields, 'min-fresh')
  if (least !== null && left < least - 1) return "the request's min-fresh (5.2.1.3)"
  // What never had a lifetime was never fresh; everything else is far from its end.
  if (left > -1 && lifetime(response).is > firstAge(response)) return null
  if (['must-revalidate', 'proxy-revalidate'].some(name => said(fields, name))) return 'stale and must be validated (4.2.4)'
  // s-maxage forbids stale use as proxy-revalidate does (5.2.2.10), but for what the origin itself allows beside it.
  const behind = seconds(fields, 'stale-while-revalidate')
  if (behind > 0 && -left <= behind + 1) return null
  if (said(fields, 's-maxage')) return 'stale in spite of s-maxage (5.2.2.10)'
  const accepted = directives(request.fields).find(([name]) => name === 'max-stale')
  if (accepted && (accepted[1] === null || -left <= Number(accepted[1]) + 1)) return null
  return 'stale (4.2.4)'
}
