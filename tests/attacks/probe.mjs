// A well-behaved client: asks at a steady rate, whatever happens, and prints how long answers took from when they were due.
//
//   node probe.mjs PORT PATH SECONDS RATE [posts]
//
// With `posts`, every second request has a short body, in turn with its length and in chunks.
import { Agent, request } from 'node:http'

const [port, path, seconds, rate, posts] = process.argv.slice(2)
const agent = new Agent({ keepAlive: true, maxSockets: 64 })
const took = []
const failed = {}

function ask (due, turn) {
  return new Promise(resolve => {
    const over = error => {
      if (error) failed[error] = (failed[error] || 0) + 1
      else took.push(performance.now() - due)
      resolve()
    }
    const body = posts && turn % 2 === 1 ? 'short' : null
    const headers = body && turn % 4 === 1 ? { 'content-length': body.length } : {}
    const asked = request({ port, path, agent, headers, method: body ? 'POST' : 'GET', host: '127.0.0.1', timeout: 10_000 }, answer => {
      answer.resume().on('end', () => over(answer.statusCode === 200 ? null : answer.statusCode)).on('error', e => over(e.code))
    })
    asked.on('timeout', () => asked.destroy()).on('error', error => over(error.code)).end(body ?? undefined)
  })
}

const began = performance.now()
const all = []
for (let i = 0; i < seconds * rate; i++) {
  const due = began + i * 1000 / rate
  const early = due - performance.now()
  if (early > 0) await new Promise(resolve => setTimeout(resolve, early))
  all.push(ask(due, i))
}
await Promise.all(all)
agent.destroy()
took.sort((a, b) => a - b)
const at = share => took[Math.min(took.length - 1, Math.floor(share * took.length))] ?? Infinity
console.log(JSON.stringify({ sent: all.length, failed, p50: at(0.5), p99: at(0.99), most: took.at(-1) ?? Infinity }))
