-- Moves entries of the door stream into the log. An entry leaves the stream only once it is logged, in the same step, and
-- whoever finds it gone does nothing: each is logged once, whichever pods try and whichever of them die.
--
-- KEYS    counter, log, seen, door stream
-- ARGV    2 bus channel  3 most records, then for each entry: id, order (JSON; '' drops it), content hash
-- Reply   { incarnation, seq, one 1 or 0 an entry: whether this call took it }

local incarnation, seq = position()
local reply = { incarnation, seq }
for i = 4, #ARGV, 3 do
  local id, order = ARGV[i], ARGV[i + 1]
  local here = #redis.call('XRANGE', KEYS[4], id, id)
  if here == 1 then
    if order ~= '' then
      seq = append(ARGV[2], ARGV[3], incarnation, seq, order, ARGV[i + 2])
    end
    redis.call('XDEL', KEYS[4], id)
  end
  reply[#reply + 1] = here
end
reply[2] = seq
return reply
