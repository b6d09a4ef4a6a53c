-- Set the limits of a session that no log keeps (ephemeral mode); begins the session where there is none.
--
-- KEYS  1 buffer
-- ARGV  1 epoch of a session that begins here  2 time (ms)  3 TTL (s)  4 trigger  5 max tokens  6 max messages
--       (4 to 6: the defaults)  7 trigger  8 max tokens  9 max messages (7 to 9: the changes, '' for as it is)
-- Answer the header; or 0 where the trigger is set above the token cap (nothing was changed). A token cap that is
-- lowered below the trigger takes the trigger with it.
local h = read_header(KEYS[1])
local fresh = not h
if fresh then
  h = { epoch = ARGV[1], revision = 0, last = 0, tokens = 0, version = 0, watermark = 0, trigger = tonumber(ARGV[4]),
    max_tokens = tonumber(ARGV[5]), max_messages = tonumber(ARGV[6]), updated = ARGV[2] }
end
h.trigger = tonumber(ARGV[7]) or h.trigger
h.max_tokens = tonumber(ARGV[8]) or h.max_tokens
h.max_messages = tonumber(ARGV[9]) or h.max_messages
if h.trigger > h.max_tokens then
  if ARGV[7] ~= '' then return 0 end
  h.trigger = h.max_tokens
end
if fresh then
  redis.call('DEL', KEYS[1])
  redis.call('RPUSH', KEYS[1], header_text(h))
else
  redis.call('LSET', KEYS[1], 0, header_text(h))
end
redis.call('EXPIRE', KEYS[1], ARGV[3])
return header_text(h)
