// Why Weir and a peer may differ. Each: a name, what it says with its clause, and for which differences it holds. What
// Weir serves from its cache has passed rules.mjs besides; nothing here excuses that.
import { directives, firstAge, invalidatedBetween, lifetime, mayReuse, said, seconds, storedAnswer, storedAt, values } from './rules.mjs'

const has = (fields, name) => values(fields, name).length > 0
const one = (fields, name) => values(fields, name)[0]
const ats = ({ name }) => name === 'ats'
const squid = ({ name }) => name === 'squid'

/** The answer that a side uses, with the request it was made for. */
const usedBy = (seen, { history, at }) => storedAnswer(history.steps, seen, at)
const credentials = fields => has(fields, 'authorization') || has(fields, 'cookie')

/** Weir answers from its cache and the peer does not: `r` is what Weir uses, `now` the request. */
const hit = holds => d => {
  const used = d.weir[d.at].cached && !d.peer[d.at].cached && usedBy(d.weir, d)
  return Boolean(used) && mayReuse(d.history.steps, d.weir, d.at) === null && holds({ ...d, r: used.response, first: used.request, now: d.step.request })
}

/** The peer answers from its cache and Weir does not; a peer's 504 to only-if-cached is no such answer. */
const miss = holds => d => {
  const used = !d.weir[d.at].cached && d.peer[d.at].cached && d.peer[d.at].status !== 504 && usedBy(d.peer, d)
  return Boolean(used) && holds({ ...d, r: used.response, first: used.request, now: d.step.request })
}

/** Both from the cache, or both from the origin. */
const same = holds => d => {
  if (d.weir[d.at].cached !== d.peer[d.at].cached) return false
  const used = usedBy(d.weir, d)
  return holds({ ...d, r: used?.response, now: d.step.request, answer: d.step.response, w: d.weir[d.at], p: d.peer[d.at] })
}

const conditional = ({ fields }) => has(fields, 'if-none-match') || has(fields, 'if-modified-since')
const success = status => status >= 200 && status < 300
const spelled = fields => values(fields, 'cache-control').join()
/** A verdict that a step of the last five seconds left behind: the key is not stored, and nobody waits for anybody. */
const verdict = ({ weir, at }) => weir.some((seen, nth) => nth < at && weir[at].at - seen.at < 5500 &&
  /detail=(no-freshness|no-store|private|vary-star|status|server-error|credentials|authorization)/.test(seen.says))

const UNREADABLE = /(max-age|s-maxage)\s*(=\s*(abc|-1|1\.5|'\d+'|\d+;x=1|)\s*(,|$)|\s+=|,|$)/i
const QUOTED = /(max-age|s-maxage)="/i
const named = (name, says, holds) => ({ name, says, holds })

export const explanations = [
  named('no-answer', 'the peer gave no answer that can be read', d => d.peer[d.at].status === 0 && d.weir[d.at].status !== 0),

  // Weir answers from its cache, as it may; the peer is more careful, or cannot.
  named('ats-only-if-cached', 'Traffic Server asks the origin, where 5.2.1.7 wants 504',
    d => ats(d) && said(d.step.request.fields, 'only-if-cached') && d.weir[d.at].status === 504 && d.peer[d.at].contacts.length > 0),
  named('refreshed-behind', 'Weir has refreshed behind what it served stale (RFC 5861, 3), and the peer has not',
    hit(d => d.weir.some((seen, nth) => nth < d.at && seen.cached && seen.contacts.length > 0))),
  named('ats-authorised', 'Traffic Server answers no authorised request from its cache; 3.5 restricts what is made for one, not what it is answered with',
    hit(d => ats(d) && has(d.now.fields, 'authorization'))),
  named('pragma-request', "the peer heeds a request's Pragma, which 5.4 deprecates", hit(({ now }) => has(now.fields, 'pragma'))),
  named('pragma-response', "the peer takes an answer's Pragma for no-cache; 5.4: it was never specified there", hit(({ r }) => has(r.fields, 'pragma'))),
  named('pragma-before', "the peer goes by the Pragma of an answer that a later one has confirmed; 5.4: it was never specified there",
    hit(d => d.history.steps.slice(0, d.at).some(({ response }) => has(response.fields, 'pragma')))),
  named('squid-status', 'Squid uses only 200, 203, 300, 301 and 410 again; 3: any final status whose lifetime is explicit, 4.2.2: and 204, 308, 404, 405, 501 by a guess',
    hit(d => squid(d) && ![200, 203, 300, 301, 410].includes(d.r.status))),
  named('ats-status', 'Traffic Server guesses no lifetime for this status; 4.2.2 lets a cache',
    hit(d => ats(d) && lifetime(d.r).by === 'heuristic' && ![200, 203, 300, 301, 410].includes(d.r.status))),
  named('quoted', 'Squid does not read a lifetime in quotes; 5.2: a cache ought to accept both forms', hit(d => squid(d) && QUOTED.test(spelled(d.r.fields)))),
  named('squid-case', 'Squid knows directives in lower case only; 5.2: names are case-insensitive', hit(d => squid(d) && /[A-Z]/.test(spelled(d.r.fields)))),
  named('squid-repeated', 'Squid drops a field with a directive that comes twice; 4.2.1: the first counts, or none does; of two Weir takes the smaller',
    hit(d => squid(d) && ['max-age', 's-maxage'].some(name => directives(d.r.fields).filter(([other]) => other === name).length > 1))),
  named('unreadable-other', 'Squid drops what stands beside a directive that it cannot read; 4.2.1 concerns that one alone',
    hit(d => squid(d) && UNREADABLE.test(spelled(d.r.fields)))),
  named('squid-must-revalidate', 'Squid validates what is fresh if it says must-revalidate, proxy-revalidate or no lifetime of its own; 5.2.2.2: only once stale',
    hit(d => squid(d) && (said(d.r.fields, 'must-revalidate') || said(d.r.fields, 'proxy-revalidate')))),
  named('no-stale-while-revalidate', 'the peer has no stale-while-revalidate (RFC 5861, 3)', hit(({ r }) => said(r.fields, 'stale-while-revalidate'))),
  named('must-understand', 'the peer does not know must-understand; 5.2.2.3: who knows it and the status stores in spite of no-store',
    hit(({ r }) => said(r.fields, 'must-understand') && said(r.fields, 'no-store'))),
  named('ats-encoding', 'Traffic Server looks at Accept-Encoding as soon as an answer varies by anything; 4.1: only at what Vary names',
    hit(d => ats(d) && has(d.now.fields, 'accept-encoding') && has(d.r.fields, 'vary'))),
  named('ats-alternates', 'Traffic Server takes one of several stored variants, and not the one that is fresh; 4: any that matches and is usable',
    hit(d => ats(d) && d.history.steps.slice(0, d.at).some(({ response }) => has(response.fields, 'vary')) && d.weir.filter((seen, nth) => nth < d.at && seen.contacts.length > 0).length > 1)),
  named('ats-empty', 'Traffic Server does not replace a stored 204 by another; 4.3.3: the new answer may take its place',
    hit(d => ats(d) && d.r.status === 204 && d.history.steps.slice(0, storedAt(d.weir, d.at)).some(({ response }) => response.status === 204))),
  named('kept-older', 'the peer validates an older answer than the last that came by; 4.3.3: that may take its place',
    hit(d => d.peer[d.at].contacts.some(({ conditional: by }) => Number(/e(\d+)/.exec(by)?.[1]) < d.r.content))),
  named('range-filled', 'Weir validated or fetched the whole for a Range, and stored it; the peer did not', hit(({ first }) => has(first.fields, 'range'))),
  named('max-stale', "the peer does not go by a request's max-stale; 5.2.1.2 lets a cache", hit(d => said(d.now.fields, 'max-stale'))),
  named('min-fresh', 'Traffic Server fetches whatever min-fresh asks for; 5.2.1.3: what stays fresh for so long may be used', hit(d => ats(d) && said(d.now.fields, 'min-fresh'))),
  named('range-unknown', 'the peer forwards a Range that has no known unit or makes no sense; RFC 9110, 14.2: ignored, so the whole is the answer',
    hit(({ now }) => has(now.fields, 'range') && /^(lines|bytes=x|bytes=3-1)/.test(one(now.fields, 'range')))),
  named('range-of-no-200', 'the peer forwards a Range for what is not a 200; RFC 9110, 14.2: it applies to a 200 only', hit(({ now, r }) => has(now.fields, 'range') && r.status !== 200)),
  named('range', 'the peer forwards a Range with an If-Range or without a strong validator; Weir has the whole (RFC 9110, 14.2)', hit(({ now }) => has(now.fields, 'range'))),
  named('squid-first-conditional', 'Squid does not keep what it fetched for a conditional request; 4.3.2: it may be answered from what was stored',
    hit(d => squid(d) && conditional(d.first))),
  named('first-was-304', 'the peer passed the first condition on, was answered 304, and has stored nothing; Weir fetched the whole; 4.3.2',
    hit(d => conditional(d.first) && d.peer[storedAt(d.weir, d.at)]?.contacts.some(({ status }) => status === 304))),
  named('conditional-of-no-2xx', 'Squid forwards a conditional request for what is no success; RFC 9110, 13.2.1: the condition is ignored there',
    hit(d => squid(d) && conditional(d.now) && !success(d.r.status))),
  named('if-none-match-of-2xx', 'Squid forwards a conditional request for what it has; 4.3.2 lets the cache answer', hit(d => squid(d) && conditional(d.now))),
  named('date', 'the peer takes an answer without a Date that it can read for stale; RFC 9110, 6.6.1: the time of receipt stands in',
    hit(({ r }) => !has(r.fields, 'date') || typeof one(r.fields, 'date') === 'string')),
  named('age-of-no-number', 'the peer makes something of an Age that is no number; 5.1: it is ignored',
    hit(({ r }) => values(r.fields, 'age').some(text => !/^\d+$/.test(text)))),
  named('date-ahead', 'the peer takes an answer from the future for stale; 4.2.3: its age is 0', hit(({ r }) => one(r.fields, 'date').at > 0)),
  named('failed-write', 'the peer forgets what a write named though it failed; 4.4: only a success invalidates',
    hit(d => d.history.steps.some(({ request }, nth) => nth < d.at && !['GET', 'HEAD', 'OPTIONS'].includes(request.method) && d.peer[nth].status >= 400))),
  named('squid-redirect', 'Squid validates a 301 each time if it has no Expires; 4.2.1: max-age counts', hit(d => squid(d) && d.r.status === 301)),
  named('replaced', 'the peer dropped what it had when an answer that it does not store came by; Weir kept its own, which is fresh (4)',
    hit(d => d.weir.some((seen, nth) => nth > storedAt(d.weir, d.at) && nth < d.at && d.peer[nth].contacts.length > 0))),
  named('heuristic', 'the peer guesses a shorter lifetime; 4.2.2 leaves it to the cache, and a tenth is what it names', hit(({ r }) => lifetime(r).by === 'heuristic')),

  // The peer answers from its cache what RFC 9111 forbids, read literally; the reason is the name.
  ...[['private', '5.2.2.7'], ['no-store', '5.2.2.5'], ["the request's no-store", '5.2.1.5'], ['authorization', '3.5'], ['vary', '4.1'], ['invalidated', '4.4'],
    ['stale', '4.2.4'], ['no-cache', '5.2.2.4'], ["the request's", '5.2.1'], ['must-understand', '5.2.2.3'], ['nothing was stored', '4']].map(([start, clause]) =>
    named(`peer: ${start}`, `the peer answers from its cache what ${clause} forbids`,
      miss(d => (mayReuse(d.history.steps, d.peer, d.at) || '').startsWith(start)))),

  // The peer answers from its cache, as it may; Weir does not, for a reason of its own. A cache may always ask (4).
  named('request-no-store', 'a request with no-store goes past Weir; 5.2.1.5 forbids storing, and lets a cache use what it has', miss(d => said(d.now.fields, 'no-store'))),
  named('status-of-one-client', 'Weir stores no 400, 414: they answer what one client sent, and would be everybody\'s', miss(({ r }) => [400, 414].includes(r.status))),
  named('unreadable', 'of a lifetime that cannot be read Weir makes zero; 4.2.1 encourages that', miss(({ r }) => UNREADABLE.test(spelled(r.fields)))),
  named('age-unreadable', 'an Age that is not one number in one line makes the answer stale for Weir (4.2.1); 5.1 would have it ignored, and a cache may always ask',
    miss(({ r }) => values(r.fields, 'age').length > 1 || values(r.fields, 'age').some(text => !/^\d+$/.test(text)))),
  named('expires-unreadable', 'an Expires that cannot be read, or comes twice, has passed (5.3)', miss(({ r }) => lifetime(r).by === 'expires' && lifetime(r).unreadable)),
  named('smaller-of-two', 'of a lifetime that comes twice Weir takes the smaller; 4.2.1: the first, or none',
    miss(({ r }) => ['max-age', 's-maxage'].some(name => directives(r.fields).filter(([other]) => other === name).length > 1))),
  named('request-unreadable', "of a request's max-age that cannot be read Weir makes zero", miss(({ now }) => Number.isNaN(seconds(now.fields, 'max-age')))),
  named('verdict', 'what was found not to be storable is not looked up or stored for 5 s (docs/caching.md); a cache may always ask', miss(d => d.weir[d.at].says.includes('fwd=bypass') && verdict(d))),
  named('verdict-before', 'while a key was held to be uncacheable, Weir stored nothing that the peer did', miss(d => d.weir.some((seen, nth) => nth < d.at && seen.says.includes('fwd=bypass')))),
  named('error-for-error-before', 'Weir kept an old error by its stale-if-error, and not the new one that the peer stored (RFC 5861, 4: a cache may)',
    miss(d => d.r.status >= 500 && d.weir.some(seen => /detail=stale-if-error/.test(seen.says)))),
  named('came-last', 'the peer goes by Date, Weir by what came last, which has an older Date and took the place of the other (4)',
    miss(d => d.history.steps.some(({ response }, nth) => nth > storedAt(d.peer, d.at) && nth < d.at && one(response.fields, 'date')?.at < 0 && /stored/.test(d.weir[nth].says)))),
  named('vary-changed', 'where Vary has changed, Weir knows the variants by its newest form; a cache may always ask',
    miss(d => /vary-miss/.test(d.weir[d.at].says) && new Set(d.history.steps.slice(0, d.at).map(({ response }) => values(response.fields, 'vary').join())).size > 1)),
  named('credentials-apart', 'what was not storable for one request with credentials lets the others go by themselves for 5 s, and nothing of theirs is stored',
    miss(d => credentials(d.first.fields) && !/stored/.test(d.weir[storedAt(d.peer, d.at)].says) && verdict({ weir: d.weir, at: storedAt(d.peer, d.at) }))),
  named('range-not-stored', 'a fetch for a Range does not fill Weir\'s cache; storing is optional (3)', miss(({ first }) => has(first.fields, 'range'))),
  named('head-not-stored', 'the answer to a HEAD does not fill Weir\'s cache; storing is optional (3)', miss(({ first }) => first.method === 'HEAD')),
  named('no-store-request-not-stored', 'the request\'s no-store: nothing of it is stored (5.2.1.5)', miss(({ first }) => said(first.fields, 'no-store'))),
  named('credentials', 'a guessed lifetime is nothing for requests with credentials, nor is what needs validation (docs/caching.md)',
    miss(({ now, first, r }) => (credentials(now.fields) || credentials(first.fields)) && (lifetime(r).by === 'heuristic' || lifetime(r).is <= firstAge(r)))),
  named('one-field-form', 'the forms of private and no-cache that name fields count as the whole (5.2.2.4, 5.2.2.7)', miss(({ r }) => /(private|no-cache)=/i.test(spelled(r.fields)))),
  named('unsafe-unknown', 'a method of unknown safety invalidates (4.4)', miss(d => invalidatedBetween(d.history.steps, d.peer, 0, d.at))),

  // Both from the cache, or both from the origin, and the answers differ.
  named('only-if-cached-method', 'Weir heeds only-if-cached for GET and HEAD, which alone it may answer; 5.2.1.7 is a SHOULD',
    d => said(d.step.request.fields, 'only-if-cached') && !['GET', 'HEAD'].includes(d.step.request.method) && d.peer[d.at].status === 504),
  named('only-if-cached', 'the peer has nothing that it may use',
    same(({ w, p, now }) => said(now.fields, 'only-if-cached') && p.status === 504 && w.cached && w.status !== 504)),
  named('only-if-cached-forbidden', 'the peer answers only-if-cached with what it may not use',
    same(d => said(d.now.fields, 'only-if-cached') && d.w.status === 504 && d.p.cached && mayReuse(d.history.steps, d.peer, d.at) !== null)),
  named('only-if-cached-not-stored', 'the peer has stored what Weir passed on; storing is optional (3)',
    same(d => said(d.now.fields, 'only-if-cached') && d.w.status === 504 && d.p.cached && d.p.made !== null && !/stored/.test(d.weir[d.p.made].says))),
  named('stale-if-error', 'Weir serves stale by stale-if-error, the peer passes the failure on; 4.3.3: every 5xx may count as no answer',
    same(d => /detail=stale-if-error/.test(d.w.says) && d.w.status < 500 && d.p.status >= 500)),
  named('error-for-error', 'Weir serves an old error by its stale-if-error where the origin sent a new one (RFC 5861, 4: a cache may)',
    same(d => /detail=stale-if-error/.test(d.w.says) && d.w.status >= 500 && d.p.status >= 500)),
  named('ats-lenient-tag', 'Traffic Server takes e for the entity tag "e"; RFC 9110, 8.8.3: no tag without quotes',
    same(d => ats(d) && d.p.status === 304 && /(^|, )[^"W*]/.test(one(d.now.fields, 'if-none-match') || '') && d.w.status !== 304)),
  named('condition-of-no-2xx', 'the peer answers 304 for what is no success; RFC 9110, 13.2.1: the condition is ignored there',
    same(d => d.p.status === 304 && d.w.status !== 304 && d.w.status >= 300)),
  named('fetched-condition', "Weir checks the client's condition against what it fetched, which the origin did not; 4.3.2",
    same(d => d.w.status === 304 && conditional(d.now) && (success(d.p.status) || d.p.status === 416))),
  named('condition-of-not-stored', 'Weir fetches whole and without the condition, to store; what turns out not to be storable it passes on as it came: a 200 is right for the client as well',
    same(d => d.w.status === 200 && d.p.status === 304 && conditional(d.now) && /detail=(authorization|no-store|private|no-freshness|credentials|vary-star)/.test(d.w.says))),
  named('if-range', 'If-Range with a weak or another validator: the whole (RFC 9110, 13.1.5)',
    same(d => has(d.now.fields, 'if-range') && d.w.status === 200 && [206, 416].includes(d.p.status))),
  named('range-served', 'Weir gives a part of what it stores, or says that there is none; the peer the whole (RFC 9110, 14.2: optional)',
    same(d => has(d.now.fields, 'range') && [206, 416].includes(d.w.status) && d.p.status === 200)),
  named('squid-empty', 'Squid answers a Range that it cannot meet with the status of the whole, and nothing',
    same(d => squid(d) && has(d.now.fields, 'range') && d.p.body === '' && d.w.body !== '' && (d.p.status === d.w.status || success(d.p.status)))),
  named('only-if-cached-stale', 'Weir has only what came with an Age or a lifetime that cannot be read, and so is stale (4.2.1): 504 (5.2.1.7)',
    d => {
      const used = d.weir[d.at].status === 504 && said(d.step.request.fields, 'only-if-cached') && d.peer[d.at].cached && usedBy(d.peer, d)
      return Boolean(used) && (values(used.response.fields, 'age').some(text => !/^\d+$/.test(text)) || UNREADABLE.test(spelled(used.response.fields)))
    }),
  named('most-recent', 'of what has come by and may be used Weir uses the last, the peer an older one; 4: the most recent must be used',
    d => d.weir[d.at].cached && d.peer[d.at].cached && d.weir[d.at].made > d.peer[d.at].made && mayReuse(d.history.steps, d.weir, d.at) === null),
  named('older-of-several', 'the peer uses an older answer than the last that came by; 4: the most recent must be used, and that is stale',
    miss(d => d.weir.some((seen, nth) => nth < d.at && nth > d.peer[d.at].made && seen.contacts.length > 0 && /stored/.test(seen.says)))),
  named('other-stored', 'each uses what it stored last; the peer stored, or dropped, what Weir passed on',
    d => d.weir[d.at].cached && d.peer[d.at].cached && d.weir[d.at].made !== d.peer[d.at].made && mayReuse(d.history.steps, d.weir, d.at) === null &&
      d.weir.some((seen, nth) => nth < d.at && nth > storedAt(d.weir, d.at) && seen.contacts.length > 0)),
  named('old-for-new', 'the peer asked, was sent a whole answer, and gives its old one; 4.3.3: the new one must be used',
    same(d => !d.w.cached && d.w.made === d.at && d.p.made !== null && d.p.made < d.at && d.p.contacts.every(({ status }) => status !== 304))),
  named('confirmed-other', 'the peer takes a 304 for a confirmation of what it stores, though the validator (a Date, another Last-Modified, a client\'s tag or *) named the new content; 4.3.3',
    same(d => d.w.made === d.at && d.p.status !== 304 && d.p.contacts.some(({ status }) => status === 304) && d.p.body !== '' && Number(/^content (\d+)/.exec(d.p.body)?.[1]) !== d.answer.content)),
  named('ats-both-conditions', 'Traffic Server heeds If-Modified-Since beside If-None-Match; RFC 9110, 13.1.3: it must not',
    same(d => ats(d) && d.p.status === 304 && d.w.status === 200 && has(d.now.fields, 'if-none-match') && has(d.now.fields, 'if-modified-since'))),
  named('range-of-not-stored', 'Weir passes on the whole that the origin sent for a Range, and does not cut it (RFC 9110, 14.2: optional)',
    same(d => has(d.now.fields, 'range') && d.w.status === 200 && d.w.made === d.at && [206, 416].includes(d.p.status))),
  named('peer-checked-condition', "the peer checks the client's condition against what it fetched; Weir passed the request on, and passes on what the origin said; 4.3.2",
    same(d => d.p.status === 304 && conditional(d.now) && d.w.status === 200 && d.w.made === d.at && /fwd=bypass/.test(d.w.says))),
  named('head-304', "Traffic Server takes the 304 to a client's HEAD for its own", same(d => ats(d) && d.now.method === 'HEAD' && d.w.status === 304)),
  named('squid-vary-star', 'Squid keeps Vary: * and lets it be confirmed by the client\'s tag; 4.1: it matches nothing',
    same(d => squid(d) && d.history.steps.slice(0, d.at).some(({ response }) => values(response.fields, 'vary').some(value => value.includes('*'))))),
]

export function explain (difference) {
  return explanations.find(({ holds }) => holds(difference)) || null
}
