#!lua flags=no-writes
-- Reads which messages that were removed were replays, of which Postgres does not know yet.
-- KEYS: namespace. ARGV: count.
-- Returns item, who removed it and why, item, ...
return redis.call("hrandfield", KEYS[1] .. ":__dramaturg__.removed_replays", ARGV[1], "withvalues")
