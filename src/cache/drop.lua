-- Removes what does not decode, so that the next fetch can store; and a variant that left for another.
--
-- KEYS  1 entry
-- ARGV  1 the bytes in front of it, as they were read; without it, whatever is there goes
-- Reply 1 removed | 0 something else stands there by now
if not ARGV[1] then
  return redis.call('DEL', KEYS[1])
end
local front = redis.call('GETRANGE', KEYS[1], 0, #ARGV[1] - 1)
if front == ARGV[1] then
  return redis.call('DEL', KEYS[1])
end
return 0
