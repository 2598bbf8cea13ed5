// Mutated requests through Weir, and what Weir makes of them through the parsers of others: how many requests there are, and
// each one's method, target, Host and body must be the same to node, to h11, to nginx, and to a reader that knows nothing but
// the form in which Weir writes.
//
//   node run.mjs WEIR [--count N] [--seed S] [--case N] [--python PATH] [--mutants]
import { parseArgs } from 'node:util'
import { resolve } from 'node:path'
import { connect } from 'node:net'
import { spawnSync } from 'node:child_process'
import { beside, which } from '../lib/servers.mjs'
import { connection } from './requests.mjs'
import { read, recorder } from './recorder.mjs'
import { h11, nginx, node } from './parsers.mjs'
import { AMBIGUOUS, MUTANTS } from './ambiguous.mjs'

/** Connections at once. */
const ABREAST = 64

/** Silence after which nothing more is expected on a client's connection. */
const QUIET_MS = 150

/** Reports printed in full. */
const PRINTED = 10

/** Connections whose bytes a mutant gets. */
const MUTATED = 40

/** Connections in a row of which nothing comes through before the run gives up. */
const BARREN = 20_000

/** What a parser does not take although nobody could read it in two ways. */
const REFUSALS = [
  { parser: 'node', why: 'node drops what comes in one piece with an offer to upgrade; Weir waits for the answer first', holds: (request, error, before) => before?.offers },
  { parser: 'node', why: 'llhttp takes only the methods that it knows', holds: (request, error) => error.startsWith('HPE_INVALID_METHOD') && !['GET', 'HEAD', 'POST', 'PUT', 'DELETE', 'OPTIONS', 'PATCH', 'PROPFIND', 'M-SEARCH'].includes(request.method) },
  { parser: 'nginx', why: 'nginx takes conditions in one line only, although they are lists (RFC 9110 section 13.1)', holds: request => request.lists },
  { parser: 'nginx', why: 'nginx takes no asterisk form', holds: request => request.target === '*' }
]

const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    count: { type: 'string', default: '50000' },
    seed: { type: 'string', default: '1' },
    case: { type: 'string' },
    python: { type: 'string', default: 'python3' },
    mutants: { type: 'boolean', default: false }
  }
})

/** Sends a case; resolves with the statuses that came back. */
function send (port, { pieces, count }) {
  return new Promise(done => {
    const socket = connect({ port, host: '127.0.0.1', noDelay: true })
    let text = ''
    let timer = null
    const finish = () => { clearTimeout(timer); socket.destroy(); done(statuses(text)) }
    const wait = () => { clearTimeout(timer); timer = setTimeout(finish, QUIET_MS) }
    socket.on('error', () => {})
    socket.on('close', finish)
    socket.on('data', chunk => {
      text += chunk.latin1Slice()
      if (sent && statuses(text).filter(status => status >= 200).length >= count) finish()
      else wait()
    })
    let sent = false
    socket.on('connect', async () => {
      for (const [nth, piece] of pieces.entries()) {
        if (nth > 0) await new Promise(resolve => setImmediate(resolve))
        if (socket.destroyed) return
        socket.write(piece)
      }
      sent = true
      wait()
    })
  })
}

const statuses = text => [...text.matchAll(/HTTP\/1\.1 (\d{3}) /g)].map(found => Number(found[1]))

class Run {
  constructor (parsers) {
    Object.assign(this, { parsers, forwarded: 0, connections: 0, partial: 0, wrong: [], excused: new Map(), meant: new Map() })
  }

  /** What differs between the parsers, and from Weir's own form. */
  async compare (stream) {
    const own = read(stream)
    const differences = own.fault ? [`not in Weir's form: ${own.fault}`] : []
    for (const { id, method, body } of own.requests) {
      const meant = this.meant.get(id)
      if (meant && (meant.method !== method || meant.body !== body)) {
        differences.push(`${id} was meant as ${JSON.stringify(meant)}, and sent as ${JSON.stringify({ method, body })}`)
      }
    }
    for (const parser of this.parsers) {
      // A parser that refuses one for a reason of its own goes on behind it.
      let from = 0
      while (from <= own.requests.length) {
        const start = from === 0 ? 0 : own.ends[from - 1]
        const expected = own.requests.slice(from)
        const rest = stream.subarray(start)
        if (rest.length === 0) break
        const found = await parser.read(rest, { isWhole: !own.rest, count: expected.length })
        const agreed = expected.findIndex((request, nth) => !same(request, found.requests[nth]))
        const at = agreed < 0 ? expected.length : agreed
        const before = expected[at - 1]
        const refusal = expected[at] && REFUSALS.find(({ parser: name, holds }) => name === parser.name && holds(expected[at], found.error || '', before))
        if (refusal && found.requests.length === at) {
          const key = `${parser.name}: ${refusal.why}`
          this.excused.set(key, (this.excused.get(key) || 0) + 1)
          // Behind the one that was refused, or with it, if the one before was to blame.
          from += before?.offers && !found.error ? at : at + 1
          continue
        }
        if (at < expected.length || found.requests.length > expected.length) {
          differences.push(`${parser.name} reads request ${from + at} as ${JSON.stringify(found.requests[at] || found.error)}, not as ${JSON.stringify(expected[at] || null)}`)
        } else if (found.error && !own.rest) {
          differences.push(`${parser.name} does not like it: ${found.error}`)
        }
        break
      }
    }
    return { own, differences }
  }

  async take (stream) {
    const { own, differences } = await this.compare(stream)
    this.connections++
    this.forwarded += own.requests.length
    if (own.rest) this.partial++
    for (const difference of differences) this.wrong.push({ difference, stream, ids: own.requests.map(({ id }) => id) })
  }
}

function same (one, other) {
  return Boolean(other) && ['method', 'target', 'host', 'body'].every(name => one[name] === other[name])
}

async function all (servers) {
  const python = options.python
  const hasH11 = spawnSync(python, ['-c', 'import h11']).status === 0
  const binary = which('nginx')
  const missing = [hasH11 ? null : `${python} has no h11`, binary ? null : 'nginx is not installed'].filter(Boolean)
  if (missing.length) console.log(`not compared with everybody: ${missing.join(', ')}`)
  const parsers = [node()]
  if (hasH11) parsers.push(h11(python))
  if (binary) parsers.push(await nginx(binary, servers))
  try {
    return await (options.mutants ? mutants : compared)(servers, new Run(parsers))
  } finally {
    parsers.forEach(parser => parser.close())
  }
}

/** Sends cases until enough requests have come through; returns the bytes of every connection to the upstream. */
async function gather (servers, run, enough, take, how = {}) {
  const taking = []
  const upstream = await recorder(stream => taking.push(take(stream)))
  const weir = await servers.weir(resolve(positionals[0]), upstream.port, {
    cache: '',
    rest: '[server.limits]\nhead_timeout = "2s"\nbody_idle = "2s"\nkeep_alive = "2s"'
  })
  let next = options.case === undefined ? 0 : Number(options.case)
  const end = options.case === undefined ? Infinity : next + 1
  const counts = { sent: 0, answered: 0, refused: 0, barren: 0 }
  const worker = async () => {
    while (counts.answered < enough && next < end && counts.barren < BARREN) {
      const made = connection(options.seed, next++, how)
      made.meant.forEach(meant => run.meant.set(meant.id, meant))
      const answers = await send(weir.port, made)
      const good = answers.filter(status => status === 200).length
      counts.sent += made.count
      counts.answered += good
      counts.refused += answers.filter(status => status >= 400).length
      counts.barren = good ? 0 : counts.barren + 1
    }
  }
  await Promise.all(Array.from({ length: ABREAST }, worker))
  await upstream.close()
  await Promise.all(taking)
  return { ...counts, cases: next }
}

async function compared (servers, run) {
  const began = Date.now()
  // The parsers take turns with the sending, so that no more waits than what is being sent.
  let line = Promise.resolve()
  const counts = await gather(servers, run, Number(options.count), stream => (line = line.then(() => run.take(stream))))
  const seconds = ((Date.now() - began) / 1000).toFixed(0)
  console.log(`seed ${options.seed}: ${counts.cases} cases, ${counts.sent} requests sent, ${counts.refused} refused, ${run.forwarded} forwarded ` +
    `over ${run.connections} connections (${run.partial} of them ended within a request), ${seconds} s`)
  for (const [why, times] of run.excused) console.log(`  ${times} times ${why}`)
  for (const { difference, stream, ids } of run.wrong.slice(0, PRINTED)) {
    console.log(`\nDIFFERENT: ${difference}\n  requests ${ids.join(' ')}\n  ${JSON.stringify(stream.subarray(0, 3000).latin1Slice())}`)
  }
  if (counts.answered > run.forwarded) run.wrong.push(`${counts.answered} answers for ${run.forwarded} requests`)
  console.log(`${run.wrong.length} differences between Weir, ${run.parsers.map(({ name }) => name).join(', ')}`)
  const enough = options.case !== undefined || run.forwarded >= Number(options.count)
  if (!enough) console.log('too few requests came through')
  return run.wrong.length === 0 && enough
}

/** Whether differences are seen: between the parsers where there are some, and in what a worse Weir would send. */
async function mutants (servers, run) {
  let missed = 0
  const told = (name, found) => {
    if (!found) missed++
    console.log(`${found ? 'reported' : 'MISSED  '}  ${name}`)
  }
  for (const [name, text] of Object.entries(AMBIGUOUS)) {
    const stream = Buffer.from(text, 'latin1')
    const readings = await Promise.all(run.parsers.map(parser => parser.read(stream)))
    const views = readings.map(({ requests, error }) => JSON.stringify([requests, Boolean(error)]))
    // Where all refuse, they refuse what Weir would have sent as a request: that is a difference too.
    told(name, new Set(views).size > 1 || readings.every(({ error }) => error))
  }
  const streams = []
  await gather(servers, run, 3000, async stream => { streams.push(stream) }, { mutates: false })
  for (const [name, change] of Object.entries(MUTANTS)) {
    let changed = 0
    let seen = 0
    for (const stream of streams) {
      const text = stream.latin1Slice()
      const other = change(text)
      if (other === text || changed >= MUTATED) continue
      changed++
      const { own, differences } = await run.compare(Buffer.from(other, 'latin1'))
      // One that has lost its end would be missed where answers are counted.
      if (differences.length || own.requests.length < read(stream).requests.length) seen++
    }
    told(`${name}: ${seen} of ${changed}`, changed > 0 && seen === changed)
  }
  return missed === 0
}

const passed = await beside('parsers', all)
process.exit(passed ? 0 : 1)
