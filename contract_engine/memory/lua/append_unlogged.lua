-- Append messages while the log is away: the buffer gives them provisional numbers, and the unlogged list keeps them,
-- without a TTL, until somebody has logged them. The list begins with [epoch,seq]: the life of the session, 0 where it is
-- not known, and the last message before those that wait.
--
-- KEYS  1 buffer  2 summary  3 unlogged
-- ARGV  1 buffer TTL (s)  2 summary TTL (s)  3 the limits of a session that is not known here
--       4 the last message the caller knows to be in the log, or 0: a buffer that lacks it is not believed, unless it
--         begins in the middle anyway
--       5 the id of the first message as JSON, where an earlier attempt may have stored them all; else ''
--       6 1 where they are to reach the legacy store too, else 0: the last item of their elements in the unlogged list
--       then for each message: tokens, the rest of the element from the id on
-- Answer {status, seq, time (ms)}: 0 full, nothing was appended; 1 appended; 3 already there; 4 the id is there with
--       other content.

-- include _header

local FIRST = 7
local buffer, unlogged = KEYS[1], KEYS[3]
local id = ARGV[5]
local n = (#ARGV - FIRST + 1) / 2

local h = read_header(buffer)
if id ~= '' then
  -- Not behind a placeholder: nobody could read it there.
  for _, key in ipairs(h and { unlogged, buffer } or { unlogged }) do
    for _, element in ipairs(redis.pcall('LRANGE', key, 0, -1)) do
      local seq, at, rest = string.match(element, '^%[(%d+),%d+,(%d+),(.*)$')
      if rest and string.sub(rest, 1, #id + 1) == id .. ',' then
        local is_same = rest == ARGV[FIRST + 1] or string.gsub(rest, ',[01]%]$', ']') == ARGV[FIRST + 1]
        return { is_same and 3 or 4, tonumber(seq), tonumber(at) }
      end
    end
  end
end

-- Not the caller's time: its call may have lain in a socket for long, and what was logged meanwhile would seem to come
-- after it.
local clock = redis.call('TIME')
local now = string.format('%d', clock[1] * 1000 + math.floor(clock[2] / 1000))

local kind = redis.call('TYPE', unlogged).ok
if kind ~= 'list' and h and h.format == '2' then
  -- The list alone was evicted: what the buffer has of it goes first, and what is logged already is not logged twice.
  if kind ~= 'none' then redis.call('DEL', unlogged) end
  redis.call('RPUSH', unlogged, '[0,0]')
  for _, element in ipairs(redis.call('LRANGE', buffer, 1, -1)) do redis.call('RPUSH', unlogged, element) end
  kind = 'list'
end

local begins = not h or (h.epoch ~= '0' and h.last < tonumber(ARGV[4]))
if begins then h = new_header('0', ARGV[3], now) end
local count, added = h.last - h.watermark, 0
for i = FIRST, #ARGV, 2 do added = added + ARGV[i] end
if (count > 0 or n > 1) and (count + n > h.max_messages or h.tokens + added > h.max_tokens) then
  return { 0, h.last, 0 }
end
-- The list first, and nothing is deleted that is not there: where Redis is full and evicts nothing, it refuses the first
-- write of a script, and with it all of the script; but none that comes after a DEL.
if kind ~= 'list' then
  if kind ~= 'none' then redis.call('DEL', unlogged) end
  redis.call('RPUSH', unlogged, string.format('[%s,%d]', h.epoch, h.last))
end

local first, elements = h.last + 1, {}
for i = FIRST, #ARGV, 2 do
  h.last = h.last + 1
  local element = string.format('[%d,%s,%s,', h.last, ARGV[i], now) .. ARGV[i + 1]
  redis.call('RPUSH', unlogged, string.sub(element, 1, -2) .. ',' .. ARGV[6] .. ']')
  elements[#elements + 1] = element
end
if begins then
  redis.call('DEL', buffer)
  redis.call('RPUSH', buffer, '')
end
for _, element in ipairs(elements) do redis.call('RPUSH', buffer, element) end
h.format, h.tokens, h.updated = '2', h.tokens + added, now
redis.call('LSET', buffer, 0, header_text(h))
redis.call('EXPIRE', buffer, ARGV[1])
redis.call('EXPIRE', KEYS[2], ARGV[2])
return { 1, first, tonumber(now) }
