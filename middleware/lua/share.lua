#!lua flags=allow-oom
-- Sets what share of a queue a tenant has, and sees that what is with workers is counted where there are limits.
-- KEYS: namespace. ARGV: queue; tenant, or "*" for all that have none of their own; weight or ''; limit, 0 for none, or
-- ''; the share (JSON), or '' if it is to have none.
-- Returns the share that it had (JSON), or nothing.
local ns, queue, tenant = KEYS[1], ARGV[1], ARGV[2]
-- include messages
-- include turns
local before = redis.call("hget", of(queue, "shares"), tenant)
for i, what in ipairs({"weights", "limits", "shares"}) do
  if ARGV[2 + i] == "" then
    redis.call("hdel", of(queue, what), tenant)
  else
    redis.call("hset", of(queue, what), tenant, ARGV[2 + i])
  end
end
if are_limits(queue) then
  recount(queue)
else
  redis.call("del", of(queue, "running"))
  for _, one in ipairs(redis.call("zrange", of(queue, "parked"), 0, -1)) do
    unpark(queue, one)
  end
end
return before
