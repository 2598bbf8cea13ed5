-- Takes a pod that ends out of the membership.
--
-- KEYS    pods: sorted set, applied: hash
-- ARGV    1 pod
redis.call('ZREM', KEYS[1], ARGV[1])
return redis.call('HDEL', KEYS[2], ARGV[1])
