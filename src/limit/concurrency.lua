-- Requests in flight, the twin of concurrency.rs. Parameters: most at once, the lease in microseconds.
--
-- A sorted set: a member is a request's eight bytes, its score the time in microseconds until which it counts.

algorithms['5'] = function()
  local held = {}

  function held.read(key, p, now)
    local s = { key = key }
    local last = redis.call('ZREVRANGE', key, 0, 0, 'WITHSCORES')[2]
    if last and tonumber(last) - p[2] - now > CLOCK_BACK_MAX_US then
      shift(key, tonumber(last) - p[2] - now)
      s.rewound = true
    end
    s.count = last and redis.call('ZCOUNT', key, '(' .. whole(now), '+inf') or 0
    return s
  end

  function held.covers(s, p, cost)
    return s.count + cost <= p[1]
  end

  function held.charge(s, p, cost, now, id)
    redis.call('ZREMRANGEBYSCORE', s.key, '-inf', whole(now))
    redis.call('ZADD', s.key, whole(now + p[2]), id)
    s.count = s.count + 1
    return 0, 0
  end

  function held.level(s, p, cost)
    return math.max(p[1] - s.count, 0), s.count + cost <= p[1] and 0 or 1000, 0
  end

  function held.refund(s, p, mark)
    redis.call('ZREM', s.key, mark.id)
  end

  function held.keep(key, s, p)
    expire(key, p[2] / 1000)
  end

  return held
end
