#!lua flags=allow-oom
-- Gives messages back, to the head of their queue: they waited longest. A suspect stays one. What had begun to run is
-- noted, because its failure may be recorded already.
-- KEYS: namespace. ARGV: queue, broker id, ids...
local ns, queue, broker = KEYS[1], ARGV[1], ARGV[2]
local name, own = ns .. ":" .. queue, ns .. ":__dramaturg__."
-- include messages
-- include turns
local acks = ns .. ":__acks__." .. broker .. "." .. queue
for i = #ARGV, 3, -1 do
  local id, entry = ARGV[i], queue .. ":" .. ARGV[i]
  local ours = redis.call("sismember", acks, id) == 1
  if ours and redis.call("hexists", name .. ".msgs", id) == 1 then
    if redis.call("hdel", own .. "started." .. broker, entry) == 1 then
      redis.call("sadd", own .. "begun_before", entry)
    end
    if redis.call("hexists", own .. "crashes", entry) == 1 then
      redis.call("rpush", own .. "suspects." .. queue, id)
    else
      redis.call("lpush", name, id)
    end
    note_given_back(queue, id)
  end
  if ours then
    redis.call("srem", acks, id)
  end
end
return 1
