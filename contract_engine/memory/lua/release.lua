-- Give back the lease of a fold, if it is still ours.
--
-- KEYS  1 fold
-- ARGV  1 lease token
-- Answer 1 given back; 0 it was not ours any more.
if redis.pcall('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
