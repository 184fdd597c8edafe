#!lua flags=allow-oom
-- Promises that messages which were not sent yet never will be.
-- KEYS: namespace. ARGV: seconds to remember it, id...
-- Returns, for each, 1: it is withdrawn; 0: it was sent.
local ns = KEYS[1]
local said = {}
for i = 2, #ARGV do
  local mark = ns .. ":__dramaturg__.replay." .. ARGV[i]
  redis.call("set", mark, "withdrawn", "nx", "ex", ARGV[1])
  said[#said + 1] = redis.call("get", mark) == "withdrawn" and 1 or 0
end
return said
