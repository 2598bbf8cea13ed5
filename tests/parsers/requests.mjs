// Requests as clients, careless ones and attackers write them. A case is a function of seed and number.
import { createHash } from 'node:crypto'
import { Random } from '../lib/random.mjs'

const bytes = text => Buffer.from(text, 'latin1')

/** What is put somewhere into a request that was in order. */
const PIECES = [
  '\r', '\n', '\r\n', '\r\n\r\n', ' ', '\t', '\0', '\x0b', '\x0c', '\x7f', '\xff', '\x80', '\x85', '\xa0', ':', ';', ',', '=', '"', '\\', '%', '_', '-', '+', '0',
  '#', '?', '@', '/', '//', '/../', '*', 'x', 'chunked', '\r\n ', '\r\nContent-Length: 3', '\r\nTransfer-Encoding: chunked', '\r\nTransfer-Encoding: identity',
  '\r\nHost: other', '\r\nContent_Length: 3', '\r\nConnection: content-length', '\r\nConnection: close', '\r\nExpect: 100-continue', '\r\nUpgrade: websocket',
  '\r\nX-A:', '\r\nX-B: \xe9\xff', '\r\nTE: trailers', '\r\n0\r\n\r\n', 'HTTP/1.1', ' HTTP/1.1', ';a=b', ';a="\\""', '%41', '%2e', '%e9', '.', '..'
]

const METHODS = [[40, 'GET'], [20, 'POST'], [6, 'PUT'], [5, 'DELETE'], [4, 'HEAD'], [4, 'PATCH'], [4, 'OPTIONS'], [2, 'PROPFIND'], [2, 'M-SEARCH'], [1, 'FROB'], [1, 'get'], [1, 'TRACE']]
const SEGMENTS = ['a', 'b.c', '%41', '%e9', '%C3%A9', '.', '..', '~x', 'a;v=1', 'a,b', 'a:b', '@x', "it's", '(x)', '{x}', '"x"', '%20', '%25', 'a=b', '$', '!', '*', '%2f', '\xe9', '..;']
const QUERIES = ['', '?', '?a=b', '?a=b&a=c', '?/../x', '??', '?a=%20', '?a="b"', '?{"a":1}', '?a=<b>', '?a|b', '?a^b`c', '?\\', '?a=\xe9', "?a='", '?a[]=1', '?http://x/y', '?HTTP/1.1']
const HOSTS = [[30, 'a.example'], [3, 'A.Example:80'], [3, '127.0.0.1:8080'], [2, '[::1]'], [2, '[::1]:8080'], [2, 'a_b.example.'], [1, 'a:'], [1, 'a..b'], [1, 'a@b'], [1, '']]
const FIELDS = [
  'Accept: */*', 'accept:text/html', 'Accept-Language: \t en \t', 'Cookie: a=1; b="2"', 'Cookie: c=3', 'X-Empty:', 'X-Empty: ', 'X-Latin: \xe4\xf6\xff', 'X-Quoted: "a, b; c"',
  'X-Colons: a: b:c', 'X-Tabs: a\tb', "X!#$%&'*+-.^_`|~: odd", 'X_Under: 1', 'Connection: keep-alive', 'Connection: X-Hop, Keep-Alive', 'X-Hop: 1', 'Keep-Alive: timeout=5',
  'Connection: content-length, transfer-encoding, host', 'TE: trailers', 'TE: gzip, trailers', 'Connection: TE', 'Trailer: X-Sum', 'Upgrade: h2c', 'Upgrade: websocket',
  'Connection: Upgrade', 'HTTP2-Settings: AAAA', 'Proxy-Connection: close', 'Proxy-Authorization: x', 'Expect: 100-continue', 'X-Forwarded-For: 6.6.6.6',
  'x_forwarded_for: 6.6.6.6', 'Forwarded: for="6.6.6.6', 'Via: 1.0 x', 'Range: bytes=0-1', 'If-None-Match: "x"', 'Content-Type: text/plain', 'Content-Encoding: gzip',
  'Authorization: Basic eDp5', 'Max-Forwards: 0', 'Transfer-Encoding : chunked', 'Content_Length: 5', 'X-Long: ' + 'y'.repeat(900)
]
const BODIES = ['', 'x', 'hello', '0\r\n\r\n', 'GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n', '\r\n\r\n', '5\r\nhello\r\n0\r\n\r\n', '\0\xff\n\r', 'z'.repeat(3000)]
const SIZES = [n => n.toString(16), n => n.toString(16).toUpperCase(), n => '000' + n.toString(16), n => n.toString(16) + ';x', n => n.toString(16) + ';a="b;\\"c"', n => n.toString(16) + ';a=b;c']

/** A body in chunks, with trailers or without. */
function chunked (random, body) {
  let out = ''
  for (let at = 0; at < body.length;) {
    const size = Math.min(body.length - at, 1 + random.below(random.chance(0.5) ? 8 : 2000))
    out += `${random.pick(SIZES)(size)}\r\n${body.slice(at, at + size)}\r\n`
    at += size
  }
  const trailers = random.chance(0.2) ? random.pick(['X-Sum: 1\r\n', 'Host: evil\r\n', 'Content-Length: 5\r\n', 'X-Sum: \xe9\r\nX-Other:\r\n', 'Transfer-Encoding: chunked\r\n']) : ''
  return `${out}${random.pick(['0', '000', '0;x'])}\r\n${trailers}\r\n`
}

/** One request that is in order, or nearly, under this name. */
function request (random, id) {
  const method = random.weighted(METHODS)
  let path = '/' + id
  for (let depth = random.below(4); depth > 0; depth--) path += '/' + random.pick(SEGMENTS.slice(0, random.chance(0.1) ? SEGMENTS.length : SEGMENTS.length - 3))
  const query = random.chance(0.4) ? random.pick(QUERIES) : ''
  const host = random.weighted(random.chance(0.9) ? HOSTS.slice(0, 7) : HOSTS)
  let target = path + query
  if (random.chance(0.05)) target = `${random.pick(['http', 'HTTP', 'https'])}://b.example${target}`
  if (method === 'OPTIONS' && random.chance(0.2)) target = '*'
  const version = random.weighted([[40, 'HTTP/1.1'], [2, 'HTTP/1.0'], [0.2, 'HTTP/1.2']])
  const lines = [random.pick(['Host', 'host', 'HOST']) + ': ' + host, `X-Request-Id: ${id}`]
  for (let count = random.below(5); count > 0; count--) lines.push(random.pick(FIELDS.slice(0, random.chance(0.05) ? FIELDS.length : FIELDS.length - 3)))
  let body = ''
  let content = ''
  if (random.chance(method === 'GET' || method === 'HEAD' ? 0.1 : 0.8)) {
    content = body = random.pick(BODIES)
    if (random.chance(0.5)) {
      lines.push(random.pick(['Content-Length', 'content-length']) + ': ' + random.pick([String, String, n => '00' + n, n => n + ' '])(body.length))
    } else {
      lines.push(random.pick(['Transfer-Encoding', 'transfer-encoding']) + ': ' + random.pick(['chunked', 'chunked', 'Chunked', '\tCHUNKED ']))
      body = chunked(random, body)
    }
  }
  for (let at = lines.length - 1; at > 0; at--) {
    const other = random.below(at + 1);
    [lines[at], lines[other]] = [lines[other], lines[at]]
  }
  const text = `${random.chance(0.05) ? '\r\n' : ''}${method} ${target} ${version}\r\n${lines.map(line => line + '\r\n').join('')}\r\n${body}`
  return { text, meant: { id, method, body: createHash('sha1').update(bytes(content)).digest('hex') } }
}

/** The same with one thing wrong, or merely other. */
function mutated (random, text) {
  const at = random.below(text.length)
  switch (random.below(6)) {
    case 0: return text.slice(0, at) + random.pick(PIECES) + text.slice(at)
    case 1: return text.slice(0, at) + random.pick(PIECES) + text.slice(at + 1)
    case 2: return text.slice(0, at) + text.slice(at + 1 + random.below(3))
    case 3: {
      const lines = text.split('\r\n')
      lines.splice(random.below(lines.length), 0, random.pick(lines))
      return lines.join('\r\n')
    }
    case 4: {
      // Where it matters: behind a line's end, or at its end.
      const ends = [...text.matchAll(/\r\n|:|;/g)]
      const end = random.pick(ends)
      const place = end.index + (random.chance(0.5) ? 0 : end[0].length)
      return text.slice(0, place) + random.pick(PIECES) + text.slice(place)
    }
    default: {
      const char = text.charCodeAt(at) ^ (1 << random.below(8))
      return text.slice(0, at) + String.fromCharCode(char) + text.slice(at + 1)
    }
  }
}

/**
 * A connection's bytes, in the pieces in which they are sent, how many requests they were made of, and what these mean, where
 * nothing was changed.
 */
export function connection (seed, number, { mutates = true } = {}) {
  const random = new Random('parsers', seed, number)
  const count = 1 + random.below(4)
  let text = ''
  let meant = []
  for (let nth = 0; nth < count; nth++) {
    const name = `c${number}.${nth}`
    // No mutation makes one request's name another's.
    const made = request(random, `${name}.${createHash('sha1').update(name).digest('hex').slice(0, 6)}`)
    let one = made.text
    // Most requests of a case come through, so that what follows a mutated one is seen.
    if (mutates && random.chance(0.3)) one = mutated(random, one)
    if (mutates && random.chance(0.05)) one = mutated(random, one)
    if (one !== made.text) meant = null
    meant?.push(made.meant)
    text += one
  }
  const all = bytes(text)
  const cuts = Array.from({ length: random.below(4) }, () => random.below(all.length)).sort((a, b) => a - b)
  const pieces = []
  let from = 0
  for (const cut of [...cuts, all.length]) {
    if (cut > from) pieces.push(all.subarray(from, cut))
    from = Math.max(from, cut)
  }
  return { pieces, count, meant: meant || [] }
}
