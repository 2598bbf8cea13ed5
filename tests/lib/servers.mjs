// Servers that a run starts for itself: on free ports of the loopback, in one temporary directory, ended with it.
import { spawn } from 'node:child_process'
import { accessSync, constants, mkdtempSync, chmodSync, rmSync, writeFileSync, mkdirSync } from 'node:fs'
import { connect, createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { once } from 'node:events'

const START_MS = 20_000
const STOP_MS = 10_000

export function freePort () {
  return new Promise((resolve, reject) => {
    const server = createServer().once('error', reject)
    server.listen(0, '127.0.0.1', () => {
      const { port } = server.address()
      server.close(() => resolve(port))
    })
  })
}

export const pause = ms => new Promise(resolve => setTimeout(resolve, ms))

/** Runs `work(servers)` and ends every server, whatever happens. */
export async function beside (name, work) {
  const servers = new Servers(name)
  const stop = signal => servers.end().finally(() => process.exit(signal === 'SIGINT' ? 130 : 143))
  const signals = ['SIGINT', 'SIGTERM']
  signals.forEach(signal => process.once(signal, stop))
  try {
    return await work(servers)
  } finally {
    signals.forEach(signal => process.off(signal, stop))
    await servers.end()
  }
}

class Servers {
  constructor (name) {
    this.directory = mkdtempSync(join(tmpdir(), `weir-${name}-`))
    // Squid and Traffic Server may give up being root.
    chmodSync(this.directory, 0o755)
    this.started = []
  }

  file (name, text) {
    const path = join(this.directory, name)
    writeFileSync(path, text)
    return path
  }

  folder (name) {
    const path = join(this.directory, name)
    mkdirSync(path, { recursive: true })
    chmodSync(path, 0o777)
    return path
  }

  start (command, args, env = {}) {
    const options = { cwd: this.directory, env: { ...process.env, ...env }, stdio: ['ignore', 'ignore', 'pipe'] }
    const child = spawn(command, args, options)
    child.said = ''
    child.stderr.on('data', chunk => { child.said = (child.said + chunk).slice(-4000) })
    child.on('error', error => { child.said += error })
    this.started.push({ child, ended: once(child, 'close').catch(() => {}) })
    return child
  }

  /** Ends one before the others. */
  async stop ({ pid }) {
    const at = this.started.findIndex(({ child }) => child.pid === pid)
    const [{ child, ended }] = this.started.splice(at, 1)
    child.kill('SIGKILL')
    await ended
  }

  async end () {
    for (const { child } of this.started.reverse()) child.kill('SIGTERM')
    const timer = setTimeout(() => this.started.forEach(({ child }) => child.kill('SIGKILL')), STOP_MS)
    await Promise.all(this.started.map(({ ended }) => ended))
    clearTimeout(timer)
    this.started = []
    rmSync(this.directory, { recursive: true, force: true })
  }

  async opened (child, port) {
    const until = Date.now() + START_MS
    for (;;) {
      const socket = connect(port, '127.0.0.1')
      const error = await new Promise(resolve => socket.once('connect', () => resolve(null)).once('error', resolve))
      socket.destroy()
      if (!error) return
      if (child.exitCode !== null || Date.now() > until) {
        throw new Error(`${child.spawnfile} did not open its port: ${child.said}`)
      }
      await pause(20)
    }
  }

  async redis () {
    const port = await freePort()
    const settings = ['--bind', '127.0.0.1', '--save', '', '--appendonly', 'no', '--loglevel', 'warning']
    await this.opened(this.start('redis-server', ['--port', String(port), ...settings]), port)
    return port
  }

  /** A Weir with one route; `cache` are its lines of TOML below `[[route]]`, `rest` what stands above. */
  async weir (binary, origin, { cache, rest = '' }) {
    const [port, admin] = [await freePort(), await freePort()]
    const config = `[server]\nlisten = "127.0.0.1:${port}"\n[admin]\nlisten = "127.0.0.1:${admin}"\n` +
      `[log]\naccess = false\n[upstream]\nurl = "http://127.0.0.1:${origin}"\nidle_timeout = "2s"\n${rest}\n` +
      `[[route]]\nname = "all"\npath = "/{*path}"\n${cache}\n`
    const child = this.start(binary, ['run', '--config', this.file(`weir-${port}.toml`, config)], { WEIR_LOG: 'warn' })
    const until = Date.now() + START_MS
    for (;;) {
      const answer = await fetch(`http://127.0.0.1:${admin}/readyz`).catch(() => null)
      if (answer && answer.status === 200) return { port, admin, pid: child.pid }
      if (child.exitCode !== null || Date.now() > until) throw new Error(`Weir did not become ready: ${child.said}`)
      await pause(20)
    }
  }

  /** Squid as a reverse proxy, memory only, with its own defaults for what it stores. */
  async squid (binary, origin) {
    const port = await freePort()
    const folder = this.folder('squid')
    const child = this.start(binary, ['-N', '-f', this.file('squid.conf', `
http_port 127.0.0.1:${port} accel defaultsite=origin.example no-vhost
cache_peer 127.0.0.1 parent ${origin} 0 no-query no-digest originserver
cache_peer_access 127.0.0.1 allow all
http_access allow all
cache_mem 64 MB
memory_cache_shared off
pid_filename none
access_log none
cache_log ${join(folder, 'cache.log')}
cache_store_log none
coredump_dir ${folder}
netdb_filename none
pinger_enable off
client_db off
icp_port 0
shutdown_lifetime 0 seconds
visible_hostname squid
unlinkd_program /bin/true
`)])
    await this.opened(child, port)
    return { port }
  }

  /** Traffic Server as a reverse proxy that goes by the fields: a client's directives count, and so do heuristics. */
  async trafficServer (binary, origin) {
    const port = await freePort()
    const root = this.folder('ats')
    const folders = ['etc', 'cache', 'run', 'log'].map(name => [name, this.folder(`ats/${name}`)])
    const at = Object.fromEntries(folders)
    this.file('ats/etc/remap.config', `map / http://127.0.0.1:${origin}/\n`)
    this.file('ats/etc/storage.config', `${at.cache} 64M\n`)
    this.file('ats/etc/ip_allow.yaml', 'ip_allow:\n  - apply: in\n    ip_addrs: 127.0.0.1\n    action: allow\n    methods: ALL\n' +
      '  - apply: out\n    ip_addrs: 127.0.0.1\n    action: allow\n    methods: ALL\n')
    this.file('ats/etc/records.config', `
CONFIG proxy.config.http.server_ports STRING ${port}:ip-in=127.0.0.1
CONFIG proxy.config.admin.user_id STRING #-1
CONFIG proxy.config.exec_thread.autoconfig INT 0
CONFIG proxy.config.exec_thread.limit INT 1
CONFIG proxy.config.accept_threads INT 1
CONFIG proxy.config.task_threads INT 1
CONFIG proxy.config.cache.threads_per_disk INT 2
CONFIG proxy.config.diags.debug.enabled INT 0
CONFIG proxy.config.log.logging_enabled INT 0
CONFIG proxy.config.reverse_proxy.enabled INT 1
CONFIG proxy.config.url_remap.remap_required INT 1
CONFIG proxy.config.url_remap.pristine_host_hdr INT 1
CONFIG proxy.config.http.cache.ignore_client_no_cache INT 0
CONFIG proxy.config.http.cache.ignore_client_cc_max_age INT 0
CONFIG proxy.config.http.cache.required_headers INT 1
CONFIG proxy.config.http.cache.heuristic_min_lifetime INT 0
CONFIG proxy.config.http.cache.heuristic_lm_factor FLOAT 0.1
CONFIG proxy.config.http.cache.cache_responses_to_cookies INT 1
CONFIG proxy.config.http.connect_attempts_max_retries INT 0
CONFIG proxy.config.crash_log_helper STRING /bin/true
`)
    const env = { TS_RUNROOT: root }
    this.file('ats/runroot.yaml', `prefix: ${root}\nexec_prefix: ${root}\nsysconfdir: ${at.etc}\nlocalstatedir: ${root}\n` +
      `runtimedir: ${at.run}\nlogdir: ${at.log}\ncachedir: ${at.cache}\ndatadir: ${at.etc}\nlibexecdir: ${at.etc}\n` +
      `bindir: ${root}\nsbindir: ${root}\nincludedir: ${root}\nmandir: ${root}\nlibdir: ${root}\ninfodir: ${root}\n`)
    const child = this.start(binary, [`--run-root=${join(root, 'runroot.yaml')}`], env)
    await this.opened(child, port)
    // The port is open before the cache is.
    await pause(1500)
    return { port }
  }
}

/** Where a program is, or null. */
export function which (name) {
  const paths = [...(process.env.PATH || '').split(':'), '/usr/sbin', '/usr/local/sbin']
  for (const folder of paths) {
    const path = join(folder, name)
    try {
      accessSync(path, constants.X_OK)
      return path
    } catch {}
  }
  return null
}
