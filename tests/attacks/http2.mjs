// HTTP/2 in frames of our own making, for what no well-behaved client sends.
import { connect } from 'node:net'

export const DATA = 0; export const HEADERS = 1; export const PRIORITY = 2; export const RST_STREAM = 3; export const SETTINGS = 4
export const PING = 6; export const GOAWAY = 7; export const WINDOW_UPDATE = 8; export const CONTINUATION = 9
export const END_STREAM = 1; export const END_HEADERS = 4

export function frame (kind, flags, stream, payload = Buffer.alloc(0)) {
  const head = Buffer.alloc(9)
  head.writeUIntBE(payload.length, 0, 3)
  head[3] = kind
  head[4] = flags
  head.writeUInt32BE(stream, 5)
  return Buffer.concat([head, payload])
}

export const number = value => { const bytes = Buffer.alloc(4); bytes.writeUInt32BE(value); return bytes }

/** A literal without indexing (RFC 7541 section 6.2.2), the name by its index in the static table, or as text. */
export function literal (name, value) {
  const text = string => Buffer.concat([length(string.length, 7), Buffer.from(string, 'latin1')])
  return Buffer.concat([typeof name === 'number' ? length(name, 4) : Buffer.concat([Buffer.from([0]), text(name)]), text(value)])
}

function length (value, bits) {
  const most = 2 ** bits - 1
  if (value < most) return Buffer.from([value])
  const bytes = [most]
  for (value -= most; value >= 128; value = Math.floor(value / 128)) bytes.push(value % 128 + 128)
  return Buffer.from([...bytes, value])
}

/** The fields of a GET, or of a POST. */
export const get = path => Buffer.concat([Buffer.from([0x82, 0x86]), literal(4, path), literal(1, 'site.example')])
export const post = path => Buffer.concat([Buffer.from([0x83, 0x86]), literal(4, path), literal(1, 'site.example')])

const PREFACE = Buffer.from('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n')

/** A connection that notes the frames it gets; `settings` are its own. */
export class Connection {
  constructor (port, settings = Buffer.alloc(0)) {
    this.seen = []
    this.rest = Buffer.alloc(0)
    this.socket = connect(port, '127.0.0.1')
    this.socket.on('error', () => {})
    this.socket.on('data', bytes => this.take(bytes))
    this.closed = new Promise(resolve => this.socket.once('close', () => { this.closedAt = performance.now(); resolve() }))
    this.opened = new Promise(resolve => this.socket.once('connect', resolve).once('close', resolve))
    this.write(Buffer.concat([PREFACE, frame(SETTINGS, 0, 0, settings)]))
  }

  take (bytes) {
    this.rest = Buffer.concat([this.rest, bytes])
    while (this.rest.length >= 9 && this.rest.length >= 9 + this.rest.readUIntBE(0, 3)) {
      const length = this.rest.readUIntBE(0, 3)
      const seen = { kind: this.rest[3], flags: this.rest[4], stream: this.rest.readUInt32BE(5) & 0x7fffffff, at: performance.now() }
      if (seen.kind === GOAWAY) seen.code = this.rest.readUInt32BE(13)
      this.seen.push(seen)
      this.rest = this.rest.subarray(9 + length)
    }
  }

  /** False once the connection is gone; waits where the other side does not take what is sent. */
  async write (bytes) {
    if (this.socket.destroyed) return false
    if (!this.socket.write(bytes)) {
      await new Promise(resolve => this.socket.once('drain', resolve).once('close', resolve))
    }
    return !this.socket.destroyed
  }

  /** The first farewell with an error code. */
  get farewell () { return this.seen.find(({ kind, code }) => kind === GOAWAY && code > 0) }
}
