-- Append messages that the log has numbered.
--
-- KEYS  1 buffer  2 summary  3 fold  4 unlogged
-- ARGV  1 epoch  2 revision  3 seq of the first message  4 time (ms)  5 buffer TTL (s)  6 summary TTL (s)
--       7 a fresh ticket  8 ticket TTL (s)  9 lease of a fold (ms)
--       then for each message: tokens, element; and the run of the server
-- Answer 1: appended. 2: appended, and the caller is to fold; it holds the lease, named by its ticket. Else the buffer
--       cannot follow: {0, ticket}: the caller is to rebuild it with this ticket; {3, ticket}: somebody else is at it,
--       or has folded what has these numbers;
--       {4, '0'}: messages acknowledged before these wait to be logged, and go into the log first.
--
-- The buffer follows only where these messages come right after its last one, in the same life of the session and the
-- same run of the server, and fit the caps. Everything else (evicted, flushed, failed over, overtaken by another writer,
-- full) is healed from the log; where that was overtaken once, they are put behind its placeholder.

-- The usual case first, before anything else is even defined: this is the hot path, and every line of it counts.
local call = redis.call
local buffer = KEYS[1]
local text = redis.pcall('LINDEX', buffer, 0)
if type(text) == 'string' then
  local head, run, epoch, revision, version, watermark, trigger, max_tokens, max_messages, last, tokens = string.match(
    text, '^(%[1,(%d+),(%d+),(%d+),(%d+),(%d+),(%d+),(%d+),(%d+),)(%d+),(%d+),%d+%]$')
  if epoch == ARGV[1] and run == ARGV[#ARGV] and last + 1 == tonumber(ARGV[3]) and tonumber(revision) >= tonumber(ARGV[2]) then
    last = last + (#ARGV - 10) / 2
    for i = 10, #ARGV - 1, 2 do tokens = tokens + ARGV[i] end
    local count = last - watermark
    max_messages = tonumber(max_messages)
    if count == 1 or (count <= max_messages and tokens <= tonumber(max_tokens)) then
      for i = 11, #ARGV - 1, 2 do call('RPUSH', buffer, ARGV[i]) end
      call('LSET', buffer, 0, head .. last .. ',' .. tokens .. ',' .. ARGV[4] .. ']')
      call('EXPIRE', buffer, ARGV[5])
      if version ~= '0' then call('EXPIRE', KEYS[2], ARGV[6]) end
      if count > 1 and (tokens >= tonumber(trigger) or count >= max_messages)
        and call('SET', KEYS[3], ARGV[7], 'NX', 'PX', ARGV[9]) then
        return 2
      end
      return 1
    end
  end
end

-- include _header

local h
h, text = read_header(buffer)
if redis.call('EXISTS', KEYS[4]) == 1 or (h and h.format == '2') then return { 4, '0' } end
local first = tonumber(ARGV[3])
local n = (#ARGV - 10) / 2
local last = first + n - 1
if h and h.run == ARGV[#ARGV] and h.epoch == ARGV[1] and h.revision >= tonumber(ARGV[2]) and last <= h.last then
  -- Sent again, or placed by a rebuild that was faster than we are.
  local same, folded = true, first <= h.watermark
  for i = 0, n - 1 do
    local place = first + i - h.watermark
    if place > 0 and redis.call('LINDEX', buffer, place) ~= ARGV[11 + 2 * i] then same = false end
  end
  -- Where it was folded, what stood under its number is not known any more.
  if same then return folded and { 3, '0' } or 1 end
end
-- Not even the first message of a session is placed here without asking the log: the session may have been cleared since.
local ticket, fresh, is_overtaken = place_ticket(
  buffer, text, ARGV[#ARGV], ARGV[7], ARGV[8], ARGV[1], string.format('%d', last), ARGV[2])
if is_overtaken and redis.call('LLEN', buffer) <= MOST_BEHIND then
  for i = 11, #ARGV - 1, 2 do redis.call('RPUSH', buffer, ARGV[i]) end
end
return { fresh and 0 or 3, ticket }
