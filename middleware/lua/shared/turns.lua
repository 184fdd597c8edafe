-- How tenants take turns in a queue. Its list NS:QUEUE stays the inbox: everybody puts messages there, stock producers,
-- too, and what is given back. A fetch that finds more there than it wants sorts it. Under NS:__dramaturg__.
--   lane.QUEUE.TENANT   a tenant's messages in their order; TENANT is 32 hexadecimal digits, or "-" for those of nobody
--   turns.QUEUE         whose lanes may hold something, by virtual time: who has had a turn moves on by 1 / weight
--   parked.QUEUE        those of them that are at their limit, likewise
--   weights.QUEUE, limits.QUEUE  by tenant, "*" for all others; a limit of 0 is none
--   running.QUEUE       how many messages of each are with workers, kept while the queue has limits
--   returned.QUEUE      what was given back while there were lanes: it goes to the head of its own, not to the end
-- Whatever moves is put where it goes before it leaves where it was, and a tenant has its turn before its lane has
-- something, so that no error between the two strands anything.

local NOBODY, EVERYBODY = "-", "*"
-- What is in the inbox only so that somebody who waits there looks: the mention of a message that is none.
local WAKE = "wake"
-- What one step may cost Redis, where a message whose id says its tenant costs 1 (0.6 us), and one that must be decoded
-- READ and 1 for each hundred bytes.
local ENOUGH, READ = 4000, 15
-- Turns of those that have nothing any more, or are at their limit, which one step passes over.
local PASSED_OVER = 1000

local function of(queue, what)
  return ns .. ":__dramaturg__." .. what .. "." .. queue
end
local function lane_of(queue, tenant)
  return ns .. ":__dramaturg__.lane." .. queue .. "." .. tenant
end
local function are_lanes(queue)
  return redis.call("exists", of(queue, "turns"), of(queue, "parked")) > 0
end
local function are_limits(queue)
  return redis.call("exists", of(queue, "limits")) == 1
end

-- Returns whose a message is, or nothing where there is no such message; what it cost to tell.
local function tenant_of(queue, id)
  local said = string.match(id, "^(%x+):")
  if said and #said == 32 then
    return said, 1
  elseif string.sub(id, 1, 2) == "-:" then
    return NOBODY, 1
  end
  -- A stock producer's.
  local data = redis.call("hget", ns .. ":" .. queue .. ".msgs", id)
  if not data then
    return nil, 1
  end
  local at = string.find(data, '"tenant_id"', 1, true)
  if not at then
    return NOBODY, 4 + #data / 200
  end
  -- Where it is said once, as in most, they need not be decoded.
  local uuid = string.match(data, '^:"(%x+%-%x+%-%x+%-%x+%-%x+)"', at + 11)
  if uuid and #uuid == 36 and not string.find(data, '"tenant_id"', at + 11, true) then
    return digits(uuid), 4 + #data / 200
  end
  local options = decode(data).options
  local tenant = type(options) == "table" and type(options.tenant_id) == "string" and digits(options.tenant_id) or ""
  return #tenant == 32 and string.match(tenant, "^%x+$") or NOBODY, READ + #data / 100
end

local function weight_of(queue, tenant)
  local weights = of(queue, "weights")
  return tonumber(redis.call("hget", weights, tenant) or redis.call("hget", weights, EVERYBODY) or 1)
end
local function is_at_limit(queue, tenant)
  local limits = of(queue, "limits")
  local limit = tonumber(redis.call("hget", limits, tenant) or redis.call("hget", limits, EVERYBODY) or 0)
  return limit > 0 and tonumber(redis.call("hget", of(queue, "running"), tenant) or 0) >= limit
end
local function set_turn(queue, tenant, at)
  redis.call("zadd", of(queue, "turns"), string.format("%.17g", at), tenant)
end

-- Lets a tenant that was at its limit have turns again, unless it is there still.
local function unpark(queue, tenant)
  local parked, turns = of(queue, "parked"), of(queue, "turns")
  local at = redis.call("zscore", parked, tenant)
  if not at or is_at_limit(queue, tenant) then
    return
  end
  at = tonumber(at)
  local first = redis.call("zrange", turns, 0, 0, "withscores")
  if first[2] then
    -- Time may have begun anew since.
    local now = tonumber(first[2])
    at = math.max(now, math.min(at, now + 1 / weight_of(queue, tenant)))
  end
  set_turn(queue, tenant, at)
  redis.call("zrem", parked, tenant)
  local inbox = ns .. ":" .. queue
  if redis.call("llen", inbox) == 0 and redis.call("exists", lane_of(queue, tenant)) == 1 then
    redis.call("rpush", inbox, WAKE)
  end
end

-- Notes, where the queue has limits, that a message of the tenant is with workers no more.
local function has_left(queue, tenant)
  local running = of(queue, "running")
  if redis.call("hincrby", running, tenant, -1) <= 0 then
    redis.call("hdel", running, tenant)
  end
  unpark(queue, tenant)
end

-- Counts anew what is with workers, where the queue has limits: what old releases take and end is not counted by them.
local function recount(queue)
  local counts, running = {}, of(queue, "running")
  for _, broker in ipairs(redis.call("zrange", ns .. ":__dramaturg__.alive", 0, -1)) do
    for _, id in ipairs(redis.call("smembers", ns .. ":__acks__." .. broker .. "." .. queue)) do
      local tenant = tenant_of(queue, id)
      if tenant then
        counts[tenant] = (counts[tenant] or 0) + 1
      end
    end
  end
  redis.call("del", running)
  for tenant, count in pairs(counts) do
    redis.call("hset", running, tenant, count)
  end
  for _, tenant in ipairs(redis.call("zrange", of(queue, "parked"), 0, -1)) do
    unpark(queue, tenant)
  end
end

-- Notes that what was with a worker is back in its queue.
local function note_given_back(queue, id)
  if are_lanes(queue) then
    redis.call("sadd", of(queue, "returned"), id)
  end
  if are_limits(queue) then
    has_left(queue, tenant_of(queue, id) or NOBODY)
  end
end
