-- Gives charges back that a later stage's denial made void. Never retried: a lost refund costs a request, a repeated one
-- could mint it.
--
-- KEYS   one state a charge
-- ARGV   [1] '' (a test's time in microseconds); then nine a charge: the algorithm's code and its three parameters; what
--        was paid, and when; the last two numbers of take.lua's reply; and the request's eight bytes
-- Reply  how many states were still there; one that is gone was as good as new or lost, and is new again either way

local EACH = 9

local now = clock(ARGV[1])
local found = 0

for i, key in ipairs(KEYS) do
  local at = i * EACH - 7
  if redis.call('EXISTS', key) == 1 then
    local does = algorithm(ARGV[at])
    local p = { tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3]) }
    local mark = { tonumber(ARGV[at + 6]), tonumber(ARGV[at + 7]) }
    mark.paid, mark.at, mark.id = tonumber(ARGV[at + 4]), tonumber(ARGV[at + 5]), ARGV[at + 8]
    local state = does.read(key, p, now)
    does.refund(state, p, mark)
    does.keep(key, state, p, now)
    found = found + 1
  end
end
return found
