-- The token bucket, the twin of bucket.rs: the same operations in the same order on the same doubles. Prepended to
-- take.lua and refund.lua.
--
-- A bucket is a string of four little-endian doubles: credit, the time in microseconds at which it was true, the price
-- in whose units it counts, and what it was given back so far. No value is a full bucket: the TTL is the time until it is full, and a margin.

local CLOCK_BACK_MAX_US = 1000000
local FAR_US = 9007199254740992
local TTL_MARGIN_MS = 1000

-- Redis' own time, never a pod's; `given` is a test's.
local function clock(given)
  if given ~= '' then
    return tonumber(given)
  end
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000000 + tonumber(time[2])
end

-- Credit, stamp and what was given back of the bucket at `key`, brought to `now`; and whether the clock was set back,
-- which is to be kept: from a stamp that has not come yet, nothing comes in.
local function refilled(key, accrual, price, capacity, now)
  local raw = redis.call('GET', key)
  if not raw or #raw ~= 32 then
    return capacity, now, 0, false
  end
  local credit, stamp, unit, returned = struct.unpack('<dddd', raw)
  local set_back = false
  if unit ~= price then
    credit = math.floor(credit / unit * price)
    returned = math.floor(returned / unit * price)
  end
  if now > stamp then
    credit = credit + (now - stamp) * accrual
    stamp = now
  elseif stamp - now > CLOCK_BACK_MAX_US then
    stamp, set_back = now, true
  end
  if credit > capacity then
    credit = capacity
  end
  return credit, stamp, returned, set_back
end

local function wait_ms(credit, stamp, accrual, price, now)
  if credit >= price then
    return 0
  end
  return math.ceil((stamp - now + math.ceil((price - credit) / accrual)) / 1000)
end

local function full_ms(credit, stamp, accrual, capacity, now)
  return math.ceil((stamp - now + math.min(math.ceil((capacity - credit) / accrual), FAR_US)) / 1000)
end

local function keep(key, credit, stamp, returned, accrual, price, capacity, now)
  local ttl = full_ms(credit, stamp, accrual, capacity, now) + TTL_MARGIN_MS
  redis.call('SET', key, struct.pack('<dddd', credit, stamp, price, returned), 'PX', string.format('%.0f', ttl))
end
