#!lua flags=allow-oom
-- Takes one message that was running when a worker was lost into the acks of this broker.
-- KEYS: namespace. ARGV: queue, broker id, its lease.
-- Returns nothing if it has another lease by now, or none; else id, data, evidence (a JSON list), or an empty list, also
-- where the queue is paused.
local ns, queue, broker, lease = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
-- What is fetched under no lease, or under one that has ended, nobody would give back.
if redis.call("hget", ns .. ":__dramaturg__.leases", broker) ~= lease then
  return false
end
local own = ns .. ":__dramaturg__."
if redis.call("hexists", own .. "paused", queue) == 1 then
  return {}
end
local suspects = own .. "suspects." .. queue
while true do
  local id = redis.call("lindex", suspects, 0)
  if not id then
    return {}
  end
  local data = redis.call("hget", ns .. ":" .. queue .. ".msgs", id)
  local ours = data and redis.call("sadd", ns .. ":__acks__." .. broker .. "." .. queue, id) == 1
  redis.call("lpop", suspects)
  if ours then
    return {id, data, redis.call("hget", own .. "crashes", queue .. ":" .. id) or "[]"}
  end
end
