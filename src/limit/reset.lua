-- Makes states as good as new, at an operator's word.
--
-- KEYS   one state a limit
-- ARGV   [1] '' (a test's time in microseconds); then five a limit: the algorithm's code and its three parameters, and
--        '' or the time in microseconds at which Redis lost what it knew
-- Reply  how many states were there
--
-- What a token bucket has lent may still be spent: it stays lent, and the bucket is full but for that. So from the reset
-- on, burst + rate * w holds as ever. What was charged before is not given back any more.

local EACH = 5

local now = clock(ARGV[1])
local found = 0

for i, key in ipairs(KEYS) do
  local at = i * EACH - 3
  local lost = tonumber(ARGV[at + 4])
  local there = redis.call('EXISTS', key)
  found = found + there
  if ARGV[at] ~= '1' then
    redis.call('DEL', key)
  elseif there == 1 or lost then
    local does = algorithm(ARGV[at])
    local p = { tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3]) }
    local state = does.read(key, p, now, lost)
    state.credit = math.max(p[3] - state.lent, 0)
    state.stamp = math.max(state.stamp, now)
    state.returned = state.returned + p[3]
    does.keep(key, state, p, now)
  end
end
return found
