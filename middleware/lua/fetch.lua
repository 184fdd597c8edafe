#!lua flags=allow-oom
-- Takes up to `count` messages of a queue into the acks of this broker.
-- KEYS: namespace. ARGV: queue, broker id, its lease, count.
-- Returns nothing if it has another lease by now, or none; {0} if the queue is paused; else id, data, whether it began to
-- run before and was given back (1 or 0), id, ...
local ns, queue, broker, lease, count = KEYS[1], ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
-- What is fetched under no lease, or under one that has ended, nobody would give back.
if redis.call("hget", ns .. ":__dramaturg__.leases", broker) ~= lease then
  return false
end
local name = ns .. ":" .. queue
local acks = ns .. ":__acks__." .. broker .. "." .. queue
local taking = ns .. ":__dramaturg__.taking." .. broker .. "." .. queue
if redis.call("hexists", ns .. ":__dramaturg__.paused", queue) == 1 then
  -- What a blocking move took meanwhile goes back to the head. What has no data only woke this consumer, or was purged.
  while true do
    local id = redis.call("lindex", taking, -1)
    if not id then
      return {0}
    end
    if redis.call("hexists", name .. ".msgs", id) == 1 then
      redis.call("lpush", name, id)
    end
    redis.call("rpop", taking)
  end
end
local found = {}
-- A message is in our acks before it leaves a list, so that no error between the two strands it.
local function take(id)
  local data = redis.call("hget", name .. ".msgs", id)
  -- Without data it was purged, or is a second mention of a message that is done.
  if data and redis.call("sadd", acks, id) == 1 then
    found[#found + 1] = id
    found[#found + 1] = data
    found[#found + 1] = redis.call("sismember", ns .. ":__dramaturg__.begun_before", queue .. ":" .. id)
  end
end
local function empty(list, enough)
  while #found < enough do
    local id = redis.call("lindex", list, 0)
    if not id then
      break
    end
    take(id)
    redis.call("lpop", list)
  end
end
-- What a blocking move took when it woke this consumer.
empty(taking, math.huge)
empty(name, 3 * count)
return found
