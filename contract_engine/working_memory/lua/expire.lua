-- Say how long many records are to live, which have just been put there for ever.
--
-- KEYS  1 and following: n records
-- ARGV  1 the time to live of all of them (ms); where it is not the same for all, 1 to n, 0 for ever
-- Answer nothing.
local call = redis.call
for i = 1, #KEYS do
  local ttl = ARGV[i] or ARGV[1]
  if ttl ~= '0' then call('PEXPIRE', KEYS[i], ttl) end
end
