-- Put a new summary in place and trim the messages it covers, by their numbers.
--
-- KEYS  1 buffer  2 summary  3 history  4 context  5 unlogged
-- ARGV  1 epoch  2 revision expected  3 version expected  4 new revision  5 new watermark  6 buffer TTL (s)
--       7 summary TTL (s)  8 summary  9 entry for the history, or ''  10 entries to keep
--       11 when the last message it covers was appended (ms), 0 where it was folded before
-- Answer 1 done; 0 the session has moved on and this summary was not put in place.
--
-- With a log, which has committed this summary already, each change raises the revision by one (without a log it stays).
-- Whatever cannot be brought up to it by this change alone is given up, and the next reader rebuilds it: a copy that lacks
-- another change, and a placeholder, whose holder may have read the log before this one.

-- include _header

local buffer = KEYS[1]
local h, text = read_header(buffer)
local watermark, revision = tonumber(ARGV[5]), tonumber(ARGV[4])
local is_logged = revision > tonumber(ARGV[2])
if not h then
  if is_logged and read_placeholder(text) then redis.call('DEL', buffer) end
  return 0
end
if h.epoch ~= ARGV[1] then return 0 end
local last = h.last
if is_logged and h.format == '2' then
  -- The numbers of what waits are provisional: the log may have given them to others, which this summary covers.
  local head = redis.pcall('LINDEX', KEYS[5], 0)
  last = type(head) == 'string' and tonumber(string.match(head, '^%[%d+,(%d+)%]$')) or 0
end
if h.revision ~= tonumber(ARGV[2]) or revision > h.revision + 1 or h.version ~= tonumber(ARGV[3])
  or watermark < h.watermark or watermark > last then
  if h.revision < revision then
    if h.format == '2' then doubt(buffer, h) else redis.call('DEL', buffer) end
  end
  return 0
end
if h.format == '2' and not is_logged then
  -- Without a log behind it a life has no name, and its first messages are numbered like those of the one before. And
  -- where the list is gone that keeps what waits, nothing else has what would be trimmed here.
  local at = string.match(redis.call('LINDEX', buffer, watermark - h.watermark) or '', '^%[%d+,%d+,(%d+),')
  if (watermark > h.watermark and at ~= ARGV[11]) or redis.call('EXISTS', KEYS[5]) == 0 then return 0 end
end
if watermark > h.watermark then drop_oldest(buffer, h, watermark - h.watermark) end
h.version, h.revision = h.version + 1, revision
redis.call('LSET', buffer, 0, header_text(h))
redis.call('EXPIRE', buffer, ARGV[6])
redis.call('SET', KEYS[2], ARGV[8], 'EX', ARGV[7])
if ARGV[9] ~= '' then
  if redis.call('TYPE', KEYS[3]).ok ~= 'list' then redis.call('DEL', KEYS[3]) end
  redis.call('RPUSH', KEYS[3], ARGV[9])
  redis.call('LTRIM', KEYS[3], -ARGV[10], -1)
end
redis.call('EXPIRE', KEYS[3], ARGV[7])
redis.call('EXPIRE', KEYS[4], ARGV[7])
return 1
