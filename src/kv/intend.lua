-- Notes what a write is about to invalidate, or that it is still under way.
--
-- KEYS    intents: sorted set of ids by when they are overdue (ms), intended: hash { id = order }
-- ARGV    1 id  2 time until it is overdue (ms)  3 order (JSON)  4 'renew' only puts off what is noted
-- Reply   1 noted | 0 there are too many, or it is settled already

local AT_MOST = 10000
-- After this time without another, what nobody promoted is gone: there is no pod left to promote it.
local FORGOTTEN_MS = 3600000

local is_noted = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not is_noted and (ARGV[4] == 'renew' or redis.call('ZCARD', KEYS[1]) >= AT_MOST) then
  return 0
end
local time = redis.call('TIME')
local overdue = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000) + tonumber(ARGV[2])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[3])
redis.call('ZADD', KEYS[1], string.format('%.0f', overdue), ARGV[1])
redis.call('PEXPIRE', KEYS[1], FORGOTTEN_MS)
redis.call('PEXPIRE', KEYS[2], FORGOTTEN_MS)
return 1
