#!lua flags=allow-oom
-- How many messages queues hold, all at one moment. A script, because a full Redis 7 takes no transaction.
-- KEYS: namespace. ARGV: queues...
local size = 0
for _, queue in ipairs(ARGV) do
  size = size + redis.call("hlen", KEYS[1] .. ":" .. queue .. ".msgs")
end
return size
