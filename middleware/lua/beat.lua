#!lua flags=allow-oom
-- Says that this broker lives, on the server's clock, and gives back what brokers left that live no more.
-- KEYS: namespace. ARGV: broker id, lease and grace in milliseconds, queues...
-- Returns 1 if this broker was known to live, 0 if it is new or was given up; how many failures wait in the spool; then
-- broker id, queue, count of what was given back, ...
local ns, broker, lease, grace_time = KEYS[1], ARGV[1], tonumber(ARGV[2]), ARGV[3]
local alive = ns .. ":__dramaturg__.alive"
local time = redis.call("time")
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local known = redis.call("zscore", alive, broker) and 1 or 0
-- If nobody could beat for half a lease, Redis was away rather than everybody: all get a grace to come back in.
local grace = ns .. ":__dramaturg__.grace"
local latest = redis.call("zrange", alive, -1, -1, "withscores")
if latest[2] and now - tonumber(latest[2]) > lease / 2 then
  redis.call("set", grace, 1, "px", grace_time)
end
redis.call("zadd", alive, now, broker)
local mine = ns .. ":__dramaturg__.queues." .. broker
for i = 4, #ARGV do
  redis.call("sadd", mine, ARGV[i])
end
local said = {known, redis.call("hlen", ns .. ":__dramaturg__.spool")}
if redis.call("exists", grace) == 1 then
  return said
end
for _, gone in ipairs(redis.call("zrangebyscore", alive, "-inf", now - lease)) do
  local theirs = ns .. ":__dramaturg__.queues." .. gone
  for _, queue in ipairs(redis.call("smembers", theirs)) do
    local name = ns .. ":" .. queue
    local count = 0
    for _, kept in ipairs({"__acks__.", "__dramaturg__.taking."}) do
      local key = ns .. ":" .. kept .. gone .. "." .. queue
      local ids = kept == "__acks__." and redis.call("smembers", key) or redis.call("lrange", key, 0, -1)
      for _, id in ipairs(ids) do
        if redis.call("hexists", name .. ".msgs", id) == 1 then
          redis.call("lpush", name, id)
          count = count + 1
        end
      end
      redis.call("del", key)
    end
    if count > 0 then
      said[#said + 1] = gone
      said[#said + 1] = queue
      said[#said + 1] = count
    end
  end
  redis.call("del", theirs)
  redis.call("zrem", alive, gone)
end
return said
