#!lua flags=allow-oom
-- Lets another broker drain the spool.
-- KEYS: namespace. ARGV: broker id.
local drainer = KEYS[1] .. ":__dramaturg__.spool.drainer"
if redis.call("get", drainer) == ARGV[1] then
  redis.call("del", drainer)
end
return 1
