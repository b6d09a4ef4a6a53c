-- Have a buffer rebuilt from the log by its next reader.
--
-- KEYS  1 buffer  2 unlogged
-- ARGV  none
--
-- It is deleted; but where messages wait in the unlogged list it is all that shows them, and goes when they are logged.

-- include _header

if redis.call('EXISTS', KEYS[2]) == 1 then
  local h = read_header(KEYS[1])
  if h then doubt(KEYS[1], h) end
else
  redis.call('DEL', KEYS[1])
end
