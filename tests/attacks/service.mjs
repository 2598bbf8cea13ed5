// The service behind the attacked Weir, in a process of its own: what keeps the attackers busy must not look like Weir's doing.
// Says its port when it listens, and what it saw whenever it is asked.
import { createServer } from 'node:http'

const KIB = 1024
const big = Buffer.alloc(32 * KIB * KIB, 'x')
/** Requests under way, and begun so far. */
const seen = { open: 0, begun: 0 }

const server = createServer((request, response) => {
  seen.begun++
  seen.open++
  response.on('close', () => { seen.open-- })
  if (request.url.startsWith('/never')) return
  if (request.method === 'POST') return request.resume().on('end', () => response.end('taken'))
  request.resume()
  if (request.url.startsWith('/big')) return response.end(big)
  if (!request.url.startsWith('/cached')) response.setHeader('cache-control', 'no-store')
  response.end('x'.repeat(KIB))
})
server.keepAliveTimeout = 60_000
server.listen(0, '127.0.0.1', () => process.send({ port: server.address().port }))
process.on('message', () => process.send(seen))
process.on('disconnect', () => process.exit())
