-- Renews the leases of requests that are still running (see concurrency.rs).
--
-- KEYS   one set of slots a request
-- ARGV   [1] '' (a test's time in microseconds); [2] the lease in microseconds; then the eight bytes of each request
-- Reply  how many of them were still held; one that is not, is not taken anew

local now = clock(ARGV[1])
local held = 0

for i, key in ipairs(KEYS) do
  local id = ARGV[i + 2]
  if redis.call('ZSCORE', key, id) then
    redis.call('ZADD', key, whole(now + tonumber(ARGV[2])), id)
    expire(key, tonumber(ARGV[2]) / 1000)
    held = held + 1
  end
end
return held
