#!lua flags=allow-oom
-- What this broker holds of a queue. A script, because a replica answers SMEMBERS, and with what may be old, but runs no
-- script that could write.
-- KEYS: namespace. ARGV: queue, broker id.
return redis.call("smembers", KEYS[1] .. ":__acks__." .. ARGV[2] .. "." .. ARGV[1])
