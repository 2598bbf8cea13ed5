-- Gives charges back that a later stage's denial made void. Never retried: a lost refund costs a token, a repeated one
-- would mint it.
--
-- KEYS   one bucket a charge
-- ARGV   [1] '' (a test's time in microseconds); then six a charge: accrual, price, capacity, and from take.lua's
--        reply `now` and the last two
-- Reply  how many buckets were still there; one that is gone was full or lost, and is full again either way
--
-- A bucket ends with at most what it would hold if the charge had never been made; see refund in bucket.rs.

local now = clock(ARGV[1])
local found = 0

for i, key in ipairs(KEYS) do
  local at = i * 6 - 4
  local accrual, price, capacity = tonumber(ARGV[at]), tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
  local mark = { at = tonumber(ARGV[at + 3]), room = tonumber(ARGV[at + 4]), returned = tonumber(ARGV[at + 5]) }
  if redis.call('EXISTS', key) == 1 then
    local credit, stamp, returned = refilled(key, accrual, price, capacity, now)
    local granted = 0
    if stamp >= mark.at and returned >= mark.returned then
      local room = (mark.room - (stamp - mark.at)) * accrual - (returned - mark.returned)
      granted = math.min(math.max(price + room, 0), price)
    end
    keep(key, math.min(credit + granted, capacity), stamp, returned + granted, accrual, price, capacity, now)
    found = found + 1
  end
end
return found
