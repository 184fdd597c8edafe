#!lua flags=allow-oom
-- Notes what has run in a broker and has not ended yet: if that is lost now, it is nobody's fault, and whoever gets the
-- message next asks whether its failure is recorded.
-- KEYS: namespace. ARGV: broker id, (queue, message id)...
local ns, broker = KEYS[1], ARGV[1]
local own = ns .. ":__dramaturg__."
for i = 2, #ARGV, 2 do
  local queue, id = ARGV[i], ARGV[i + 1]
  -- Else it has ended meanwhile, and nobody would take it out again.
  if redis.call("sismember", ns .. ":__acks__." .. broker .. "." .. queue, id) == 1 then
    redis.call("sadd", own .. "begun_before", queue .. ":" .. id)
    redis.call("hdel", own .. "started." .. broker, queue .. ":" .. id)
  end
end
