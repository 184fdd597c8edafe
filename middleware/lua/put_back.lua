#!lua flags=allow-oom
-- Puts back what a blocking move took when it woke a consumer that may not fetch now.
-- KEYS: namespace. ARGV: queue, broker id.
local ns, queue = KEYS[1], ARGV[1]
local name = ns .. ":" .. queue
local taking = ns .. ":__dramaturg__.taking." .. ARGV[2] .. "." .. queue
while true do
  local id = redis.call("lindex", taking, -1)
  if not id then
    return 1
  end
  -- Without data it was purged, or only woke the consumer.
  if redis.call("hexists", name .. ".msgs", id) == 1 then
    redis.call("lpush", name, id)
  end
  redis.call("rpop", taking)
end
