#!lua flags=allow-oom
-- What a queue holds by tenant, those with most first. It changes nothing.
-- KEYS: namespace. ARGV: queue, how many tenants to tell of, broker ids...
-- Returns how many tenants there are; how many messages wait of which it was not looked whose they are; then tenant,
-- how many wait, how many are with workers, when the first that waits was sent, in milliseconds since 1970, or nothing...
local ns, queue, most = KEYS[1], ARGV[1], tonumber(ARGV[2])
-- include messages
-- include turns
local inbox = ns .. ":" .. queue
local tenants, by_name = {}, {}
local function entry(tenant)
  if not by_name[tenant] then
    by_name[tenant] = {tenant = tenant, waiting = 0, running = 0}
    tenants[#tenants + 1] = by_name[tenant]
  end
  return by_name[tenant]
end
for _, key in ipairs({of(queue, "turns"), of(queue, "parked")}) do
  for _, tenant in ipairs(redis.call("zrange", key, 0, -1)) do
    local lane = lane_of(queue, tenant)
    local length = redis.call("llen", lane)
    if length > 0 then
      local one = entry(tenant)
      one.waiting, one.first = length, redis.call("lindex", lane, 0)
    end
  end
end
local function count_waiting(list, cost)
  for i, id in ipairs(redis.call("lrange", list, 0, 9999)) do
    local tenant, paid = tenant_of(queue, id)
    if tenant then
      local one = entry(tenant)
      one.waiting, one.first = one.waiting + 1, one.first or id
    end
    cost = cost - paid
    if cost < 0 then
      return redis.call("llen", list) - i
    end
  end
  return math.max(0, redis.call("llen", list) - 10000)
end
local unsorted = count_waiting(inbox, 5 * ENOUGH)
for i = 3, #ARGV do
  count_waiting(ns .. ":__dramaturg__.taking." .. ARGV[i] .. "." .. queue, ENOUGH)
  for _, id in ipairs(redis.call("smembers", ns .. ":__acks__." .. ARGV[i] .. "." .. queue)) do
    local tenant = tenant_of(queue, id)
    if tenant then
      local one = entry(tenant)
      one.running = one.running + 1
    end
  end
end
local function has_more(a, b)
  if a.waiting ~= b.waiting then
    return a.waiting > b.waiting
  elseif a.running ~= b.running then
    return a.running > b.running
  end
  return a.tenant < b.tenant
end
local first = {}
if most > 100 then
  table.sort(tenants, has_more)
  first = tenants
else
  -- To sort all would take longer than all else.
  for _, one in ipairs(tenants) do
    if #first < most or has_more(one, first[#first]) then
      local at = math.min(#first + 1, most)
      while at > 1 and has_more(one, first[at - 1]) do
        first[at] = first[at - 1]
        at = at - 1
      end
      first[at] = one
    end
  end
end
local said = {#tenants, unsorted}
for i = 1, math.min(most, #first) do
  local one = first[i]
  said[#said + 1] = one.tenant
  said[#said + 1] = one.waiting
  said[#said + 1] = one.running
  local at = one.first and sent_at(redis.call("hget", inbox .. ".msgs", one.first))
  said[#said + 1] = at and string.format("%.0f", at) or false
end
return said
