-- Append messages where no log numbers them: the buffer gives the numbers (ephemeral mode).
--
-- KEYS  1 buffer  2 summary  3 fold  4 history  5 context
-- ARGV  1 epoch of a session that begins here  2 time (ms)  3 TTL of every key (s)  4 lease token  5 lease of a fold (ms)
--       6 trigger  7 max tokens  8 max messages (6 to 8 for a session that begins here)
--       9 what to do at a cap: 'fold' (append nothing and say so) or 'drop' (the oldest messages go)
--       10 the message id as JSON, where an earlier attempt may have stored it; else ''
--       then for each message: tokens, the rest of the element from the id on
-- Answer {status, seq of the first message, time (ms)}: 1 appended; 2 appended, and the caller is to fold; 0 full;
--       3 already there; 4 the id is there with other content.
local buffer = KEYS[1]
local n = (#ARGV - 10) / 2
local h = read_header(buffer)

if not h then
  h = { epoch = ARGV[1], revision = 0, last = 0, tokens = 0, version = 0, watermark = 0, trigger = tonumber(ARGV[6]),
    max_tokens = tonumber(ARGV[7]), max_messages = tonumber(ARGV[8]), updated = ARGV[2] }
  -- A summary that outlived its evicted buffer still covers what it covers: the session goes on behind it.
  local kept = redis.pcall('GET', KEYS[2])
  if type(kept) == 'string' then
    local version, covered = string.match(kept, '^%[(%d+),(%d+),')
    if version then h.version, h.watermark, h.last = tonumber(version), tonumber(covered), tonumber(covered) end
  end
  redis.call('DEL', buffer)
  redis.call('RPUSH', buffer, header_text(h))
end

if ARGV[10] ~= '' then
  for _, element in ipairs(redis.call('LRANGE', buffer, 1, -1)) do
    local seq, at, rest = string.match(element, '^%[(%d+),%d+,(%d+),(.*)$')
    if rest and string.sub(rest, 1, #ARGV[10] + 1) == ARGV[10] .. ',' then
      return { rest == ARGV[12] and 3 or 4, tonumber(seq), tonumber(at) }
    end
  end
end

local count, tokens = h.last - h.watermark, h.tokens
local added = 0
for i = 11, #ARGV, 2 do added = added + ARGV[i] end
local function fits()
  return count == 0 and n == 1 or (count + n <= h.max_messages and tokens + added <= h.max_tokens)
end
if not fits() then
  if ARGV[9] == 'fold' then return { 0, h.last, 0 } end
  local dropped = 0
  while count > 0 and not fits() do
    dropped = dropped + 1
    count = count - 1
    tokens = tokens - tonumber(string.match(redis.call('LINDEX', buffer, dropped), '^%[%d+,(%d+),'))
  end
  if dropped > 0 then drop_oldest(buffer, h, dropped) end
end

local first = h.last + 1
for i = 11, #ARGV, 2 do
  h.last = h.last + 1
  redis.call('RPUSH', buffer, string.format('[%d,%s,%s,', h.last, ARGV[i], ARGV[2]) .. ARGV[i + 1])
end
h.tokens, h.updated = h.tokens + added, ARGV[2]
redis.call('LSET', buffer, 0, header_text(h))
redis.call('EXPIRE', buffer, ARGV[3])
redis.call('EXPIRE', KEYS[5], ARGV[3])
if h.version > 0 then
  redis.call('EXPIRE', KEYS[2], ARGV[3])
  redis.call('EXPIRE', KEYS[4], ARGV[3])
end
count = h.last - h.watermark
if ARGV[9] == 'fold' and count > 1 and (h.tokens >= h.trigger or count >= h.max_messages)
  and redis.call('SET', KEYS[3], ARGV[4], 'NX', 'PX', ARGV[5]) then
  return { 2, first, tonumber(ARGV[2]) }
end
return { 1, first, tonumber(ARGV[2]) }
