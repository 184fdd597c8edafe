#!lua
-- Puts messages on their queues, but for those of which there is one already. Saying it again with the same ids, after a
-- reply was lost, changes nothing. Refused whole when Redis is out of memory.
-- KEYS: namespace. ARGV: milliseconds after which a lock ends in any case, followed, for what comes from the outbox, by
-- when it is too late and how long to remember it, as for relay.lua; then for each message: what makes it unique
-- ("key until second period", or '' where nothing does), its message id, when it is due in milliseconds since 1970 (0:
-- at once), queue, id, data.
-- Returns for each: 1: it is enqueued; 2: it took the place of another; 0: it is not; the message id of that other one;
-- and what that one does: waiting, running, recent. Of what comes from the outbox only: 3: it was said before; -1: it was
-- withdrawn. Nothing where it is too late.
local ns = KEYS[1]
local keep, not_after, remember = string.match(ARGV[1], "^(%d+) ?(%d*) ?(%d*)$")
keep = tonumber(keep)
local own = ns .. ":__dramaturg__."
local time = redis.call("time")
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)

if not_after ~= "" and now > tonumber(not_after) then
  return {}
end

-- include uniqueness
local said = {}
local function say(code, other, state)
  said[#said + 1] = code
  said[#said + 1] = other
  said[#said + 1] = state
end
for i = 2, #ARGV, 6 do
  local policy, message, due = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2])
  local queue, id, data = ARGV[i + 3], ARGV[i + 4], ARGV[i + 5]
  local mark = own .. "replay." .. id
  if remember ~= "" and not redis.call("set", mark, "sent", "nx", "ex", remember) then
    say(redis.call("get", mark) == "sent" and 3 or -1, "", "")
  elseif policy == "" then
    enqueue(queue, id, data)
    say(1, "", "")
  else
    say(put_unique(policy, message, due, queue, id, data))
  end
end
return said
