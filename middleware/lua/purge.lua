#!lua flags=allow-oom
-- Removes every message of a queue, wherever this broker keeps it.
-- KEYS: namespace. ARGV: queue, broker id.
local ns, queue = KEYS[1], ARGV[1]
local name = ns .. ":" .. queue
redis.call("del", name, name .. ".msgs", name .. ".XQ", name .. ".XQ.msgs", ns .. ":__dramaturg__.due." .. queue,
  ns .. ":__dramaturg__.suspects." .. queue,
  ns .. ":__acks__." .. ARGV[2] .. "." .. queue, ns .. ":__dramaturg__.taking." .. ARGV[2] .. "." .. queue)
return 1
