// Random histories against Weir, Apache Traffic Server and Squid. Where Weir and a peer differ in whether they answer from
// the cache, in the status or in the body, one of explanations.mjs must say why Weir may, or the run fails.
//
//   node run.mjs WEIR [--seed S] [--cases N] [--case N] [--group N] [--peer squid|ats] [--mutant] [--verbose]
import { parseArgs } from 'node:util'
import { resolve } from 'node:path'
import { beside, pause, which } from '../lib/servers.mjs'
import { Client, serve } from '../lib/http.mjs'
import { Random } from '../lib/random.mjs'
import { mayReuse, mayServeOnError, said } from './rules.mjs'
import { explain, explanations } from './explanations.mjs'
import { history, line, written } from './histories.mjs'

/** How long the origin thinks: what came back sooner did not wait for it. */
const THINK_MS = 12

/** Longest that an answer may take. */
const ANSWER_MS = 5000

/** A validation, and a fetch where that confirmed nothing. */
const CONTACTS_MOST = 2

/** Share of histories in which the mutant tells one result of Weir's wrong. */
const MUTANT_SHARE = 0.1

/** Share of them that must be reported; the rest is what an explanation would excuse. */
const MUTANTS_FOUND = 0.8

const WEIR_CACHE = 'cache.enabled = true\ncache.client_directives = "honor"\ncache.cookies = "store"'

const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    seed: { type: 'string', default: '1' },
    cases: { type: 'string', default: '1000' },
    case: { type: 'string' },
    group: { type: 'string', default: '500' },
    peer: { type: 'string' },
    mutant: { type: 'boolean', default: false },
    verbose: { type: 'boolean', default: false }
  }
})

/** What the origin says to a request, by the history's answer for this step. */
function originAnswer (request, step, begin) {
  const { status, fields, content, ranges } = step.response
  const now = Date.now()
  const lines = fields.map(([name, value]) => [name, written(value, now, begin, content)])
  const body = `content ${String(content).padStart(3, '0')} of this`
  const one = name => lines.find(([other]) => other === name)?.[1]
  const [etag, modified] = [one('ETag'), one('Last-Modified')]
  if (status === 200 && (request.method === 'GET' || request.method === 'HEAD')) {
    const [match, since, range] = ['if-none-match', 'if-modified-since', 'range'].map(name => request.fields.get(name))
    const bare = text => text.trim().replace(/^W\//, '')
    const same = match !== undefined ? etag && (match === '*' || match.split(',').some(text => bare(text) === bare(etag)))
      : since && modified && Date.parse(since) >= Date.parse(modified)
    if (same) return { status: 304, lines, body: '' }
    const part = ranges && request.method === 'GET' && /^bytes=(\d*)-(\d*)$/.exec(range || '')
    const condition = request.fields.get('if-range')
    if (part && (!condition || condition === etag || condition === modified)) {
      const from = part[1] ? Number(part[1]) : body.length - Number(part[2])
      const to = part[1] && part[2] ? Math.min(Number(part[2]), body.length - 1) : body.length - 1
      if (from >= body.length) return { status: 416, lines: [...lines, ['Content-Range', `bytes */${body.length}`]], body: '' }
      if (from <= to) {
        return { status: 206, lines: [...lines, ['Content-Range', `bytes ${from}-${to}/${body.length}`]], body: body.slice(from, to + 1) }
      }
    }
  }
  return { status, lines, body }
}

/** Plays one history through one proxy: what came back at each step, and what the origin saw meanwhile. */
async function play (played, proxy) {
  const { steps } = played
  const begin = proxy.begin
  const seen = steps.map(() => ({ contacts: [] }))
  const at = { step: 0 }
  proxy.origin.set(played.number, async request => {
    const nth = at.step
    const [tag, since] = ['if-none-match', 'if-modified-since'].map(name => request.fields.get(name))
    const contact = {
      method: request.method,
      conditional: tag || since || null,
      answered: null
    }
    seen[nth].contacts.push(contact)
    const made = originAnswer(request, steps[nth], begin)
    made.lines.push(['X-Made', String(nth)])
    await pause(THINK_MS)
    contact.status = made.status
    contact.answered = performance.now()
    return made
  })
  const client = new Client(proxy.port)
  for (const [nth, step] of steps.entries()) {
    await pause(step.pauseMs)
    at.step = nth
    const lines = step.request.fields.map(([name, value]) => [name, written(value, Date.now(), begin)])
    const target = `/${proxy.name}/${played.number}`
    const body = ['POST', 'PUT', 'PATCH'].includes(step.request.method) ? 'x' : ''
    const timer = setTimeout(() => client.socket?.destroy(new Error(`no answer within ${ANSWER_MS} ms`)), ANSWER_MS)
    try {
      const answer = await client.request(step.request.method, target, [['Host', 'origin.example'], ...lines], body)
      const ended = performance.now()
      const waited = seen[nth].contacts.filter(({ answered }) => answered !== null && answered <= ended)
      Object.assign(seen[nth], {
        cached: waited.length === 0,
        ended,
        status: answer.status,
        // A peer's own error pages differ in their text, and are no content.
        body: /^content \d/.test(answer.body) || answer.status === 206 ? answer.body.latin1Slice() : '',
        age: answer.fields.get('age') ?? null,
        made: answer.fields.has('x-made') ? Number(answer.fields.get('x-made')) : null,
        at: Date.now() - begin,
        says: answer.fields.get('cache-status') || answer.fields.get('x-cache') || ''
      })
    } catch (error) {
      client.close()
      Object.assign(seen[nth], { cached: false, ended: performance.now(), status: 0, body: '', age: null, made: null, at: Date.now() - begin, says: error.message })
    }
    clearTimeout(timer)
  }
  client.close()
  proxy.origin.delete(played.number)
  return seen
}

const differs = (one, other) => one.cached !== other.cached || one.status !== other.status || one.body !== other.body

/** What Weir did that it must not, whatever the peers do: the first use of a stored answer that rules.mjs forbids. */
function forbidden (played, weir) {
  for (let at = 0; at < weir.length; at++) {
    const { cached, made, contacts } = weir[at]
    const old = !cached && made !== null && made < at && !contacts.some(({ status }) => status === 304)
    if (weir[at].status === 0) return { history: played, at, weir, peer: weir, name: 'weir', reason: weir[at].says, why: null }
    const waited = contacts.filter(({ answered }) => answered !== null && answered <= weir[at].ended)
    if (waited.length > CONTACTS_MOST) {
      return { history: played, at, weir, peer: weir, name: 'weir', reason: `asked the origin ${waited.length} times`, why: null }
    }
    const { method, fields } = played.steps[at].request
    if (waited.length > 0 && said(fields, 'only-if-cached') && ['GET', 'HEAD'].includes(method)) {
      return { history: played, at, weir, peer: weir, name: 'weir', reason: 'only-if-cached: asked the origin (5.2.1.7)', why: null }
    }
    if (!cached && !old) continue
    const why = old ? mayServeOnError(played.steps, weir, at) : mayReuse(played.steps, weir, at)
    if (why !== null) return { history: played, at, weir, peer: weir, name: 'weir', reason: why, why: null }
  }
  return null
}

/** Compares until the first difference: behind it the two caches hold different things. */
function compare (played, weir, peer, name, until = played.steps.length) {
  for (let at = 0; at < until; at++) {
    if (!differs(weir[at], peer[at])) continue
    const difference = { history: played, at, weir, peer, name, step: played.steps[at] }
    return { agreed: at, ...difference, why: explain(difference) }
  }
  return { agreed: until }
}

const told = seen => `${seen.cached ? 'cache ' : 'origin'} ${seen.status} ${JSON.stringify(seen.body)}` +
  `${seen.age === null ? '' : ` Age ${seen.age}`}` +
  `${seen.contacts.map(({ method, conditional, status }) => ` [${method}${conditional ? ` if ${conditional}` : ''} -> ${status}]`).join('')}` +
  `${seen.says ? ` (${seen.says})` : ''}`

function print ({ history: played, at, weir, peer, name, why, reason }, seed) {
  const what = reason ? `FORBIDDEN: weir: ${reason},` : `${why ? why.name : 'UNEXPLAINED'}: weir and ${name} differ`
  console.log(`\n${what} in request ${at + 1}; replay: --seed ${seed} --case ${played.number} --verbose`)
  played.steps.slice(0, at + 1).forEach((step, nth) => {
    const { request, response } = step
    console.log(`  ${nth + 1}. after ${step.pauseMs} ms: ${[request.method, ...request.fields.map(field => line(field))].join(' | ')}`)
    console.log(`     origin would say: ${[response.status, ...response.fields.map(field => line(field, response.content)), `content ${response.content}`].join(' | ')}`)
    console.log(`     weir  ${told(weir[nth])}`)
    if (!reason) console.log(`     ${name.padEnd(5)} ${told(peer[nth])}`)
  })
}

/** Tells one result of some histories wrong, so that the comparison has something to find. */
function mutate (random, seen) {
  if (!random.chance(MUTANT_SHARE)) return null
  const at = random.below(seen.length)
  const change = random.pick(['cached', 'status', 'body'])
  if (change === 'cached') seen[at].cached = !seen[at].cached
  if (change === 'status') seen[at].status = seen[at].status === 200 ? 203 : 200
  if (change === 'body') seen[at].body += '?'
  return at
}

async function main () {
  const binary = resolve(positionals[0] || 'target/release/weir')
  const programs = { ats: which('traffic_server'), squid: which('squid') }
  const names = Object.keys(programs).filter(name => programs[name] && (!options.peer || options.peer === name))
  if (names.length === 0) {
    console.log('differential: SKIPPED: neither traffic_server nor squid is installed (Debian: trafficserver, squid)')
    return true
  }
  const seed = options.seed
  const numbers = options.case ? [Number(options.case)] : Array.from({ length: Number(options.cases) }, (_, nth) => nth)
  return beside('differential', async servers => {
    const players = new Map()
    const origin = await serve(request => {
      const [, name, number] = request.target.split('/')
      const player = players.get(name)?.get(Number(number))
      return player ? player(request) : { status: 404, lines: [], body: '' }
    })
    try {
      const proxies = [{ name: 'weir', ...await servers.weir(binary, origin.port, { cache: WEIR_CACHE }) }]
      if (names.includes('ats')) proxies.push({ name: 'ats', ...await servers.trafficServer(programs.ats, origin.port) })
      if (names.includes('squid')) proxies.push({ name: 'squid', ...await servers.squid(programs.squid, origin.port) })
      for (const proxy of proxies) players.set(proxy.name, proxy.origin = new Map())
      return await run(proxies, numbers, seed)
    } finally {
      origin.close()
    }
  })
}

async function run (proxies, numbers, seed) {
  const [, ...peers] = proxies
  const counts = { exchanges: 0, hits: 0, forbidden: 0, reasons: new Map(), peers: new Map(peers.map(({ name }) => [name, { agreed: 0, explained: new Map(), unexplained: 0 }])) }
  const mutants = { made: 0, found: 0 }
  for (let from = 0; from < numbers.length; from += Number(options.group)) {
    const group = numbers.slice(from, from + Number(options.group)).map(number => history(seed, number))
    const begin = Date.now()
    proxies.forEach(proxy => { proxy.begin = begin })
    const played = await Promise.all(group.map(async (one, nth) => {
      // Not all in one instant.
      await pause(nth * 4)
      return Promise.all(proxies.map(proxy => play(one, proxy)))
    }))
    for (const [nth, [weir, ...others]] of played.entries()) {
      counts.exchanges += proxies.length * weir.length
      counts.hits += weir.filter(({ cached, status }) => cached && status !== 504).length
      const wrong = forbidden(group[nth], weir)
      if (wrong) {
        counts.forbidden++
        counts.reasons.set(wrong.reason, (counts.reasons.get(wrong.reason) || 0) + 1)
        print(wrong, seed)
      }
      const before = options.mutant ? structuredClone(weir) : weir
      const mutant = options.mutant ? mutate(new Random('mutant', seed, group[nth].number), weir) : null
      let reported = false
      for (const [at, other] of others.entries()) {
        const count = counts.peers.get(peers[at].name)
        const result = compare(group[nth], weir, other, peers[at].name, wrong?.at)
        count.agreed += result.agreed
        if (result.why) count.explained.set(result.why.name, (count.explained.get(result.why.name) || 0) + 1)
        else if (result.weir) count.unexplained++
        if (result.weir && !result.why && mutant !== null) reported = true
        if (result.weir && ((!result.why && mutant === null) || options.verbose)) print(result, seed)
      }
      // One whose history had parted from both peers before it cannot be seen.
      const visible = mutant !== null && others.some((other, at) => compare(group[nth], before, other, peers[at].name).agreed > mutant)
      if (visible) {
        mutants.made++
        if (reported) mutants.found++
      }
    }
  }
  return summary(counts, numbers.length, seed, mutants)
}

function summary ({ exchanges, hits, forbidden, reasons, peers }, cases, seed, mutants) {
  console.log(`\ndifferential: seed ${seed}, ${cases} histories, ${exchanges} exchanges; ${hits} answers from Weir's cache`)
  console.log(`weir: ${forbidden} histories with what is forbidden`)
  ;[...reasons].forEach(([reason, times]) => console.log(`  ${String(times).padStart(5)}  ${reason}`))
  let unexplained = 0
  for (const [name, count] of peers) {
    const explained = [...count.explained.values()].reduce((sum, one) => sum + one, 0)
    console.log(`${name}: ${count.agreed} answers alike, ${explained} histories part for a named reason, ${count.unexplained} for none`)
    unexplained += count.unexplained
    for (const { name: why, says } of explanations) {
      if (count.explained.has(why)) console.log(`  ${String(count.explained.get(why)).padStart(5)}  ${why}: ${says}`)
    }
  }
  if (!options.mutant) return unexplained + forbidden === 0
  console.log(`mutant: ${mutants.found} of ${mutants.made} results told wrong were reported, at least ${MUTANTS_FOUND * 100}% are wanted`)
  return mutants.made > 0 && mutants.found >= mutants.made * MUTANTS_FOUND
}

process.exitCode = await main() ? 0 : 1
