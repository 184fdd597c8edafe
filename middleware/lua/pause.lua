#!lua flags=allow-oom
-- Pauses a queue: nobody of ours fetches from it any more, while its messages stay where they are. Consumers that wait
-- in Redis for its next message are woken by as many mentions of a message that is none, so that they take no other.
-- KEYS: namespace. ARGV: queue, by whom, why, what to wake them with.
-- Returns the pause (JSON), which is the earlier one if the queue was paused already; how many mentions there may be.
local ns, queue = KEYS[1], ARGV[1]
local own, name = ns .. ":__dramaturg__.", ns .. ":" .. queue
local time = redis.call("time")
local pause = cjson.encode({by = ARGV[2], reason = ARGV[3], since = tonumber(time[1])})
redis.call("hsetnx", own .. "paused", queue, pause)
local woken = 0
-- Whoever waits finds it empty.
if redis.call("llen", name) == 0 then
  for _, broker in ipairs(redis.call("zrange", own .. "alive", 0, -1)) do
    if redis.call("sismember", own .. "queues." .. broker, queue) == 1 then
      redis.call("rpush", name, ARGV[4])
      woken = woken + 1
    end
  end
end
return {redis.call("hget", own .. "paused", queue), woken}
