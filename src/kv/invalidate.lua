-- Logs orders, each unless an equal one was logged since.
--
-- KEYS    counter, log, seen, intents, intended
-- ARGV    2 bus channel  3 most records, then for each order: order (JSON), content hash, incarnation and seq after which
--         an equal record is this one, already logged, both '' to log in any case, and the intent that is settled by it,
--         or ''
-- Reply   { incarnation, seq, then for each order: its seq, 1 if logged now or 0 }

local incarnation, seq = position()
local reply = { incarnation, seq }
for i = 4, #ARGV, 5 do
  local order, hash, intent = ARGV[i], ARGV[i + 1], ARGV[i + 4]
  local equal = 0
  if ARGV[i + 2] == incarnation then
    equal = tonumber(redis.call('HGET', KEYS[3], hash) or '0')
    if equal <= tonumber(ARGV[i + 3]) then
      equal = 0
    end
  end
  if equal > 0 then
    reply[#reply + 1], reply[#reply + 2] = equal, 0
  else
    seq = append(ARGV[2], ARGV[3], incarnation, seq, order, hash)
    if intent ~= '' then
      redis.call('ZREM', KEYS[4], intent)
      redis.call('HDEL', KEYS[5], intent)
    end
    reply[#reply + 1], reply[#reply + 2] = seq, 1
  end
end
reply[2] = seq
return reply
