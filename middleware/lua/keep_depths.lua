#!lua flags=allow-oom
-- Keeps a sample of how deep queues are, the first of each minute, in a hash for each hour.
-- KEYS: namespace. ARGV: the sample, seconds to keep the hour's.
-- Returns 1: it is kept; 0: this minute has one.
local minute = math.floor(tonumber(redis.call("time")[1]) / 60)
local key = string.format("%s:__dramaturg__.depths.%.0f", KEYS[1], math.floor(minute / 60))
local kept = redis.call("hsetnx", key, string.format("%.0f", minute), ARGV[1])
redis.call("expire", key, ARGV[2])
return kept
