#!lua flags=allow-oom
-- Takes a message off its queue, unless a process has it. It is looked for from the end, where new ones are.
-- KEYS: namespace. ARGV: queue, id. Returns how many there were.
local name = KEYS[1] .. ":" .. ARGV[1]
local found = redis.call("lrem", name, -1, ARGV[2])
if found > 0 then
  redis.call("hdel", name .. ".msgs", ARGV[2])
end
return found
