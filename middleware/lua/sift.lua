#!lua flags=allow-oom
-- One step through one key of a queue: counts the messages that are meant, and removes them if it is told to, from that
-- key and from the queue at once. What a worker takes meanwhile is not there any more, and runs.
-- Of those that are replays it is remembered whose they were: nobody else would tell Postgres that they never end.
-- KEYS: namespace. ARGV: queue; what to look at: "list", "lane" (a tenant's), "suspects", "due" (of a delay queue),
-- "taking" or "held" (by a broker, and never removed); broker id, whose lane, or ''; where to go on, 0 at first; how many
-- to look at; 1 to remove them; the tenant's 32 hexadecimal digits or '' for any; the actor's name, or from a dot on its
-- end, or '' for any; who removes them and why, as it is to be remembered of replays.
-- Returns how many were meant; where to go on, -1 at the end; of a list how many were looked at, and how long it is.
local ns, queue, what, whose = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
local at, count, remove, tenant, actor = ARGV[4], tonumber(ARGV[5]), ARGV[6] == "1", ARGV[7], ARGV[8]
local note = ARGV[9]
local own, name = ns .. ":__dramaturg__.", ns .. ":" .. queue
local messages = name .. ".msgs"
local key = ({list = name, lane = own .. "lane." .. queue .. "." .. whose, suspects = own .. "suspects." .. queue,
  due = own .. "due." .. queue, taking = own .. "taking." .. whose .. "." .. queue,
  held = ns .. ":__acks__." .. whose .. "." .. queue})[what]
-- Bytes to read in one step: messages may be large.
local enough = 2 ^ 20
local read, meant = 0, 0

-- include messages
local function is_of(name)
  return name == actor or (type(name) == "string" and string.sub(actor, 1, 1) == "."
    and string.sub(name, -#actor) == actor)
end
local function matches(data)
  if tenant == "" and actor == "" then
    return true
  end
  -- Most are others', which need not be decoded to be told.
  if tenant ~= "" and not string.find(string.lower(data), string.sub(tenant, 1, 8), 1, true) then
    return false
  end
  local message = decode(data)
  if actor ~= "" and not is_of(message.actor_name) then
    return false
  end
  local options = type(message.options) == "table" and message.options or {}
  return tenant == "" or (type(options.tenant_id) == "string" and digits(options.tenant_id) == tenant)
end
local function remember_replay(data)
  -- Few are replays, so few are decoded.
  if not string.find(data, '"dramaturg_replay"', 1, true) then
    return
  end
  local options = decode(data).options
  local replay = type(options) == "table" and options.dramaturg_replay
  if type(replay) == "table" and type(replay.item) == "string" then
    redis.call("hset", own .. "removed_replays", replay.item, note)
  end
end
-- What is removed keeps nobody away.
local function free_lock(id, data)
  if not string.find(data, '"dramaturg_unique"', 1, true) then
    return
  end
  local options = decode(data).options
  local unique = type(options) == "table" and options.dramaturg_unique
  if type(unique) == "table" and type(unique.key) == "string" then
    local lock = own .. "unique." .. unique.key
    local held = redis.call("hmget", lock, "queue", "id")
    if held[1] == queue and held[2] == id then
      redis.call("del", lock)
    end
  end
end
-- Tells whether a mention is to go.
local function sift(id)
  local data = redis.call("hget", messages, id)
  if not data then
    -- Of a message that is done.
    return true
  end
  read = read + #data
  if not matches(data) then
    return false
  end
  meant = meant + 1
  if remove then
    local entry = queue .. ":" .. id
    remember_replay(data)
    free_lock(id, data)
    redis.call("hdel", messages, id)
    redis.call("hdel", own .. "crashes", entry)
    redis.call("srem", own .. "begun_before", entry)
  end
  return true
end

if what == "due" or what == "held" then
  local found = redis.call(what == "due" and "zscan" or "sscan", key, at, "count", count)
  for i = 1, #found[2], what == "due" and 2 or 1 do
    if sift(found[2][i]) and remove then
      redis.call("zrem", key, found[2][i])
    end
  end
  return {meant, found[1] == "0" and "-1" or found[1], 0, 0}
end

-- A list is gone through from its end, to which those that are left keep their distance though workers take from its
-- head; what is enqueued meanwhile only makes some be looked at twice.
at = tonumber(at)
local length = redis.call("llen", key)
local ids = redis.call("lrange", key, -(at + count), -(at + 1))
local first = math.max(0, length - at - count)
local mark, gone, looked = "\0gone", 0, 0
for i = #ids, 1, -1 do
  if read >= enough then
    break
  end
  looked = looked + 1
  if sift(ids[i]) and remove then
    redis.call("lset", key, first + i - 1, mark)
    gone = gone + 1
  end
end
if gone > 0 and gone == looked and at == 0 then
  redis.call("ltrim", key, 0, -(gone + 1))
elseif gone > 0 then
  redis.call("lrem", key, at > length / 2 and gone or -gone, mark)
end
at = at + looked - gone
return {meant, looked == 0 and "-1" or string.format("%.0f", at), looked, length}
