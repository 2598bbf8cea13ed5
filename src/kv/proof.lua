-- Where the log stands, and what lies at the durable door: whoever has applied the one and drained the other knew every
-- invalidation when it asked. Refreshes the pod's membership, and trims what is too old.
--
-- KEYS    counter, log, seen, door stream, pods
-- ARGV    2 pod  3 how long a pod counts after it was last heard of (ms)  4 most door entries  5 oldest record (ms)
-- Reply   { incarnation, seq, Redis' time (ms), pods, door entries }

local TRIMMED_AT_ONCE = 100

local incarnation, seq = position()
local now = now_ms()

-- A Redis that is full or cannot save still proves; a replica never does.
local joined = redis.pcall('ZADD', KEYS[5], integer(now), ARGV[2])
if type(joined) == 'table' and joined.err then
  if string.find(joined.err, 'READONLY', 1, true) then
    return joined
  end
else
  redis.call('ZREMRANGEBYSCORE', KEYS[5], '-inf', '(' .. integer(now - tonumber(ARGV[3])))
  redis.call('PEXPIRE', KEYS[5], ARGV[3])
end

local old
for _, record in ipairs(redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', TRIMMED_AT_ONCE)) do
  if tonumber(record[2][2]) >= now - tonumber(ARGV[5]) then
    break
  end
  old = tonumber(string.match(record[1], '^%d+'))
end
if old then
  redis.pcall('XTRIM', KEYS[2], 'MINID', integer(old + 1) .. '-0')
end

local door = redis.call('XRANGE', KEYS[4], '-', '+', 'COUNT', ARGV[4])
return { incarnation, seq, now, redis.call('ZCARD', KEYS[5]), door }
