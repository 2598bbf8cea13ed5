-- Looks an entry up once more and, where there is none that the caller has not seen, leases the right to fetch it.
--
-- KEYS  1 entry    2 lease (same hash tag)
-- ARGV  1 token    2 lease time in ms    3 incarnation    4 seq    5 fence of the entry that the caller saw, or -1
--       6 the lowest seq whose fetch is of use to the caller: nothing later names what it wants
--       7 fence of the first fetch that the caller waited for, or -1 if it has not waited
-- Reply {'found', bytes}         an entry the caller has not seen
--       {'lead', fence}          the caller fetches; the fence orders what it stores
--       {'held', ms, fence}      somebody else fetches, for so long at most; the bell will ring
--       {'failed', status}       while the caller waited, a second pod has seen the service fail
--
-- Who asks again with its token, since the answer was late, has what it was given, and begins no earlier than it says now.
-- A lease is a hash: t token, f fence, i incarnation, s seq, w whether somebody waits; and, of fetches before it that
-- failed (store.lua): p the pod whose did, q when (us), v the fence of the one by which a second pod saw it, c the status to answer with.
-- Fences are Redis' time in microseconds, so that one is never given twice, whatever is left of the leases before.
-- Invariants: at most one token holds a lease; fences of one key only rise; a caller
-- who knows of an invalidation of this key that the holder does not supersedes it, since what the holder fetches is
-- overtaken already; who began to wait after the fetch by which a second pod saw the failure has not seen it, and leads;
-- no lease has longer to go than a new one, though Redis' clock be set back.
local fence = -1
local bytes = redis.call('GETRANGE', KEYS[1], FENCE_AT, FENCE_AT + 7)
if #bytes == 8 then
  fence = struct.unpack('>I8', bytes)
  if fence ~= tonumber(ARGV[5]) then
    return {'found', redis.call('GET', KEYS[1])}
  end
end
local held = redis.call('HMGET', KEYS[2], 't', 'f', 'i', 's', 'v', 'c')
if held[1] == ARGV[1] then
  redis.call('HSET', KEYS[2], 'i', ARGV[3], 's', ARGV[4])
  redis.call('PEXPIRE', KEYS[2], ARGV[2])
  return {'lead', tonumber(held[2])}
end
if held[5] and ARGV[7] ~= '-1' and tonumber(held[5]) >= tonumber(ARGV[7]) then
  return {'failed', tonumber(held[6])}
end
if held[1] then
  if held[3] == ARGV[3] and tonumber(held[4]) >= tonumber(ARGV[6]) then
    redis.call('HSET', KEYS[2], 'w', 1)
    local left = redis.call('PTTL', KEYS[2])
    if left > tonumber(ARGV[2]) then
      left = tonumber(ARGV[2])
      redis.call('PEXPIRE', KEYS[2], left)
    end
    return {'held', left, tonumber(held[2])}
  end
  fence = math.max(fence, tonumber(held[2]))
end
if held[5] then
  fence = math.max(fence, tonumber(held[5]))
end
local time = redis.call('TIME')
fence = math.max(fence + 1, tonumber(time[1]) * 1000000 + tonumber(time[2]))
redis.call('HSET', KEYS[2], 't', ARGV[1], 'f', string.format('%.0f', fence), 'i', ARGV[3], 's', ARGV[4])
redis.call('PEXPIRE', KEYS[2], ARGV[2])
return {'lead', fence}
