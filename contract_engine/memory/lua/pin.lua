-- Change what is pinned, or what the session wants of its summaries, where no log keeps it (ephemeral mode).
--
-- KEYS  1 buffer  2 summary  3 history  4 context
-- ARGV  1 epoch  2 revision expected  3 version expected  4 TTL (s)  5 summary, with what is pinned
-- Answer 1 done; 0 the session has moved on and nothing was changed.
--
-- The revision is raised, so that a fold which was planned without it is not committed. A session without a summary
-- gets an empty version 1: from there on its appends renew the deadline of that key too.

-- include _header

local h = read_header(KEYS[1])
if not h or h.epoch ~= ARGV[1] or h.revision ~= tonumber(ARGV[2]) or h.version ~= tonumber(ARGV[3]) then return 0 end
h.revision, h.version = h.revision + 1, math.max(1, h.version)
redis.call('LSET', KEYS[1], 0, header_text(h))
redis.call('SET', KEYS[2], ARGV[5])
for _, key in ipairs(KEYS) do redis.call('EXPIRE', key, ARGV[4]) end
return 1
