#!lua flags=allow-oom
-- One step of putting what waits in lanes back to the head of its queue, where stock workers and those of releases that
-- know no lanes find it: each tenant's in its order, and turn by turn.
-- KEYS: namespace. ARGV: queue, how many to move, 1 if nothing is to be moved while a process lives that consumes it
-- and looks into lanes.
-- Returns how many it moved; how many tenants are left.
local ns, queue, count = KEYS[1], ARGV[1], tonumber(ARGV[2])
-- include messages
-- include turns
-- include sorting
if not are_lanes(queue) then
  return {0, 0}
end
for _, broker in ipairs(ARGV[3] == "1" and redis.call("zrange", ns .. ":__dramaturg__.alive", 0, -1) or {}) do
  local fact = redis.call("hget", ns .. ":__dramaturg__.facts", broker) or ""
  if string.find(fact, '"lanes": true', 1, true)
    and redis.call("sismember", ns .. ":__dramaturg__.queues." .. broker, queue) == 1 then
    return {0, 0}
  end
end
if redis.call("lindex", ns .. ":" .. queue, 0) == WAKE then
  -- Those who come know of none.
  redis.call("lpop", ns .. ":" .. queue)
end
-- What was given back is at the head of the list, to which the lanes go: it goes to the head of its own before.
sort_returned(queue, ns .. ":" .. queue, joining(queue))
redis.call("del", of(queue, "returned"))
local turns, parked, moved = of(queue, "turns"), of(queue, "parked"), 0
local tenants = redis.call("zrange", turns, 0, count - 1)
for _, tenant in ipairs(redis.call("zrange", parked, 0, count - 1)) do
  tenants[#tenants + 1] = tenant
end
-- The last of each before those that came before it.
while #tenants > 0 and moved < count do
  local left = {}
  for i = #tenants, 1, -1 do
    local lane = lane_of(queue, tenants[i])
    if moved < count and redis.call("lmove", lane, ns .. ":" .. queue, "RIGHT", "LEFT") then
      moved = moved + 1
    end
    if redis.call("exists", lane) == 1 then
      table.insert(left, 1, tenants[i])
    else
      redis.call("zrem", turns, tenants[i])
      redis.call("zrem", parked, tenants[i])
    end
  end
  tenants = left
end
return {moved, redis.call("zcard", turns) + redis.call("zcard", parked)}
