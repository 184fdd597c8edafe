#!lua flags=allow-oom
-- Ends a delivery: the message leaves its queue, and what follows from it (a retry, a child, the message itself now that
-- it is due, a spooled failure) takes its place, both or neither. A broker that lost the delivery changes nothing.
-- KEYS: namespace. ARGV: queue, broker id, message id, spool entry or '', spool bound, of a message that is unique "key
-- success which", or '': whether it ended well (1 or 0), which follow-up is the message itself (0: none); the lease under
-- which it was fetched; count of follow-ups, as many (queue, id, data); then, of a child that succeeded of a group with
-- callbacks: the group's uuid, which child it is, milliseconds to keep the group, its callbacks as (queue, id, data)...
-- Returns 1: done, now or by a call whose reply was lost; 0: this delivery was not ours any more; -1: the spool is full;
-- 2: done, but the group is not known.
local ns, queue, broker, message = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
local acks = ns .. ":__acks__." .. broker .. "." .. queue
local function enqueue(first, last)
  for i = first, last, 3 do
    local name = ns .. ":" .. ARGV[i]
    if redis.call("hsetnx", name .. ".msgs", ARGV[i + 1], ARGV[i + 2]) == 1 then
      redis.call("rpush", name, ARGV[i + 1])
    end
  end
end
-- Counts each child once, however often it was delivered. Tells whether the group is known.
local function count(uuid, child, keep, callbacks)
  local group = ns .. ":__dramaturg__.group." .. uuid
  local left = redis.call("hget", group, "left")
  if not left then
    return false
  end
  if tonumber(left) > 0 and redis.call("hsetnx", group, "child." .. child, 1) == 1 then
    if redis.call("hincrby", group, "left", -1) == 0 then
      enqueue(callbacks, #ARGV)
      -- That it is complete is all there is to know of it from here on.
      redis.call("del", group)
      redis.call("hset", group, "left", 0)
    end
  end
  redis.call("pexpire", group, keep)
  return true
end
-- The lock of what is unique goes on to its retry, or ends: at once where it has failed, else when its period is over.
local function settle_lock(key, succeeded, which)
  local lock = ns .. ":__dramaturg__.unique." .. key
  local held = redis.call("hmget", lock, "queue", "id", "until")
  if held[1] ~= queue or held[2] ~= message then
    return
  end
  if which ~= "0" then
    local at = 9 + 3 * (tonumber(which) - 1)
    redis.call("hset", lock, "queue", ARGV[at], "id", ARGV[at + 1])
    return
  end
  local time = redis.call("time")
  local left = tonumber(held[3]) - tonumber(time[1]) * 1000 - math.floor(tonumber(time[2]) / 1000)
  if succeeded == "1" and left > 0 then
    redis.call("hdel", lock, "queue", "id")
    redis.call("pexpire", lock, math.ceil(left))
  else
    redis.call("del", lock)
  end
end
-- Under another lease it may hold the message again, as another delivery, whose end this one is not.
if redis.call("hget", ns .. ":__dramaturg__.leases", broker) ~= ARGV[7] or redis.call("sismember", acks, message) == 0 then
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
local group = 9 + 3 * tonumber(ARGV[8])
enqueue(9, group - 1)
-- Where the queue has limits, its tenant may have another one; whose it was is known only until it is gone.
local let_next
if redis.call("exists", ns .. ":__dramaturg__.limits." .. queue) == 1 then
  -- include messages
  -- include turns
  local tenant = tenant_of(queue, message)
  let_next = function()
    has_left(queue, tenant or NOBODY)
  end
end
local known = not ARGV[group] or count(ARGV[group], ARGV[group + 1], ARGV[group + 2], group + 3)
if ARGV[6] ~= "" then
  settle_lock(string.match(ARGV[6], "^(%x+) (%d) (%d+)$"))
end
local entry = queue .. ":" .. message
redis.call("hdel", ns .. ":__dramaturg__.started." .. broker, entry)
redis.call("hdel", ns .. ":__dramaturg__.crashes", entry)
redis.call("srem", ns .. ":__dramaturg__.begun_before", entry)
redis.call("srem", acks, message)
redis.call("hdel", ns .. ":" .. queue .. ".msgs", message)
if let_next then
  let_next()
end
return known and 1 or 2
