-- Install a session as it was read from the log.
--
-- KEYS  1 buffer  2 summary
-- ARGV  1 ticket  2 epoch  3 last seq  4 the header from its epoch on  5 buffer TTL (s)  6 summary TTL (s)
--       7 summary, or '' for none
--       then the elements, oldest first, and the run of the server
-- Answer 1 installed; 0 refused: the ticket is not the one in place, or a message behind what was read has been
--       acknowledged since. Then the next reader rebuilds.

-- include _header

local _, text = read_header(KEYS[1])
local run, held, epoch, tail = string.match(text, '^%[0,(%d+),(%d+),(%d+),(%d+)%]$')
if held ~= ARGV[1] or run ~= ARGV[#ARGV] or tonumber(epoch) > tonumber(ARGV[2])
  or (epoch == ARGV[2] and tonumber(tail) > tonumber(ARGV[3])) then
  return 0
end
redis.call('DEL', KEYS[1])
redis.call('RPUSH', KEYS[1], '[1,' .. run .. ',' .. ARGV[4])
for i = 8, #ARGV - 1 do redis.call('RPUSH', KEYS[1], ARGV[i]) end
redis.call('EXPIRE', KEYS[1], ARGV[5])
if ARGV[7] == '' then
  redis.call('DEL', KEYS[2])
else
  redis.call('SET', KEYS[2], ARGV[7], 'EX', ARGV[6])
end
return 1
