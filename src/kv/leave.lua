-- Takes out a member and what is known of it: a pod that ends, or an intent whose write changed nothing.
--
-- KEYS    members: sorted set, what is known: hash
-- ARGV    1 member
redis.call('ZREM', KEYS[1], ARGV[1])
return redis.call('HDEL', KEYS[2], ARGV[1])
