#!lua flags=allow-oom
-- Adds to the facts about a process how it ended, and what it ran then, for whoever gives back what it left.
-- KEYS: namespace. ARGV: broker id, how it ended (JSON), or '' if that is nobody's fault; what ran in it and since when
-- (queue:id, milliseconds)...
-- Returns 1, or 0 if it has left nothing: it had given everything back itself.
local own, broker = KEYS[1] .. ":__dramaturg__.", ARGV[1]
local facts = own .. "facts"
local fact = redis.call("hget", facts, broker)
if not fact then
  return 0
end
for i = 3, #ARGV, 2 do
  local queue, id = string.match(ARGV[i], "^([^:]*):(.*)$")
  if redis.call("sismember", KEYS[1] .. ":__acks__." .. broker .. "." .. queue, id) == 1 then
    redis.call("hsetnx", own .. "started." .. broker, ARGV[i], ARGV[i + 1])
  end
end
if ARGV[2] ~= "" then
  redis.call("hset", facts, broker, string.sub(fact, 1, -2) .. ', "end": ' .. ARGV[2] .. "}")
end
return 1
