-- Take a ticket to rebuild a buffer that a reader could not use.
--
-- KEYS  1 buffer  2 unlogged
-- ARGV  1 a fresh ticket  2 ticket TTL (s)  3 the first element the reader saw, or '' where it saw none
--       then the run of the server
-- Answer {ticket, fresh}: the ticket to install with, and 0 where somebody else is at it with the same one. Ticket 0:
--       another buffer than the one seen is there by now; -1: acknowledged messages wait in the unlogged list, and go
--       into the log before anything is read from it.

-- include _header

if redis.call('EXISTS', KEYS[2]) == 1 then return { '-1', 1 } end
local h, text = read_header(KEYS[1])
if h and text ~= ARGV[3] then return { '0', 0 } end
local ticket, fresh = place_ticket(KEYS[1], text, ARGV[4], ARGV[1], ARGV[2], '0', '0', '0')
return { ticket, fresh and 1 or 0 }
