-- Have a conversation live at least until a time from now; never shorten what it has.
--
-- KEYS    1 the conversation
-- ARGV    1 milliseconds from now
-- Answer  1, or 0 where there is no such conversation

local left = redis.call('PTTL', KEYS[1])
if left == -2 then
  return 0
end
if left ~= -1 and left < tonumber(ARGV[1]) then
  redis.call('PEXPIRE', KEYS[1], ARGV[1])
end
return 1
