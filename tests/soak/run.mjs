// Two Weirs on a Redis, mixed traffic, and a fault every few seconds, for as long as asked: memory and descriptors must stay
// level, every answer must be of what was asked, and nothing may fail that no fault explains.
//
//   node run.mjs WEIR [--minutes 60] [--seed 1] [--clients 24] [--fault-every 20]
import { parseArgs } from 'node:util'
import { resolve } from 'node:path'
import { readFileSync, readdirSync } from 'node:fs'
import { Agent, createServer, request } from 'node:http'
import { connect as connectHttp2 } from 'node:http2'
import { once } from 'node:events'
import { beside, freePort, pause } from '../lib/servers.mjs'
import { Random } from '../lib/random.mjs'

const KIB = 1024
const MIB = 1024 * KIB

/** What each Weir may hold: the memory tier and what fetches hold together. */
const BUDGET = (64 + 16) * MIB

/** L3: beyond what it takes to run at all, no more than this times the budget. */
const OVER_BUDGET = 1.2

/** How far the last quarter's memory may be above the second's, and its descriptors. */
const LEVEL = 1.1
const LEVEL_SPARE = 4 * MIB
const SPARE_FILES = 24

const SAMPLE_MS = 2000

/** How long after a fault of the service, or of Redis, an answer of 502, 503 or 504 is its. */
const AFTERMATH_MS = 6000

/** Longest that an answer may take. */
const ANSWER_MS = 20_000

const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    minutes: { type: 'string', default: '60' },
    seed: { type: 'string', default: '1' },
    clients: { type: 'string', default: '24' },
    'fault-every': { type: 'string', default: '20' }
  }
})
const LENGTH_MS = Number(options.minutes) * 60_000
const FAULT_MS = Number(options['fault-every']) * 1000

const CONFIG = {
  rest: '[server.limits]\nbody_idle = "5s"\nhead_timeout = "5s"\n[cache]\nmemory = "64MiB"\nfill_memory = "16MiB"\n',
  cache: 'cache.enabled = true\ncache.ttl = "3s"\ncache.stale_while_revalidate = "5s"\ncache.stale_if_error = "1m"\ncache.tags = ["all"]\n' +
    '[[route]]\nname = "past"\npath = "/past/{*path}"\n' +
    '[[route]]\nname = "limited"\npath = "/limited"\nlimits = [{ name = "few", key = ["route"], rate = "5/s", burst = 5 }]\n'
}

const counts = new Map()
const count = (what, by = 1) => counts.set(what, (counts.get(what) ?? 0) + by)
const wrong = []
function report (what) {
  count('wrong')
  if (wrong.length < 20) { wrong.push(what); console.log(`WRONG ${what}`) }
}

/** The bytes behind a path: its name again and again, so that one cannot pass for another. */
function bytesOf (path) {
  const number = Number(/\d+/.exec(path)?.[0] ?? 0)
  const length = path.startsWith('/big') ? MIB : 200 + (number * 7919) % (20 * KIB)
  return Buffer.alloc(length, `${path} `)
}

class Service {
  constructor () {
    this.mode = 'fine'
    this.server = createServer((request, response) => this.answer(request, response))
    this.server.keepAliveTimeout = 60_000
  }

  async listen (port = 0) {
    this.server.listen(port, '127.0.0.1')
    await once(this.server, 'listening')
    this.port = this.server.address().port
  }

  answer (request, response) {
    count('reached the service')
    let length = 0
    request.on('data', bytes => { length += bytes.length })
    request.on('error', () => {})
    request.on('end', () => {
      if (this.mode === 'errors') { response.statusCode = 503; return response.end('down') }
      if (this.mode === 'resets') return request.socket.destroy()
      if (request.method === 'POST') return response.end(String(length))
      const path = request.url.split('?')[0]
      const body = bytesOf(path)
      response.setHeader('etag', `"${path}"`)
      if (request.headers['if-none-match'] === `"${path}"`) { response.statusCode = 304; return response.end() }
      if (path.length % 2) response.setHeader('content-length', body.length)
      response.end(body)
    })
  }
}

/** When the last fault was over, and whether one is on. */
const trouble = { on: false, over: 0 }
const explained = began => trouble.on || trouble.over + AFTERMATH_MS > began

class Clients {
  constructor (weirs, seed) {
    Object.assign(this, { weirs, seed, next: 0, over: false, sessions: new Map() })
    this.agent = new Agent({ keepAlive: true, maxSockets: 256 })
  }

  exchange (number) {
    const random = new Random('soak', this.seed, number)
    const page = Math.floor(20_000 * random.next() ** 3)
    return random.weighted([
      [55, { what: 'cached', path: `/c/${page}` }], [10, { what: 'past', path: `/past/${page}` }], [5, { what: 'big', path: `/big/${page % 40}` }],
      [5, { what: 'range', path: `/c/${page}`, fields: { range: `bytes=${random.below(100)}-${100 + random.below(5000)}` } }],
      [5, { what: 'condition', path: `/c/${page}`, fields: { 'if-none-match': `"/c/${page}"` } }],
      [8, { what: 'upload', path: `/past/${page}`, method: 'POST', body: Buffer.alloc(random.below(200 * KIB), 'u') }],
      [4, { what: 'limited', path: '/limited' }], [3, { what: 'leaves', path: `/big/${page % 40}`, leaves: true }], [1, { what: 'slow', path: `/big/${page % 40}`, slow: true }],
      [10, { what: 'http2', path: `/c/${page}`, http2: true }], [1, { what: 'invalidates', path: '/invalidate' }]
    ])
  }

  async one (number) {
    const asked = { ...this.exchange(number) }
    asked.weir = new Random('pod', this.seed, number).pick(this.weirs)
    const began = Date.now()
    count(asked.what)
    const answer = await (asked.what === 'invalidates' ? this.invalidate(asked) : asked.http2 ? this.overHttp2(asked) : this.overHttp1(asked))
    if (asked.leaves || (asked.slow && answer.error)) return
    const late = Date.now() - began
    const inTrouble = explained(began)
    if (answer.error) {
      if (!inTrouble) report(`${asked.what} ${asked.path}: ${answer.error}`)
      return count('failed in a fault')
    }
    if (late > ANSWER_MS) report(`${asked.what} ${asked.path}: took ${late} ms`)
    if (asked.what === 'invalidates') return
    if (answer.status >= 500) {
      if (!inTrouble) report(`${asked.what} ${asked.path}: ${answer.status}`)
      return count('5xx in a fault')
    }
    count(`status ${answer.status}`)
    if (/\bhit\b/.test(answer.cacheStatus ?? '')) count('hits')
    this.check(asked, answer)
  }

  check ({ what, path, method, body, fields }, { status, bytes }) {
    const whole = what === 'limited' ? null : bytesOf(path)
    const fine = method === 'POST'
      ? status === 200 && bytes.toString() === String(body.length)
      : what === 'limited'
        ? status === 200 || status === 429
        : status === 200
          ? bytes.equals(whole)
          : status === 206
            ? fields?.range && isPart(whole, fields.range, bytes)
            : (status === 304 && fields?.['if-none-match'] && bytes.length === 0) || (status === 416 && fields?.range)
    if (!fine) report(`${what} ${path}: ${status} with ${bytes.length} bytes`)
  }

  overHttp1 ({ weir, path, method = 'GET', fields = {}, body, leaves, slow }) {
    return new Promise(resolve => {
      const asked = request({ host: '127.0.0.1', port: weir.port, path, method, headers: { host: 'soak.example', ...fields, ...(body ? { 'content-length': body.length } : {}) }, agent: this.agent, timeout: ANSWER_MS })
      asked.on('error', error => resolve({ error: error.code ?? error.message }))
      asked.on('timeout', () => asked.destroy(new Error('timeout')))
      asked.on('response', answer => {
        const parts = []
        answer.on('error', error => resolve({ error: error.code ?? error.message }))
        answer.on('data', part => {
          parts.push(part)
          if (leaves) { asked.destroy(); resolve({}) }
          if (slow) { answer.pause(); setTimeout(() => answer.resume(), 100) }
        })
        answer.on('end', () => resolve({ status: answer.statusCode, cacheStatus: answer.headers['cache-status'], bytes: Buffer.concat(parts) }))
      })
      asked.end(body)
    })
  }

  session (weir) {
    let session = this.sessions.get(weir.port)
    if (!session || session.closed || session.destroyed) {
      session = connectHttp2(`http://127.0.0.1:${weir.port}`)
      session.on('error', () => {})
      this.sessions.set(weir.port, session)
    }
    return session
  }

  overHttp2 ({ weir, path }) {
    return new Promise(resolve => {
      const stream = this.session(weir).request({ ':path': path, ':authority': 'soak.example' })
      const parts = []
      let head
      stream.setTimeout(ANSWER_MS, () => stream.close())
      stream.on('error', error => resolve({ error: error.code ?? error.message }))
      stream.on('response', fields => { head = fields })
      stream.on('data', part => parts.push(part))
      stream.on('end', () => resolve(head ? { status: head[':status'], cacheStatus: head['cache-status'], bytes: Buffer.concat(parts) } : { error: 'no head' }))
    })
  }

  async invalidate ({ weir }) {
    const order = JSON.stringify({ prefixes: ['/c/1'] })
    try {
      const answer = await fetch(`http://127.0.0.1:${weir.admin}/invalidate`, { method: 'POST', body: order, signal: AbortSignal.timeout(ANSWER_MS) })
      await answer.arrayBuffer()
      return answer.status < 300 ? {} : { error: `invalidation: ${answer.status}` }
    } catch (error) {
      return { error: `invalidation: ${error.message}` }
    }
  }

  async loop () {
    while (!this.over) await this.one(this.next++)
  }

  end () {
    this.over = true
  }

  close () {
    this.agent.destroy()
    for (const session of this.sessions.values()) session.destroy()
  }
}

function isPart (whole, range, bytes) {
  const [, from, to] = /bytes=(\d+)-(\d+)/.exec(range).map(Number)
  return bytes.equals(whole.subarray(from, to + 1))
}

const resident = pid => Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))[1]) * KIB
const files = pid => readdirSync(`/proc/${pid}/fd`).length
const mib = bytes => `${(bytes / MIB).toFixed(1)} MiB`
const median = numbers => [...numbers].sort((a, b) => a - b)[Math.floor(numbers.length / 2)]

async function metric (weir, wanted) {
  const page = await (await fetch(`http://127.0.0.1:${weir.admin}/metrics`)).text()
  return page.split('\n').filter(line => line.startsWith(wanted)).reduce((sum, line) => sum + Number(line.split(' ').at(-1)), 0)
}

/** Each is on for a while, and over when it returns. */
function faults (servers, service, redis, weirs) {
  const frozen = async ms => { redis.child.kill('SIGSTOP'); await pause(ms); redis.child.kill('SIGCONT') }
  return [
    ['Redis is frozen', () => frozen(2000)],
    ['Redis is killed and comes back empty', async () => { await servers.stop(redis.child); await pause(1000); await redis.start() }],
    ['the service answers with errors', async () => { service.mode = 'errors'; await pause(2000); service.mode = 'fine' }],
    ['the service resets connections', async () => { service.mode = 'resets'; await pause(1000); service.mode = 'fine' }],
    ['the service is down', async () => {
      service.server.close()
      service.server.closeAllConnections()
      await pause(1000)
      await service.listen(service.port)
    }],
    ['configurations are reloaded', async () => { weirs.forEach(({ pid }) => process.kill(pid, 'SIGHUP')) }]
  ]
}

function judge (weirs, samples, before) {
  const failures = []
  const check = (name, holds, figures) => { console.log(`${holds ? 'ok    ' : 'FAILED'} ${name}: ${figures}`); if (!holds) failures.push(name) }
  weirs.forEach((weir, at) => {
    const of = samples.map(sample => sample[at])
    const quarter = n => of.slice(Math.floor(of.length * n / 4), Math.floor(of.length * (n + 1) / 4))
    const [second, last] = [quarter(1), quarter(3)]
    const most = Math.max(...of.map(({ resident }) => resident))
    const bound = before[at].resident + OVER_BUDGET * BUDGET
    check(`pod ${at}: memory is within its budget`, most <= bound, `most ${mib(most)}, bound ${mib(bound)}, ${mib(before[at].resident)} before`)
    const [early, late] = [second, last].map(part => median(part.map(({ resident }) => resident)))
    check(`pod ${at}: memory is level`, late <= LEVEL * early + LEVEL_SPARE, `median ${mib(early)} in the second quarter, ${mib(late)} in the last`)
    const [some, end] = [second, last].map(part => Math.max(...part.map(({ files }) => files)))
    check(`pod ${at}: descriptors are level`, end <= some + SPARE_FILES, `most ${some} in the second quarter, ${end} in the last`)
  })
  return { check, failures }
}

async function soak (servers) {
  const service = new Service()
  await service.listen()
  const redis = { port: await freePort() }
  redis.start = async () => {
    redis.child = servers.start('redis-server', ['--port', String(redis.port), '--bind', '127.0.0.1', '--save', '', '--appendonly', 'no', '--loglevel', 'warning', '--maxmemory', '256mb', '--maxmemory-policy', 'volatile-lru'])
    await servers.opened(redis.child, redis.port)
  }
  await redis.start()
  const rest = `${CONFIG.rest}[redis]\nurl = "redis://127.0.0.1:${redis.port}/0"\nnamespace = "soak"\n`
  const binary = resolve(positionals[0] ?? 'target/release/weir')
  const weirs = [await servers.weir(binary, service.port, { ...CONFIG, rest }), await servers.weir(binary, service.port, { ...CONFIG, rest })]
  const look = () => weirs.map(({ pid }) => ({ resident: resident(pid), files: files(pid) }))
  const before = look()
  const samples = []
  const watch = setInterval(() => samples.push(look()), SAMPLE_MS)
  const clients = new Clients(weirs, Number(options.seed))
  const loops = Array.from({ length: Number(options.clients) }, () => clients.loop())
  const began = Date.now()
  const kinds = faults(servers, service, redis, weirs)
  for (let n = 0; Date.now() - began < LENGTH_MS; n++) {
    await pause(Math.min(FAULT_MS, LENGTH_MS - (Date.now() - began)))
    if (Date.now() - began >= LENGTH_MS) break
    const [name, fault] = kinds[n % kinds.length]
    count(`fault: ${name}`)
    trouble.on = true
    await fault()
    Object.assign(trouble, { on: false, over: Date.now() })
  }
  clients.end()
  await Promise.all(loops)
  clearInterval(watch)
  clients.close()
  // Connections that nobody uses go within the idle time of either side.
  await pause(6000)
  const after = look()
  const { check, failures } = judge(weirs, samples, before)
  weirs.forEach((_, at) => check(`pod ${at}: descriptors are given back`, after[at].files <= before[at].files + SPARE_FILES, `${before[at].files} before, ${after[at].files} after`))
  for (const name of ['weir_panics_total', 'weir_accept_errors_total', 'weir_requests_in_flight']) {
    const sum = (await Promise.all(weirs.map(weir => metric(weir, name)))).reduce((a, b) => a + b, 0)
    check(name, sum === 0, sum)
  }
  for (const [least, what] of [[100, 'hits'], [10, 'status 304'], [10, 'status 206'], [1, 'status 429'], [10, 'http2'], [3, 'invalidates'], [1, 'leaves']]) {
    check(`enough was seen: ${what}`, (counts.get(what) ?? 0) >= least, counts.get(what) ?? 0)
  }
  check('nothing failed that no fault explains', wrong.length === 0, `${counts.get('wrong') ?? 0} of ${clients.next}`)
  console.log([...counts].sort(([a], [b]) => a < b ? -1 : 1).map(([what, times]) => `${what} ${times}`).join(', '))
  service.server.close()
  service.server.closeAllConnections()
  return failures
}

const failures = await beside('soak', soak)
console.log(failures.length ? `${failures.length} failed: ${failures.join('; ')}` : `all held for ${options.minutes} minutes`)
process.exit(failures.length ? 1 : 0)
