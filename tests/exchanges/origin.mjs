// The service behind Weir: pages that come in versions, each answer made for one request and remembered with all that
// was said, so that the observer can hold against it what a client was given.
import { httpDate, serve } from '../lib/http.mjs'
import { pause } from '../lib/servers.mjs'
import { Random } from '../lib/random.mjs'

export const USERS = ['ann', 'bob', 'cem', 'dag']
export const CHOOSERS = ['accept-language', 'x-variant', 'cookie']

/** Lifetimes in seconds: some end while a page is in use. */
const LIFETIMES = [1, 2, 3, 60]

/** Age of the first version, in seconds; a version is ten seconds younger than the one before. */
const FIRST_AGE_S = 100_000

const KINDS = [[34, 'plain'], [14, 'varied'], [16, 'personal'], [12, 'strict'], [12, 'flaky'], [12, 'wild']]
const SAFE = new Set(['GET', 'HEAD'])

/** What an answer says, by the kind of its page. Seconds, and flags by their directive's name. */
function draw (random, page) {
  const plain = () => random.weighted([[6, { 'max-age': random.pick(LIFETIMES) }], [2, { 's-maxage': random.pick(LIFETIMES), 'max-age': random.pick([0, 60]) }], [1, { expires: random.pick(LIFETIMES) }], [1, {}]])
  switch (page.kind) {
    case 'plain': return { status: 200, ...plain() }
    case 'varied': return { status: 200, ...plain(), vary: random.chance(0.9) ? page.vary : [] }
    case 'personal': return {
      status: 200,
      ...random.weighted([
        [3, { private: true, 'max-age': 60 }], [2, { 'no-store': true }], [1, { 'no-store': true, 'max-age': 60 }], [2, { public: true, 'max-age': 60 }],
        [1, { 's-maxage': 60 }], [3, { 'max-age': 60 }], [1, { 'must-revalidate': true, 'max-age': 1 }], [2, { 'max-age': 60, vary: ['cookie'] }],
        [2, { 'no-cache': true }], [1, { public: true, 'no-cache': true }]
      ])
    }
    case 'strict': return {
      status: 200,
      ...random.weighted([
        [3, { 'no-cache': true }], [1, { 'no-cache': true, 'max-age': 60 }], [3, { 'must-revalidate': true, 'max-age': 1 }], [2, { 'proxy-revalidate': true, 'max-age': 1 }],
        [1, { 'must-revalidate': true, 'max-age': 1, 'stale-while-revalidate': 60, 'stale-if-error': 60 }], [1, { 's-maxage': 1 }], [1, { 'max-age': 0 }]
      ])
    }
    case 'flaky': return random.chance(0.3)
      ? random.weighted([[4, { status: 503 }], [2, { status: 500, 'no-store': true }], [1, { status: 500, 'max-age': 1 }], [2, { cut: true }]])
      : { status: 200, 'max-age': 1, ...page.stale }
    default: return {
      status: random.weighted([[12, 200], [2, 404], [1, 410], [1, 301], [1, 302], [1, 500]]),
      ...plain(),
      ...(random.chance(0.08) && { private: true }), ...(random.chance(0.08) && { 'no-store': true }), ...(random.chance(0.08) && { 'no-cache': true }),
      ...(random.chance(0.1) && { public: true }), ...(random.chance(0.08) && { 'must-revalidate': true }), ...(random.chance(0.1) && { age: random.pick([1, 30]) }),
      ...(random.chance(0.1) && { vary: [random.pick(CHOOSERS)] })
    }
  }
}

const FLAGS = ['public', 'private', 'no-store', 'no-cache', 'must-revalidate', 'proxy-revalidate']
const TIMES = ['max-age', 's-maxage', 'stale-while-revalidate', 'stale-if-error']

/** The fields that say it. */
function lines (says, answer, now) {
  const all = [['Date', httpDate(now)]]
  const directives = [...FLAGS.filter(name => says[name]), ...TIMES.filter(name => says[name] !== undefined).map(name => `${name}=${says[name]}`)]
  if (directives.length) all.push(['Cache-Control', directives.join(', ')])
  if (says.expires !== undefined) all.push(['Expires', httpDate(now + says.expires * 1000)])
  if (says.age !== undefined) all.push(['Age', String(says.age)])
  if (answer.vary.length) all.push(['Vary', answer.vary.join(', ')])
  if (answer.etag) all.push(['ETag', answer.etag])
  if (answer.modified) all.push(['Last-Modified', answer.modified])
  return all
}

/** What a 304 says: always something of its own in Cache-Control, so that nothing of the older fields is left to count. */
function renewed ({ expires, vary, ...says }) {
  const own = { ...says, ...(expires !== undefined && { 'max-age': expires }) }
  return [...FLAGS, ...TIMES].some(name => own[name] !== undefined) ? own : { ...own, 'max-age': 1 }
}

export class Origin {
  constructor (seed, lie) {
    this.seed = seed
    this.lie = lie
    this.pages = new Map()
    this.answers = new Map()
    this.made = 0
    this.requests = 0
  }

  async open () {
    this.server = await serve(request => this.answer(request))
    return this.server.port
  }

  close () {
    this.server.close()
  }

  page (target) {
    let page = this.pages.get(target)
    if (!page) {
      const random = new Random('page', this.seed, target)
      const kind = random.weighted(KINDS)
      page = {
        target, kind, version: 0, fetches: 0, answers: [], writes: [], failures: [], began: Date.now(), seen: [],
        vary: random.pick([['accept-language'], ['x-variant'], ['accept-language', 'x-variant'], ['cookie']]),
        stale: random.pick([{ 'stale-while-revalidate': 5 }, { 'stale-if-error': 20 }, { 'stale-while-revalidate': 2, 'stale-if-error': 20 }, {}]),
        // A date says nothing of users and variants: what they choose has tags.
        dated: kind === 'plain' && random.chance(0.3),
        weak: random.chance(0.2)
      }
      this.pages.set(target, page)
    }
    return page
  }

  /** Forgets pages and answers that nobody asks for any more. */
  forget (isOver) {
    for (const [target, page] of this.pages) {
      if (!isOver(target)) continue
      page.answers.forEach(({ number }) => this.answers.delete(number))
      this.pages.delete(target)
    }
  }

  async answer (request) {
    this.requests++
    const page = this.page(request.target)
    const asked = Date.now()
    const field = name => request.fields.get(name)
    const random = new Random('answer', this.seed, page.target, page.fetches++)
    const delay = random.weighted([[6, 0], [2, 3], [1, 15], [0.3, 60]])
    const says = draw(random, page)
    const asker = {
      id: field('x-request'), pod: field('x-pod'), method: request.method, authorization: field('authorization') || null,
      'no-store': /no-store/.test(field('cache-control') || '')
    }
    CHOOSERS.forEach(name => { asker[name] = field(name) || null })
    if (!SAFE.has(request.method)) return this.write(page, random, asker, delay)

    const known = this.confirmed(page, asker, field)
    if (known && !says.cut && says.status === 200) {
      if (delay) await pause(delay)
      return this.confirm(page, known, says, asker)
    }
    const answer = this.make(page, says, asker, asked)
    if (delay) await pause(delay)
    answer.events[0].at = Date.now()
    if (says.cut || says.status >= 500) page.failures.push({ from: asked, to: Date.now() })
    if (says.cut) return null
    const wire = this.lie(says, answer, 'answer')
    return { status: wire.status, lines: [['X-Answer', String(answer.number)], ...lines(wire, { ...answer, vary: wire.vary || answer.vary }, Date.now())], body: answer.body }
  }

  /** A write makes a new version, unless it fails. */
  async write (page, random, asker, delay) {
    const succeeds = random.chance(0.85)
    const version = succeeds ? ++page.version : page.version
    if (delay) await pause(delay)
    const status = this.lie({ status: succeeds ? random.pick([200, 201, 204, 303]) : random.pick([400, 500]) }, null, 'write').status
    return { status, lines: [['X-Written', `${asker.id} ${version} ${succeeds ? 'new' : 'same'}`]], body: status === 204 ? '' : 'written' }
  }

  make (page, says, asker, asked) {
    const number = ++this.made
    const user = asker.authorization || asker.cookie || '-'
    const filler = 'abcdefghijklmnopqrstuvwxyz0123456789'.repeat(12).slice(0, (number * 7919) % 400)
    const answer = {
      number, page, user, asker, asked, version: page.version, status: says.status,
      vary: says.vary || [],
      etag: page.dated ? null : `${page.weak ? 'W/' : ''}"a${number}"`,
      modified: page.dated || number % 3 === 0 ? httpDate(page.began - FIRST_AGE_S * 1000 + page.version * 10_000) : null,
      body: `answer ${number} to ${page.target} version ${page.version} for ${user} ${filler}.`,
      events: [{ at: Infinity, given: Infinity, asker, says }]
    }
    page.answers.push(answer)
    this.answers.set(number, answer)
    return answer
  }

  /** What a conditional request names, if that is what it would be sent now. */
  confirmed (page, asker, field) {
    const tags = field('if-none-match')
    if (tags) {
      for (const [, number] of tags.matchAll(/"a(\d+)"/g)) {
        const answer = this.answers.get(Number(number))
        const same = answer && answer.page === page && answer.version === page.version && answer.status === 200 && answer.etag
        const personal = page.kind === 'personal' && answer?.user !== (asker.authorization || asker.cookie || '-')
        if (same && !personal && answer.vary.every(name => answer.asker[name] === asker[name])) return [answer]
      }
      return null
    }
    const since = field('if-modified-since')
    if (!since || !page.dated) return null
    const modified = httpDate(page.began - FIRST_AGE_S * 1000 + page.version * 10_000)
    return Date.parse(since) >= Date.parse(modified) ? page.answers.filter(({ version, status }) => version === page.version && status === 200) : null
  }

  confirm (page, known, says, asker) {
    const now = Date.now()
    const event = { at: now, given: Infinity, asker, says: renewed(says) }
    known.forEach(answer => answer.events.push(event))
    const [answer] = known
    const wire = this.lie(event.says, answer, 'confirm')
    const own = answer?.etag ? [['X-Answer', String(answer.number)]] : []
    return { status: 304, lines: [...own, ...lines(wire, answer || { vary: [] }, now)], body: '' }
  }
}
