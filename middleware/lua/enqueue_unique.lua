#!lua
-- Puts messages on their queues, but for those of which there is one already. Saying it again with the same ids, after a
-- reply was lost, changes nothing. Refused whole when Redis is out of memory.
-- KEYS: namespace. ARGV: milliseconds after which a lock ends in any case; then for each message: what makes it unique
-- ("key until second period", or '' where nothing does), its message id, when it is due in milliseconds since 1970 (0:
-- at once), queue, id, data.
-- Returns for each: 1: it is enqueued; 2: it took the place of another; 0: it is not; the message id of that other one;
-- and what that one does: waiting, running, recent.
local ns, keep = KEYS[1], tonumber(ARGV[1])
local own = ns .. ":__dramaturg__."
local time = redis.call("time")
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)

local function enqueue(queue, id, data)
  local name = ns .. ":" .. queue
  if redis.call("hsetnx", name .. ".msgs", id, data) == 1 then
    redis.call("rpush", name, id)
  end
end
-- Whether a worker has fetched it. Those that are gone count until what they held is given back.
local function is_held(queue, id)
  for _, broker in ipairs(redis.call("zrange", own .. "alive", 0, -1)) do
    if redis.call("sismember", ns .. ":__acks__." .. broker .. "." .. queue, id) == 1 then
      return true
    end
  end
  return false
end
-- Lets a message take the place of one that waits. Where both are in one queue it takes it literally, id and all, so that
-- what is replaced again and again has its turn nevertheless.
local function replace(old_queue, old_id, queue, id, data, due)
  if old_queue ~= queue then
    -- Its mention in its queue is passed over by whoever fetches it, as one of a message that is done.
    redis.call("hdel", ns .. ":" .. old_queue .. ".msgs", old_id)
    redis.call("zrem", own .. "due." .. old_queue, old_id)
    redis.call("hdel", own .. "crashes", old_queue .. ":" .. old_id)
    redis.call("srem", own .. "begun_before", old_queue .. ":" .. old_id)
    enqueue(queue, id, data)
    return id
  end
  local first, last = string.find(data, id, 1, true)
  redis.call("hset", ns .. ":" .. queue .. ".msgs", old_id, string.sub(data, 1, first - 1) .. old_id .. string.sub(data, last + 1))
  if due > 0 then
    redis.call("zadd", own .. "due." .. queue, "xx", due, old_id)
  end
  return old_id
end

local said = {}
local function say(code, other, state)
  said[#said + 1] = code
  said[#said + 1] = other
  said[#said + 1] = state
end
for i = 2, #ARGV, 6 do
  local policy, message, due = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2])
  local queue, id, data = ARGV[i + 3], ARGV[i + 4], ARGV[i + 5]
  if policy == "" then
    enqueue(queue, id, data)
    say(1, "", "")
  else
    local key, ends, second, period = string.match(policy, "^(%x+) (%l+) (%l+) (%d+)$")
    local lock = own .. "unique." .. key
    local held = redis.call("hmget", lock, "queue", "id", "message", "until", "asked", "replaced")
    local function take(at)
      redis.call("hset", lock, "queue", queue, "id", at, "message", message, "until", now + tonumber(period), "asked", id)
      redis.call("pexpire", lock, math.max(keep, tonumber(period)))
    end
    if held[5] == id then
      -- It was said before.
      say(held[6] and 2 or 1, held[6] or "", held[6] and "waiting" or "")
    else
      local waits, runs = false, false
      if held[1] and redis.call("hexists", ns .. ":" .. held[1] .. ".msgs", held[2]) == 1 then
        runs = is_held(held[1], held[2])
        waits = not runs
      end
      local recent = held[4] and tonumber(held[4]) > now
      if waits and second == "replace" then
        take(replace(held[1], held[2], queue, id, data, due))
        redis.call("hset", lock, "replaced", held[3])
        say(2, held[3], "waiting")
      elseif waits or (runs and ends == "end") or recent then
        say(0, held[3], waits and "waiting" or runs and "running" or "recent")
      else
        redis.call("hdel", lock, "replaced")
        enqueue(queue, id, data)
        take(id)
        say(1, "", "")
      end
    end
  end
end
return said
