-- The token bucket, the twin of bucket.rs. Parameters: accrual, price, capacity.
--
-- A bucket is a string of four little-endian doubles: credit, the time in microseconds at which it was true, the price
-- in whose units it counts, and what it was given back so far. No value is a full bucket.

algorithms['1'] = function()
  local bucket = {}

  function bucket.read(key, p, now)
    local raw = redis.call('GET', key)
    if not raw or #raw ~= 32 then
      return { credit = p[3], stamp = now, returned = 0 }
    end
    local credit, stamp, unit, returned = struct.unpack('<dddd', raw)
    local rewound = false
    if unit ~= p[2] then
      credit = math.floor(credit / unit * p[2])
      returned = math.floor(returned / unit * p[2])
    end
    if now > stamp then
      credit = credit + (now - stamp) * p[1]
      stamp = now
    elseif stamp - now > CLOCK_BACK_MAX_US then
      stamp = now
      returned = returned + p[3]
      rewound = true
    end
    if credit > p[3] then
      credit = p[3]
    end
    return { credit = credit, stamp = stamp, returned = returned, rewound = rewound }
  end

  function bucket.covers(s, p, cost)
    return s.credit >= cost * p[2]
  end

  function bucket.charge(s, p, cost)
    local room = math.min(math.floor((p[3] - s.credit) / p[1]), FAR_US)
    s.credit = s.credit - cost * p[2]
    return room, s.returned
  end

  local function full_ms(s, p, now)
    return math.ceil((s.stamp - now + math.min(math.ceil((p[3] - s.credit) / p[1]), FAR_US)) / 1000)
  end

  function bucket.level(s, p, cost, now)
    local price, wait = cost * p[2], 0
    if price > p[3] then
      wait = NEVER_MS
    elseif s.credit < price then
      wait = math.ceil((s.stamp - now + math.ceil((price - s.credit) / p[1])) / 1000)
    end
    return math.floor(s.credit / p[2]), wait, full_ms(s, p, now)
  end

  -- A bucket ends with at most what it would hold if the charge had never been made; see refund in bucket.rs.
  function bucket.refund(s, p, mark)
    local granted = 0
    if s.stamp >= mark.at and s.returned >= mark[2] then
      local room = (mark[1] - (s.stamp - mark.at)) * p[1] - (s.returned - mark[2])
      granted = math.min(math.max(mark.paid + room, 0), mark.paid)
    end
    s.credit = math.min(s.credit + granted, p[3])
    s.returned = s.returned + granted
  end

  function bucket.keep(key, s, p, now)
    write(key, struct.pack('<dddd', s.credit, s.stamp, p[2], s.returned), full_ms(s, p, now))
  end

  return bucket
end
