-- Take messages that are in the log now off the unlogged list, oldest first.
--
-- KEYS  1 buffer  2 unlogged
-- ARGV  the elements that were logged, as they stood in the list
-- Answer how many still wait. With none left the buffer goes too, whose numbers were provisional: the next reader
--       rebuilds it from the log.
--
-- Two may have logged the same messages (the log keeps them once); whoever comes second finds them gone.

local buffer, unlogged = KEYS[1], KEYS[2]
for _, element in ipairs(ARGV) do
  if redis.pcall('LINDEX', unlogged, 0) == element then redis.call('LPOP', unlogged) end
end
local left = redis.pcall('LLEN', unlogged)
if type(left) ~= 'number' then
  redis.call('DEL', unlogged)
  left = 0
end
local text = redis.pcall('LINDEX', buffer, 0)
if left == 0 and type(text) == 'string' and string.sub(text, 1, 3) == '[2,' then redis.call('DEL', buffer) end
return left
