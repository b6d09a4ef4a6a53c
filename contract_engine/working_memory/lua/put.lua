-- Put many records in place of what is there, all or none of them.
--
-- KEYS  1 and following: n records
-- ARGV  1 to n: what they are to be  n+1 to 2n: their times to live (ms), 0 for ever
-- Answer nothing.
local n = #KEYS
for i = 1, n do
  if ARGV[n + i] == '0' then
    redis.call('SET', KEYS[i], ARGV[i])
  else
    redis.call('SET', KEYS[i], ARGV[i], 'PX', ARGV[n + i])
  end
end
