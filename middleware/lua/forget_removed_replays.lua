#!lua flags=allow-oom
-- Forgets messages that were replays and were removed, because Postgres knows it by now.
-- KEYS: namespace. ARGV: item...
for i = 1, #ARGV do
  redis.call("hdel", KEYS[1] .. ":__dramaturg__.removed_replays", ARGV[i])
end
return 1
