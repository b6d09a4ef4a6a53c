-- Shared by every script: the first element of a buffer list.
--
-- A buffer:      [1,epoch,revision,last_seq,tokens,version,watermark,trigger,max_tokens,max_messages,updated_ms]
-- A placeholder: [0,ticket,epoch,tail]  nothing may be read here; whoever holds the ticket installs the session from
--                the log, and only if what it read reaches as far as `tail`, the last message known to be acknowledged.
--
-- Numbers stay below 2^53; epochs are compared as text and never computed with.

local FIELDS = '^%[1' .. string.rep(',(%d+)', 10) .. '%]$'

-- Answer the header as {epoch=, revision=, ...}, or nil, and the text it was read from. Another type of key, random
-- bytes and other versions all answer nil: they are replaced like a missing buffer.
local function read_header(key)
  local text = redis.pcall('LINDEX', key, 0)
  if type(text) ~= 'string' then return nil, '' end
  local epoch, revision, last, tokens, version, watermark, trigger, max_tokens, max_messages, updated =
    string.match(text, FIELDS)
  if not epoch then return nil, text end
  return {
    epoch = epoch, revision = tonumber(revision), last = tonumber(last), tokens = tonumber(tokens),
    version = tonumber(version), watermark = tonumber(watermark), trigger = tonumber(trigger),
    max_tokens = tonumber(max_tokens), max_messages = tonumber(max_messages), updated = updated,
  }, text
end

local function header_text(h)
  return string.format('[1,%s,%d,%d,%d,%d,%d,%d,%d,%d,%s]', h.epoch, h.revision, h.last, h.tokens, h.version,
    h.watermark, h.trigger, h.max_tokens, h.max_messages, h.updated)
end

-- Put a placeholder in place of whatever is there, and answer the ticket to install with. `fresh` is false where
-- somebody else already holds it.
local function place_ticket(key, text, ticket, ttl, epoch, tail)
  local held, held_epoch, held_tail = string.match(text, '^%[0,(%d+),(%d+),(%d+)%]$')
  local fresh = not held
  if held then
    ticket = held
    if tonumber(held_epoch) > tonumber(epoch) then
      epoch, tail = held_epoch, held_tail
    elseif held_epoch == epoch and tonumber(held_tail) > tonumber(tail) then
      tail = held_tail
    end
    redis.call('LSET', key, 0, string.format('[0,%s,%s,%s]', ticket, epoch, tail))
  else
    redis.call('DEL', key)
    redis.call('RPUSH', key, string.format('[0,%s,%s,%s]', ticket, epoch, tail))
    redis.call('EXPIRE', key, ttl)
  end
  return ticket, fresh
end

-- Drop the n oldest messages (n >= 1) of a buffer whose header is h and note it in h; the caller writes h back, which
-- also overwrites the last dropped element, now the first of the list.
local function drop_oldest(key, h, n)
  for i = 1, n do
    local tokens = string.match(redis.call('LINDEX', key, i), '^%[%d+,(%d+),')
    h.tokens = h.tokens - tonumber(tokens)
  end
  redis.call('LTRIM', key, n, -1)
  h.watermark = h.watermark + n
end
