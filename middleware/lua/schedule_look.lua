#!lua flags=allow-oom
-- Says that a scheduler lives, on the server's clock, and how far each of its jobs is.
--
-- A job's last tick is kept under its rule (when it ticks), so that schedulers of two releases do not undo each other's.
-- KEYS: namespace. ARGV: scheduler id, facts about it (JSON), 1 at its first look else 0, milliseconds for which a rule
-- that nobody looks after is kept, milliseconds by which a clock must have been set back to be told so, (job, rule)...
-- Returns now, in milliseconds since 1970; then the last tick of each job, sent or let be, as a string of such
-- milliseconds; of a rule that was not there before, now.
local own = KEYS[1] .. ":__dramaturg__."
local scheduler, keep, back = ARGV[1], tonumber(ARGV[4]), tonumber(ARGV[5])
local state, schedulers, facts = own .. "schedule", own .. "schedulers", own .. "schedulers.facts"
local time = redis.call("time")
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local now_said = string.format("%.0f", now)
for _, gone in ipairs(redis.call("zrangebyscore", schedulers, "-inf", now - keep)) do
  redis.call("zrem", schedulers, gone)
  redis.call("hdel", facts, gone)
end
redis.call("zadd", schedulers, now, scheduler)
redis.call("hset", facts, scheduler, ARGV[2])
-- When each job was last looked after under another rule, "off" among them: what came until then is nobody's fault.
local others = {}
if ARGV[3] == "1" then
  local found = redis.call("hgetall", state)
  for i = 1, #found, 2 do
    local rule, name = string.match(found[i], "^seen\n([^\n]*)\n(.*)$")
    local seen = tonumber(found[i + 1])
    if rule and seen and seen < now - keep then
      redis.call("hdel", state, found[i], "tick\n" .. rule .. "\n" .. name)
    elseif rule and seen then
      others[name] = others[name] or {}
      others[name][rule] = seen
    end
  end
end
local said = {now_said}
for i = 6, #ARGV, 2 do
  local name, rule = ARGV[i], ARGV[i + 1]
  local field = "tick\n" .. rule .. "\n" .. name
  local known = redis.call("hget", state, field)
  local tick = tonumber(known or "") or now
  for other, seen in pairs(others[name] or {}) do
    if other ~= rule and seen > tick then
      tick = math.min(seen, now)
    end
  end
  if tick > now + back then
    -- It was handled by a clock that was wrong.
    tick = now
  end
  local tick_said = string.format("%.0f", tick)
  if tick_said ~= known then
    redis.call("hset", state, field, tick_said)
  end
  redis.call("hset", state, "seen\n" .. rule .. "\n" .. name, now_said)
  said[#said + 1] = tick_said
end
return said
