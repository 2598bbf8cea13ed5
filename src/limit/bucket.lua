-- The token bucket, the twin of bucket.rs. Parameters: accrual, price, capacity.
--
-- A bucket is a string of four little-endian doubles: credit, the time in microseconds at which it was true, the price
-- in whose units it counts, and what it was given back so far. No value is a full bucket. Behind them four doubles for
-- each loan (see loans.rs): who borrowed, the number of his last question, the units that he may still hold, and when
-- that is forgotten. Invariant: credit and loans together never exceed the capacity, and what is forgotten is never
-- credited. A credit below nothing is owed: by answers that cost more than their requests had taken.

-- How long a loan counts; LIFE in loans.rs.
local LOAN_US = 2000000
-- Borrowers at once.
local LOANS_AT_MOST = 64

algorithms['1'] = function()
  local bucket = {}

  -- Units that it holds at most.
  local function capacity(s, p)
    return math.max(p[3] - s.lent, 0)
  end

  -- What one holds that Redis does not know, and when: it is full, or was empty when Redis lost what it knew. By a clock that
  -- was set back far since, nothing can be said of that.
  local function unknown(p, now, lost)
    if not lost or lost - now > CLOCK_BACK_MAX_US then
      return p[3], now
    end
    return math.min(math.max(now - lost, 0) * p[1], p[3]), math.max(now, lost)
  end

  function bucket.read(key, p, now, lost)
    local raw = redis.call('GET', key)
    if not raw or #raw < 32 or #raw % 32 ~= 0 then
      local credit, stamp = unknown(p, now, lost)
      return { credit = credit, stamp = stamp, returned = 0, lent = 0, loans = {} }
    end
    local credit, stamp, unit, returned = struct.unpack('<dddd', raw)
    local rewound = false
    local s = { lent = 0, loans = {} }
    local lent, forgotten = 0, -1
    for at = 33, #raw, 32 do
      local who, number, units, ends = struct.unpack('<dddd', raw, at)
      units = math.floor(units / unit * p[2])
      lent = lent + units
      -- A clock that was set back makes no loan last longer.
      ends = math.min(ends, now + LOAN_US)
      if ends > now then
        s.lent = s.lent + units
        s.loans[#s.loans + 1] = { who = who, number = number, units = units, ends = ends }
      else
        forgotten = math.max(forgotten, ends)
      end
    end
    if unit ~= p[2] then
      credit = math.floor(credit / unit * p[2])
      returned = math.floor(returned / unit * p[2])
    end
    if now > stamp then
      if forgotten > stamp then
        -- What was lent made no room before it was forgotten.
        credit = math.min(credit + (forgotten - stamp) * p[1], math.max(p[3] - lent, 0))
        stamp = forgotten
      end
      credit = credit + (now - stamp) * p[1]
      stamp = now
    elseif stamp - now > CLOCK_BACK_MAX_US then
      stamp = now
      returned = returned + p[3]
      rewound = true
    end
    s.credit = math.min(credit, capacity(s, p))
    s.stamp, s.returned, s.rewound = stamp, returned, rewound
    return s
  end

  function bucket.covers(s, p, cost)
    return s.credit >= cost * p[2]
  end

  function bucket.charge(s, p, cost)
    local room = math.min(math.floor((capacity(s, p) - s.credit) / p[1]), FAR_US)
    s.credit = s.credit - cost * p[2]
    return room, s.returned
  end

  function bucket.owe(s, p, cost)
    s.credit = s.credit - cost * p[2]
  end

  local function full_ms(s, p, now)
    return math.ceil((s.stamp - now + math.min(math.ceil((capacity(s, p) - s.credit) / p[1]), FAR_US)) / 1000)
  end

  -- Until the last loan is forgotten.
  local function last_ms(s, now)
    local last = now
    for _, loan in ipairs(s.loans) do
      last = math.max(last, loan.ends)
    end
    return math.ceil((last - now) / 1000)
  end

  -- What `who` spent while Redis was away.
  function bucket.debit(s, p, units)
    s.credit = math.max(s.credit - units, math.min(s.credit, 0))
  end

  -- Takes a loan back, of which `held` units were not spent, unless it was renewed by a later question. Whether it was not,
  -- how much came back (nothing of what was forgotten), and whether any was spent.
  function bucket.repay(s, p, who, number, held)
    for at, loan in ipairs(s.loans) do
      if loan.who == who then
        if loan.number >= number then
          return false, 0, false
        end
        s.lent = s.lent - loan.units
        table.remove(s.loans, at)
        local repaid = math.max(math.min(held, loan.units, capacity(s, p) - s.credit), 0)
        s.credit = s.credit + repaid
        return true, repaid, repaid < loan.units
      end
    end
    return true, 0, false
  end

  -- Lends as many units as are wanted, or whole requests' as there are; of all together half the bucket at most, since what
  -- is lent makes no room for what it gains.
  function bucket.lend(s, p, who, number, wanted, now)
    local most = math.min(s.credit, math.max(p[3] / 2 - s.lent, 0))
    local units = math.min(wanted, math.floor(most / p[2]) * p[2])
    if units <= 0 or #s.loans >= LOANS_AT_MOST then
      return 0
    end
    s.credit = s.credit - units
    s.lent = s.lent + units
    s.loans[#s.loans + 1] = { who = who, number = number, units = units, ends = now + LOAN_US }
    return units
  end

  function bucket.level(s, p, cost, now)
    local price, wait = cost * p[2], 0
    if price > p[3] then
      wait = NEVER_MS
    elseif s.credit < price then
      wait = math.ceil((s.stamp - now + math.ceil((price - s.credit) / p[1])) / 1000)
      if price > capacity(s, p) then
        wait = math.max(wait, last_ms(s, now))
      end
    end
    return math.max(math.floor(s.credit / p[2]), 0), wait, full_ms(s, p, now)
  end

  -- A bucket ends with at most what it would hold if the charge had never been made; see refund in bucket.rs.
  function bucket.refund(s, p, mark)
    local granted = 0
    if s.stamp >= mark.at and s.returned >= mark[2] then
      local room = (mark[1] - (s.stamp - mark.at)) * p[1] - (s.returned - mark[2])
      granted = math.min(math.max(mark.paid + room, 0), mark.paid)
    end
    s.credit = math.min(s.credit + granted, capacity(s, p))
    s.returned = s.returned + granted
  end

  function bucket.keep(key, s, p, now)
    local parts = { struct.pack('<dddd', s.credit, s.stamp, p[2], s.returned) }
    for _, loan in ipairs(s.loans) do
      parts[#parts + 1] = struct.pack('<dddd', loan.who, loan.number, loan.units, loan.ends)
    end
    -- No value is a full bucket: what is lent has to be gained again first, once it is forgotten.
    local ttl = math.max(full_ms(s, p, now), last_ms(s, now)) + math.ceil(s.lent / p[1] / 1000)
    -- After a loss, no value is an empty one, also of a bucket that an operator has made as good as new since.
    if s.returned >= p[3] then
      ttl = math.max(ttl, math.ceil(p[3] / p[1] / 1000))
    end
    write(key, table.concat(parts), ttl)
  end

  return bucket
end
