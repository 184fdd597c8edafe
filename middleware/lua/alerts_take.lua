#!lua
-- Notes what alerts were sent for, and puts them on their queue: both or neither, and of any number who looked at the
-- same time, one does. Saying it again, after a reply was lost, changes nothing. Refused whole when Redis is out of
-- memory.
-- KEYS: namespace. ARGV: the version that was looked at, count of changes, as many (part, field, value or nothing to
-- remove it), (queue, id, data)...
-- Returns 1: it is done; 0: somebody else was there before.
local own = KEYS[1] .. ":__dramaturg__.alerts"
local version = redis.call("hget", own, "version") or "0"
if version ~= ARGV[1] then
  return 0
end
local last = 2 + tonumber(ARGV[2]) * 3
for i = 3, last, 3 do
  if ARGV[i + 2] == "" then
    redis.call("hdel", own .. ARGV[i], ARGV[i + 1])
  else
    redis.call("hset", own .. ARGV[i], ARGV[i + 1], ARGV[i + 2])
  end
end
for i = last + 1, #ARGV, 3 do
  local queue = KEYS[1] .. ":" .. ARGV[i]
  if redis.call("hsetnx", queue .. ".msgs", ARGV[i + 1], ARGV[i + 2]) == 1 then
    redis.call("rpush", queue, ARGV[i + 1])
  end
end
redis.call("hset", own, "version", string.format("%.0f", tonumber(version) + 1))
return 1
