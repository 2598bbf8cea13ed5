// The parsers of others: node's, h11's and nginx's. Each is given a connection's bytes and says which requests are in it:
// `{ requests: [{ method, target, host, body }], error }`, `body` being a digest.
import { createHash } from 'node:crypto'
import { createServer } from 'node:http'
import { connect } from 'node:net'
import { Duplex } from 'node:stream'
import { once } from 'node:events'
import { spawn } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { freePort } from '../lib/servers.mjs'

/** Longest that nothing may come of one connection's bytes. */
const QUIET_MS = 5000

/** How long node may take to tell of requests that it has read. */
const LAG_MS = 20

/** Behind the bytes: whoever has lost its place does not read this as a request of its own. */
const SENTINEL = Buffer.from('GET /sentinel HTTP/1.1\r\nhost: sentinel\r\n\r\n')

const seen = (request, digest) => ({ method: request.method, target: request.url, host: request.headers.host, body: digest })

/** A socket that holds bytes which have come already. */
class Given extends Duplex {
  constructor (bytes) {
    super()
    this.push(bytes)
    this.push(null)
  }

  _read () {}
  _write (chunk, encoding, done) { done() }
  setTimeout () { return this }
  setNoDelay () { return this }
  setKeepAlive () { return this }
}

/** node's own server, fed without a network. */
export function node () {
  const server = createServer({ maxHeaderSize: 128 * 1024, insecureHTTPParser: false, keepAliveTimeout: 0 })
  server.on('request', (request, response) => {
    const hash = createHash('sha1')
    request.on('data', chunk => hash.update(chunk))
    request.on('end', () => { request.socket.found.requests.push(seen(request, hash.digest('hex'))); response.end() })
  })
  server.on('clientError', (error, socket) => {
    socket.found.error ||= `${error.code} ${error.reason || ''}`
    // What came whole before it is still on its way to its reader.
    setTimeout(() => socket.destroy(), LAG_MS)
  })
  return {
    name: 'node',
    async read (stream) {
      const socket = new Given(stream)
      socket.found = { requests: [], error: null }
      const closed = once(socket, 'close').catch(() => {})
      server.emit('connection', socket)
      const timer = setTimeout(() => { socket.found.error ||= 'it waits'; socket.destroy() }, QUIET_MS)
      await closed
      clearTimeout(timer)
      return socket.found
    },
    close () { server.close() }
  }
}

/** h11, in a Python that has it. */
export function h11 (python) {
  const child = spawn(python, [fileURLToPath(new URL('h11_reader.py', import.meta.url))], { stdio: ['pipe', 'pipe', 'inherit'] })
  const waiting = []
  let text = ''
  child.stdout.on('data', chunk => {
    text += chunk
    for (let end; (end = text.indexOf('\n')) >= 0; text = text.slice(end + 1)) waiting.shift()(JSON.parse(text.slice(0, end)))
  })
  child.on('close', () => waiting.splice(0).forEach(resolve => resolve({ requests: [], error: 'the reader has ended' })))
  return {
    name: 'h11',
    read (stream) {
      const length = Buffer.alloc(4)
      length.writeUInt32BE(stream.length)
      child.stdin.write(Buffer.concat([length, stream]))
      return new Promise(resolve => waiting.push(resolve))
    },
    close () { child.stdin.end() }
  }
}

/** nginx, before a service that tells what it was asked. */
export async function nginx (binary, servers) {
  const backend = createServer((request, response) => {
    const hash = createHash('sha1')
    request.on('data', chunk => hash.update(chunk))
    request.on('end', () => {
      const [method, target, host] = ['x-seen-method', 'x-seen-target', 'x-seen-host'].map(name => request.headers[name])
      const told = JSON.stringify({ method, target, host, body: hash.digest('hex') })
      response.writeHead(200, { 'x-seen': Buffer.from(told, 'latin1').toString('base64'), 'content-length': 0 }).end()
    })
  })
  backend.listen(0, '127.0.0.1')
  await once(backend, 'listening')
  const port = await freePort()
  const folder = servers.folder('nginx')
  const child = servers.start(binary, ['-e', 'stderr', '-p', folder, '-c', servers.file('nginx.conf', `
daemon off;
worker_processes 1;
pid ${folder}/pid;
error_log stderr crit;
events { worker_connections 1024; }
http {
  access_log off;
  keepalive_requests 1000000;
  client_header_buffer_size 64k;
  large_client_header_buffers 4 128k;
  client_max_body_size 0;
  client_body_temp_path ${folder}/body;
  proxy_temp_path ${folder}/proxy;
  fastcgi_temp_path ${folder}/fastcgi;
  uwsgi_temp_path ${folder}/uwsgi;
  scgi_temp_path ${folder}/scgi;
  upstream backend { server 127.0.0.1:${backend.address().port}; keepalive 32; }
  server {
    listen 127.0.0.1:${port};
    location / {
      proxy_pass http://backend/;
      proxy_http_version 1.1;
      proxy_method POST;
      proxy_pass_request_headers off;
      proxy_set_header Connection "";
      proxy_set_header Host backend;
      proxy_set_header X-Seen-Method $request_method;
      proxy_set_header X-Seen-Target $request_uri;
      proxy_set_header X-Seen-Host $http_host;
    }
  }
}
`)])
  await servers.opened(child, port)
  return {
    name: 'nginx',
    /** Reads what is in `stream`, and a request behind it, unless the stream ends in the middle of one. */
    async read (stream, { isWhole = true, count = Infinity } = {}) {
      const found = { requests: [], error: null }
      const socket = connect({ port, host: '127.0.0.1', noDelay: true })
      let text = ''
      const done = new Promise(resolve => {
        const timer = setTimeout(() => { found.error = 'it waits'; resolve() }, QUIET_MS)
        const end = () => { clearTimeout(timer); resolve() }
        socket.on('close', end)
        socket.on('error', () => {})
        socket.on('data', chunk => {
          text += chunk.latin1Slice()
          for (let at; (at = text.indexOf('\r\n\r\n')) >= 0; text = text.slice(at + 4)) {
            const told = /^x-seen: (.*)$/im.exec(text.slice(0, at))
            if (!told) {
              found.error = text.slice(0, text.indexOf('\r\n'))
              return end()
            }
            found.requests.push(JSON.parse(Buffer.from(told[1], 'base64').toString('latin1')))
            const last = found.requests.at(-1)
            if (isWhole ? last.target === '/sentinel' : found.requests.length >= count) return end()
          }
        })
      })
      socket.write(isWhole ? Buffer.concat([stream, SENTINEL]) : stream)
      if (!isWhole && count === 0) await new Promise(resolve => setTimeout(resolve, 20))
      else await done
      socket.destroy()
      if (isWhole && found.requests.at(-1)?.target === '/sentinel') found.requests.pop()
      else if (isWhole) found.error ||= 'closed before the last'
      return found
    },
    close () { backend.close(); backend.closeAllConnections() }
  }
}
