#!lua flags=allow-oom
-- Ends a delivery: the message leaves its queue, and what follows from it (a retry, a child, the message itself now that
-- it is due, a spooled failure) takes its place, both or neither. A broker that lost the delivery changes nothing.
-- KEYS: namespace. ARGV: queue, broker id, message id, spool entry or '', spool bound, (queue, id, data)...
-- Returns 1: done, now or by a call whose reply was lost; 0: this delivery was not ours any more; -1: the spool is full.
local ns, queue, broker, message = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
local acks = ns .. ":__acks__." .. broker .. "." .. queue
if redis.call("sismember", acks, message) == 0 then
  return redis.call("hexists", ns .. ":" .. queue .. ".msgs", message) == 1 and 0 or 1
end
if ARGV[4] ~= "" then
  local spool = ns .. ":__dramaturg__.spool"
  if redis.call("hlen", spool) >= tonumber(ARGV[5]) then
    return -1
  end
  redis.call("hset", spool, queue .. ":" .. message, ARGV[4])
  redis.call("set", spool .. ".since", redis.call("time")[1], "nx")
end
for i = 6, #ARGV, 3 do
  local name = ns .. ":" .. ARGV[i]
  if redis.call("hsetnx", name .. ".msgs", ARGV[i + 1], ARGV[i + 2]) == 1 then
    redis.call("rpush", name, ARGV[i + 1])
  end
end
redis.call("srem", acks, message)
redis.call("hdel", ns .. ":" .. queue .. ".msgs", message)
return 1
