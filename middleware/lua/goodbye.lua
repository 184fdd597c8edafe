#!lua flags=allow-oom
-- Leaves: what this broker still holds goes back at once, without waiting for its lease to end.
-- KEYS: namespace. ARGV: broker id.
local ns, broker = KEYS[1], ARGV[1]
local mine = ns .. ":__dramaturg__.queues." .. broker
for _, queue in ipairs(redis.call("smembers", mine)) do
  local name = ns .. ":" .. queue
  for _, kept in ipairs({"__acks__.", "__dramaturg__.taking."}) do
    local key = ns .. ":" .. kept .. broker .. "." .. queue
    local ids = kept == "__acks__." and redis.call("smembers", key) or redis.call("lrange", key, 0, -1)
    for _, id in ipairs(ids) do
      if redis.call("hexists", name .. ".msgs", id) == 1 then
        redis.call("lpush", name, id)
      end
    end
    redis.call("del", key)
  end
end
redis.call("del", mine)
redis.call("zrem", ns .. ":__dramaturg__.alive", broker)
return 1
