-- Take the lease of a fold, unless somebody holds it.
--
-- KEYS  1 fold
-- ARGV  1 lease token  2 lease (ms)
-- Answer 1 taken; 0 held by somebody else.
return redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) and 1 or 0
