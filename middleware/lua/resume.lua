#!lua flags=allow-oom
-- Resumes a queue.
-- KEYS: namespace. ARGV: queue.
-- Returns the pause that has ended (JSON), or nothing if it was not paused.
local paused = KEYS[1] .. ":__dramaturg__.paused"
local pause = redis.call("hget", paused, ARGV[1])
redis.call("hdel", paused, ARGV[1])
return pause
