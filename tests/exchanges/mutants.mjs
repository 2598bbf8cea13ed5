// Faults made on purpose, each of which the observer must report. A lie: the origin remembers one thing and says another,
// as if Weir had misread it. A relay: something between Weir and the client changes what Weir said.

const withoutField = (seen, name) => ({ ...seen, fields: new Map([...seen.fields].filter(([other]) => other !== name)) })

export const lies = {
  'private becomes public': says => ({ ...says, private: undefined, public: says.private || says.public }),
  'no-store is lost': says => ({ ...says, 'no-store': undefined, ...(says['no-store'] && { 'max-age': 60 }) }),
  'no-cache is lost': says => says['no-cache'] ? { ...says, 'no-cache': undefined, 'max-age': 60, public: true } : says,
  'lifetimes are longer': says => says['max-age'] > 0 || says['s-maxage'] > 0 ? { ...says, 'max-age': 600, 's-maxage': says['s-maxage'] && 600 } : says,
  'must-revalidate is lost': says => says['must-revalidate'] || says['proxy-revalidate']
    ? { ...says, 'must-revalidate': undefined, 'proxy-revalidate': undefined, 'stale-while-revalidate': 60 } : says,
  'everything is public': says => says.status === 200 ? { ...says, public: true } : says,
  'Vary is lost': (says, answer) => answer ? { ...says, vary: [' '] } : says,
  'writes fail': (says, answer, where) => where === 'write' ? { ...says, status: 500 } : says
}

/** Of so many answers that it could harm, a relay harms one. */
const EVERY = 5

/** What the clients of a page got last, by something of theirs. */
function remembering (harm) {
  return () => {
    const last = new Map()
    let turn = 0
    return (request, seen) => {
      const { page } = request
      if (!last.has(page)) last.set(page, [])
      const before = last.get(page)
      const changed = harm(request, seen, before)
      if (seen.status === 200 && request.method === 'GET') {
        before.unshift({ request, seen })
        before.length = Math.min(before.length, 20)
      }
      return changed && turn++ % EVERY === 0 ? changed : seen
    }
  }
}

const sometimes = harm => () => {
  let turn = 0
  return (request, seen) => {
    const changed = harm(request, seen)
    return changed && turn++ % EVERY === 0 ? changed : seen
  }
}

const whole = (request, seen) => request.method === 'GET' && seen.status === 200

export const relays = {
  'users are swapped': remembering((request, seen, before) => whole(request, seen) &&
    before.find(({ request: other }) => other.fields.authorization && other.fields.authorization !== request.fields.authorization)?.seen),
  'older versions are replayed': remembering((request, seen, before) => whole(request, seen) &&
    before.find(({ request: other }) => request.page.writes.some(({ done }) => done > other.end && done < request.start))?.seen),
  'a byte is changed': sometimes((request, seen) => whole(request, seen) && { ...seen, body: Buffer.concat([seen.body.subarray(1), Buffer.from('!')]) }),
  'a body is cut': sometimes((request, seen) => whole(request, seen) && { ...seen, body: seen.body.subarray(1) }),
  'a part is shifted': sometimes((request, seen) => seen.status === 206 && { ...seen, body: Buffer.concat([seen.body.subarray(1), Buffer.from('!')]) }),
  'If-Range is ignored': () => (request, seen) => {
    const { range, ifRange } = request.conditions
    if (!whole(request, seen) || !range || !ifRange || range.from >= seen.body.length) return seen
    const to = Math.min(range.to ?? Infinity, seen.body.length - 1)
    const fields = new Map([...seen.fields, ['content-range', `bytes ${range.from}-${to}/${seen.body.length}`]])
    return { ...seen, status: 206, fields, body: seen.body.subarray(range.from, to + 1) }
  },
  '304 for any tag': sometimes((request, seen) => whole(request, seen) && request.conditions.tags && { ...seen, status: 304, body: Buffer.alloc(0) }),
  'Age is lost': sometimes((request, seen) => withoutField(seen, 'age')),
  'Age is too great': sometimes((request, seen) => seen.fields.has('age') && { ...seen, fields: new Map([...seen.fields, ['age', String(Number(seen.fields.get('age')) + 4)]]) }),
  'HEAD has a body': sometimes((request, seen) => request.method === 'HEAD' && { ...seen, body: Buffer.from('body') }),
  'the status is changed': sometimes((request, seen) => whole(request, seen) && { ...seen, status: 203 }),
  'pages are mixed up': () => {
    let last = null
    let turn = 0
    return (request, seen) => {
      const other = last
      if (whole(request, seen)) last = seen
      return whole(request, seen) && other && turn++ % EVERY === 0 ? other : seen
    }
  },
  'answers are invented': sometimes((request, seen) => whole(request, seen) && { ...withoutField(withoutField(seen, 'x-answer'), 'etag'), status: 503 })
}

/** What the observer has to say of each. */
export const expected = {
  'private becomes public': /^private/,
  'no-store is lost': /^no-store/,
  'no-cache is lost': /^no-cache/,
  'lifetimes are longer': /^stale/,
  'must-revalidate is lost': /in spite of (must|proxy)-revalidate/,
  'everything is public': /^authorization/,
  'Vary is lost': /^vary/,
  'writes fail': /after a write/,
  'users are swapped': /^(authorization|private|no-store)/,
  'older versions are replayed': /after a write/,
  'a byte is changed': /^another body/,
  'a body is cut': /^another body/,
  'a part is shifted': /^other bytes/,
  'If-Range is ignored': /in spite of If-Range/,
  '304 for any tag': /for another tag/,
  'Age is lost': /^no Age/,
  'Age is too great': /is not its age/,
  'HEAD has a body': /^a HEAD with a body/,
  'the status is changed': /^status/,
  'pages are mixed up': /^another page/,
  'answers are invented': /without a failure/
}
