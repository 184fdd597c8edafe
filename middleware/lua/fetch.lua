-- Takes up to `count` messages of a queue into the acks of this broker.
-- KEYS: namespace. ARGV: queue, broker id, count.
-- Returns id, data, id, data, ...
local ns, queue, broker, count = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3])
local name = ns .. ":" .. queue
local acks = ns .. ":__acks__." .. broker .. "." .. queue
local taking = ns .. ":__dramaturg__.taking." .. broker .. "." .. queue
local found = {}
local function take(id)
  local data = redis.call("hget", name .. ".msgs", id)
  -- Without data it was purged, or is a second mention of a message that is done.
  if data and redis.call("sadd", acks, id) == 1 then
    found[#found + 1] = id
    found[#found + 1] = data
  end
end
-- What a blocking move took when it woke this consumer.
local id = redis.call("lpop", taking)
while id do
  take(id)
  id = redis.call("lpop", taking)
end
while #found < 2 * count do
  id = redis.call("lpop", name)
  if not id then
    break
  end
  take(id)
end
return found
