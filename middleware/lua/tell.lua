#!lua flags=allow-oom
-- Adds what a process has counted to what Redis keeps for metrics. A batch is added once, however often it is told:
-- an answer may be lost.
--
-- A series is kept as "day n n n": the day (since 1970) on which it was last told, and its values. A family with no room
-- for another series lets go of those that nobody has told for long, and else counts it among the others.
-- KEYS: namespace. ARGV: id of who tells, number of the batch, version of the families, days after which a series may go,
-- (family, how many series it may have, labels (JSON), labels of those that stand for all others, values "n n n")...
-- Returns 1 if it was added, 0 if it had been.
local own = KEYS[1] .. ":__dramaturg__.metrics."
local told = own .. "told." .. ARGV[1]
if redis.call("get", told) == ARGV[2] then
  return 0
end
-- First: what cannot be added, because a key is somebody else's, must not be tried for ever.
redis.call("set", told, ARGV[2], "ex", 3600)
local today = math.floor(tonumber(redis.call("time")[1]) / 86400)
local version, last_day = ARGV[3], today - tonumber(ARGV[4])
local function make_room(key)
  if not redis.call("set", key .. ".swept", 1, "nx", "ex", 3600) then
    return
  end
  local found = redis.call("hgetall", key)
  for i = 1, #found, 2 do
    local day = tonumber(string.match(found[i + 1], "^%d+ ") or "")
    if not day or day < last_day then
      redis.call("hdel", key, found[i])
    end
  end
end
local function sums(before, more)
  local had, values = {}, {}
  for value in string.gmatch(before or "", "%S+") do
    had[#had + 1] = tonumber(value) or 0
  end
  for value in string.gmatch(more, "%S+") do
    values[#values + 1] = tonumber(value)
  end
  local same = #had == #values + 1
  for i = 1, #values do
    values[i] = string.format("%.0f", values[i] + (same and had[i + 1] or 0))
  end
  return table.concat(values, " ")
end
for i = 5, #ARGV, 5 do
  local key, field = own .. version .. "." .. ARGV[i], ARGV[i + 2]
  local before, at_most = redis.call("hget", key, field), tonumber(ARGV[i + 1])
  if not before and redis.call("hlen", key) >= at_most then
    make_room(key)
    if redis.call("hlen", key) >= at_most then
      field = ARGV[i + 3]
      before = redis.call("hget", key, field)
    end
  end
  redis.call("hset", key, field, today .. " " .. sums(before, ARGV[i + 4]))
end
return 1
