#!lua flags=allow-oom
-- Reads failures from the spool, for one broker at a time; they stay there until they are known to be recorded.
-- KEYS: namespace. ARGV: broker id, milliseconds for which it has the spool to itself, count.
-- Returns name, failure, name, failure, ...; nothing while another broker has the spool.
local ns, broker = KEYS[1], ARGV[1]
local spool = ns .. ":__dramaturg__.spool"
local drainer = redis.call("get", spool .. ".drainer")
if drainer and drainer ~= broker then
  return {}
end
redis.call("set", spool .. ".drainer", broker, "px", ARGV[2])
return redis.call("hrandfield", spool, ARGV[3], "withvalues")
