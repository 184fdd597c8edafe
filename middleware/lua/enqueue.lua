#!lua
-- Puts messages on their queues. Saying it again with the same ids, after a reply was lost, changes nothing.
-- Refused whole when Redis is out of memory, unlike the other scripts, with which workers make room.
-- KEYS: namespace. ARGV: (queue, id, data)...
local ns = KEYS[1]
for i = 1, #ARGV, 3 do
  local queue = ns .. ":" .. ARGV[i]
  if redis.call("hsetnx", queue .. ".msgs", ARGV[i + 1], ARGV[i + 2]) == 1 then
    redis.call("rpush", queue, ARGV[i + 1])
  end
end
return 1
