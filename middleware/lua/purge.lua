#!lua flags=allow-oom
-- Removes every message of a queue, wherever this broker keeps it.
-- KEYS: namespace. ARGV: queue, broker id.
local ns, queue = KEYS[1], ARGV[1]
local name = ns .. ":" .. queue
-- include messages
-- include turns
for _, key in ipairs({of(queue, "turns"), of(queue, "parked")}) do
  for _, tenant in ipairs(redis.call("zrange", key, 0, -1)) do
    redis.call("del", lane_of(queue, tenant))
  end
  redis.call("del", key)
end
redis.call("del", of(queue, "returned"))
redis.call("del", name, name .. ".msgs", name .. ".XQ", name .. ".XQ.msgs", ns .. ":__dramaturg__.due." .. queue,
  ns .. ":__dramaturg__.suspects." .. queue,
  ns .. ":__acks__." .. ARGV[2] .. "." .. queue, ns .. ":__dramaturg__.taking." .. ARGV[2] .. "." .. queue)
for _, entries in ipairs({"crashes", "begun_before"}) do
  local key = ns .. ":__dramaturg__." .. entries
  local names = entries == "crashes" and redis.call("hkeys", key) or redis.call("smembers", key)
  for _, entry in ipairs(names) do
    if string.sub(entry, 1, #queue + 1) == queue .. ":" then
      redis.call(entries == "crashes" and "hdel" or "srem", key, entry)
    end
  end
end
if are_limits(queue) then
  recount(queue)
end
return 1
