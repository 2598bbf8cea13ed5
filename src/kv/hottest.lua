-- What the fleet reads most.
--
-- KEYS    hot: sorted set of keys' hashes
-- ARGV    1 most keys
-- Reply   hashes, hottest first
return redis.call('ZREVRANGE', KEYS[1], 0, tonumber(ARGV[1]) - 1)
