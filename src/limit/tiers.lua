-- Reads a page of a hash that says which identities have which tier. Writes nothing.
--
-- KEYS   [1] the hash
-- ARGV   [1] where the page begins: '0', or what the page before said; [2] about how many fields it has; [3] how many the
--        whole may have
-- Reply  how many the whole has; where the next page begins, '0' behind the last; fields and values in turn, none where
--        there are too many

local count = redis.call('HLEN', KEYS[1])
if count > tonumber(ARGV[3]) then
  return { count, '0', {} }
end
local page = redis.call('HSCAN', KEYS[1], ARGV[1], 'COUNT', ARGV[2])
return { count, page[1], page[2] }
