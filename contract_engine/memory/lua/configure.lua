-- Set the limits of a session that no log keeps (ephemeral mode); begins the session where there is none.
--
-- KEYS  1 buffer  2 summary  3 history  4 context
-- ARGV  1 epoch of a session that begins here  2 time (ms)  3 TTL (s)  4 the default limits
--       5 trigger  6 max tokens  7 max messages (the changes, '' for as it is)
-- Answer 1; or 0 where the trigger is set above the token cap (nothing was changed). A token cap that is lowered below
-- the trigger takes the trigger with it.

-- include _header

local h = read_header(KEYS[1])
local fresh = not h
if fresh then
  h = new_header(ARGV[1], ARGV[4], ARGV[2])
  local kept = redis.pcall('GET', KEYS[2])
  local version, covered = string.match(type(kept) == 'string' and kept or '', '^%[(%d+),(%d+),')
  if version then h.version, h.watermark, h.last = tonumber(version), tonumber(covered), tonumber(covered) end
end
h.trigger = tonumber(ARGV[5]) or h.trigger
h.max_tokens = tonumber(ARGV[6]) or h.max_tokens
h.max_messages = tonumber(ARGV[7]) or h.max_messages
if h.trigger > h.max_tokens then
  if ARGV[5] ~= '' then return 0 end
  h.trigger = h.max_tokens
end
if fresh then
  redis.call('DEL', KEYS[1])
  redis.call('RPUSH', KEYS[1], header_text(h))
else
  redis.call('LSET', KEYS[1], 0, header_text(h))
end
for _, key in ipairs(KEYS) do redis.call('EXPIRE', key, ARGV[3]) end
return 1
