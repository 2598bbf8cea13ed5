-- Says what states hold. Writes nothing, whatever it finds.
--
-- KEYS   one state a limit
-- ARGV   [1] '' (a test's time in microseconds); then six a limit: the algorithm's code and its three parameters, a
--        request's cost, and '' or the time in microseconds at which Redis lost what it knew, for a bucket that was empty
--        then if it is not known
-- Reply  now in microseconds; then for each limit: 1 if its state is there; whole requests left, those that are lent
--        left out; milliseconds until as much is there; milliseconds until all is; whole requests that are owed, begun
--        ones included; how many loans there are; and of each of them who borrowed, the units, and the milliseconds until
--        it is forgotten

local EACH = 6

-- States that go along with a clock that was set back go along when they are asked.
shift = function() end

-- What the algorithms with an `owe` are below nothing by.
local function owed(code, s, p)
  if code == '1' then
    return math.max(math.ceil(-s.credit / p[2]), 0)
  end
  return code == '2' and math.max(s.count - p[1], 0) or 0
end

local now = clock(ARGV[1])
local reply = { now }

for i, key in ipairs(KEYS) do
  local at = i * EACH - 4
  local does = algorithm(ARGV[at])
  local p = { tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3]) }
  local state = does.read(key, p, now, tonumber(ARGV[at + 5]))
  local n = #reply
  reply[n + 1] = redis.call('EXISTS', key)
  reply[n + 2], reply[n + 3], reply[n + 4] = does.level(state, p, tonumber(ARGV[at + 4]), now)
  local loans = state.loans or {}
  reply[n + 5] = owed(ARGV[at], state, p)
  reply[n + 6] = #loans
  for _, loan in ipairs(loans) do
    reply[#reply + 1] = loan.who
    reply[#reply + 1] = loan.units
    reply[#reply + 1] = math.ceil((loan.ends - now) / 1000)
  end
end
return reply
