-- The sliding log, the twin of sliding_log.rs. Parameters: requests, the period in microseconds.
--
-- A log is a sorted set: what one request costs is as many members, named by the request's eight bytes and, from the
-- second on, two bytes of their number; the score is the time in microseconds at which it was admitted.

algorithms['4'] = function()
  local log = {}

  function log.read(key, p, now)
    local s = { key = key, time = now, count = 0 }
    local newest = redis.call('ZREVRANGE', key, 0, 0, 'WITHSCORES')[2]
    if newest then
      newest = tonumber(newest)
      if newest - now > CLOCK_BACK_MAX_US then
        shift(key, newest - now)
        newest = now
        s.rewound = true
      end
      s.newest = newest
      s.time = math.max(newest, now)
      s.past = '(' .. whole(s.time - p[2])
      s.count = redis.call('ZCOUNT', key, s.past, '+inf')
    end
    return s
  end

  function log.covers(s, p, cost)
    return s.count + cost <= p[1]
  end

  -- Calls `command` for the members of a request that cost so much, with `each` in front of every one.
  local function members(command, key, id, cost, each)
    local args = {}
    for number = 1, cost do
      if each then
        args[#args + 1] = each
      end
      args[#args + 1] = number == 1 and id or id .. struct.pack('<I2', number)
      if #args >= ARGUMENTS or number == cost then
        redis.call(command, key, unpack(args))
        args = {}
      end
    end
  end

  function log.charge(s, p, cost, now, id)
    redis.call('ZREMRANGEBYSCORE', s.key, '-inf', whole(s.time - p[2]))
    members('ZADD', s.key, id, cost, whole(s.time))
    s.past = '(' .. whole(s.time - p[2])
    s.newest = s.time
    s.count = s.count + cost
    return 0, 0
  end

  function log.level(s, p, cost, now)
    local wait, full = 0, 0
    if cost > p[1] then
      wait = NEVER_MS
    elseif s.count + cost > p[1] then
      -- When the last of those that stand in the way leaves.
      local at = s.count + cost - p[1] - 1
      local last = redis.call('ZRANGEBYSCORE', s.key, s.past, '+inf', 'WITHSCORES', 'LIMIT', at, 1)
      wait = math.ceil((tonumber(last[2]) + p[2] - now) / 1000)
    end
    if s.count > 0 then
      full = math.ceil((s.newest + p[2] - now) / 1000)
    end
    return math.max(p[1] - s.count, 0), wait, full
  end

  function log.refund(s, p, mark)
    members('ZREM', s.key, mark.id, mark.paid)
  end

  function log.keep(key, s, p, now)
    expire(key, math.ceil((s.newest + p[2] - now) / 1000))
  end

  return log
end
