#!lua
-- Takes a job's tick and puts its message on its queue, or takes the tick alone: of any number who try, one does.
-- Saying it again, after a reply was lost, changes nothing. Refused whole when Redis is out of memory.
-- KEYS: namespace. ARGV: job, rule, the job's last tick as it was looked at, the tick, what is to be known of what is
-- sent (JSON, in which the message's id in Redis is), and, if it is sent, queue, id, data; what makes it unique ("key
-- until second period", or '' where nothing does), its message id, milliseconds after which a lock ends in any case.
-- Returns 1: it is done; 0: somebody else was there before; or, where there is such a message already, so that the tick
-- is taken alone, the message id of that one and what it does: waiting, running, recent.
local ns = KEYS[1]
local own = ns .. ":__dramaturg__."
local state = own .. "schedule"
local field = "tick\n" .. ARGV[2] .. "\n" .. ARGV[1]
local sent = "sent\n\n" .. ARGV[1]
if redis.call("hget", state, field) ~= ARGV[3] then
  local last = redis.call("hget", state, sent)
  return last and string.match(last, "^%d+ (.*)$") == ARGV[5] and 1 or 0
end
redis.call("hset", state, field, ARGV[4])
if #ARGV == 5 then
  return 1
end
local time = redis.call("time")
local now, keep = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000), tonumber(ARGV[11])
-- include uniqueness
if ARGV[9] ~= "" then
  local code, other, what = put_unique(ARGV[9], ARGV[10], 0, ARGV[6], ARGV[7], ARGV[8])
  if code == 0 then
    return {other, what}
  end
else
  enqueue(ARGV[6], ARGV[7], ARGV[8])
end
redis.call("hset", state, sent, string.format("%.0f ", now) .. ARGV[5])
return 1
