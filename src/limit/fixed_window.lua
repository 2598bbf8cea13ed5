-- The fixed window, the twin of fixed_window.rs. Parameters: requests, the period in microseconds.
--
-- A state is a string of three little-endian doubles: when the window began, the latest time that was seen, and how
-- many requests were admitted in it. No value is a window with none.

algorithms['2'] = function()
  local window = {}

  function window.read(key, p, now)
    local raw = redis.call('GET', key)
    local s = { start = math.floor(now / p[2]) * p[2], stamp = now, count = 0 }
    if not raw or #raw ~= 24 then
      return s
    end
    s.start, s.stamp, s.count = struct.unpack('<ddd', raw)
    if now > s.stamp then
      s.stamp = now
    elseif s.stamp - now > CLOCK_BACK_MAX_US then
      s.start = s.start - (s.stamp - now)
      s.stamp = now
      s.rewound = true
    end
    local passed = math.floor((s.stamp - s.start) / p[2])
    if passed >= 1 then
      s.start = s.start + passed * p[2]
      s.count = 0
    end
    return s
  end

  function window.covers(s, p, cost)
    return s.count + cost <= p[1]
  end

  function window.charge(s, p, cost)
    s.count = s.count + cost
    return s.start, 0
  end

  function window.owe(s, p, cost)
    s.count = s.count + cost
  end

  local function end_ms(s, p, now)
    return math.ceil((s.start + p[2] - now) / 1000)
  end

  function window.level(s, p, cost, now)
    local wait, full = 0, 0
    if cost > p[1] then
      wait = NEVER_MS
    elseif s.count + cost > p[1] then
      wait = end_ms(s, p, now)
    end
    if s.count > 0 then
      full = end_ms(s, p, now)
    end
    return math.max(p[1] - s.count, 0), wait, full
  end

  function window.refund(s, p, mark)
    if s.start == mark[1] then
      s.count = math.max(s.count - mark.paid, 0)
    end
  end

  function window.keep(key, s, p, now)
    write(key, struct.pack('<ddd', s.start, s.stamp, s.count), end_ms(s, p, now))
  end

  return window
end
