-- Where the log stands, and what lies at the durable door: whoever has applied the one and drained the other knew every
-- invalidation when it asked. Refreshes the pod's membership, logs what overdue writes were about to invalidate, and trims
-- what is too old.
--
-- KEYS    counter, log, seen, door stream, pods: sorted set by time (ms), applied: hash { pod = "<incarnation> <seq>" },
--         intents: sorted set of ids by when they are overdue (ms), intended: hash { id = order }
-- ARGV    2 pod  3 how long a pod counts after it was last heard of (ms)  4 most door entries  5 oldest record (ms)
--         6 how far the pod has followed the log, "<incarnation> <seq>", '' if it follows none
--         7 bus channel  8 most records  9 the incarnation that the pod followed last, '' if none
-- Reply   { incarnation, seq, Redis' time (ms), pods, door entries, "<parent> <base> <its parent> <base> ..." ('' if there is
--           none), time since this incarnation began (ms), pods that do not follow it yet,
--           when Redis was found to have lost its data (ms, 0 if it was not) }

local TRIMMED_AT_ONCE = 100
local PROMOTED_AT_ONCE = 64

local incarnation, seq = position()
local now = now_ms()

-- What was written by a clock that has been set back since is in the future: it counts from now on, or for as long as the
-- clock was set back by a pod that is gone would be waited for, and a new incarnation distrusted.
local began = tonumber(redis.call('HGET', KEYS[1], 'began') or '0')
if began > now then
  began = now
  redis.pcall('HSET', KEYS[1], 'began', integer(now))
end
for _, early in ipairs(redis.call('ZRANGEBYSCORE', KEYS[5], '(' .. integer(now), '+inf')) do
  redis.pcall('ZADD', KEYS[5], integer(now), early)
end

-- A Redis that is full or cannot save still proves. A replica never does, nor a master that refuses writes because its
-- replicas are gone: they may be with another master by now, which takes invalidations.
local joined = redis.pcall('ZADD', KEYS[5], integer(now), ARGV[2])
if type(joined) == 'table' and joined.err then
  if string.find(joined.err, 'READONLY', 1, true) or string.find(joined.err, 'NOREPLICAS', 1, true) then
    return joined
  end
else
  redis.pcall('HSET', KEYS[6], ARGV[2], ARGV[6])
  local oldest = '(' .. integer(now - tonumber(ARGV[3]))
  for _, gone in ipairs(redis.call('ZRANGEBYSCORE', KEYS[5], '-inf', oldest)) do
    redis.call('HDEL', KEYS[6], gone)
  end
  redis.call('ZREMRANGEBYSCORE', KEYS[5], '-inf', oldest)
end
redis.pcall('PEXPIRE', KEYS[5], ARGV[3])
redis.pcall('PEXPIRE', KEYS[6], ARGV[3])

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

-- A Redis that takes none keeps them.
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[7], '-inf', integer(now), 'LIMIT', 0, PROMOTED_AT_ONCE)) do
  local order = redis.call('HGET', KEYS[8], id)
  if order then
    local logged, number = pcall(append, ARGV[7], ARGV[8], incarnation, seq, order, 'intent ' .. id)
    if not logged then
      break
    end
    seq = number
  end
  redis.call('ZREM', KEYS[7], id)
  redis.call('HDEL', KEYS[8], id)
end

local behind = 0
for _, applied in ipairs(redis.call('HVALS', KEYS[6])) do
  if string.match(applied, '^%S*') ~= incarnation then
    behind = behind + 1
  end
end
local parents = ancestors()
local lost = tonumber(redis.call('HGET', KEYS[1], 'lost') or '0')
-- Who followed a log that this one does not continue has seen a loss; a Redis that is new to all has lost nothing.
if lost == 0 and parents == '' and ARGV[9] ~= '' and ARGV[9] ~= incarnation then
  lost = began
  redis.pcall('HSET', KEYS[1], 'lost', integer(lost))
end
local door = redis.call('XRANGE', KEYS[4], '-', '+', 'COUNT', ARGV[4])
return {
  incarnation, seq, now, redis.call('ZCARD', KEYS[5]), door,
  parents, now - began, behind, lost,
}
