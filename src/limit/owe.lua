-- Charges what answers turned out to cost beyond what their requests took: nobody is asked whether it is there. Never
-- retried: a lost charge is a gift, a repeated one would be paid twice.
--
-- KEYS   one state a charge
-- ARGV   [1] '' (a test's time in microseconds); then six a charge: the algorithm's code and its three parameters; how much
--        is owed; and '' or the time in microseconds at which Redis lost what it knew, for a bucket that was empty then if it
--        is not known
-- Reply  how many were charged

local EACH = 6

local now = clock(ARGV[1])

for i, key in ipairs(KEYS) do
  local at = i * EACH - 4
  local does = algorithm(ARGV[at])
  local p = { tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3]) }
  local state = does.read(key, p, now, tonumber(ARGV[at + 5]))
  does.owe(state, p, tonumber(ARGV[at + 4]))
  does.keep(key, state, p, now)
end
return #KEYS
