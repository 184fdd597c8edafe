#!lua flags=allow-oom
-- Lets one process at a time relay what waits in the outbox.
-- KEYS: namespace. ARGV: who, milliseconds for which it has that to itself (0: no longer), milliseconds for which nobody
-- looks again of his own accord (0: it has something to relay, and does not ask).
-- Returns this server's time in milliseconds, and 1: it is whose turn it is; 0: it is not.
local turn, quiet = KEYS[1] .. ":__dramaturg__.relay", KEYS[1] .. ":__dramaturg__.relay.quiet"
local time = redis.call("time")
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local whose = redis.call("get", turn)
if whose and whose ~= ARGV[1] then
  return {now, 0}
end
if ARGV[2] == "0" then
  redis.call("del", turn)
  return {now, 0}
end
if ARGV[3] ~= "0" and not redis.call("set", quiet, ARGV[1], "nx", "px", ARGV[3]) then
  return {now, 0}
end
redis.call("set", turn, ARGV[1], "px", ARGV[2])
return {now, 1}
