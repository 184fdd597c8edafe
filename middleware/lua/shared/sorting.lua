-- Sorts what is in a queue's inbox, or in another list, into lanes.

-- Gives tenants that had nothing the next turn, once each, in the order in which they come.
local function joining(queue)
  local turns, parked = of(queue, "turns"), of(queue, "parked")
  local are_parked = redis.call("exists", parked) == 1
  local now = tonumber(redis.call("zrange", turns, 0, 0, "withscores")[2] or 0)
  local joined = {}
  return function(tenant)
    if not joined[tenant] then
      joined[tenant] = true
      if not (are_parked and redis.call("zscore", parked, tenant)) then
        -- One that has had turns not long ago is there still, with the turn that it has earned.
        if redis.call("zadd", turns, "nx", string.format("%.17g", now), tenant) == 1 then
          -- Time goes by whole turns of most.
          now = now + 1e-6
        end
      end
    end
  end
end

-- Sorts what was given back, which is at the head of `list`: the last of it first, each to the head of its lane.
local function sort_returned(queue, list, join)
  local returned = of(queue, "returned")
  local count = math.min(redis.call("scard", returned), 5000)
  if count == 0 then
    return
  end
  -- Between them may be what a wait had taken that nobody came back from.
  local ids, others = redis.call("lrange", list, 0, count + 99), {}
  for i = #ids, 1, -1 do
    local tenant = tenant_of(queue, ids[i])
    if tenant and redis.call("srem", returned, ids[i]) == 1 then
      join(tenant)
      redis.call("lpush", lane_of(queue, tenant), ids[i])
    elseif tenant then
      others[#others + 1] = {ids[i], tenant}
    end
  end
  for i = #others, 1, -1 do
    join(others[i][2])
    redis.call("rpush", lane_of(queue, others[i][2]), others[i][1])
  end
  redis.call("ltrim", list, #ids, -1)
end

-- Sorts from the head of `list` until it is empty or that has cost `enough`; returns how many are left.
local function sort(queue, list, enough)
  if redis.call("exists", list) == 0 then
    return 0
  end
  local join = joining(queue)
  sort_returned(queue, list, join)
  while enough > 0 do
    -- As many as can be given to one command.
    local ids = redis.call("lrange", list, 0, 499)
    local order, lanes, looked = {}, {}, 0
    for i = 1, #ids do
      local tenant, cost = tenant_of(queue, ids[i])
      if tenant then
        local lane = lanes[tenant]
        if not lane then
          lane = {}
          lanes[tenant], order[#order + 1] = lane, tenant
        end
        lane[#lane + 1] = ids[i]
      end
      looked, enough = i, enough - cost
      if enough <= 0 then
        break
      end
    end
    for _, tenant in ipairs(order) do
      join(tenant)
      redis.call("rpush", lane_of(queue, tenant), unpack(lanes[tenant]))
    end
    if looked > 0 then
      redis.call("ltrim", list, looked, -1)
    end
    if #ids < 500 then
      return #ids - looked
    end
  end
  return redis.call("llen", list)
end
