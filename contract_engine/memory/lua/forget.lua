-- Have a buffer rebuilt from the log by its next reader.
--
-- KEYS  1 buffer  2 unlogged
-- ARGV  none
--
-- It is deleted; but where messages wait to be logged it is all that shows them, and goes when they are logged.

-- include _header

local h = read_header(KEYS[1])
if redis.call('EXISTS', KEYS[2]) == 1 or (h and h.format == '2') then
  if h then doubt(KEYS[1], h) end
else
  redis.call('DEL', KEYS[1])
end
