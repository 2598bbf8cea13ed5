-- What algorithms stand on that keep sorted sets of times; behind algorithm.lua.

-- Arguments that one command is given at once: Lua's stack is short.
local ARGUMENTS = 1000

-- Sees to it that a set ends; by a test's time it does not.
local function expire(key, ttl_ms)
  if ARGV[1] == '' then
    redis.call('PEXPIRE', key, string.format('%.0f', ttl_ms + TTL_MARGIN_MS))
  end
end

-- A time as Redis is to read it, to the microsecond.
local function whole(number)
  return string.format('%.0f', number)
end

-- Takes a sorted set of times along with a clock that was set back.
local function shift(key, by)
  local all = redis.call('ZRANGEBYSCORE', key, '-inf', '+inf', 'WITHSCORES')
  for i = 1, #all, 2 do
    redis.call('ZADD', key, whole(tonumber(all[i + 1]) - by), all[i])
  end
end
