#!lua flags=allow-oom
-- Remembers that what were replays was removed, until Postgres knows it.
-- KEYS: namespace. ARGV: who removed them and why, item...
for i = 2, #ARGV do
  redis.call("hset", KEYS[1] .. ":__dramaturg__.removed_replays", ARGV[i], ARGV[1])
end
return 1
