-- Put many records in place of what is there, all or none of them.
--
-- KEYS  1 and following: n records
-- ARGV  1 to n: what they are to be  n+1: the time to live of all of them (ms), 0 for ever; where it is not the same for
--       all, n+1 to 2n
-- Answer nothing.
local n, call = #KEYS, redis.call
for i = 1, n do
  local ttl = ARGV[n + i] or ARGV[n + 1]
  if ttl == '0' then
    call('SET', KEYS[i], ARGV[i])
  else
    call('PSETEX', KEYS[i], ttl, ARGV[i])
  end
end
