-- Append messages that the log has numbered.
--
-- KEYS  1 buffer  2 summary  3 fold
-- ARGV  1 epoch  2 revision  3 seq of the first message  4 time (ms)  5 buffer TTL (s)  6 summary TTL (s)
--       7 a fresh ticket  8 ticket TTL (s)  9 lease of a fold (ms)  10 trigger  11 max tokens  12 max messages
--       (10 to 12 for a session that begins here), then for each message: tokens, element
-- Answer {status, ticket}: 1 appended; 2 appended, and the caller is to fold (it holds the lease, named by its ticket);
--       0 the buffer cannot follow, the caller is to rebuild it with this ticket; 3 so, but somebody else is at it.
--
-- The buffer follows only where these messages come right after its last one, in the same life of the session, and fit
-- the caps. Everything else (evicted, flushed, failed over, overtaken by another writer, full) is healed from the log.
local buffer = KEYS[1]
local first = tonumber(ARGV[3])
local n = (#ARGV - 12) / 2
local last = first + n - 1
local h, text = read_header(buffer)
local count = h and h.last - h.watermark or 0

if text == '' and first == 1 and ARGV[2] == '0' then
  h = { epoch = ARGV[1], revision = 0, last = 0, tokens = 0, version = 0, watermark = 0, trigger = tonumber(ARGV[10]),
    max_tokens = tonumber(ARGV[11]), max_messages = tonumber(ARGV[12]), updated = ARGV[4] }
  redis.call('DEL', buffer)
  redis.call('RPUSH', buffer, '')
end

if h and h.epoch == ARGV[1] and h.revision >= tonumber(ARGV[2]) then
  if h.last == first - 1 then
    local tokens = h.tokens
    for i = 13, #ARGV, 2 do tokens = tokens + ARGV[i] end
    count = count + n
    if count == 1 or (count <= h.max_messages and tokens <= h.max_tokens) then
      for i = 14, #ARGV, 2 do redis.call('RPUSH', buffer, ARGV[i]) end
      h.last, h.tokens, h.updated = last, tokens, ARGV[4]
      redis.call('LSET', buffer, 0, header_text(h))
      redis.call('EXPIRE', buffer, ARGV[5])
      if h.version > 0 then redis.call('EXPIRE', KEYS[2], ARGV[6]) end
      if (tokens >= h.trigger or count >= h.max_messages) and count > 1
        and redis.call('SET', KEYS[3], ARGV[7], 'NX', 'PX', ARGV[9]) then
        return { 2, ARGV[7] }
      end
      return { 1, ARGV[7] }
    end
  elseif last <= h.last then
    local same = true
    for i = 0, n - 1 do
      local seq = first + i
      if seq > h.watermark and redis.call('LINDEX', buffer, seq - h.last - 1) ~= ARGV[14 + 2 * i] then same = false end
    end
    if same then return { 1, ARGV[7] } end
  end
end
local ticket, fresh = place_ticket(buffer, text, ARGV[7], ARGV[8], ARGV[1], string.format('%d', last))
return { fresh and 0 or 3, ticket }
