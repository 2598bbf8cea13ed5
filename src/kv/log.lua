-- What invalidate.lua, drain.lua and proof.lua share; it stands in front of each.
--
-- KEYS[1] counter: hash { incarnation, seq, run_id, parent, base, before, began (ms), lost (ms) }
-- KEYS[2] log: stream, ids <seq>-0, fields t (ms), o (JSON)
-- KEYS[3] seen: hash { content hash = seq }            ARGV[1] a random number, the incarnation if a new one begins
--
-- Invariants: seq only grows within an incarnation; a record has a number if and only if it is in the log (or was
-- trimmed from its old end); a new incarnation begins when the counter is gone or belongs to another master. In the latter
-- case it is the child of the one that it continues: up to `base` the records of both are the same. `before` says the same
-- of those before, "<incarnation> <base> ...", each with the one that came of it.

local GENERATIONS = 8
local SEEN_FOR_MS = 60000
local SEEN_AT_MOST = 10000

local function now_ms()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

-- Lua writes large numbers with an exponent.
local function integer(number)
  return string.format('%.0f', number)
end

-- Whom this incarnation goes on from, its parent first, as "<incarnation> <base> ..."; '' if from none.
local function ancestors()
  local at = redis.call('HMGET', KEYS[1], 'parent', 'base', 'before')
  if (at[1] or '') == '' then
    return ''
  end
  local words = { at[1], at[2] }
  for word in string.gmatch(at[3] or '', '%S+') do
    if #words < 2 * GENERATIONS then
      words[#words + 1] = word
    end
  end
  return table.concat(words, ' ')
end

local function position()
  local run_id = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
  local at = redis.call('HMGET', KEYS[1], 'incarnation', 'seq', 'run_id')
  if at[1] and at[3] == run_id then
    return at[1], tonumber(at[2])
  end
  local seq, parent, before = 0, '', ''
  if at[1] then
    -- Another master's counter: it goes on from there, so that the log's ids still grow.
    seq, parent, before = tonumber(at[2]), at[1], ancestors()
  else
    redis.call('DEL', KEYS[2])
  end
  redis.call('DEL', KEYS[3])
  redis.call('HSET', KEYS[1], 'incarnation', ARGV[1], 'seq', integer(seq), 'run_id', run_id,
    'parent', parent, 'base', integer(seq), 'before', before, 'began', integer(now_ms()))
  return ARGV[1], seq
end

-- Logs one order and announces it as "<incarnation> <seq> <ms> <order>"; returns its number.
local function append(bus, at_most, incarnation, seq, order, hash)
  seq = seq + 1
  local number, time = integer(seq), integer(now_ms())
  redis.call('XADD', KEYS[2], 'MAXLEN', '~', at_most, number .. '-0', 't', time, 'o', order)
  redis.call('HSET', KEYS[1], 'seq', number)
  if redis.call('HLEN', KEYS[3]) >= SEEN_AT_MOST then
    redis.call('DEL', KEYS[3])
  end
  redis.call('HSET', KEYS[3], hash, number)
  redis.call('PEXPIRE', KEYS[3], SEEN_FOR_MS)
  redis.call('PUBLISH', bus, table.concat({ incarnation, number, time, order }, ' '))
  return seq
end

