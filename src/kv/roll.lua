-- How far each pod has followed the log; asks all of them to say so anew, once they have reached a position.
--
-- KEYS    counter, pods: sorted set by time (ms), applied: hash { pod = "<incarnation> <seq>" }
-- ARGV    1 how long a pod counts after it was last heard of (ms)  2 channel on which pods are asked
--         3 the position, "<incarnation> <seq>"; '' asks none
-- Reply   { incarnation ('' if there is none), time since it began (ms), pod, "<incarnation> <seq>", pod, ... }

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local at = redis.call('HMGET', KEYS[1], 'incarnation', 'began')
-- The clock may have been set back since.
local reply = { at[1] or '', math.max(0, now - tonumber(at[2] or '0')) }
local oldest = string.format('%.0f', now - tonumber(ARGV[1]))
for _, pod in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], oldest, '+inf')) do
  reply[#reply + 1] = pod
  reply[#reply + 1] = redis.call('HGET', KEYS[3], pod) or ''
end
if ARGV[3] ~= '' then
  redis.call('PUBLISH', ARGV[2], ARGV[3])
end
return reply
