#!lua
-- Puts messages on their queues. Saying it again with the same ids, after a reply was lost, changes nothing.
-- Refused whole when Redis is out of memory, unlike the other scripts, with which workers make room.
-- KEYS: namespace. ARGV: (queue, how many, (id, data)...)..., of a queue as many as can be given to one command.
local ns = KEYS[1]
-- Whether messages that were sent at once are all new, as nearly always.
local function are_new(msgs, ids)
  for _, data in ipairs(redis.call("hmget", msgs, unpack(ids))) do
    if data then
      return false
    end
  end
  return true
end
local at = 1
while at < #ARGV do
  local queue, first, last = ns .. ":" .. ARGV[at], at + 2, at + 1 + 2 * ARGV[at + 1]
  local ids = {}
  for i = first, last, 2 do
    ids[#ids + 1] = ARGV[i]
  end
  if #ids > 1 and are_new(queue .. ".msgs", ids) then
    redis.call("hset", queue .. ".msgs", unpack(ARGV, first, last))
    redis.call("rpush", queue, unpack(ids))
  else
    for i = first, last, 2 do
      if redis.call("hsetnx", queue .. ".msgs", ARGV[i], ARGV[i + 1]) == 1 then
        redis.call("rpush", queue, ARGV[i])
      end
    end
  end
  at = last + 1
end
return 1
