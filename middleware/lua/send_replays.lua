#!lua
-- Puts messages on their queues, each once for ever as far as anybody remembers: saying it again, also after the message
-- has run, changes nothing. Refused whole when Redis is out of memory.
-- KEYS: namespace. ARGV: seconds to remember it, (queue, id, data)...
-- Returns, for each, 1: it is in Redis, or was; 0: it was withdrawn, and will never be.
local ns = KEYS[1]
local said = {}
for i = 2, #ARGV, 3 do
  local queue, id = ns .. ":" .. ARGV[i], ARGV[i + 1]
  local mark = ns .. ":__dramaturg__.replay." .. id
  if redis.call("set", mark, "sent", "nx", "ex", ARGV[1]) then
    if redis.call("hsetnx", queue .. ".msgs", id, ARGV[i + 2]) == 1 then
      redis.call("rpush", queue, id)
    end
    said[#said + 1] = 1
  else
    said[#said + 1] = redis.call("get", mark) == "sent" and 1 or 0
  end
end
return said
