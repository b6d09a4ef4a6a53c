-- Take a ticket to rebuild a buffer that a reader could not use.
--
-- KEYS  1 buffer
-- ARGV  1 a fresh ticket  2 ticket TTL (s)  3 the first element the reader saw, or '' where it saw none
-- Answer the ticket to install with, or 0 where another buffer than the one seen is there by now.

-- include _header

local h, text = read_header(KEYS[1])
if h and text ~= ARGV[3] then return '0' end
return (place_ticket(KEYS[1], text, ARGV[1], ARGV[2], '0', '0'))
