#!lua flags=allow-oom
-- Takes up to `count` messages of a queue into the acks of this broker. Where more wait than that, tenants take turns.
-- KEYS: namespace. ARGV: queue, broker id, its lease, count, 1 if tenants take turns (else 0: what is in lanes from
-- before comes first).
-- Returns nothing if it has another lease by now, or none; {-1} if the queue is paused; else how many may be there beside
-- what waits in lanes, to be sorted, as -2 less that number where tenants have limits; then id, data, whether it began to
-- run before and was given back (1 or 0), id, ...
local ns, queue, broker, lease, count = KEYS[1], ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local fair = ARGV[5] == "1"
-- What is fetched under no lease, or under one that has ended, nobody would give back.
if redis.call("hget", ns .. ":__dramaturg__.leases", broker) ~= lease then
  return false
end
local name = ns .. ":" .. queue
local acks = ns .. ":__acks__." .. broker .. "." .. queue
local taking = ns .. ":__dramaturg__.taking." .. broker .. "." .. queue
if redis.call("hexists", ns .. ":__dramaturg__.paused", queue) == 1 then
  -- What a blocking move took meanwhile goes back to the head. What has no data only woke this consumer, or was purged.
  while true do
    local id = redis.call("lindex", taking, -1)
    if not id then
      return {-1}
    end
    if redis.call("hexists", name .. ".msgs", id) == 1 then
      redis.call("lpush", name, id)
    end
    redis.call("rpop", taking)
  end
end
local found, taken = {0}, 0
-- Bytes of what one call takes, after which it takes no more: everybody waits for it, and it must fit into memory.
local BYTES = 4 * 2^20
local size, full = 0, false
-- A message is in our acks before it leaves a list, so that no error between the two strands it.
local function take(id)
  local data = redis.call("hget", name .. ".msgs", id)
  -- Without data it was purged, or is a second mention of a message that is done.
  if data and redis.call("sadd", acks, id) == 1 then
    found[#found + 1] = id
    found[#found + 1] = data
    found[#found + 1] = redis.call("sismember", ns .. ":__dramaturg__.begun_before", queue .. ":" .. id)
    taken, size = taken + 1, size + #data
    if size >= BYTES then
      count, full = taken, true
    end
    return true
  end
end
local function empty(list, all, note)
  while all or taken < count do
    local id = redis.call("lindex", list, 0)
    if not id then
      break
    end
    if take(id) and note then
      note(id)
    end
    redis.call("lpop", list)
  end
end
local turns, parked, limits = ns .. ":__dramaturg__.turns." .. queue, ns .. ":__dramaturg__.parked." .. queue,
  ns .. ":__dramaturg__.limits." .. queue
-- Most often there are neither lanes nor limits, and no more than is wanted: everybody's turn has come.
if redis.call("exists", turns, parked, limits) == 0 and (not fair or redis.call("llen", name) <= count) then
  -- What a blocking move took when it woke this consumer.
  empty(taking, true)
  empty(name, false)
  if full then
    found[1] = 1
  end
  return found
end

-- include messages
-- include turns
-- include sorting
local weights = of(queue, "weights")
-- Most often all are alike.
local alike = redis.call("exists", weights, limits, parked) == 0
-- Who heeds no limits is counted nevertheless, as he is when what he took ends.
local counted = not alike and are_limits(queue)
local limited = fair and counted
local weighted = not alike and redis.call("exists", weights) == 1
local passed_over = 0
local function pass_over(tenant)
  redis.call("zrem", turns, tenant)
  passed_over = passed_over + 1
end
-- Gives the tenant whose turn it is that one, and as many more as come before the next one's; returns when its next is.
local function serve(tenant, at, next_at)
  local lane = lane_of(queue, tenant)
  local stride, began = weighted and 1 / weight_of(queue, tenant) or 1, at
  while taken < count and (at == began or at < next_at) do
    local id = redis.call("lindex", lane, 0)
    if not id then
      -- It keeps the turn that it has earned until that comes, in case that it sends more.
      break
    end
    if limited and is_at_limit(queue, tenant) then
      redis.call("zadd", parked, string.format("%.17g", at), tenant)
      pass_over(tenant)
      return math.huge
    end
    if take(id) then
      at = at + stride
      if counted then
        redis.call("hincrby", of(queue, "running"), tenant, 1)
      end
    end
    redis.call("lpop", lane)
  end
  if at == began then
    pass_over(tenant)
    return math.huge
  end
  return at
end
-- Gives turns to those whose turns are first, as long as theirs come before the next one of any that had one here.
local function go_round()
  -- No more than can be given to one command.
  local wanted, moved, earliest = math.min(count - taken, 500), {}, math.huge
  local first = redis.call("zrange", turns, 0, wanted, "withscores")
  for i = 1, #first, 2 do
    local tenant, at = first[i], tonumber(first[i + 1])
    if taken >= count or passed_over >= PASSED_OVER or at > earliest then
      break
    end
    -- Who comes after the last of many is not known.
    local next_at = tonumber(first[i + 3] or (#first <= 2 * wanted and math.huge or at))
    local later = serve(tenant, at, math.min(next_at, earliest))
    if later < math.huge then
      moved[#moved + 1] = string.format("%.17g", later)
      moved[#moved + 1] = tenant
      earliest = math.min(earliest, later)
    end
  end
  if #moved > 0 then
    redis.call("zadd", turns, unpack(moved))
  end
  return #first > 0
end

local count_one = counted and function(id)
  redis.call("hincrby", of(queue, "running"), tenant_of(queue, id) or NOBODY, 1)
end
if fair then
  -- What it took is sorted, too: it may be of one that is at its limit.
  sort(queue, taking, ENOUGH)
  found[1] = sort(queue, name, ENOUGH)
else
  empty(taking, true, count_one)
end
if not alike and not limited then
  -- Nobody is at a limit any more, or none is heeded.
  for _, tenant in ipairs(redis.call("zrange", parked, 0, PASSED_OVER - 1)) do
    redis.call("zadd", turns, "nx", "0", tenant)
    redis.call("zrem", parked, tenant)
  end
end
while taken < count and passed_over < PASSED_OVER and go_round() do
end
if passed_over > 0 and redis.call("exists", turns, parked) == 0 then
  -- There are no lanes in which it could be first.
  redis.call("del", of(queue, "returned"))
end
if not fair then
  empty(name, false, count_one)
end
if full or passed_over >= PASSED_OVER then
  -- There may be more in lanes.
  found[1] = math.max(1, found[1])
end
if taken >= count and redis.call("exists", turns) == 1 and redis.call("llen", name) == 0 then
  -- There may be more in lanes, and who waits for the inbox, with nothing else to do, would never know.
  redis.call("rpush", name, WAKE)
end
if counted then
  found[1] = -2 - found[1]
end
return found
