-- Put a record in place of another, if that is the one that is there.
--
-- KEYS  1 record
-- ARGV  1 the one that is to be there, '' for none  2 the new one, '' to remove it  3 time to live (ms), 0 for ever,
--       -1 what is left of it
-- Answer 1 done, also when it had been done before and was sent again; 0 something else is there.
local found = redis.call('GET', KEYS[1]) or ''
if found ~= ARGV[1] then return found == ARGV[2] and 1 or 0 end
if ARGV[2] == '' then
  redis.call('DEL', KEYS[1])
elseif ARGV[3] == '-1' then
  redis.call('SET', KEYS[1], ARGV[2], 'KEEPTTL')
elseif ARGV[3] == '0' then
  redis.call('SET', KEYS[1], ARGV[2])
else
  redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
end
return 1
