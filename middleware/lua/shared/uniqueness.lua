-- What keeps a second message of its kind away. NS:__dramaturg__.unique.KEY holds where the one is that does (queue, id),
-- its message id, until when it does so in any case, which id its sender asked for, and whose place it took.
-- Needs ns, own, now (in milliseconds) and keep (milliseconds after which a lock ends in any case).

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
  local entry = old_queue .. ":" .. old_id
  -- What began to run before may be recorded as failed under its id already: what has that id is then finished, not run.
  local began = redis.call("hexists", own .. "crashes", entry) + redis.call("sismember", own .. "begun_before", entry) > 0
  if old_queue ~= queue or began then
    -- Its mention in its queue is passed over by whoever fetches it, as one of a message that is done.
    redis.call("hdel", ns .. ":" .. old_queue .. ".msgs", old_id)
    redis.call("zrem", own .. "due." .. old_queue, old_id)
    redis.call("hdel", own .. "crashes", entry)
    redis.call("srem", own .. "begun_before", entry)
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

-- Puts a message on its queue, unless there is one already. Returns a code (1: it is enqueued; 2: it took the place of
-- another; 0: it is not), the message id of that other one, and what that one does. Saying it again with the same id
-- changes nothing.
local function put_unique(policy, message, due, queue, id, data)
  local key, ends, second, period = string.match(policy, "^(%x+) (%l+) (%l+) (%d+)$")
  local lock = own .. "unique." .. key
  local held = redis.call("hmget", lock, "queue", "id", "message", "until", "asked", "replaced")
  local function take(at)
    redis.call("hset", lock, "queue", queue, "id", at, "message", message, "until", now + tonumber(period), "asked", id)
    redis.call("pexpire", lock, math.max(keep, tonumber(period)))
  end
  if held[5] == id then
    -- It was said before.
    return held[6] and 2 or 1, held[6] or "", held[6] and "waiting" or ""
  end
  local waits, runs = false, false
  if held[1] and redis.call("hexists", ns .. ":" .. held[1] .. ".msgs", held[2]) == 1 then
    runs = is_held(held[1], held[2])
    waits = not runs
  end
  -- Where it says whose it is and that one is gone, it was removed.
  local recent = held[4] and tonumber(held[4]) > now and (waits or runs or not held[1])
  if waits and second == "replace" then
    take(replace(held[1], held[2], queue, id, data, due))
    redis.call("hset", lock, "replaced", held[3])
    return 2, held[3], "waiting"
  elseif waits or (runs and ends == "end") or recent then
    return 0, held[3], waits and "waiting" or runs and "running" or "recent"
  end
  redis.call("hdel", lock, "replaced")
  enqueue(queue, id, data)
  take(id)
  return 1, "", ""
end
