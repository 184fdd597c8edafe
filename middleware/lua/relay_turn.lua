#!lua flags=allow-oom
-- Lets one process at a time relay what waits in the outbox.
-- KEYS: namespace. ARGV: who, milliseconds for which it has that to itself (0: no longer), milliseconds for which nobody
-- looks again of his own accord (0: it has something to relay, and does not ask).
-- Returns this server's time in milliseconds, and 1: it is whose turn it is; 0: it is not.
-- include relaying
local time = redis.call("time")
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
return {now, take_turn(KEYS[1], ARGV[1], ARGV[2], ARGV[3])}
