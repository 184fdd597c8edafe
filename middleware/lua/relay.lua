#!lua
-- Puts messages of the outbox on their queues, each once as far as is remembered: saying it again, also after the message
-- has run, changes nothing. Refused whole when Redis is out of memory.
-- KEYS: namespace. ARGV: milliseconds since 1970 on this server's clock after which it is too late, because others may
-- have forgotten by then what they did with the same messages; seconds to remember each, (queue, id, data)...
-- Returns this server's time in milliseconds, then for each 1: it is in Redis, or was; 0: it was withdrawn, and will never
-- be. The time alone where it is too late.
local ns = KEYS[1]
local time = redis.call("time")
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
if now > tonumber(ARGV[1]) then
  return {now}
end
local said = {now}
for i = 3, #ARGV, 3 do
  local queue, id = ns .. ":" .. ARGV[i], ARGV[i + 1]
  local mark = ns .. ":__dramaturg__.replay." .. id
  if redis.call("set", mark, "sent", "nx", "ex", ARGV[2]) then
    if redis.call("hsetnx", queue .. ".msgs", id, ARGV[i + 2]) == 1 then
      redis.call("rpush", queue, id)
    end
    said[#said + 1] = 1
  else
    said[#said + 1] = redis.call("get", mark) == "sent" and 1 or 0
  end
end
return said
