-- Renews the lease of a fetch that goes on.
--
-- KEYS  1 lease
-- ARGV  1 token    2 lease time in ms
-- Reply 1, or 0 if it is another's by now, or nobody's
--
-- Invariant: a lease that has ended is not taken up again: somebody may have stored since.
if redis.call('HGET', KEYS[1], 't') ~= ARGV[1] then
  return 0
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
