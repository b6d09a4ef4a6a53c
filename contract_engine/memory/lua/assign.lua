-- Append messages where no log numbers them: the buffer gives the numbers (ephemeral mode).
--
-- KEYS  1 buffer  2 summary  3 fold  4 history  5 context
-- ARGV  1 time (ms)  2 TTL of every key (s)  3 a fresh ticket: names the lease of a fold, and tells epochs apart
--       4 'at_cap,lease,trigger,max_tokens,max_messages': what to do at a cap ('fold': append nothing and say so, 'drop':
--       the oldest messages go), the lease of a fold (ms), and the limits of a session that begins here
--       5 the id of the first message as JSON, where an earlier attempt may have stored them all; else ''
--       then for each message: tokens, the rest of the element from the id on
-- Answer the seq of the first message: appended. Else {status, seq, time (ms)}: 0 full, nothing was appended;
--       2 appended, and the caller is to fold; 3 already there; 4 the id is there with other content.

-- The usual case first, before anything else is even defined: this is the hot path, and every line of it counts.
local call = redis.call
local buffer = KEYS[1]
local now = ARGV[1]
local text = redis.pcall('LINDEX', buffer, 0)
if ARGV[5] == '' and type(text) == 'string' then
  local head, version, watermark, trigger, max_tokens, max_messages, last, tokens = string.match(
    text, '^(%[1,%d+,%d+,%d+,(%d+),(%d+),(%d+),(%d+),(%d+),)(%d+),(%d+),%d+%]$')
  if head then
    local first = last + 1
    last = last + (#ARGV - 5) / 2
    for i = 6, #ARGV, 2 do tokens = tokens + ARGV[i] end
    local count = last - watermark
    max_messages = tonumber(max_messages)
    if count == 1 or (count <= max_messages and tokens <= tonumber(max_tokens)) then
      local seq = first
      for i = 6, #ARGV, 2 do
        call('RPUSH', buffer, '[' .. seq .. ',' .. ARGV[i] .. ',' .. now .. ',' .. ARGV[i + 1])
        seq = seq + 1
      end
      call('LSET', buffer, 0, head .. last .. ',' .. tokens .. ',' .. now .. ']')
      call('EXPIRE', buffer, ARGV[2])
      call('EXPIRE', KEYS[5], ARGV[2])
      if version ~= '0' then
        call('EXPIRE', KEYS[2], ARGV[2])
        call('EXPIRE', KEYS[4], ARGV[2])
      end
      if count > 1 and (tokens >= tonumber(trigger) or count >= max_messages) then
        local lease = string.match(ARGV[4], '^fold,(%d+),')
        if lease and call('SET', KEYS[3], ARGV[3], 'NX', 'PX', lease) then return { 2, first, tonumber(now) } end
      end
      return first
    end
  end
end

-- include _header

local FIRST = 6
local n = (#ARGV - FIRST + 1) / 2
local at_cap, lease, limits = string.match(ARGV[4], '^(%a+),(%d+),(.*)$')
local h = read_header(buffer)
local begins = not h
if begins then
  h = new_header(now .. string.sub('00' .. ARGV[3], -3), limits, now)
  -- A summary that outlived its evicted buffer still covers what it covers: the session goes on behind it.
  local kept = redis.pcall('GET', KEYS[2])
  if type(kept) == 'string' then
    local version, covered = string.match(kept, '^%[(%d+),(%d+),')
    if version then h.version, h.watermark, h.last = tonumber(version), tonumber(covered), tonumber(covered) end
  end
elseif ARGV[5] ~= '' then
  for _, element in ipairs(redis.call('LRANGE', buffer, 1, -1)) do
    local seq, at, rest = string.match(element, '^%[(%d+),%d+,(%d+),(.*)$')
    if rest and string.sub(rest, 1, #ARGV[5] + 1) == ARGV[5] .. ',' then
      return { rest == ARGV[FIRST + 1] and 3 or 4, tonumber(seq), tonumber(at) }
    end
  end
end

local count, tokens, added = h.last - h.watermark, h.tokens, 0
for i = FIRST, #ARGV, 2 do added = added + ARGV[i] end
local function fits()
  return (count == 0 and n == 1) or (count + n <= h.max_messages and tokens + added <= h.max_tokens)
end
local dropped = 0
while at_cap == 'drop' and count > 0 and not fits() do
  dropped = dropped + 1
  count = count - 1
  tokens = tokens - tonumber(string.match(redis.call('LINDEX', buffer, dropped), '^%[%d+,(%d+),'))
end
if not fits() then return { 0, h.last, 0 } end
if begins then
  -- Only what is there: a full Redis that evicts nothing would refuse no write that comes after it.
  if redis.call('EXISTS', buffer) == 1 then redis.call('DEL', buffer) end
  redis.call('RPUSH', buffer, '')
elseif dropped > 0 then
  drop_oldest(buffer, h, dropped)
end

local first = h.last + 1
for i = FIRST, #ARGV, 2 do
  h.last = h.last + 1
  redis.call('RPUSH', buffer, string.format('[%d,%s,%s,', h.last, ARGV[i], now) .. ARGV[i + 1])
end
h.tokens, h.updated = h.tokens + added, now
redis.call('LSET', buffer, 0, header_text(h))
for _, key in ipairs({ buffer, KEYS[2], KEYS[4], KEYS[5] }) do redis.call('EXPIRE', key, ARGV[2]) end
count = h.last - h.watermark
if at_cap == 'fold' and count > 1 and (h.tokens >= h.trigger or count >= h.max_messages)
  and redis.call('SET', KEYS[3], ARGV[3], 'NX', 'PX', lease) then
  return { 2, first, tonumber(now) }
end
return first
