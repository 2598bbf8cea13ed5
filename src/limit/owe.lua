-- Charges what answers turned out to cost beyond what their requests took: nobody is asked whether it is there. Never
-- retried: a lost charge is a gift, a repeated one would be paid twice.
--
-- KEYS   one state a charge
-- ARGV   [1] '' (a test's time in microseconds); then five a charge: the algorithm's code and its three parameters; and how
--        much is owed
-- Reply  how many were charged

local EACH = 5

local now = clock(ARGV[1])

for i, key in ipairs(KEYS) do
  local at = i * EACH - 3
  local does = algorithm(ARGV[at])
  local p = { tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3]) }
  local state = does.read(key, p, now)
  does.owe(state, p, tonumber(ARGV[at + 4]))
  does.keep(key, state, p, now)
end
return #KEYS
