#!lua flags=allow-oom
-- Reads what stock Dramatiq keeps of the dead of a queue, the first to die first; all of it stays.
-- KEYS: namespace. ARGV: queue, how many of the first to leave out, count, bytes after which no more are read.
-- Returns id, when it died in milliseconds since 1970, what was kept, or nothing where that is gone; id, ...
local name = KEYS[1] .. ":" .. ARGV[1] .. ".XQ"
local first, found, size = tonumber(ARGV[2]), {}, 0
local ids = redis.call("zrange", name, first, first + tonumber(ARGV[3]) - 1, "withscores")
for i = 1, #ids, 2 do
  local data = redis.call("hget", name .. ".msgs", ids[i])
  found[#found + 1] = ids[i]
  found[#found + 1] = ids[i + 1]
  found[#found + 1] = data
  size = size + (data and #data or 0)
  if size > tonumber(ARGV[4]) then
    break
  end
end
return found
