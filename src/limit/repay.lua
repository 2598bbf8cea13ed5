-- Takes loans back that were not spent.
--
-- KEYS   one bucket a loan
-- ARGV   [1] '' (a test's time in microseconds); then seven a loan: the algorithm's code and its three parameters; who
--        borrowed, a number above that of his last question, and the units that he has left
-- Reply  how many units were taken back

local EACH = 7

local now = clock(ARGV[1])
local all = 0

for i, key in ipairs(KEYS) do
  local at = i * EACH - 5
  if redis.call('EXISTS', key) == 1 then
    local does = algorithm(ARGV[at])
    local p = { tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3]) }
    local state = does.read(key, p, now)
    local _, repaid = does.repay(state, p, tonumber(ARGV[at + 4]), tonumber(ARGV[at + 5]), tonumber(ARGV[at + 6]))
    all = all + repaid
    does.keep(key, state, p, now)
  end
end
return all
