#!lua flags=allow-oom
-- Looks at messages that run: which of those that were begun are still with their process, and what they are.
-- KEYS: namespace. ARGV: bytes to read at most, (broker id, queue, message id)...
-- Returns, for each, its data; 1 for one whose data is more than may be read yet; 0 for one that is there no more.
local ns, left = KEYS[1], tonumber(ARGV[1])
local said = {}
for i = 2, #ARGV, 3 do
  local broker, queue, id = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local held = redis.call("sismember", ns .. ":__acks__." .. broker .. "." .. queue, id) == 1
  local size = held and redis.call("hstrlen", ns .. ":" .. queue .. ".msgs", id) or 0
  if size == 0 then
    said[#said + 1] = 0
  elseif size > left then
    said[#said + 1] = 1
  else
    said[#said + 1] = redis.call("hget", ns .. ":" .. queue .. ".msgs", id)
    left = left - size
  end
end
return said
