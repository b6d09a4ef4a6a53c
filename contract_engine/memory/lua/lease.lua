-- Take the lease of a fold or of a drain, unless somebody holds it.
--
-- KEYS  1 fold or drain
-- ARGV  1 lease token  2 lease (ms)
-- Answer 1 taken; 2 taken, in place of something that is no lease: those have an end; 0 held by somebody else.
if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then return 1 end
if redis.call('PTTL', KEYS[1]) ~= -1 then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 2
