// Stands behind Weir and keeps what each connection was sent, byte by byte. It reads only the one form in which Weir writes
// a request, and says where anything departs from it.
import { createHash } from 'node:crypto'
import { createServer } from 'node:net'
import { once } from 'node:events'

const TOKEN = /^[!#$%&'*+.^_`|~0-9a-z-]+$/
const VALUE = /^(?:[\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?$/
const digest = parts => createHash('sha1').update(Buffer.concat(parts)).digest('hex')

/** What the bytes are to whoever knows no leniency: `{ requests, ends, fault, rest }`; `ends` are offsets. */
export function read (stream) {
  const found = { requests: [], ends: [], fault: null, rest: false }
  let at = 0
  const line = () => {
    const end = stream.indexOf('\r\n', at)
    if (end < 0) return null
    const text = stream.latin1Slice(at, end)
    at = end + 2
    return text
  }
  try {
    while (at < stream.length) {
      const head = stream.indexOf('\r\n\r\n', at)
      if (head < 0) { found.rest = true; break }
      const [first, ...lines] = stream.latin1Slice(at, head).split('\r\n')
      at = head + 4
      const [, method, target] = /^([A-Z_-]+) (\/[\x21-\x7e]*|\*) HTTP\/1\.1$/.exec(first) || fail(`request line ${first}`)
      const fields = new Map()
      for (const text of lines) {
        const colon = text.indexOf(': ')
        const name = text.slice(0, colon)
        if (colon < 1 || !TOKEN.test(name) || !VALUE.test(text.slice(colon + 2))) fail(`field ${JSON.stringify(text)}`)
        fields.set(name, [...(fields.get(name) || []), text.slice(colon + 2)])
      }
      const only = name => {
        const values = fields.get(name) || []
        return values.length > 1 ? fail(`${values.length} times ${name}`) : values[0]
      }
      const host = only('host') || fail('no host')
      const length = only('content-length')
      const coding = only('transfer-encoding')
      const parts = []
      let whole = true
      if (length !== undefined && coding !== undefined) fail('two framings')
      if (length !== undefined) {
        if (!/^(0|[1-9][0-9]*)$/.test(length)) fail(`length ${length}`)
        whole = at + Number(length) <= stream.length
        parts.push(stream.subarray(at, at + Number(length)))
        at += Number(length)
      } else if (coding !== undefined) {
        if (coding !== 'chunked') fail(`coding ${coding}`)
        for (;;) {
          const size = line()
          if (size === null) { whole = false; break }
          if (!/^(0|[1-9a-f][0-9a-f]*)$/.test(size)) fail(`chunk size ${JSON.stringify(size)}`)
          const bytes = parseInt(size, 16)
          if (bytes === 0) break
          if (at + bytes + 2 > stream.length) { whole = false; break }
          parts.push(stream.subarray(at, at + bytes))
          at += bytes
          if (line() !== '') fail('no line end behind a chunk')
        }
        while (whole) {
          const trailer = line()
          if (trailer === null) whole = false
          else if (trailer === '') break
          else if (!TOKEN.test(trailer.slice(0, trailer.indexOf(': ')))) fail(`trailer ${JSON.stringify(trailer)}`)
        }
      }
      if (!whole) { found.rest = true; break }
      found.requests.push({ method, target, host, body: digest(parts), id: (fields.get('x-request-id') || [])[0] || null, offers: fields.has('upgrade'), lists: ['if-match', 'if-none-match'].some(name => fields.get(name)?.length > 1) })
      found.ends.push(at)
    }
  } catch (error) {
    if (!(error instanceof Fault)) throw error
    found.fault = error.message
  }
  return found
}

class Fault extends Error {}
function fail (what) { throw new Fault(what) }

/** Requests that one connection carries before it is closed, so that it can be looked at. */
const A_CONNECTION = 60

/** Answers everything, and hands on each connection's bytes when it has ended. */
export async function recorder (ended) {
  const sockets = new Set()
  const server = createServer({ noDelay: true }, socket => {
    sockets.add(socket)
    let stream = Buffer.alloc(0)
    let answered = 0
    // What is behind the requests that have been answered.
    let begun = 0
    socket.on('data', chunk => {
      stream = Buffer.concat([stream, chunk])
      const found = read(stream.subarray(begun))
      let text = ''
      for (const { method } of found.requests) {
        answered++
        const last = answered >= A_CONNECTION
        text += `HTTP/1.1 200 OK\r\nContent-Length: 2\r\n${last ? 'Connection: close\r\n' : ''}\r\n${method === 'HEAD' ? '' : 'ok'}`
      }
      if (found.ends.length) begun += found.ends.at(-1)
      if (text) socket.write(text)
      if (found.fault || answered >= A_CONNECTION) socket.end()
    })
    socket.on('error', () => {})
    socket.on('close', () => {
      sockets.delete(socket)
      if (stream.length) ended(stream)
    })
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  return {
    port: server.address().port,
    /** Ends every connection, so that all of them are handed on. */
    async close () {
      server.close()
      const open = [...sockets].map(socket => once(socket, 'close'))
      sockets.forEach(socket => socket.destroy())
      await Promise.all(open)
    }
  }
}
