#!lua flags=allow-oom
-- Gives messages back, to the head of their queue: they waited longest.
-- KEYS: namespace. ARGV: queue, broker id, ids...
local ns, queue, broker = KEYS[1], ARGV[1], ARGV[2]
local name = ns .. ":" .. queue
local acks = ns .. ":__acks__." .. broker .. "." .. queue
for i = #ARGV, 3, -1 do
  if redis.call("srem", acks, ARGV[i]) == 1 and redis.call("hexists", name .. ".msgs", ARGV[i]) == 1 then
    redis.call("lpush", name, ARGV[i])
  end
end
return 1
