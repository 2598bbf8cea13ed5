// Random exchanges through a fleet of two Weirs on a Redis of its own, or one Weir with memory only: concurrent clients, an
// origin that remembers what it said, and an observer that holds every answer against what RFC 9111 forbids.
//
//   node run.mjs WEIR [--mode fleet|memory] [--count N] [--seed S] [--clients N] [--mutant NAME | --mutants]
import { parseArgs } from 'node:util'
import { resolve } from 'node:path'
import { spawnSync } from 'node:child_process'
import { beside, pause } from '../lib/servers.mjs'
import { Client, httpDate } from '../lib/http.mjs'
import { Random } from '../lib/random.mjs'
import { Origin, USERS } from './origin.mjs'
import { against, failed, malformed } from './observer.mjs'
import { expected, lies, relays } from './mutants.mjs'

/** Exchanges after which the clients go on to other pages, and pages of them at a time. */
const CHAPTER = 40_000
const PAGES = 300

/** Reports printed in full. */
const PRINTED = 12

/** Longest that one exchange may take. */
const ANSWER_MS = 20_000

const WEIR_CACHE = 'cache.enabled = true\ncache.client_directives = "honor"'

/** Least of each kind that a run must have seen, in a thousand exchanges. */
const MINIMA = {
  hits: 150, stale: 1, collapsed: 1, confirmed: 10, 304: 10, 206: 8, 416: 0.5, varied: 10, 'of a user': 10, 'HEAD hits': 2, own: 100,
  writes: 8, 'own errors': 0.05
}
const FLEET_MINIMA = { elsewhere: 50 }

const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    mode: { type: 'string', default: 'fleet' },
    count: { type: 'string', default: '20000' },
    seed: { type: 'string', default: '1' },
    clients: { type: 'string', default: '32' },
    mutant: { type: 'string' },
    mutants: { type: 'boolean', default: false }
  }
})

/** The exchange with this number: what is asked, of which page. */
function exchange (seed, number, origin) {
  const random = new Random('exchange', seed, number)
  const chapter = Math.floor(number / CHAPTER)
  const target = `/${chapter}/${Math.floor(PAGES * random.next() ** 2.5)}${random.chance(0.5) ? '' : '?q=1'}`
  const page = origin.page(target)
  const method = random.weighted([[90, 'GET'], [4, 'HEAD'], [1, 'PUT'], [0.7, 'POST'], [0.3, 'DELETE']])
  const user = random.pick(USERS)
  const fields = random.weighted([[6, {}], [2, { authorization: `Bearer ${user}` }], [2, { cookie: `user=${user}` }], [0.3, { authorization: `Bearer ${user}`, cookie: `user=${user}` }]])
  if (random.chance(0.6)) fields['accept-language'] = random.pick(['de', 'en', 'fr'])
  if (random.chance(0.6)) fields['x-variant'] = random.pick(['a', 'b'])
  const wants = random.weighted([
    [93, {}], [1, { 'no-cache': true }], [1, { 'no-store': true }], [1, { 'max-age': random.pick([0, 1]) }], [1, { 'max-stale': random.pick([2, 100]) }], [1, { 'min-fresh': 2 }],
    [1, { 'only-if-cached': true }]
  ])
  const conditions = {}
  const known = page.seen.length > 0 && random.chance(0.25) ? random.pick(page.seen) : null
  if (known && random.chance(0.7)) {
    if (known.etag) conditions.tags = random.chance(0.1) ? '"other"' : known.etag
    else if (known.modified) conditions.since = known.modified
  }
  if (method === 'GET' && random.chance(0.08)) {
    conditions.range = random.weighted([[6, { from: 0, to: 9 }], [3, { from: 5 }], [2, { from: 3, to: 100_000 }], [1, { from: 100_000 }]])
    if (known && random.chance(0.5)) conditions.ifRange = known.etag || known.modified || undefined
  }
  return { id: `x${number}`, number, target, page, method, fields, wants, conditions }
}

function linesOf ({ id, pod, method, fields, wants, conditions }) {
  const lines = [['Host', 'site.example'], ['X-Request', id], ['X-Pod', String(pod)], ...Object.entries(fields)]
  const directives = Object.entries(wants).map(([name, value]) => value === true ? name : `${name}=${value}`)
  if (directives.length) lines.push(['Cache-Control', directives.join(', ')])
  if (method !== 'GET' && method !== 'HEAD') return lines
  const { tags, since, range, ifRange } = conditions
  if (tags) lines.push(['If-None-Match', tags])
  if (since) lines.push(['If-Modified-Since', since])
  if (range) lines.push(['Range', `bytes=${range.from}-${range.to ?? ''}`])
  if (ifRange) lines.push(['If-Range', ifRange])
  return lines
}

class Run {
  constructor (origin, pods, relay) {
    Object.assign(this, { origin, pods, relay, next: 0, done: 0, found: new Map(), printed: 0 })
    this.counts = Object.fromEntries([...Object.keys(MINIMA), 'elsewhere', 'only-if-cached'].map(name => [name, 0]))
  }

  async client (nth, count) {
    const connections = this.pods.map(port => new Client(port))
    while (this.next < count) {
      const number = this.next++
      if (number % CHAPTER === 0) this.origin.forget(target => Number(target.split('/')[1]) < number / CHAPTER - 1)
      const request = exchange(options.seed, number, this.origin)
      request.pod = (nth + number) % this.pods.length
      await this.one(request, connections[request.pod])
    }
    connections.forEach(connection => connection.close())
  }

  async one (request, connection) {
    const lines = linesOf(request)
    request.start = Date.now()
    const timer = setTimeout(() => connection.socket?.destroy(new Error(`no answer within ${ANSWER_MS} ms`)), ANSWER_MS)
    try {
      const seen = await connection.request(request.method, request.target, lines, ['PUT', 'POST'].includes(request.method) ? 'x' : '')
      request.end = Date.now()
      const why = this.judge(request, this.relay(request, seen))
      if (why) this.report(request, seen, why)
    } catch (error) {
      request.end = Date.now()
      connection.close()
      this.report(request, { status: 0, lines: [], fields: new Map(), body: Buffer.alloc(0) }, `broken: ${error.message}`)
    }
    clearTimeout(timer)
    this.done++
  }

  judge (request, seen) {
    const { page, wants } = request
    const written = seen.fields.get('x-written')
    if (request.method !== 'GET' && request.method !== 'HEAD') {
      if (!written) return this.ownError(request, seen)
      const [id, version, is] = written.split(' ')
      if (id !== request.id) return "another's answer to a write"
      this.counts.writes++
      if (is === 'new') page.writes.push({ version: Number(version), pod: request.pod, done: request.end })
      return null
    }
    if (written) return "a write's answer to a read"
    const answers = this.candidates(page, seen)
    if (answers.length === 0) {
      if (seen.status === 504 && wants['only-if-cached']) {
        this.counts['only-if-cached']++
        return null
      }
      return this.ownError(request, seen)
    }
    let why
    for (const answer of answers) {
      why = malformed(request, answer, seen) || against(request, answer, seen, this.counts)
      if (!why) {
        if (seen.status in this.counts) this.counts[seen.status]++
        if (seen.status === 200) page.seen = [answer, ...page.seen.slice(0, 5)]
        return null
      }
    }
    return why
  }

  /** Which answers this may be: the one that it names, or all that a 304 or 416 without a name can mean. */
  candidates (page, { status, fields }) {
    const named = fields.get('x-answer') || /"a(\d+)"/.exec(fields.get('etag') || '')?.[1]
    if (named) return [this.origin.answers.get(Number(named))].filter(Boolean)
    if (status === 304) return page.answers.filter(({ modified }) => modified && modified === (fields.get('last-modified') || modified))
    return status === 416 ? page.answers : []
  }

  /** Weir's own 502, 503 and 504 are right only while the origin fails. */
  ownError (request, { status }) {
    this.counts['own errors']++
    return failed(request) && [502, 503, 504].includes(status) ? null : `${status} of Weir's own without a failure, or an answer that nobody made`
  }

  report (request, seen, why) {
    const kind = why.replace(/\d+/g, 'N')
    this.found.set(kind, (this.found.get(kind) || 0) + 1)
    if (this.found.get(kind) > 2 || this.printed++ >= PRINTED) return
    const { page, start, end } = request
    const ago = at => `${((at - start) / 1000).toFixed(3)} s`
    console.log(`\nVIOLATION: ${why}\n  ${request.method} ${request.target} of ${page.kind}, pod ${request.pod}, took ${end - start} ms: ${linesOf(request).slice(1).map(line => line.join(': ')).join(' | ')}`)
    console.log(`  answer ${seen.status}: ${seen.lines.map(line => line.join(': ')).join(' | ')}`)
    const answer = this.origin.answers.get(Number(seen.fields.get('x-answer')))
    if (answer) {
      console.log(`  made ${answer.number}, version ${answer.version} for ${answer.asker.id} of pod ${answer.asker.pod}: ${JSON.stringify(answer.asker)}`)
      answer.events.forEach(({ at, asker, says }) => console.log(`    ${ago(at)} for ${asker.id} of pod ${asker.pod}${asker.authorization ? ', authorised' : ''}: ${JSON.stringify(says)}`))
    }
    page.writes.slice(-3).forEach(({ version, pod, done }) => console.log(`  write of version ${version} by pod ${pod} done at ${ago(done)}`))
    page.failures.slice(-2).forEach(({ from, to }) => console.log(`  the origin failed from ${ago(from)} to ${ago(to)}`))
  }
}

async function play (binary) {
  const count = Number(options.count)
  return beside('exchanges', async servers => {
    const origin = new Origin(options.seed, lies[options.mutant] || (says => says))
    const port = await origin.open()
    try {
      const redis = options.mode === 'fleet' ? await servers.redis() : null
      const rest = redis ? `[redis]\nurl = "redis://127.0.0.1:${redis}/0"\nnamespace = "exchanges"\ndeadline = "500ms"` : ''
      const pods = []
      for (let nth = 0; nth < (redis ? 2 : 1); nth++) pods.push((await servers.weir(binary, port, { cache: WEIR_CACHE, rest })).port)
      const run = new Run(origin, pods, (relays[options.mutant] || (() => (request, seen) => seen))())
      const began = Date.now()
      const progress = setInterval(() => console.log(`${run.done} of ${count} after ${Math.round((Date.now() - began) / 1000)} s`), 60_000)
      await Promise.all(Array.from({ length: Number(options.clients) }, (_, nth) => run.client(nth, count)))
      clearInterval(progress)
      // What runs behind an answer may end.
      await pause(100)
      return summary(run, count, (Date.now() - began) / 1000)
    } finally {
      origin.close()
    }
  })
}

function summary (run, count, seconds) {
  const { counts, found } = run
  console.log(`\nexchanges: ${options.mode}, seed ${options.seed}: ${count} in ${seconds.toFixed(1)} s, ${Math.round(count / seconds)} a second; the origin saw ${run.origin.requests}`)
  console.log(`  seen: ${Object.entries(counts).map(([name, seen]) => `${seen} ${name}`).join(', ')}`)
  const minima = { ...MINIMA, ...(options.mode === 'fleet' ? FLEET_MINIMA : {}) }
  const few = Object.entries(minima).filter(([name, least]) => counts[name] < least * count / 1000)
  few.forEach(([name, least]) => console.log(`  TOO FEW: ${counts[name]} ${name}, at least ${least * count / 1000} are wanted: no violation among none proves nothing`))
  const violations = [...found.values()].reduce((sum, one) => sum + one, 0)
  console.log(`  ${violations} violations`)
  ;[...found].sort((one, other) => other[1] - one[1]).slice(0, 30).forEach(([kind, times]) => console.log(`  ${String(times).padStart(7)}  ${kind}`))
  return violations === 0 && few.length === 0
}

/** Every mutant, each in a run of its own, must be caught. */
function playMutants (binary) {
  let caught = 0
  const names = [...Object.keys(lies), ...Object.keys(relays)]
  for (const name of names) {
    const args = [process.argv[1], binary, '--mode', options.mode, '--count', options.count, '--seed', options.seed, '--mutant', name]
    const { status, stdout } = spawnSync(process.execPath, args, { encoding: 'utf8', maxBuffer: 1 << 26 })
    const found = [...stdout.matchAll(/^ {2,}(\d+) {2}(.*)$/gm)].filter(([, , kind]) => expected[name].test(kind))
    const isCaught = status === 1 && found.length > 0
    console.log(`${isCaught ? 'caught' : 'MISSED'}  ${name}: ${found.slice(0, 3).map(([, times, kind]) => `${times} ${kind}`).join('; ')}`)
    if (isCaught) caught++
  }
  console.log(`${caught} of ${names.length} mutants caught`)
  return caught === names.length
}

const binary = resolve(positionals[0] || 'target/release/weir')
process.exitCode = (options.mutants ? playMutants(binary) : await play(binary)) ? 0 : 1
