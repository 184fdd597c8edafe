#!lua flags=allow-oom
-- Removes failures from the spool that are recorded.
-- KEYS: namespace. ARGV: names...
-- Returns how many are left.
local spool = KEYS[1] .. ":__dramaturg__.spool"
for i = 1, #ARGV do
  redis.call("hdel", spool, ARGV[i])
end
local left = redis.call("hlen", spool)
if left == 0 then
  redis.call("del", spool .. ".since", spool .. ".drainer")
end
return left
