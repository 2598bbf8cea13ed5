// What hostile clients can cost: slow heads, bodies and readers, floods of HTTP/2, and many connections, each against a Weir of
// its own, with a well-behaved client beside them.
//
//   node run.mjs WEIR [--only NAME,…] [--connections N] [--idle N]
import { parseArgs } from 'node:util'
import { resolve } from 'node:path'
import { fork, spawn, spawnSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { connect } from 'node:net'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'
import { beside, pause } from '../lib/servers.mjs'
import * as h2 from './http2.mjs'

const KIB = 1024
const MIB = 1024 * KIB

/** The well-behaved client: requests a second, and seconds of them before each attack and within it. */
const RATE = 200
const SECONDS = 8

/** What it may take where twice of before is less than the machine's own noise. */
const NOISE_MS = 5

const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: { only: { type: 'string' }, connections: { type: 'string', default: '1000' }, idle: { type: 'string', default: '10000' } }
})
const MANY = Number(options.connections)
const IDLE = Number(options.idle)
const failures = []

function check (name, holds, figures) {
  console.log(`${holds ? 'ok    ' : 'FAILED'} ${name}: ${figures}`)
  if (!holds) failures.push(name)
}

const resident = pid => Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))[1]) * KIB
const mib = bytes => `${(bytes / MIB).toFixed(1)} MiB`
const ms = time => `${time.toFixed(1)} ms`
const installed = tool => spawnSync('which', [tool]).status === 0

async function probe (port, path = '/small', seconds = SECONDS, ...how) {
  const file = fileURLToPath(new URL('probe.mjs', import.meta.url))
  const child = spawn(process.execPath, [file, String(port), path, String(seconds), String(RATE), ...how], { stdio: ['ignore', 'pipe', 'inherit'] })
  let said = ''
  child.stdout.on('data', bytes => { said += bytes })
  await once(child, 'close')
  return JSON.parse(said)
}

const harmless = (before, during) =>
  Object.keys(during.failed).length === 0 && during.p99 <= Math.max(2 * before.p99, before.p99 + NOISE_MS)
const compared = (before, during) =>
  `p99 ${ms(before.p99)} before, ${ms(during.p99)} during; failed ${JSON.stringify(during.failed)}`

async function metric (weir, wanted) {
  const page = await (await fetch(`http://127.0.0.1:${weir.admin}/metrics`)).text()
  return page.split('\n').filter(line => line.startsWith(wanted)).reduce((sum, line) => sum + Number(line.split(' ').at(-1)), 0)
}

/** The service behind Weir: where it listens, what it saw, and its end. */
async function serve () {
  const child = fork(fileURLToPath(new URL('service.mjs', import.meta.url)))
  const [{ port }] = await once(child, 'message')
  const seen = async () => {
    child.send('seen?')
    return (await once(child, 'message'))[0]
  }
  return { port, seen, stop: () => child.kill() }
}

function slowhttptest (args) {
  const child = spawn('slowhttptest', ['-c', String(MANY), '-r', String(MANY), '-l', '20', '-p', '20', ...args], { stdio: ['ignore', 'pipe', 'pipe'] })
  const ended = once(child, 'close')
  child.stdout.resume()
  child.stderr.resume()
  return async () => {
    child.kill('SIGTERM')
    await ended
  }
}

/** Uploads in chunks of a byte a second, which slowhttptest knows not. */
function slowChunks (port) {
  const head = 'POST /small HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n'
  const sockets = Array.from({ length: MANY }, () => {
    const socket = connect(port, '127.0.0.1').on('error', () => {})
    socket.write(head)
    return socket.resume()
  })
  const drip = setInterval(() => { for (const socket of sockets) if (!socket.destroyed) socket.write('1\r\nx\r\n') }, 1000)
  return async () => {
    clearInterval(drip)
    for (const socket of sockets) socket.destroy()
  }
}

/** slowhttptest against `weir` for as long as the deadlines need and the well-behaved client asks; or others who `attack`. */
async function slow (weir, name, args, attack) {
  const before = await probe(weir.port, '/small', SECONDS, 'posts')
  const held = resident(weir.pid)
  const stop = attack ? attack() : slowhttptest(args)
  const open = async () => await metric(weir, 'weir_connections ')
  const until = Date.now() + 10_000
  let opened = 0
  let most = 0
  while (opened < MANY * 0.95 && Date.now() < until) {
    opened = Math.max(opened, await open())
    most = Math.max(most, resident(weir.pid))
    await pause(50)
  }
  const watch = setInterval(() => { most = Math.max(most, resident(weir.pid)) }, 50)
  const during = await probe(weir.port, '/small', SECONDS, 'posts')
  const began = Date.now()
  while (await open() > 70 && Date.now() - began < 15_000) await pause(100)
  const left = await open()
  clearInterval(watch)
  await stop()
  const each = Math.max(0, most - held) / MANY
  check(`${name}: others`, harmless(before, during), compared(before, during))
  check(`${name}: each is closed by its deadline`, opened >= MANY * 0.95 && left <= 70, `${opened} were open, ${left} are left, the well-behaved client's among them`)
  check(`${name}: memory`, each <= 64 * KIB, `${(each / KIB).toFixed(1)} KiB a connection, ${mib(most)} in all`)
}

const DEADLINES = '[server.limits]\nhead_timeout = "4s"\nbody_idle = "4s"\nbody_progress = "1KiB"'
const ROUTE = { cache: '', rest: '' }

const attacks = {
  async 'slow-head' ({ servers, port }) {
    const weir = await servers.weir(binary, port, { ...ROUTE, rest: DEADLINES })
    await slow(weir, 'slow head', ['-H', '-i', '1', '-x', '8', '-u', `http://127.0.0.1:${weir.port}/small`])
  },

  async 'slow-body' ({ servers, port }) {
    const weir = await servers.weir(binary, port, { ...ROUTE, rest: DEADLINES })
    // Of those that wait until they are whole, and of those that do not.
    for (const [name, length] of [['slow body', '8192'], ['slow long body', '1000000']]) {
      await slow(weir, name, ['-B', '-i', '1', '-s', length, '-x', '8', '-u', `http://127.0.0.1:${weir.port}/small`])
    }
    await slow(weir, 'slow chunks', [], () => slowChunks(weir.port))
  },

  async 'slow-read' ({ servers, port }) {
    // A thousand connections of the service, each of which waits for a reader.
    const weir = await servers.weir(binary, port, { cache: 'cache.ttl = "1h"\ncache.query = { only = [] }', rest: DEADLINES + '\n[cache]\nmax_object = "64MiB"\nmemory = "256MiB"' })
    await (await fetch(`http://127.0.0.1:${weir.port}/big`)).arrayBuffer()
    await slow(weir, 'slow read', ['-X', '-n', '1', '-z', '8', '-w', '512', '-y', '1024', '-k', '1', '-u', `http://127.0.0.1:${weir.port}/big`])
  },

  async floods ({ servers, port, seen }) {
    const flood = async (name, each, { settings, begin } = {}) => {
      const weir = await servers.weir(binary, port, ROUTE)
      await probe(weir.port, '/small', 2)
      const before = await probe(weir.port, '/small', 4)
      const held = resident(weir.pid)
      const { begun } = await seen()
      let most = held
      const watch = setInterval(() => { most = Math.max(most, resident(weir.pid)) }, 20)
      const probing = probe(weir.port, '/small', 4)
      const attackers = await Promise.all(Array.from({ length: 4 }, async () => {
        const attacker = new h2.Connection(weir.port, settings)
        await attacker.opened
        const began = performance.now()
        if (begin) await attacker.write(begin)
        for (let n = 0; performance.now() - began < 3000 && await attacker.write(each(n)); n++) {
          if (n % 16 === 15) await pause(0)
        }
        await Promise.race([attacker.closed, pause(1000)])
        const end = attacker.farewell?.at ?? attacker.closedAt ?? Infinity
        attacker.socket.destroy()
        return { took: end - began, code: attacker.farewell?.code }
      }))
      const during = await probing
      clearInterval(watch)
      const took = Math.max(...attackers.map(({ took }) => took))
      const codes = [...new Set(attackers.map(({ code }) => code))]
      check(`${name}: ended within 1 s`, took <= 1000 && codes.every(Boolean), `${ms(took)}, code ${codes}`)
      check(`${name}: memory`, most - held <= 10 * MIB, mib(Math.max(0, most - held)))
      check(`${name}: others`, harmless(before, during), compared(before, during))
      const until = Date.now() + 2000
      while ((await seen()).open > 0 && Date.now() < until) await pause(20)
      const after = await seen()
      check(`${name}: nothing goes on behind it`, after.open === 0, `${after.begun - begun} requests reached the service, ${after.open} are left there`)
      await servers.stop(weir)
    }
    const batch = (count, make) => n => Buffer.concat(Array.from({ length: count }, (_, i) => make(n * count + i)))
    const id = i => 2 * i + 1
    await flood('rapid reset', batch(50, i => Buffer.concat([
      h2.frame(h2.HEADERS, h2.END_HEADERS | h2.END_STREAM, id(i), h2.get('/never')), h2.frame(h2.RST_STREAM, 0, id(i), h2.number(8))
    ])))
    await flood('made you reset', batch(50, i => Buffer.concat([
      h2.frame(h2.HEADERS, h2.END_HEADERS | h2.END_STREAM, id(i), h2.get('/never')), h2.frame(h2.WINDOW_UPDATE, 0, id(i), h2.number(0x7fffffff))
    ])))
    await flood('CONTINUATION without end', batch(20, () => h2.frame(h2.CONTINUATION, 0, 1, h2.literal('x-long', 'y'.repeat(1000)))), {
      begin: h2.frame(h2.HEADERS, 0, 1, h2.get('/small'))
    })
    await flood('empty CONTINUATION', batch(200, () => h2.frame(h2.CONTINUATION, 0, 1)), { begin: h2.frame(h2.HEADERS, 0, 1, h2.get('/small')) })
    await flood('empty DATA', batch(200, () => h2.frame(h2.DATA, 0, 1)), { begin: h2.frame(h2.HEADERS, h2.END_HEADERS, 1, h2.post('/small')) })
    // One large entry of the dynamic table, named again and again.
    const stored = Buffer.concat([Buffer.from([0x40]), h2.literal('x-bomb', 'y'.repeat(3900)).subarray(1)])
    const bomb = Buffer.concat([h2.get('/small'), Buffer.alloc(8000, 0xbe)])
    await flood('HPACK bomb', batch(4, i => h2.frame(h2.HEADERS, h2.END_HEADERS | h2.END_STREAM, id(i + 1), bomb)), {
      begin: h2.frame(h2.HEADERS, h2.END_HEADERS | h2.END_STREAM, 1, Buffer.concat([h2.get('/small'), stored]))
    })
    await flood('PING', batch(200, () => h2.frame(h2.PING, 0, 0, Buffer.alloc(8))))
    await flood('SETTINGS', batch(200, () => h2.frame(h2.SETTINGS, 0, 0, Buffer.from([0, 3, 0, 0, 0, 100]))))
    await flood('PRIORITY', batch(200, i => h2.frame(h2.PRIORITY, 0, id(i % 1000), Buffer.from([0, 0, 0, 0, 1]))))
    await flood('WINDOW_UPDATE', batch(200, () => h2.frame(h2.WINDOW_UPDATE, 0, 0, h2.number(1))))
  },

  async stalls ({ servers, port }) {
    const weir = await servers.weir(binary, port, { cache: 'cache.ttl = "1h"', rest: DEADLINES })
    await probe(weir.port, '/cached', 2)
    const before = await probe(weir.port, '/cached')
    const held = resident(weir.pid)
    let most = held
    const watch = setInterval(() => { most = Math.max(most, resident(weir.pid)) }, 50)
    const began = performance.now()
    // SETTINGS_INITIAL_WINDOW_SIZE of nothing.
    const stalled = await Promise.all(Array.from({ length: 20 }, async () => {
      const client = new h2.Connection(weir.port, Buffer.from([0, 4, 0, 0, 0, 0]))
      await client.opened
      for (let i = 0; i < 100; i++) await client.write(h2.frame(h2.HEADERS, h2.END_HEADERS | h2.END_STREAM, 2 * i + 1, h2.get('/cached')))
      return client
    }))
    const during = await probe(weir.port, '/cached')
    await Promise.race([Promise.all(stalled.map(({ closed }) => closed)), pause(10_000)])
    clearInterval(watch)
    const took = Math.max(...stalled.map(({ closedAt }) => (closedAt ?? Infinity) - began))
    check('zero windows: others', harmless(before, during), compared(before, during))
    check('zero windows: end by their timeout', took < 12_000, ms(took))
    check('zero windows: memory', most - held <= 2000 * 8 * KIB, `${mib(most - held)} for 20 connections of 100 streams`)
  },

  async h2load ({ servers, port }) {
    const weir = await servers.weir(binary, port, { cache: 'cache.ttl = "1h"', rest: '' })
    const run = spawn('h2load', ['-c', '100', '-m', '100', '-n', '200000', `http://127.0.0.1:${weir.port}/cached`], { stdio: ['ignore', 'pipe', 'pipe'] })
    let said = ''
    run.stdout.on('data', bytes => { said += bytes })
    await once(run, 'close')
    const requests = /requests: .*/.exec(said)?.[0] ?? said
    check('h2load, 100 streams over 100 connections', / 200000 succeeded, 0 failed, 0 errored, 0 timeout/.test(requests), requests)
  },

  async idle ({ servers, port }) {
    const weir = await servers.weir(binary, port, { ...ROUTE, rest: `[server.limits]\nconnections = ${IDLE}\nkeep_alive = "1h"` })
    const held = resident(weir.pid)
    const asked = 'GET /small HTTP/1.1\r\nhost: a\r\n\r\n'
    const open = async () => {
      const socket = connect(weir.port, '127.0.0.1')
      socket.on('error', () => {})
      let got = 0
      const answered = new Promise(resolve => {
        socket.on('data', bytes => { got += bytes.length; if (got > KIB) resolve(true) })
        socket.once('close', () => resolve(false))
      })
      socket.write(asked)
      return { socket, answered: await answered }
    }
    const all = []
    while (all.length < IDLE) all.push(...await Promise.all(Array.from({ length: Math.min(100, IDLE - all.length) }, open)))
    const answered = all.filter(({ answered }) => answered).length
    // They let go of their buffers when they have rested.
    await pause(3000)
    const most = resident(weir.pid)
    const cap = `${mib(most)}, ${((most - held) / IDLE / KIB).toFixed(1)} KiB each`
    check(`${IDLE} idle connections`, answered === IDLE && most <= 150 * MIB, `${answered} answered and open; ${cap}`)
    const over = await open()
    check('one more is refused', !over.answered && await metric(weir, 'weir_connections_refused_total') >= 1, `refused: ${await metric(weir, 'weir_connections_refused_total')}`)
    const times = []
    for (let i = 0; i < 20; i++) {
      const began = performance.now()
      const probe = await fetch(`http://127.0.0.1:${weir.admin}/${i % 2 ? 'livez' : 'readyz'}`)
      if (probe.status === 200) times.push(performance.now() - began)
    }
    check('probes answer within 100 ms', times.length === 20 && Math.max(...times) <= 100, `slowest ${ms(Math.max(...times))}`)
    all.forEach(({ socket }) => socket.destroy())
  }
}

const binary = resolve(positionals[0] ?? 'target/release/weir')
const wanted = options.only ? options.only.split(',') : Object.keys(attacks)
const needs = { 'slow-head': 'slowhttptest', 'slow-body': 'slowhttptest', 'slow-read': 'slowhttptest', h2load: 'h2load' }
for (const name of wanted) {
  if (!attacks[name]) throw new Error(`there is no attack ${name}; there are ${Object.keys(attacks).join(', ')}`)
  if (needs[name] && !installed(needs[name])) {
    console.log(`skip   ${name}: ${needs[name]} is not installed`)
    continue
  }
  const service = await serve()
  await beside('attacks', servers => attacks[name]({ servers, ...service }))
  service.stop()
}
console.log(failures.length ? `${failures.length} failed: ${failures.join('; ')}` : 'all held')
process.exit(failures.length ? 1 : 0)
