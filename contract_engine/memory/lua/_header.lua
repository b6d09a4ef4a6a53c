-- The first element of a buffer list, shared by the scripts that include this file.
--
-- A buffer:      [1,run,epoch,revision,version,watermark,trigger,max_tokens,max_messages,last_seq,tokens,updated_ms]
-- With a 2 in place of the 1 it holds messages the log lacks: the unlogged list has them too, and their numbers are
--                provisional. Epoch 0 there: what came before them, if anything, is not known here.
-- A placeholder: [0,run,ticket,epoch,tail]  nothing may be read here; whoever holds the ticket installs the session
--                from the log, and only if what it read reaches as far as `tail`, the last message known to be
--                acknowledged.
-- An overtaken one: [0,run,ticket,epoch,tail,revision]  it did not. Messages appended since stand behind it, the newest
--                of them in this revision, so that the next installation need not have read them. Not before: only by
--                then has the log said that this epoch lives, and no erased message may come back here.
--
-- `run` names the server process that this was written in. One that was restarted, or promoted in place of another, may
-- hold an older copy than was there before: where there is a log, what another run has written is not believed.
--
-- An append changes the last three fields and nothing before them. Numbers stay below 2^53; epochs are compared as text
-- and never computed with.

-- Answer the header as {run=, epoch=, ...}, or nil, and the text it was read from. Another type of key, random
-- bytes and other versions all answer nil: they are replaced like a missing buffer.
local function read_header(key)
  local text = redis.pcall('LINDEX', key, 0)
  if type(text) ~= 'string' then return nil, '' end
  local format, run, epoch, revision, version, watermark, trigger, max_tokens, max_messages, last, tokens, updated =
    string.match(text, '^%[([12]),(%d+),(%d+),(%d+),(%d+),(%d+),(%d+),(%d+),(%d+),(%d+),(%d+),(%d+)%]$')
  if not epoch then return nil, text end
  return {
    format = format, run = run, epoch = epoch, revision = tonumber(revision), version = tonumber(version),
    watermark = tonumber(watermark), trigger = tonumber(trigger), max_tokens = tonumber(max_tokens),
    max_messages = tonumber(max_messages), last = tonumber(last), tokens = tonumber(tokens), updated = updated,
  }, text
end

-- Answer the header of a session that begins here: limits are 'trigger,max_tokens,max_messages'.
local function new_header(epoch, limits, updated)
  local trigger, max_tokens, max_messages = string.match(limits, '^(%d+),(%d+),(%d+)$')
  return {
    format = '1', run = '0', epoch = epoch, revision = 0, version = 0, watermark = 0, trigger = tonumber(trigger),
    max_tokens = tonumber(max_tokens), max_messages = tonumber(max_messages), last = 0, tokens = 0, updated = updated,
  }
end

local function header_text(h)
  return string.format('[%s,%s,%s,%d,%d,%d,%d,%d,%d,%d,%d,%s]', h.format, h.run, h.epoch, h.revision, h.version,
    h.watermark, h.trigger, h.max_tokens, h.max_messages, h.last, h.tokens, h.updated)
end

-- Keep a buffer that is all that shows what waits to be logged, as one that does not know what came before: whoever reads
-- it tries to log that first.
local function doubt(key, h)
  h.format, h.epoch = '2', '0'
  redis.call('LSET', key, 0, header_text(h))
end

-- What stands behind a placeholder is there for an installation that takes milliseconds; of a dead one it is left alone.
local MOST_BEHIND = 1000

-- Answer the run, ticket, epoch, tail and revision of a placeholder, as texts; nil for anything else. The last is '' where
-- it has not been overtaken.
local function read_placeholder(text)
  return string.match(text, '^%[0,(%d+),(%d+),(%d+),(%d+),?(%d*)%]$')
end

-- Put a placeholder in place of whatever is there, and answer the ticket to install with; true where nobody held it
-- before; and true where messages of this epoch may stand behind it.
local function place_ticket(key, text, run, ticket, ttl, epoch, tail, revision)
  local held_run, held, held_epoch, held_tail, overtaken = read_placeholder(text)
  if held_run ~= run then
    -- Only what is there: a full Redis that evicts nothing would refuse no write that comes after it.
    if redis.call('EXISTS', key) == 1 then redis.call('DEL', key) end
    redis.call('RPUSH', key, string.format('[0,%s,%s,%s,%s]', run, ticket, epoch, tail))
    redis.call('EXPIRE', key, ttl)
    return ticket, true, false
  end
  if tonumber(held_epoch) > tonumber(epoch) then return held, false, false end
  if held_epoch ~= epoch then
    redis.call('LTRIM', key, 0, 0)
  else
    if tonumber(held_tail) > tonumber(tail) then tail = held_tail end
    if overtaken ~= '' then tail = string.format('%s,%d', tail, math.max(overtaken, revision)) end
  end
  redis.call('LSET', key, 0, string.format('[0,%s,%s,%s,%s]', run, held, epoch, tail))
  return held, false, held_epoch == epoch and overtaken ~= ''
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
