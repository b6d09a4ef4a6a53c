-- Read the oldest messages that wait to be logged, no more of them than can be passed on in one reply.
--
-- KEYS  1 unlogged
-- ARGV  1 the most messages  2 about the most bytes
-- Answer how many wait, the head of the list, and behind it the elements, at least one where there are any; nothing where
--       there is no such key, and {0, ''} where it is no list.

local key, most = KEYS[1], tonumber(ARGV[1])
local kind = redis.call('TYPE', key).ok
if kind == 'none' then return false end
if kind ~= 'list' then return { 0, '' } end
local found, bytes, at = { redis.call('LLEN', key) - 1, redis.call('LINDEX', key, 0) }, 0, 1
while at <= most and bytes < tonumber(ARGV[2]) do
  local last = math.min(at + 7, most)
  local elements = redis.call('LRANGE', key, at, last)
  for _, element in ipairs(elements) do
    found[#found + 1] = element
    bytes = bytes + #element
  end
  if #elements <= last - at then break end
  at = last + 1
end
return found
