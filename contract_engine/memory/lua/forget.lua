-- Delete a buffer, for the next reader to rebuild it from the log.
--
-- KEYS  1 buffer  2 unlogged
-- ARGV  none
-- Answer 1 deleted, or there was none; 0 it stays, because messages wait in the unlogged list: the log lacks them, and
--       the buffer goes with the list when they are logged.

if redis.call('EXISTS', KEYS[2]) == 1 then return 0 end
redis.call('DEL', KEYS[1])
return 1
