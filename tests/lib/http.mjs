// HTTP/1.1 on raw sockets: every byte that a proxy sends is seen as it came, and what is malformed is an error.
import { connect, createServer } from 'node:net'
import { once } from 'node:events'

const HEAD_MOST = 64 * 1024
const REASONS = { 200: 'OK', 304: 'Not Modified', 404: 'Not Found', 500: 'Internal Server Error' }

/** `[[name, value], …]` under their lower-case names; several lines are joined by a comma. */
export function fieldsOf (lines) {
  const fields = new Map()
  for (const [name, value] of lines) {
    const key = name.toLowerCase()
    fields.set(key, fields.has(key) ? `${fields.get(key)}, ${value}` : value)
  }
  return fields
}

/** Takes heads and bodies off a stream of bytes. */
class Reader {
  constructor () {
    this.bytes = Buffer.alloc(0)
    this.head = null
  }

  push (chunk) {
    this.bytes = this.bytes.length ? Buffer.concat([this.bytes, chunk]) : chunk
  }

  /** The first line and the fields, once they are whole. */
  takeHead () {
    const end = this.bytes.indexOf('\r\n\r\n')
    if (end < 0) {
      if (this.bytes.length > HEAD_MOST) throw new Error('the head has no end')
      return null
    }
    const [first, ...rest] = this.bytes.latin1Slice(0, end).split('\r\n')
    this.bytes = this.bytes.subarray(end + 4)
    const lines = rest.map(line => {
      const colon = line.indexOf(':')
      if (colon < 1) throw new Error(`no field: ${line}`)
      return [line.slice(0, colon), line.slice(colon + 1).trim()]
    })
    return { first, lines, fields: fieldsOf(lines), parts: [] }
  }

  takeLength (length) {
    if (this.bytes.length < length) return null
    const body = this.bytes.subarray(0, length)
    this.bytes = this.bytes.subarray(length)
    return body
  }

  /** The body once its last chunk is here; trailers are dropped. */
  takeChunked (head) {
    for (;;) {
      const end = this.bytes.indexOf('\r\n')
      if (end < 0) return null
      const size = parseInt(this.bytes.latin1Slice(0, end), 16)
      if (!(size >= 0)) throw new Error('no chunk size')
      if (size === 0) {
        const last = this.bytes.indexOf('\r\n\r\n', end)
        if (last < 0) return null
        this.bytes = this.bytes.subarray(last + 4)
        return Buffer.concat(head.parts)
      }
      if (this.bytes.length < end + 2 + size + 2) return null
      head.parts.push(this.bytes.subarray(end + 2, end + 2 + size))
      this.bytes = this.bytes.subarray(end + 2 + size + 2)
    }
  }
}

const chunked = head => /chunked/i.test(head.fields.get('transfer-encoding') || '')

/** One connection to a port, kept alive and opened anew where it was closed; one request at a time. */
export class Client {
  constructor (port) {
    this.port = port
    this.socket = null
  }

  async open () {
    const socket = connect({ port: this.port, host: '127.0.0.1', noDelay: true })
    this.reader = new Reader()
    socket.on('data', chunk => { this.reader.push(chunk); this.advance() })
    socket.on('error', error => this.ended(socket, error))
    socket.on('close', () => this.ended(socket, null))
    this.socket = socket
  }

  ended (socket, error) {
    if (this.socket !== socket) return
    this.socket = null
    const waiting = this.waiting
    this.waiting = null
    if (!waiting) return
    const { head } = waiting
    if (head && head.toTheEnd && !error) return waiting.resolve(answer(head, this.reader.bytes))
    waiting.reject(error || new Error(head ? 'the connection ended within the body' : 'the connection ended before an answer'))
  }

  /** `{ status, fields, lines, body }`. */
  async request (method, path, lines, body = '') {
    if (!this.socket) await this.open()
    // What came unasked, such as the body of a HEAD's answer, is nobody's.
    if (this.reader.bytes.length) throw new Error(`unasked bytes: ${this.reader.bytes.latin1Slice(0, 60)}`)
    return new Promise((resolve, reject) => {
      this.waiting = { method, resolve, reject, head: null }
      let text = `${method} ${path} HTTP/1.1\r\n`
      for (const [name, value] of lines) text += `${name}: ${value}\r\n`
      if (body || method === 'POST' || method === 'PUT') text += `Content-Length: ${body.length}\r\n`
      this.socket.write(`${text}\r\n${body}`, 'latin1')
    })
  }

  advance () {
    const waiting = this.waiting
    if (!waiting) return this.socket.destroy(new Error('bytes that nobody asked for'))
    try {
      while (!waiting.head) {
        const head = this.reader.takeHead()
        if (!head) return
        const status = Number(/^HTTP\/1\.[01] (\d{3})( |$)/.exec(head.first)?.[1])
        if (!status) throw new Error(`no status line: ${head.first}`)
        if (status >= 200) waiting.head = Object.assign(head, { status })
      }
      const { head } = waiting
      let body
      if (waiting.method === 'HEAD' || head.status === 204 || head.status === 304) body = Buffer.alloc(0)
      else if (chunked(head)) body = this.reader.takeChunked(head)
      else if (head.fields.has('content-length')) body = this.reader.takeLength(Number(head.fields.get('content-length')))
      else head.toTheEnd = true
      if (!body) return
      this.waiting = null
      if (this.reader.bytes.length) throw new Error(`bytes behind the answer: ${this.reader.bytes.latin1Slice(0, 60)}`)
      if (/close/i.test(head.fields.get('connection') || '')) this.close()
      waiting.resolve(answer(head, body))
    } catch (error) {
      this.waiting = null
      this.close()
      waiting.reject(error)
    }
  }

  close () {
    const socket = this.socket
    this.socket = null
    if (socket) socket.destroy()
  }
}

function answer (head, body) {
  return { status: head.status, fields: head.fields, lines: head.lines, body }
}

/**
 * A server whose `handle({ method, target, fields, lines, body })` returns `{ status, lines, body }`, perhaps later, or
 * null to cut the connection.
 */
export async function serve (handle) {
  const sockets = new Set()
  const server = createServer({ noDelay: true }, socket => {
    sockets.add(socket)
    const reader = new Reader()
    let head = null
    let busy = false
    const advance = async () => {
      if (busy) return
      for (;;) {
        head ||= reader.takeHead()
        if (!head) return
        const length = Number(head.fields.get('content-length') || 0)
        const body = chunked(head) ? reader.takeChunked(head) : reader.takeLength(length)
        if (!body) return
        const [method, target] = head.first.split(' ')
        const request = { method, target, fields: head.fields, lines: head.lines, body }
        head = null
        busy = true
        let made = handle(request)
        if (made instanceof Promise) made = await made
        busy = false
        if (!made) return socket.destroy()
        write(socket, method, made)
      }
    }
    socket.on('data', chunk => { reader.push(chunk); advance().catch(() => socket.destroy()) })
    socket.on('error', () => {})
    socket.on('close', () => sockets.delete(socket))
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  return {
    port: server.address().port,
    close () {
      server.close()
      sockets.forEach(socket => socket.destroy())
    }
  }
}

function write (socket, method, { status, lines, body = '' }) {
  if (socket.destroyed) return
  let text = `HTTP/1.1 ${status} ${REASONS[status] || 'Some'}\r\n`
  for (const [name, value] of lines) text += `${name}: ${value}\r\n`
  const bodiless = status === 204 || status === 304
  if (!bodiless) text += `Content-Length: ${body.length}\r\n`
  socket.write(`${text}\r\n${bodiless || method === 'HEAD' ? '' : body}`, 'latin1')
}

export const httpDate = ms => new Date(ms).toUTCString()
