#!lua flags=allow-oom
-- Ends deliveries of which nothing follows. A broker that lost one changes nothing of it.
-- KEYS: namespace. ARGV: queue, broker id, the lease under which they were fetched, message ids...
-- Returns which of them, counted from 1, were not ours any more.
local ns, queue, broker = KEYS[1], ARGV[1], ARGV[2]
local own = ns .. ":__dramaturg__."
local acks, data = ns .. ":__acks__." .. broker .. "." .. queue, ns .. ":" .. queue .. ".msgs"
local stands = redis.call("hget", own .. "leases", broker) == ARGV[3]
local ended, entries, others = {}, {}, {}
local held = redis.call("smismember", acks, unpack(ARGV, 4))
for i, is_held in ipairs(held) do
  local id = ARGV[3 + i]
  -- Under another lease it may hold the message again, as another delivery, whose end this one is not.
  if stands and is_held == 1 then
    ended[#ended + 1] = id
    entries[#entries + 1] = queue .. ":" .. id
  elseif redis.call("hexists", data, id) == 1 then
    -- Else it was ended by a call whose reply was lost.
    others[#others + 1] = i
  end
end
if #ended == 0 then
  return others
end
-- Where the queue has limits, its tenants may have others; whose they were is known only until they are gone.
local let_next
if redis.call("exists", own .. "limits." .. queue) == 1 then
  -- include messages
  -- include turns
  local tenants = {}
  for i, id in ipairs(ended) do
    tenants[i] = tenant_of(queue, id) or NOBODY
  end
  let_next = function()
    for _, tenant in ipairs(tenants) do
      has_left(queue, tenant)
    end
  end
end
redis.call("hdel", own .. "started." .. broker, unpack(entries))
redis.call("hdel", own .. "crashes", unpack(entries))
redis.call("srem", own .. "begun_before", unpack(entries))
redis.call("srem", acks, unpack(ended))
redis.call("hdel", data, unpack(ended))
if let_next then
  let_next()
end
return others
