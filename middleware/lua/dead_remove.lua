#!lua flags=allow-oom
-- Removes from what stock Dramatiq keeps of the dead of a queue those that are recorded.
-- KEYS: namespace. ARGV: queue, ids...
-- Returns how many were there.
local name, removed = KEYS[1] .. ":" .. ARGV[1] .. ".XQ", 0
for i = 2, #ARGV do
  removed = removed + redis.call("zrem", name, ARGV[i])
  redis.call("hdel", name .. ".msgs", ARGV[i])
end
return removed
