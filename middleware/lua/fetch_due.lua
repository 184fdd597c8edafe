#!lua flags=allow-oom
-- Takes up to `count` messages that are due off a delay queue, into the acks of this broker. The others wait in a sorted
-- set in Redis, not in the memory of whoever came first.
-- KEYS: namespace. ARGV: queue, broker id, its lease, count.
-- Returns nothing if it has another lease by now, or none; else milliseconds until the next is due (-1: none), then id, data, id, data, ...
local ns, queue, broker, lease, count = KEYS[1], ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
-- What is fetched under no lease, or under one that has ended, nobody would give back.
if redis.call("hget", ns .. ":__dramaturg__.leases", broker) ~= lease then
  return false
end
local name = ns .. ":" .. queue
local acks = ns .. ":__acks__." .. broker .. "." .. queue
local taking = ns .. ":__dramaturg__.taking." .. broker .. "." .. queue
local due = ns .. ":__dramaturg__.due." .. queue
local time = redis.call("time")
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local function sort(id)
  local data = redis.call("hget", name .. ".msgs", id)
  if data then
    -- What cannot be read is due at once: whoever fetches it finds out why.
    local eta = 0
    local ok, message = pcall(cjson.decode, data)
    if ok and type(message) == "table" and type(message.options) == "table" and type(message.options.eta) == "number" then
      eta = message.options.eta
    end
    if eta ~= eta or eta > 9e15 then
      eta = 0
    end
    redis.call("zadd", due, eta, id)
  end
end
local function sort_all(list)
  for _ = 1, 1000 do
    local id = redis.call("lindex", list, 0)
    if not id then
      break
    end
    sort(id)
    redis.call("lpop", list)
  end
end
sort_all(taking)
sort_all(name)
local found = {0}
for _, ready in ipairs(redis.call("zrangebyscore", due, "-inf", now, "limit", 0, count)) do
  local data = redis.call("hget", name .. ".msgs", ready)
  if data and redis.call("sadd", acks, ready) == 1 then
    found[#found + 1] = ready
    found[#found + 1] = data
  end
  redis.call("zrem", due, ready)
end
local next = redis.call("zrange", due, 0, 0, "withscores")
if next[2] then
  found[1] = math.max(0, math.floor(tonumber(next[2]) - now))
else
  found[1] = -1
end
return found
