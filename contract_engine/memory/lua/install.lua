-- Install a session as it was read from the log.
--
-- KEYS  1 buffer  2 summary
-- ARGV  1 ticket  2 the header from its epoch on  3 buffer TTL (s)  4 summary TTL (s)  5 summary, or '' for none
--       then the elements, oldest first, and the run of the server
-- Answer 1 installed. 0 refused: the ticket is not the one in place, or the session has been begun anew since. 2 overtaken:
--       a message behind what was read has been acknowledged since; read again: what is appended from now on waits behind
--       the placeholder, and is installed with what is read.

-- include _header

local buffer = KEYS[1]
local h, text = read_header(buffer)
local run, ticket, epoch, tail, overtaken = read_placeholder(text)
local head, of, revision, watermark, max_tokens, max_messages, last, tokens, updated = string.match(
  ARGV[2], '^((%d+),(%d+),%d+,(%d+),%d+,(%d+),(%d+),)(%d+),(%d+),(%d+)%]$')
if ticket ~= ARGV[1] or run ~= ARGV[#ARGV] or tonumber(epoch) > tonumber(of) then
  -- Somebody with the same ticket has installed what was read before this. Who was answered with ours sees nothing older.
  if h and h.format == '1' and h.epoch == of and h.revision < tonumber(revision) then redis.call('DEL', buffer) end
  return 0
end

local behind = {}
if epoch == of and tonumber(tail) > tonumber(last) then
  local elements = {}
  for _, element in ipairs(redis.call('LRANGE', buffer, 1, -1)) do
    elements[tonumber(string.match(element, '^%[(%d+),%d+,%d+,') or 0)] = element
  end
  -- Of a newer revision, they were appended to another session than the one that was read: its limits may have changed.
  local is_whole = overtaken ~= '' and tonumber(overtaken) <= tonumber(revision)
  while is_whole and tonumber(last) < tonumber(tail) do
    last = last + 1
    local element = elements[last]
    is_whole = element ~= nil
    if is_whole then
      local added, at = string.match(element, '^%[%d+,(%d+),(%d+),')
      tokens, updated, behind[#behind + 1] = tokens + added, at, element
    end
  end
  if not is_whole or last - watermark > tonumber(max_messages) or tokens > tonumber(max_tokens) then
    -- What stands there already stays: another reader may hold the same ticket, and have read what is lacking here.
    if overtaken == '' or redis.call('LLEN', buffer) > MOST_BEHIND then
      redis.call('LSET', buffer, 0, string.format('[0,%s,%s,%s,%s,%s]', run, ticket, epoch, tail, revision))
      redis.call('LTRIM', buffer, 0, 0)
    end
    return 2
  end
end

-- Not deleted first: a full Redis that evicts nothing would refuse no write that comes after it.
redis.call('LSET', buffer, 0, string.format('[1,%s,%s%d,%d,%s]', run, head, last, tokens, updated))
redis.call('LTRIM', buffer, 0, 0)
for i = 6, #ARGV - 1 do redis.call('RPUSH', buffer, ARGV[i]) end
for _, element in ipairs(behind) do redis.call('RPUSH', buffer, element) end
redis.call('EXPIRE', buffer, ARGV[3])
if ARGV[5] == '' then
  redis.call('DEL', KEYS[2])
else
  redis.call('SET', KEYS[2], ARGV[5], 'EX', ARGV[4])
end
return 1
