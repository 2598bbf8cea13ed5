-- Logs one order, unless an equal one was logged since.
--
-- KEYS    counter, log, seen, intents, intended
-- ARGV    2 bus channel  3 most records  4 order (JSON)  5 its content hash
--         6 incarnation and 7 seq after which an equal record is this one, already logged; both '' to log in any case
--         8 intent that is settled by it, or ''
-- Reply   { incarnation, seq, 1 if logged now or 0 }

local incarnation, seq = position()
if ARGV[6] == incarnation then
  local equal = tonumber(redis.call('HGET', KEYS[3], ARGV[5]) or '0')
  if equal > tonumber(ARGV[7]) then
    return { incarnation, equal, 0 }
  end
end
local number = append(ARGV[2], ARGV[3], incarnation, seq, ARGV[4], ARGV[5])
if ARGV[8] ~= '' then
  redis.call('ZREM', KEYS[4], ARGV[8])
  redis.call('HDEL', KEYS[5], ARGV[8])
end
return { incarnation, number, 1 }
