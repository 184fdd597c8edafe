#!lua flags=allow-oom
-- Takes one message that was running when a worker was lost into the acks of this broker.
-- KEYS: namespace. ARGV: queue, broker id, its lease, 1, and 1 if tenants take turns and are held to their limits (else 0).
-- Returns nothing if it has another lease by now, or none; else id, data, evidence (a JSON list), or an empty list, also
-- where the queue is paused, or those whose message might be taken are at their limit.
local ns, queue, broker, lease = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
-- What is fetched under no lease, or under one that has ended, nobody would give back.
if redis.call("hget", ns .. ":__dramaturg__.leases", broker) ~= lease then
  return false
end
-- include messages
-- include turns
local own = ns .. ":__dramaturg__."
if redis.call("hexists", own .. "paused", queue) == 1 then
  return {}
end
local suspects = own .. "suspects." .. queue
local fair, counted = ARGV[5] == "1", are_limits(queue)
for _, id in ipairs(redis.call("lrange", suspects, 0, PASSED_OVER - 1)) do
  local tenant = counted and (tenant_of(queue, id) or NOBODY)
  if not (tenant and fair and is_at_limit(queue, tenant)) then
    local data = redis.call("hget", ns .. ":" .. queue .. ".msgs", id)
    local ours = data and redis.call("sadd", ns .. ":__acks__." .. broker .. "." .. queue, id) == 1
    redis.call("lrem", suspects, 1, id)
    if ours then
      if tenant then
        redis.call("hincrby", of(queue, "running"), tenant, 1)
      end
      return {id, data, redis.call("hget", own .. "crashes", queue .. ":" .. id) or "[]"}
    end
  end
end
return {}
