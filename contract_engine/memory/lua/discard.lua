-- Delete a buffer that nobody can read, if it is still the one that was seen (ephemeral mode: no log to rebuild it from).
--
-- KEYS  1 buffer
-- ARGV  1 the first element the reader saw
-- Answer 1 deleted; 0 it has changed since.
if redis.pcall('LINDEX', KEYS[1], 0) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
