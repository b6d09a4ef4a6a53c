-- Read the oldest messages that wait to be logged, no more of them than can be passed on in one reply.
--
-- KEYS  1 unlogged
-- ARGV  1 the most messages  2 about the most bytes  3 the newest element that a drain is to log, '' where it begins
-- Answer how many wait, the head of the list, its newest element, and behind these the oldest elements, at least one
--       where there are any; none where the newest one to log is not among them any more, and what waits came later.
--       Nothing where there is no such key, and {0, '', ''} where it is no list.

local key, most, newest = KEYS[1], tonumber(ARGV[1]), ARGV[3]
local kind = redis.call('TYPE', key).ok
if kind == 'none' then return false end
if kind ~= 'list' then return { 0, '', '' } end
local found = { redis.call('LLEN', key) - 1, redis.call('LINDEX', key, 0), redis.call('LINDEX', key, -1) }
-- From the end: there is only what came later.
if newest ~= '' and not redis.call('LPOS', key, newest, 'RANK', -1) then return found end
local bytes, at = 0, 1
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
