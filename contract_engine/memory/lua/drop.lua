-- Delete every key of a session whose rows have been erased for their age, unless somebody has gone on with it since.
--
-- KEYS  1 buffer  2 summary  3 history  4 context  5 fold  6 unlogged  7 drain
-- ARGV  none
-- Answer 1 done; 0 messages wait here to be logged, which were acknowledged and must not go: nothing was deleted.

local head = redis.pcall('LINDEX', KEYS[1], 0)
if redis.call('EXISTS', KEYS[6]) == 1 or (type(head) == 'string' and string.sub(head, 1, 3) == '[2,') then return 0 end
redis.call('DEL', KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[7])
return 1
