#!lua flags=allow-oom
-- One step of sorting what waits in a queue by tenant, where it is more than a fetch would sort.
-- KEYS: namespace. ARGV: queue.
-- Returns how many are left to be sorted.
local ns, queue = KEYS[1], ARGV[1]
-- include messages
-- include turns
-- include sorting
local name = ns .. ":" .. queue
-- In a queue that is paused messages stay where they are.
if redis.call("llen", name) * READ <= ENOUGH or redis.call("hexists", ns .. ":__dramaturg__.paused", queue) == 1 then
  return 0
end
return sort(queue, name, ENOUGH)
