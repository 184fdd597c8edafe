#!lua flags=allow-oom
-- Puts back what a blocking move took when it woke a consumer that may not fetch now.
-- KEYS: namespace. ARGV: queue, broker id.
local ns, queue = KEYS[1], ARGV[1]
local taking = ns .. ":__dramaturg__.taking." .. ARGV[2] .. "." .. queue
while redis.call("lmove", taking, ns .. ":" .. queue, "RIGHT", "LEFT") do
end
return 1
