#!lua flags=allow-oom
-- What a queue and its delay queue hold, all at one moment.
-- KEYS: namespace. ARGV: queue, broker ids...
-- Returns how many messages wait, are delayed, are with workers, and are suspects; when the first that waits was sent,
-- in milliseconds since 1970, or nothing; the pause (JSON), or nothing.
local ns, queue = KEYS[1], ARGV[1]
local own = ns .. ":__dramaturg__."
local function length(key)
  return redis.call("llen", key)
end
local function sent(key, messages)
  local id = redis.call("lindex", key, 0)
  local data = id and redis.call("hget", messages, id)
  local ok, message = pcall(cjson.decode, data or "")
  local at = ok and type(message) == "table" and message.message_timestamp
  return type(at) == "number" and at > 0 and at < 1e15 and at or false
end
local name, delayed_name = ns .. ":" .. queue, ns .. ":" .. queue .. ".DQ"
local waiting, running = length(name), 0
local delayed = length(delayed_name) + length(own .. "suspects." .. queue .. ".DQ")
  + redis.call("zcard", own .. "due." .. queue .. ".DQ")
for i = 2, #ARGV do
  waiting = waiting + length(own .. "taking." .. ARGV[i] .. "." .. queue)
  running = running + redis.call("scard", ns .. ":__acks__." .. ARGV[i] .. "." .. queue)
  delayed = delayed + length(own .. "taking." .. ARGV[i] .. "." .. queue .. ".DQ")
    + redis.call("scard", ns .. ":__acks__." .. ARGV[i] .. "." .. queue .. ".DQ")
end
local suspects = own .. "suspects." .. queue
local first, suspect = sent(name, name .. ".msgs"), sent(suspects, name .. ".msgs")
if suspect and (not first or suspect < first) then
  first = suspect
end
return {waiting, delayed, running, length(suspects), first and string.format("%.0f", first),
  redis.call("hget", own .. "paused", queue)}
