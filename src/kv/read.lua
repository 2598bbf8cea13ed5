-- A page of the log, with where the log stands at that moment.
--
-- KEYS    counter, log
-- ARGV    1 'forward' or 'backward'  2 the record to begin at  3 most records
-- Reply   { incarnation ('' if there is none), seq, { { seq, ms, order }, ... } }

local at = redis.call('HMGET', KEYS[1], 'incarnation', 'seq')
local page
if ARGV[1] == 'forward' then
  page = redis.call('XRANGE', KEYS[2], ARGV[2] .. '-0', '+', 'COUNT', ARGV[3])
else
  page = redis.call('XREVRANGE', KEYS[2], ARGV[2] .. '-0', '-', 'COUNT', ARGV[3])
end
local records = {}
for i, record in ipairs(page) do
  records[i] = { tonumber(string.match(record[1], '^%d+')), record[2][2], record[2][4] }
end
return { at[1] or '', tonumber(at[2] or '0'), records }
