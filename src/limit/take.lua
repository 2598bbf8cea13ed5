-- Takes one request from every limit of one stage, or from none.
--
-- KEYS   one state a limit
-- ARGV   [1] '' (a test's time in microseconds); [2] eight bytes that are this request's alone; then six a limit: the
--        algorithm's code and its three parameters (see algorithm.rs), the request's cost, and 1 where the limit denies,
--        0 where it only counts (dry_run), 2 where it only counts and is one with the limit before; then one a limit, or
--        none at all: '', or of a token bucket that lends five little-endian doubles: who borrows, the number of his
--        question, the units that he has left, those that he wants to have, and those that he spent while Redis was away,
--        as a number below nothing if they are owed even where the bucket has less;
--        then one a limit, or none at all: '', or the time in microseconds at which Redis lost what it knew, for a bucket
--        that was empty then if it is not known
-- Reply  little-endian doubles in one string: now in microseconds; then six a limit: 1 charged or 0 not; whole requests left, those that are lent included;
--        milliseconds until as much is there; milliseconds until all is; and for refund.lua the two numbers of the
--        charge; then one a limit: the units that the borrower has now
--
-- Denied: nothing is written, but what was spent of a loan or while Redis was away, and that the clock was set back. A
-- counting limit that is short is not charged and denies nobody.

local EACH = 6

local now = clock(ARGV[1])
local admitted = true
local limits = {}
local first

for i = 1, #KEYS do
  local at = i * EACH - 3
  local p = { tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3]) }
  local limit = { p = p, cost = tonumber(ARGV[at + 4]), does = algorithm(ARGV[at]) }
  limit.state = limit.does.read(KEYS[i], p, now, tonumber(ARGV[#KEYS * (EACH + 1) + 2 + i] or ''))
  local loan = ARGV[#KEYS * EACH + 2 + i]
  if loan and loan ~= '' then
    local debit
    limit.who, limit.number, limit.held, limit.wanted, debit = struct.unpack('<ddddd', loan)
    if debit > 0 then
      limit.does.debit(limit.state, p, debit)
      limit.changed = true
    elseif debit < 0 then
      limit.does.owe(limit.state, p, -debit / p[2])
      limit.changed = true
    end
    local spent
    limit.borrows, limit.held, spent = limit.does.repay(limit.state, p, limit.who, limit.number, limit.held)
    limit.changed = limit.changed or spent
  end
  local covered = limit.does.covers(limit.state, p, limit.cost)
  if ARGV[at + 5] == '1' and not covered then
    admitted = false
  end
  -- Several rates of one limit are charged together or not at all: as the first of them.
  if ARGV[at + 5] == '2' then
    first.covered = first.covered and covered
  else
    first = limit
    first.covered = covered
  end
  limit.first = first
  limits[i] = limit
end

local reply = { now }
local lent = {}
for i, limit in ipairs(limits) do
  local does, state, p = limit.does, limit.state, limit.p
  local charged, one, two = 0, 0, 0
  if admitted and limit.first.covered then
    charged = 1
    one, two = does.charge(state, p, limit.cost, now, ARGV[2])
  end
  local at = #reply
  reply[at + 1] = charged
  reply[at + 2], reply[at + 3], reply[at + 4] = does.level(state, p, limit.cost, now)
  if limit.borrows then
    -- Whoever is denied keeps what he had.
    lent[i] = does.lend(state, p, limit.who, limit.number, charged == 1 and limit.wanted or limit.held, now)
  end
  if charged == 1 or state.rewound or limit.changed then
    does.keep(KEYS[i], state, p, now)
  end
  reply[at + 5] = one
  reply[at + 6] = two
end
for i = 1, #KEYS do
  reply[#reply + 1] = lent[i] or 0
end
return struct.pack('<' .. string.rep('d', #reply), unpack(reply))
