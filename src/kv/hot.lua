-- Adds one pod's samples to what the fleet reads most, and lets older ones fade.
--
-- KEYS    hot: sorted set of keys' hashes, turn: exists while nobody need fade it
-- ARGV    1 most keys  2 time between fadings (ms), then for each key: hash, samples
-- Reply   keys that are known

local FADED = 0.9
local FORGOTTEN_MS = 86400000

if redis.call('SET', KEYS[2], '1', 'NX', 'PX', ARGV[2]) then
  redis.call('ZUNIONSTORE', KEYS[1], 1, KEYS[1], 'WEIGHTS', FADED)
end
for i = 3, #ARGV, 2 do
  redis.call('ZINCRBY', KEYS[1], ARGV[i + 1], ARGV[i])
end
redis.call('ZREMRANGEBYRANK', KEYS[1], 0, -tonumber(ARGV[1]) - 1)
redis.call('PEXPIRE', KEYS[1], FORGOTTEN_MS)
return redis.call('ZCARD', KEYS[1])
