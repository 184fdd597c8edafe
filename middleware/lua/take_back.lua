#!lua flags=allow-oom
-- Takes a message off its queue, unless a process has it. It is looked for from the end, where new ones are.
-- KEYS: namespace. ARGV: queue, id. Returns how many there were.
local ns = KEYS[1]
local name = ns .. ":" .. ARGV[1]
-- include messages
-- include turns
local found = redis.call("lrem", name, -1, ARGV[2])
local tenant = found == 0 and are_lanes(ARGV[1]) and tenant_of(ARGV[1], ARGV[2])
if tenant then
  found = redis.call("lrem", lane_of(ARGV[1], tenant), -1, ARGV[2])
end
if found > 0 then
  redis.call("hdel", name .. ".msgs", ARGV[2])
end
return found
