#!lua
-- Takes a job's tick and puts its message on its queue, or takes the tick alone: of any number who try, one does.
-- Saying it again, after a reply was lost, changes nothing. Refused whole when Redis is out of memory.
-- KEYS: namespace. ARGV: job, rule, the job's last tick as it was looked at, the tick, what is to be known of what is
-- sent (JSON, in which the message's id in Redis is), and, if it is sent, queue, id, data.
-- Returns 1: it is done; 0: somebody else was there before.
local ns = KEYS[1]
local state = ns .. ":__dramaturg__.schedule"
local field = "tick\n" .. ARGV[2] .. "\n" .. ARGV[1]
local sent = "sent\n\n" .. ARGV[1]
if redis.call("hget", state, field) ~= ARGV[3] then
  local last = redis.call("hget", state, sent)
  return last and string.match(last, "^%d+ (.*)$") == ARGV[5] and 1 or 0
end
redis.call("hset", state, field, ARGV[4])
if #ARGV > 5 then
  local time = redis.call("time")
  local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
  redis.call("hset", state, sent, string.format("%.0f ", now) .. ARGV[5])
  local queue = ns .. ":" .. ARGV[6]
  if redis.call("hsetnx", queue .. ".msgs", ARGV[7], ARGV[8]) == 1 then
    redis.call("rpush", queue, ARGV[7])
  end
end
return 1
