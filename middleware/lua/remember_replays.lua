#!lua flags=allow-oom
-- Remembers for a shorter while that messages were sent, because Postgres knows it by now.
-- KEYS: namespace. ARGV: seconds, id...
local ns = KEYS[1]
for i = 2, #ARGV do
  redis.call("expire", ns .. ":__dramaturg__.replay." .. ARGV[i], ARGV[1], "lt")
end
return 1
