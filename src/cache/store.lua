-- Stores what a fetch brought, unless something newer stands there, and ends the lease.
--
-- KEYS  1 entry, or part    2 lease    3 beside an entry: the part that it makes needless (same hash tag)
-- ARGV  1 token    2 fence, or -1 for a fetch without a lease    3 incarnation as in the entry (8 bytes)    4 seq    5 time to live in ms
--       6 entry bytes, or '' to end the lease only    7 bell channel    8 key's hash
--       9 when an answer was received, in ms, or ''    10 pod that saw the service fail for everybody, or ''
--       11 status to answer with if another has too    12 for how long that is remembered, in ms
-- Reply 'stored' | 'superseded' | 'released'
--
-- Invariants: of one incarnation a lower position never replaces a higher one; among leased fetches a lower fence never
-- replaces a higher one, and one whose lease another has taken over stores nothing; of one position, what was fetched
-- without a lease never replaces what was received later, by a time that has come: else a clock was set back. One pod's
-- failure is its own: only with another pod's, since the last two, is it told to those who wait; and the count begins anew.
local FUTURE_MAX_MS = 2000

local function now_us()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000000 + tonumber(time[2])
end

local fence = tonumber(ARGV[2])
local held = redis.call('HMGET', KEYS[2], 't', 'f', 'w')
local mine = held[1] == ARGV[1]
local reply = 'released'
if ARGV[6] ~= '' then
  reply = 'stored'
  local head = redis.call('GETRANGE', KEYS[1], INCARNATION_AT, FENCE_AT + 7)
  if #head == 24 then
    local seq = struct.unpack('>I8', string.sub(head, 9, 16))
    local stored = struct.unpack('>I8', string.sub(head, 17, 24))
    if string.sub(head, 1, 8) == ARGV[3] and seq > tonumber(ARGV[4]) or fence >= 0 and stored >= fence then
      reply = 'superseded'
    end
    if fence < 0 and ARGV[9] ~= '' and string.sub(head, 1, 8) == ARGV[3] and seq == tonumber(ARGV[4]) then
      local received = redis.call('GETRANGE', KEYS[1], RECEIVED_AT, RECEIVED_AT + 7)
      local is_answer = redis.call('GETRANGE', KEYS[1], KIND_AT, KIND_AT) == '\1'
      local later = is_answer and #received == 8 and struct.unpack('>I8', received) or 0
      if later > tonumber(ARGV[9]) and later <= now_us() / 1000 + FUTURE_MAX_MS then
        reply = 'superseded'
      end
    end
  end
  if fence >= 0 and held[1] and not mine and tonumber(held[2]) >= fence then
    reply = 'superseded'
  end
  if reply == 'stored' then
    redis.call('SET', KEYS[1], ARGV[6], 'PX', ARGV[5])
    if KEYS[3] then
      redis.call('DEL', KEYS[3])
    end
  end
end
if mine then
  if ARGV[6] ~= '' then
    redis.call('DEL', KEYS[2])
  else
    local first = redis.call('HMGET', KEYS[2], 'p', 'q')
    -- What failed before is remembered: the next to lead may be the second to see it.
    redis.call('HDEL', KEYS[2], 't', 'f', 'i', 's', 'w')
    if ARGV[10] ~= '' then
      if first[1] and first[1] ~= ARGV[10] and fence - tonumber(first[2] or '0') <= ARGV[12] * 1000 then
        redis.call('HDEL', KEYS[2], 'p', 'q')
        redis.call('HSET', KEYS[2], 'v', string.format('%.0f', fence), 'c', ARGV[11])
      else
        redis.call('HSET', KEYS[2], 'p', ARGV[10], 'q', string.format('%.0f', now_us()))
      end
      redis.call('PEXPIRE', KEYS[2], ARGV[12])
    end
  end
  if held[3] then
    redis.call('PUBLISH', ARGV[7], ARGV[8])
  end
end
return reply
