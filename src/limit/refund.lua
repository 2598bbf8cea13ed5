-- Gives charges back that a later stage's denial made void. Never retried: a lost refund costs a token, a repeated one
-- would mint it.
--
-- KEYS   one bucket a charge
-- ARGV   [1] '' (a test's time in microseconds); then five a charge: accrual, price, capacity, and from take.lua's
--        reply `now` and the last value
-- Reply  how many buckets were still there; one that is gone was full or lost, and is full again either way
--
-- A bucket gets back at most what it would hold if the charge had never been made: what would have spilled is kept.

local now = clock(ARGV[1])
local found = 0

for i, key in ipairs(KEYS) do
  local at = i * 5 - 3
  local accrual, price, capacity = tonumber(ARGV[at]), tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
  local charged_at, room = tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4])
  if redis.call('EXISTS', key) == 1 then
    local credit, stamp = refilled(key, accrual, price, capacity, now)
    local spilled = price
    if stamp >= charged_at then
      spilled = math.min(math.max((stamp - charged_at - room) * accrual, 0), price)
    end
    keep(key, math.min(credit + (price - spilled), capacity), stamp, accrual, price, capacity, now)
    found = found + 1
  end
end
return found
