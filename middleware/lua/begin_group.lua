#!lua
-- Begins a group with completion callbacks. Saying it again, after a reply was lost, changes nothing.
-- KEYS: namespace. ARGV: the group's uuid, count of its children, milliseconds to keep it.
local group = KEYS[1] .. ":__dramaturg__.group." .. ARGV[1]
redis.call("hsetnx", group, "left", ARGV[2])
redis.call("pexpire", group, ARGV[3])
return 1
