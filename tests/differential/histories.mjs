// Random histories: a few requests to one URL, and what the origin would answer to each. A function of seed and number.
import { Random } from '../lib/random.mjs'

/** Short and long pause; between them no lifetime in the grammar ends, so that clocks of whole seconds cannot matter. */
export const PAUSES_MS = [120, 3600]

const STATUSES = [
  [30, 200], [3, 203], [3, 204], [2, 299], [3, 300], [3, 301], [2, 302], [1, 303], [2, 307], [2, 308], [1, 400], [2, 403],
  [4, 404], [1, 405], [2, 410], [1, 414], [2, 500], [1, 501], [1, 502], [2, 503], [1, 599]
]

const SECONDS = [[2, '0'], [5, '2'], [6, '60'], [4, '3600'], [1, '99999999999']]

/** A directive with an argument, in the ways in which it comes. */
function lifetime (random, name) {
  const n = random.weighted(SECONDS)
  const other = random.weighted(SECONDS)
  return random.weighted([
    [20, `${name}=${n}`], [2, `${name}="${n}"`], [2, `${name.toUpperCase()}=${n}`], [1, `${name}=${n}, ${name}=${other}`],
    [0.4, `${name}=abc`], [0.4, `${name}=-1`], [0.4, `${name}=1.5`], [0.4, name], [0.4, `${name}=`], [0.4, `${name} = ${n}`],
    [0.4, `${name}='${n}'`], [0.4, `${name}=00${n}`], [0.4, `${name}=${n};x=1`], [0.4, `x-${name}=${n}`]
  ])
}

function flag (random, name) {
  return random.weighted([
    [12, name], [2, name.toUpperCase()], [0.7, `${name}=1`], [0.7, `${name}="x-other"`], [0.5, `x-${name}`], [0.5, `x="a, ${name}, b"`]
  ])
}

function responseDirectives (random) {
  const said = []
  if (random.chance(0.7)) said.push(lifetime(random, 'max-age'))
  if (random.chance(0.2)) said.push(lifetime(random, 's-maxage'))
  for (const [share, name] of [
    [0.06, 'private'], [0.05, 'no-store'], [0.07, 'no-cache'], [0.12, 'public'], [0.08, 'must-revalidate'],
    [0.05, 'proxy-revalidate'], [0.03, 'immutable'], [0.03, 'no-transform'], [0.03, 'must-understand'], [0.03, 'unknown']
  ]) {
    if (random.chance(share)) said.push(flag(random, name))
  }
  if (random.chance(0.1)) said.push(`stale-while-revalidate=${random.pick(['2', '100'])}`)
  if (random.chance(0.1)) said.push('stale-if-error=100')
  return shuffled(random, said)
}

function shuffled (random, list) {
  return list.map(item => [random.next(), item]).sort((a, b) => a[0] - b[0]).map(([, item]) => item)
}

/** Directives as lines of a field: joined in some way, or on lines of their own. */
function lines (random, name, directives) {
  if (directives.length === 0) return []
  return random.weighted([
    [8, () => [[name, directives.join(', ')]]], [1, () => [[name, directives.join(',')]]], [1, () => [[name, directives.join(' , ,')]]],
    [2, () => directives.map(one => [name, one])]
  ])()
}

/**
 * A value is text, or `{ at }`: a date, in seconds from the answer; `{ from }`: from the history's begin; `{ changed }`: the
 * same, a second later for each content; `{ tag }`: with the content's number for the `%`. So validators tell the truth.
 */
function expires (random) {
  return random.weighted([
    [4, { at: 60 }], [2, { at: 3600 }], [2, { at: 2 }], [3, { at: -60 }], [2, '0'], [0.5, '-1'], [0.7, { at: 60, form: 'rfc850' }],
    [0.7, { at: 60, form: 'asctime' }], [0.3, { at: 60, form: 'iso' }], [0.3, { at: 60, form: 'offset' }], [0.3, { at: 60, form: 'lower' }],
    [0.3, 'never'], [0.3, '']
  ])
}

function response (random, like) {
  const status = like && random.chance(0.8) ? like.status : random.weighted(STATUSES)
  const fields = lines(random, 'Cache-Control', responseDirectives(random))
  if (random.chance(0.25)) fields.push(['Expires', expires(random)])
  if (random.chance(0.02)) fields.push(['Expires', expires(random)])
  fields.push(...random.weighted([
    [16, [['Date', { at: 0 }]]], [1, []], [1, [['Date', { at: -30 }]]], [0.5, [['Date', { at: -5000 }]]], [0.5, [['Date', { at: 5000 }]]],
    [0.3, [['Date', 'today']]]
  ]))
  fields.push(...random.weighted([
    [30, []], [2, [['Age', '0']]], [2, [['Age', '30']]], [1, [['Age', '100000']]], [0.5, [['Age', 'abc']]], [0.5, [['Age', '-30']]],
    [0.3, [['Age', '30, 0']]], [0.3, [['Age', '0'], ['Age', '30']]], [0.3, [['Age', '30.5']]]
  ]))
  fields.push(...random.weighted([
    [8, []], [5, [['Last-Modified', { changed: -100000 }]]], [1, [['Last-Modified', { changed: -20 }]]], [1, [['Last-Modified', { changed: 1000 }]]],
    [0.4, [['Last-Modified', 'once']]]
  ]))
  fields.push(...random.weighted([
    [6, []], [5, [['ETag', { tag: '"e%"' }]]], [2, [['ETag', { tag: 'W/"e%"' }]]], [0.3, [['ETag', { tag: 'bare%' }]]]
  ]))
  fields.push(...random.weighted([
    [40, []], [5, [['Vary', 'Accept-Language']]], [2, [['Vary', 'Foo']]], [2, [['Vary', 'foo, ACCEPT-LANGUAGE']]],
    [1, [['Vary', 'Foo'], ['Vary', 'Accept-Language']]], [2, [['Vary', '*']]], [0.5, [['Vary', 'Foo, *']]], [1, [['Vary', 'Accept-Encoding']]]
  ]))
  if (random.chance(0.03)) fields.push(['Pragma', 'no-cache'])
  const isSame = like && like.status === status && random.chance(0.5)
  return { status, fields, content: isSame ? like.content : like ? like.content + 1 : 0, ranges: random.chance(0.5) }
}

function requestDirectives (random) {
  return random.weighted([
    [3, ['no-cache']], [3, ['no-store']], [3, ['max-age=0']], [2, ['max-age=1000']], [1, ['max-age="0"']], [1, ['MAX-AGE=0']], [1, ['max-age=x']],
    [2, ['min-fresh=1000']], [1, ['min-fresh=1']], [2, ['max-stale']], [2, ['max-stale=1000']], [1, ['max-stale=0']], [2, ['only-if-cached']],
    [1, ['max-age=0', 'max-stale=1000']], [1, ['stale-if-error=1000']], [1, ['unknown']], [0.5, ['no-cache=1']], [0.5, ['x="no-store"']]
  ])
}

function request (random, isLast) {
  const method = random.weighted([
    [40, 'GET'], [3, 'HEAD'], ...(isLast ? [] : [[2, 'POST'], [1, 'PUT'], [1, 'DELETE'], [1, 'PATCH'], [0.5, 'OPTIONS'], [0.7, 'MEND']])
  ])
  const fields = []
  if (random.chance(0.1)) fields.push(['Authorization', random.pick(['Bearer a', 'Bearer b'])])
  if (random.chance(0.2)) fields.push(...lines(random, 'Cache-Control', requestDirectives(random)))
  if (random.chance(0.03)) fields.push(['Pragma', 'no-cache'])
  if (random.chance(0.1)) fields.push(['If-None-Match', random.pick(['"e0"', '"e1"', 'W/"e0"', '"x"', '"x", "e0", "e1"', '*', 'e0'])])
  if (random.chance(0.08)) fields.push(['If-Modified-Since', random.pick([{ from: -100000 }, { from: -99999 }, { from: -200000 }, { from: -5 }, 'then'])])
  if (method === 'GET' && random.chance(0.1)) {
    fields.push(['Range', random.pick(['bytes=0-3', 'bytes=2-', 'bytes=-2', 'bytes=100-', 'bytes=3-1', 'bytes=x', 'lines=1-2'])])
    if (random.chance(0.3)) fields.push(['If-Range', random.pick(['"e0"', '"e1"', 'W/"e0"', '"x"', { from: -100000 }])])
  }
  if (random.chance(0.3)) fields.push(['Accept-Language', random.pick(['en', 'de'])])
  if (random.chance(0.1)) fields.push(['Accept-Encoding', random.pick(['gzip', 'br'])])
  if (random.chance(0.1)) fields.push(['Foo', random.pick(['1', '2'])])
  if (random.chance(0.08)) fields.push(['Cookie', random.pick(['a=1', 'a=2'])])
  return { method, fields }
}

export function history (seed, number) {
  const random = new Random('history', seed, number)
  const length = random.weighted([[3, 2], [4, 3], [3, 4]])
  const steps = []
  for (let nth = 0; nth < length; nth++) {
    const before = nth > 0 ? steps[nth - 1] : null
    const answer = !before ? response(random, null)
      : random.chance(0.6) ? { ...before.response, content: before.response.content + random.pick([0, 1]) } : response(random, before.response)
    steps.push({
      pauseMs: before ? random.weighted([[6, PAUSES_MS[0]], [4, PAUSES_MS[1]]]) : 0,
      request: request(random, nth === length - 1),
      response: answer
    })
  }
  return { number, steps }
}

const DAYS = ['Sunday', 'Monday', 'Tuesday', 'Wednesday', 'Thursday', 'Friday', 'Saturday']

/** A field's value as it goes over the wire at `now`, in a history that began at `begin` (both ms), for a content. */
export function written (value, now, begin, content) {
  if (typeof value === 'string') return value
  if ('tag' in value) return value.tag.replace('%', content)
  const at = new Date('at' in value ? now + value.at * 1000 : begin + ('from' in value ? value.from : value.changed + content) * 1000)
  const usual = at.toUTCString()
  const [, day, month, year, time] = usual.split(' ')
  switch (value.form) {
    case 'rfc850': return `${DAYS[at.getUTCDay()]}, ${day}-${month}-${year.slice(2)} ${time} GMT`
    case 'asctime': return `${usual.slice(0, 3)} ${month} ${String(Number(day)).padStart(2)} ${time} ${year}`
    case 'iso': return at.toISOString()
    case 'offset': return usual.replace('GMT', '+0000')
    case 'lower': return usual.toLowerCase()
    default: return usual
  }
}

const signed = seconds => `${seconds < 0 ? '' : '+'}${seconds}s`

function shown (value, content) {
  if (typeof value === 'string') return value
  if ('tag' in value) return value.tag.replace('%', content)
  if ('at' in value) return `<now${signed(value.at)}${value.form ? ` ${value.form}` : ''}>`
  return `<begin${signed('from' in value ? value.from : value.changed + content)}>`
}

/** A field for people; dates are relative. */
export const line = ([name, value], content) => `${name}: ${shown(value, content)}`
