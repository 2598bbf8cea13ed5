// The public caching test suite (npm `http-cache-tests`) against Weir: from memory, from Redis, and through a fleet of
// two whose clients go now to one and now to the other. Fails if a required or optimal test fails that exceptions.json
// does not list with the reason, or passes although it is listed.
//
//   node run.mjs WEIR SUITE [--only MODE] [--test ID]     ID runs alone, and is printed as it goes
import { spawn } from 'node:child_process'
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { createServer, connect } from 'node:net'
import { tmpdir } from 'node:os'
import { dirname, join, resolve } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'
import { once } from 'node:events'

const START_MS = 10_000
const RUN_MS = 180_000
const SAFE = ['GET', 'HEAD', 'OPTIONS', 'TRACE']

const config = (origin, proxy, admin, redis) => `
[server]
listen = "127.0.0.1:${proxy}"
[admin]
listen = "127.0.0.1:${admin}"
[upstream]
url = "http://127.0.0.1:${origin}"
idle_timeout = "2s"
${redis ? `[redis]\nurl = "redis://127.0.0.1:${redis.port}/0"\nnamespace = "conformance"\ndeadline = "500ms"\n` : ''}
${redis && redis.only ? '[cache]\nmemory = "0B"\n' : ''}
[[route]]
name = "everything"
path = "/{*rest}"
cache.enabled = true
cache.client_directives = "honor"
cache.cookies = "store"
`

const modes = {
  memory: { weirs: 1 },
  redis: { weirs: 1, redis: true, only: true },
  fleet: { weirs: 2, redis: true }
}

function freePort () {
  return new Promise((resolve, reject) => {
    const server = createServer().once('error', reject)
    server.listen(0, '127.0.0.1', () => {
      const { port } = server.address()
      server.close(() => resolve(port))
    })
  })
}

async function opened (port, process) {
  const until = Date.now() + START_MS
  for (;;) {
    const socket = connect(port, '127.0.0.1')
    const error = await new Promise(resolve => socket.once('connect', () => resolve(null)).once('error', resolve))
    socket.destroy()
    if (!error) return
    if (process.exitCode !== null || Date.now() > until) throw new Error(`${process.spawnargs[0]} did not open its port`)
    await new Promise(resolve => setTimeout(resolve, 10))
  }
}

async function ready (port, process) {
  const until = Date.now() + START_MS
  for (;;) {
    const answer = await fetch(`http://127.0.0.1:${port}/readyz`).catch(() => null)
    if (answer && answer.status === 200) return
    if (process.exitCode !== null || Date.now() > until) throw new Error('Weir did not become ready')
    await new Promise(resolve => setTimeout(resolve, 10))
  }
}

/** Runs `work` beside the servers of a mode, and ends them whatever happens. */
async function beside (mode, weir, suite, work) {
  const directory = await mkdtemp(join(tmpdir(), 'weir-conformance-'))
  const started = []
  const start = (command, args, env) => {
    const options = { cwd: directory, env: { ...process.env, ...env }, stdio: ['ignore', 'ignore', 'inherit'] }
    const child = spawn(command, args, options)
    started.push({ child, ended: once(child, 'exit') })
    return child
  }
  try {
    const origin = await freePort()
    const env = { npm_config_protocol: 'http', npm_config_port: String(origin), npm_config_pidfile: join(directory, 'pid') }
    await opened(origin, start('node', [join(suite, 'server/server.mjs')], env))
    let redis = null
    if (mode.redis) {
      redis = { port: await freePort(), only: mode.only }
      const settings = ['--bind', '127.0.0.1', '--save', '', '--appendonly', 'no', '--loglevel', 'warning']
      await opened(redis.port, start('redis-server', ['--port', String(redis.port), ...settings]))
    }
    const [bases, admins] = [[], []]
    for (let nth = 0; nth < mode.weirs; nth++) {
      const [proxy, admin] = [await freePort(), await freePort()]
      const file = join(directory, `weir-${nth}.toml`)
      await writeFile(file, config(origin, proxy, admin, redis))
      await ready(admin, start(weir, ['run', '--config', file], { WEIR_LOG: 'warn' }))
      bases.push(`http://127.0.0.1:${proxy}`)
      admins.push(`http://127.0.0.1:${admin}`)
    }
    return await work(bases, admins)
  } finally {
    started.reverse().forEach(({ child }) => child.kill('SIGTERM'))
    await Promise.all(started.map(({ ended }) => ended))
    await rm(directory, { recursive: true, force: true })
  }
}

async function suiteOf (suite) {
  const load = path => import(pathToFileURL(join(suite, path)))
  const tests = (await load('tests/index.mjs')).default
  const extra = (await load('tests/surrogate-control.mjs')).default
  return { load, tests: [...tests, extra] }
}

/** The child's work: the suite keeps its results in its modules, so that one process runs it once. */
async function runSuite (suite, bases, admins, only) {
  const { load, tests } = await suiteOf(suite)
  const { runTests, getResults } = await load('client/runner.mjs')
  const fetch = (await load('node_modules/node-fetch/lib/index.mjs').catch(() => load('../node-fetch/lib/index.mjs'))).default
  let nth = 0
  const spread = async (url, init) => {
    // The same site for every Weir: the host is part of the key.
    const headers = [...(init?.headers || []), ['Host', 'conformance.example']]
    const answer = await fetch(url.replace(bases[0], bases[nth++ % bases.length]), { ...init, headers })
    if (bases.length > 1 && !SAFE.includes(init?.method || 'GET')) await allKnow()
    return answer
  }
  // What one Weir invalidates the others know a moment later, and the suite asks them at once. When this is answered,
  // all know what was invalidated before. One question at a time, for all who came while the last one was under way.
  let asked = Promise.resolve()
  let next = null
  const allKnow = () => {
    next ??= asked.then(() => {
      next = null
      asked = ask()
      return asked
    })
    return next
  }
  const ask = async () => {
    const body = JSON.stringify({ tags: ['conformance-fence'], wait: 'all' })
    const answer = await fetch(`${admins[0]}/invalidate`, { method: 'POST', body })
    if (answer.status !== 200) throw new Error(`not all know what was invalidated: ${answer.status} ${await answer.text()}`)
  }
  // While the log is younger than the bound, this waits for it to come of age: once, before anything is measured.
  if (bases.length > 1) await allKnow()
  let chosen = tests
  if (only) {
    chosen = tests.map(set => ({ ...set, tests: set.tests.filter(test => test.id === only) }))
    chosen.forEach(set => set.tests.forEach(test => { test.dump = true }))
  }
  await runTests(chosen, spread, false, bases[0])
  process.send(getResults())
}

function inChild (args) {
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, [fileURLToPath(import.meta.url), ...args], { stdio: ['ignore', 'inherit', 'inherit', 'ipc'] })
    const timer = setTimeout(() => child.kill('SIGKILL'), RUN_MS)
    let results
    child.on('message', message => { results = message })
    child.on('exit', code => {
      clearTimeout(timer)
      results ? resolve(results) : reject(new Error(`the suite gave no results (exit ${code})`))
    })
  })
}

/** Passed, by the suite's own rule: a test whose dependency did not pass says nothing. */
function passes (results, byId, id) {
  return results[id] === true && (byId.get(id).depends_on || []).every(other => passes(results, byId, other))
}

function judge (mode, tests, results, exceptions) {
  const byId = new Map(tests.flatMap(set => set.tests).map(test => [test.id, test]))
  const wrong = []
  const counts = []
  for (const kind of ['required', 'optimal']) {
    const ids = [...byId.values()].filter(test => (test.kind || 'required') === kind && !test.browser_only).map(test => test.id)
    const passed = ids.filter(id => passes(results, byId, id))
    counts.push(`${passed.length} of ${ids.length} ${kind}`)
    for (const id of ids) {
      const why = results[id] === true ? 'what it depends on does not pass' : (results[id] || ['no result']).join(': ')
      if (!passed.includes(id) && !(id in exceptions)) wrong.push(`${id} (${kind}) fails: ${why}`)
      if (passed.includes(id) && id in exceptions) wrong.push(`${id} (${kind}) passes: take it out of exceptions.json`)
    }
  }
  for (const id of Object.keys(exceptions).filter(id => !byId.has(id))) wrong.push(`${id} is no test of the suite`)
  console.log(`${mode}: ${counts.join(', ')}`)
  wrong.forEach(line => console.log(`  ${line}`))
  return wrong.length === 0
}

async function main () {
  const [weir, suite] = process.argv.slice(2, 4).map(path => resolve(path))
  const option = name => process.argv.includes(name) ? process.argv[process.argv.indexOf(name) + 1] : null
  const [only, test] = [option('--only'), option('--test')]
  const { tests } = await suiteOf(suite)
  const here = dirname(fileURLToPath(import.meta.url))
  const exceptions = JSON.parse(await readFile(join(here, 'exceptions.json'), 'utf8'))
  const chosen = Object.entries(modes).filter(([name]) => !only || name === only)
  const judged = await Promise.all(chosen.map(async ([name, mode]) => {
    const work = (...weirs) => inChild(['--suite', suite, ...weirs.map(each => each.join(',')), ...(test ? [test] : [])])
    const results = await beside(mode, weir, suite, work)
    if (test) return console.log(name, results[test]) || results[test] === true
    return judge(name, tests, results, exceptions)
  }))
  process.exitCode = judged.every(Boolean) ? 0 : 1
}

if (process.argv[2] === '--suite') {
  await runSuite(process.argv[3], process.argv[4].split(','), process.argv[5].split(','), process.argv[6])
} else {
  await main()
}
