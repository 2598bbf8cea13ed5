-- What the algorithms stand on; in front of each of them, of take.lua and of refund.lua.
--
-- An algorithm is a table of functions, the twin of a pure file: the same operations in the same order on the same
-- doubles. `algorithms` makes them by the code that stands in front of a limit's parameters (see algorithm.rs), and only
-- those that a call needs. `p` is the parameters, `s` what was read:
--
--   read(key, p, now, lost)      the state, brought to `now`; `rewound` in it if the clock was set back. `lost` is for those
--                                that know it: the time at which a state that is not there was empty
--   covers(s, p, cost)           whether a request that costs so much is in it
--   charge(s, p, cost, now, id)  takes it for the request with these eight bytes; two numbers for refund
--   owe(s, p, cost)              takes it whether it is there or not; not every algorithm can
--   level(s, p, cost, now)       whole requests left, milliseconds until as much is there, milliseconds until all is
--   refund(s, p, mark)           gives a charge back; `s` may be of another time than the charge
--   keep(key, s, p, now)         writes it, unless the others do, with a TTL of the time until it is as good as new, and a
--                                margin

local CLOCK_BACK_MAX_US = 1000000
local FAR_US = 9007199254740992
local NEVER_MS = 9007199254740
local TTL_MARGIN_MS = 1000

local algorithms = {}
local made = {}

local function algorithm(code)
  local one = made[code]
  if not one then
    one = algorithms[code]()
    made[code] = one
  end
  return one
end

-- Redis' own time, never a pod's; `given` is a test's.
local function clock(given)
  if given ~= '' then
    return tonumber(given)
  end
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000000 + tonumber(time[2])
end

-- Writes a state that is a string. A test's time is not the one that TTLs go by: it gets none.
local function write(key, value, ttl_ms)
  if ARGV[1] == '' then
    redis.call('SET', key, value, 'PX', string.format('%.0f', ttl_ms + TTL_MARGIN_MS))
  else
    redis.call('SET', key, value)
  end
end
