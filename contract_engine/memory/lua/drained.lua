-- Take messages that are in the log now off the unlogged list, oldest first.
--
-- KEYS  1 buffer  2 unlogged
-- ARGV  1 how many elements were logged  2 the first and  3 the last of them, as they stood in the list
-- Answer how many still wait. With none left the buffer goes too, whose numbers were provisional: the next reader
--       rebuilds it from the log.
--
-- Two may have logged the same messages (the log keeps them once); whoever comes second finds others there. The list
-- grows and shrinks at its ends only, so its first and last element stand for those between.

local buffer, unlogged = KEYS[1], KEYS[2]
local gone = tonumber(ARGV[1])
if redis.pcall('LINDEX', unlogged, 1) ~= ARGV[2] or redis.pcall('LINDEX', unlogged, gone) ~= ARGV[3] then gone = 0 end
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
