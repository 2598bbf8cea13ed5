-- The sliding window of two counters, the twin of sliding_window.rs. Parameters: requests, the period in microseconds.
--
-- A state is a string of four little-endian doubles: when the current window began, the latest time that was seen, and
-- how many requests were admitted in it and in the one before. No value is two windows with none.

algorithms['3'] = function()
  local window = {}

  function window.read(key, p, now)
    local raw = redis.call('GET', key)
    local s = { start = math.floor(now / p[2]) * p[2], stamp = now, current = 0, previous = 0 }
    if not raw or #raw ~= 32 then
      return s
    end
    s.start, s.stamp, s.current, s.previous = struct.unpack('<dddd', raw)
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
      s.previous = passed == 1 and s.current or 0
      s.current = 0
    end
    return s
  end

  -- What there is room for, in requests times the period.
  local function room(s, p)
    local left = p[2] - (s.stamp - s.start)
    return (p[1] - s.current) * p[2] - s.previous * left
  end

  function window.covers(s, p, cost)
    return cost * p[2] <= room(s, p)
  end

  function window.charge(s, p, cost)
    s.current = s.current + cost
    return s.start, 0
  end

  -- How much of a window has to pass until what is left of `before` is at most `most`.
  local function elapsed(p, most, before)
    local left = math.min(math.floor(most * p[2] / before), p[2])
    if before * left > most * p[2] then
      left = left - 1
    end
    return p[2] - left
  end

  local function covers_at(s, p, cost)
    if s.current + cost <= p[1] then
      return s.start + elapsed(p, p[1] - s.current - cost, s.previous)
    end
    return s.start + p[2] + elapsed(p, p[1] - cost, s.current)
  end

  local function idle_ms(s, p, now)
    local windows = s.current > 0 and 2 or 1
    return math.ceil((s.start + windows * p[2] - now) / 1000)
  end

  function window.level(s, p, cost, now)
    local wait, full = 0, 0
    if cost > p[1] then
      wait = NEVER_MS
    elseif not window.covers(s, p, cost) then
      wait = math.ceil((covers_at(s, p, cost) - now) / 1000)
    end
    if s.current > 0 or s.previous > 0 then
      full = idle_ms(s, p, now)
    end
    return math.max(math.floor(room(s, p) / p[2]), 0), wait, full
  end

  function window.refund(s, p, mark)
    if s.start == mark[1] then
      s.current = math.max(s.current - mark.paid, 0)
    elseif s.start - p[2] == mark[1] then
      s.previous = math.max(s.previous - mark.paid, 0)
    end
  end

  function window.keep(key, s, p, now)
    write(key, struct.pack('<dddd', s.start, s.stamp, s.current, s.previous), idle_ms(s, p, now))
  end

  return window
end
