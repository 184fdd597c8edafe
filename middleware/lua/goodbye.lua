#!lua flags=allow-oom
-- Leaves: what this broker still holds goes back at once, without waiting for its lease to end.
-- KEYS: namespace. ARGV: broker id, (outcome:queue, how many messages of it ended so since the last sign of life)...
local ns, broker = KEYS[1], ARGV[1]
local own = ns .. ":__dramaturg__."
-- include messages
-- include turns
local mine, started = own .. "queues." .. broker, own .. "started." .. broker
for _, queue in ipairs(redis.call("smembers", mine)) do
  local name = ns .. ":" .. queue
  for _, kept in ipairs({"__acks__.", "__dramaturg__.taking."}) do
    local key = ns .. ":" .. kept .. broker .. "." .. queue
    local ids = kept == "__acks__." and redis.call("smembers", key) or redis.call("lrange", key, 0, -1)
    for _, id in ipairs(ids) do
      if redis.call("hexists", name .. ".msgs", id) == 1 then
        local entry = queue .. ":" .. id
        if redis.call("hexists", started, entry) == 1 then
          redis.call("sadd", own .. "begun_before", entry)
        end
        if redis.call("hexists", own .. "crashes", entry) == 1 then
          redis.call("rpush", own .. "suspects." .. queue, id)
        else
          redis.call("lpush", name, id)
        end
        if kept == "__acks__." then
          note_given_back(queue, id)
        end
      end
    end
    redis.call("del", key)
  end
end
redis.call("del", started)
local time = redis.call("time")
local ended = own .. "ended." .. math.floor(tonumber(time[1]) / 60)
for i = 2, #ARGV, 2 do
  redis.call("hincrby", ended, ARGV[i], ARGV[i + 1])
  redis.call("expire", ended, 11000)
end
redis.call("zadd", own .. "departed", tonumber(time[1]) * 1000, broker)
redis.call("hdel", own .. "facts", broker)
redis.call("hdel", own .. "leases", broker)
redis.call("zrem", own .. "alive", broker)
return 1
