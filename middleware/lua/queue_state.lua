#!lua flags=allow-oom
-- What a queue and its delay queue hold, all at one moment.
-- KEYS: namespace. ARGV: queue, broker ids...
-- Returns how many messages wait, are delayed, are with workers, and are suspects; when the first that waits was sent,
-- in milliseconds since 1970, or nothing (of those of 1,000 tenants where more take turns); the pause (JSON), or nothing.
local ns, queue = KEYS[1], ARGV[1]
local own = ns .. ":__dramaturg__."
local function length(key)
  return redis.call("llen", key)
end
-- include messages
-- include turns
local name, delayed_name = ns .. ":" .. queue, ns .. ":" .. queue .. ".DQ"
local waiting, running = length(name), 0
if redis.call("lindex", name, 0) == WAKE then
  waiting = waiting - 1
end
local heads, looked = {}, 0
for _, key in ipairs(are_lanes(queue) and {of(queue, "turns"), of(queue, "parked")} or {}) do
  for _, tenant in ipairs(redis.call("zrange", key, 0, -1)) do
    local lane = lane_of(queue, tenant)
    waiting = waiting + length(lane)
    -- Of more it would take too long.
    if looked < 500 then
      heads[#heads + 1], looked = lane, looked + 1
    end
  end
  looked = 0
end
local delayed = length(delayed_name) + length(own .. "suspects." .. queue .. ".DQ")
  + redis.call("zcard", own .. "due." .. queue .. ".DQ")
for i = 2, #ARGV do
  waiting = waiting + length(own .. "taking." .. ARGV[i] .. "." .. queue)
  running = running + redis.call("scard", ns .. ":__acks__." .. ARGV[i] .. "." .. queue)
  delayed = delayed + length(own .. "taking." .. ARGV[i] .. "." .. queue .. ".DQ")
    + redis.call("scard", ns .. ":__acks__." .. ARGV[i] .. "." .. queue .. ".DQ")
end
local suspects = own .. "suspects." .. queue
heads[#heads + 1], heads[#heads + 2] = name, suspects
local first = false
for _, head in ipairs(heads) do
  local id = redis.call("lindex", head, 0)
  local at = id and sent_at(redis.call("hget", name .. ".msgs", id))
  if at and (not first or at < first) then
    first = at
  end
end
return {waiting, delayed, running, length(suspects), first and string.format("%.0f", first),
  redis.call("hget", own .. "paused", queue)}
