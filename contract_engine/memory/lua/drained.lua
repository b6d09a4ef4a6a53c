-- Take messages that are in the log now off the unlogged list, oldest first.
--
-- KEYS  1 buffer  2 unlogged
-- ARGV  the elements that were logged, as they stood in the list
-- Answer how many still wait. With none left the buffer goes too, whose numbers were provisional: the next reader
--       rebuilds it from the log.
--
-- Two may have logged the same messages (the log keeps them once); whoever comes second finds them gone.

local buffer, unlogged = KEYS[1], KEYS[2]
local gone = 0
for _, element in ipairs(ARGV) do
  if redis.pcall('LINDEX', unlogged, gone + 1) == element then gone = gone + 1 end
end
local length = redis.pcall('LLEN', unlogged)
local left = type(length) == 'number' and length - 1 - gone or 0
if left > 0 then
  local head = redis.call('LINDEX', unlogged, 0)
  redis.call('LTRIM', unlogged, gone, -1)
  redis.call('LSET', unlogged, 0, head)
  return left
end
-- While there was a list, no append could follow the log here, whatever the buffer says it holds.
local was_there = redis.call('DEL', unlogged) == 1
local text = redis.pcall('LINDEX', buffer, 0)
if was_there or (type(text) == 'string' and string.sub(text, 1, 3) == '[2,') then redis.call('DEL', buffer) end
return 0
