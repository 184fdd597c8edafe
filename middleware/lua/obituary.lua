#!lua flags=allow-oom
-- Adds to the facts about a process how it ended, for whoever gives back what it left.
-- KEYS: namespace. ARGV: broker id, how it ended (JSON).
-- Returns 1, or 0 if it has left nothing: it had given everything back itself.
local facts, broker = KEYS[1] .. ":__dramaturg__.facts", ARGV[1]
local fact = redis.call("hget", facts, broker)
if not fact then
  return 0
end
redis.call("hset", facts, broker, string.sub(fact, 1, -2) .. ', "end": ' .. ARGV[2] .. "}")
return 1
