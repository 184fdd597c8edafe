#!lua flags=allow-oom
-- Says that this broker lives, on the server's clock, and gives back what brokers left that live no more.
--
-- What had begun to run in one of those may have killed it: it goes among the suspects of its queue, with a line of
-- evidence. What merely waited goes back to the head of its queue.
-- KEYS: namespace. ARGV: broker id, lease and grace in milliseconds, facts about this process (JSON), who of it asks for a
-- turn to look into the outbox and for how many milliseconds ("who n", or ''), count of what runs in it, as many (queue:id,
-- since when in milliseconds), count of counts, as many (outcome:queue, how many messages of it ended so since the last
-- time), queues...
-- Returns 1 if this broker was known to live, 0 if it is new or was given up; which lease it has now, a number that no
-- other lease of it had, without which it may fetch nothing; how many failures wait in the spool; those of its queues
-- that have suspects, unless they are paused; how many starts were not noted; what went wrong with others' leavings; those
-- of its delay queues in which something is due within a lease, each with the milliseconds until then; now, in
-- milliseconds, 1 if the turn is given, else 0, and how many brokers live; then for each queue of one that is gone: its
-- facts or broker id, queue, count, how many of them are suspects, ...
local ns, broker, lease, grace_time = KEYS[1], ARGV[1], tonumber(ARGV[2]), ARGV[3]
local own = ns .. ":__dramaturg__."
-- include messages
-- include turns
-- include relaying
local alive, leases, facts, crashes = own .. "alive", own .. "leases", own .. "facts", own .. "crashes"
local departed = own .. "departed"
local time = redis.call("time")
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local known = redis.call("zscore", alive, broker) and redis.call("hexists", leases, broker) or 0
if known == 0 then
  -- In microseconds: one that is lost and taken again in the same millisecond is another.
  redis.call("hset", leases, broker, string.format("%.0f", tonumber(time[1]) * 1e6 + tonumber(time[2])))
end
-- If nobody could beat for half a lease, Redis was away rather than everybody: all get a grace to come back in.
local grace = own .. "grace"
local latest = redis.call("zrange", alive, -1, -1, "withscores")
if latest[2] and now - tonumber(latest[2]) > lease / 2 then
  redis.call("set", grace, 1, "px", grace_time)
end
redis.call("zadd", alive, now, broker)
redis.call("hset", facts, broker, ARGV[4])
local mine = own .. "queues." .. broker
local first_count = 8 + 2 * tonumber(ARGV[6])
local first_queue = first_count + 2 * tonumber(ARGV[first_count - 1])
-- By the minute in which it is told; a key for each, which goes by itself: worker/live/throughput.py reads them.
local ended = own .. "ended." .. math.floor(tonumber(time[1]) / 60)
for i = first_count, first_queue - 1, 2 do
  redis.call("hincrby", ended, ARGV[i], ARGV[i + 1])
end
if first_count < first_queue then
  redis.call("expire", ended, 11000)
end
if first_queue <= #ARGV then
  redis.call("sadd", mine, unpack(ARGV, first_queue))
end
local begun = own .. "started." .. broker
local function ours(entry)
  local queue, id = string.match(entry, "^([^:]*):(.*)$")
  return redis.call("sismember", ns .. ":__acks__." .. broker .. "." .. queue, id) == 1
end
-- Whose start was noted after it had ended already.
for _, entry in ipairs(redis.call("hkeys", begun)) do
  if not ours(entry) then
    redis.call("hdel", begun, entry)
  end
end
-- Whose start was not noted: the connection was lost, or Redis had no memory.
local missing = 0
for i = 7, first_count - 2, 2 do
  if ours(ARGV[i]) then
    missing = missing + redis.call("hsetnx", begun, ARGV[i], ARGV[i + 1])
  end
end
local function suspected()
  local queues = {}
  for i = first_queue, #ARGV do
    if redis.call("exists", own .. "suspects." .. ARGV[i]) == 1
      and redis.call("hexists", own .. "paused", ARGV[i]) == 0 then
      queues[#queues + 1] = ARGV[i]
    end
  end
  return queues
end
for i = first_queue, #ARGV do
  -- What is counted is right but where an old release, or an error, came between. It must cost nobody a lease.
  if are_limits(ARGV[i]) and redis.call("set", of(ARGV[i], "recounted"), 1, "nx", "px", 10000) then
    pcall(recount, ARGV[i])
  end
end
-- Who waits for what is delayed there need not ask.
local soon = {}
for i = first_queue, #ARGV do
  local next = string.sub(ARGV[i], -3) == ".DQ" and redis.call("zrange", own .. "due." .. ARGV[i], 0, 0, "withscores")
  local left = next and next[2] and tonumber(next[2]) - now
  if left and left <= lease then
    soon[#soon + 1] = ARGV[i]
    soon[#soon + 1] = math.max(0, math.floor(left))
  end
end
local who, milliseconds = string.match(ARGV[5], "^(%S+) (%d+)$")
local turn = who and take_turn(ns, who, milliseconds, milliseconds) or 0
local answer = {now, turn, redis.call("zcard", alive)}
local lease_id = tonumber(redis.call("hget", leases, broker))
local wrong = {}
local said = {known, lease_id, redis.call("hlen", own .. "spool"), suspected(), missing, wrong, soon, answer}
local told = #said
if redis.call("exists", grace) == 1 then
  return said
end
local function evidence(entry, started, silent, fact)
  local before = redis.call("hget", crashes, entry)
  local line = '{"started":' .. started .. ',"silent":' .. silent .. ',"facts":' .. (fact or "{}") .. "}"
  redis.call("hset", crashes, entry, before and string.sub(before, 1, -2) .. "," .. line .. "]" or "[" .. line .. "]")
end
local function give_back(gone)
  local started = own .. "started." .. gone
  local silent, fact = redis.call("zscore", alive, gone), redis.call("hget", facts, gone)
  -- Who had been told to stop was killed by its host: that is no message's fault.
  local stopping = fact and string.find(fact, '"stopping": true', 1, true)
  for _, queue in ipairs(redis.call("smembers", own .. "queues." .. gone)) do
    local name = ns .. ":" .. queue
    local count, suspects = 0, 0
    for _, kept in ipairs({"__acks__.", "__dramaturg__.taking."}) do
      local key = ns .. ":" .. kept .. gone .. "." .. queue
      local ids = kept == "__acks__." and redis.call("smembers", key) or redis.call("lrange", key, 0, -1)
      for _, id in ipairs(ids) do
        if redis.call("hexists", name .. ".msgs", id) == 1 then
          local entry = queue .. ":" .. id
          local since = silent and redis.call("hget", started, entry)
          if since and stopping then
            redis.call("sadd", own .. "begun_before", entry)
            since = false
          end
          if since then
            evidence(entry, since, silent, fact)
          end
          if since or redis.call("hexists", crashes, entry) == 1 then
            redis.call("rpush", own .. "suspects." .. queue, id)
            suspects = suspects + 1
          else
            redis.call("lpush", name, id)
          end
          if kept == "__acks__." then
            note_given_back(queue, id)
          end
          count = count + 1
        end
      end
      redis.call("del", key)
    end
    if count > 0 then
      said[#said + 1] = fact or gone
      said[#said + 1] = queue
      said[#said + 1] = count
      said[#said + 1] = suspects
    end
  end
  redis.call("del", started)
  redis.call("hdel", facts, gone)
  redis.call("hdel", leases, gone)
  redis.call("zadd", departed, "nx", now, gone)
  redis.call("zrem", alive, gone)
end
-- One whose leavings are broken must not cost all others their leases.
local function try(gone)
  local done, problem = pcall(give_back, gone)
  if not done then
    wrong[#wrong + 1] = gone .. ": " .. (type(problem) == "table" and problem.err or tostring(problem))
  end
end
for _, gone in ipairs(redis.call("zrangebyscore", alive, "-inf", now - lease)) do
  try(gone)
end
-- What came into the hands of one that had left already: a wait that its process did not survive.
redis.call("zrem", departed, broker)
for _, gone in ipairs(redis.call("zrange", departed, 0, 199)) do
  try(gone)
  if tonumber(redis.call("zscore", departed, gone)) < now - 60000 then
    redis.call("del", own .. "queues." .. gone)
    redis.call("zrem", departed, gone)
  end
end
if #said > told then
  said[4] = suspected()
end
return said
