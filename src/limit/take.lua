-- Takes one request from every bucket of one stage, or from none.
--
-- KEYS   one bucket a limit
-- ARGV   [1] '' (a test's time in microseconds); then four a limit: accrual, price, capacity (see bucket.rs), and
--        1 where the limit denies or 0 where it only counts (dry_run)
-- Reply  now in microseconds; then six a limit: 1 charged or 0 not; whole requests left; milliseconds until one is
--        there; milliseconds until full; and for refund.lua microseconds after which the bucket would have been full
--        without this charge, and what it had been given back so far
--
-- Denied: nothing is written, but that the clock was set back. A counting limit without a token is not charged and denies nobody.

local now = clock(ARGV[1])
local admitted = true
local limits = {}

for i = 1, #KEYS do
  local at = i * 4 - 2
  local limit = {
    accrual = tonumber(ARGV[at]),
    price = tonumber(ARGV[at + 1]),
    capacity = tonumber(ARGV[at + 2]),
  }
  limit.credit, limit.stamp, limit.returned, limit.set_back =
    refilled(KEYS[i], limit.accrual, limit.price, limit.capacity, now)
  if ARGV[at + 3] == '1' and limit.credit < limit.price then
    admitted = false
  end
  limits[i] = limit
end

local reply = { now }
for i, limit in ipairs(limits) do
  local charged, room = 0, 0
  if admitted and limit.credit >= limit.price then
    charged = 1
    room = math.min(math.floor((limit.capacity - limit.credit) / limit.accrual), FAR_US)
    limit.credit = limit.credit - limit.price
  end
  if charged == 1 or limit.set_back then
    keep(KEYS[i], limit.credit, limit.stamp, limit.returned, limit.accrual, limit.price, limit.capacity, now)
  end
  local at = #reply
  reply[at + 1] = charged
  reply[at + 2] = math.floor(limit.credit / limit.price)
  reply[at + 3] = wait_ms(limit.credit, limit.stamp, limit.accrual, limit.price, now)
  reply[at + 4] = full_ms(limit.credit, limit.stamp, limit.accrual, limit.capacity, now)
  reply[at + 5] = room
  reply[at + 6] = limit.returned
end
return reply
