-- Lets one process at a time look into the outbox, and relay what waits there.

-- Tells whether it is the turn of `who`, for so many milliseconds; where `quiet` is not "0", he asks of his own accord, and
-- nobody else does for so many.
local function take_turn(ns, who, milliseconds, quiet)
  local turn = ns .. ":__dramaturg__.relay"
  local whose = redis.call("get", turn)
  if whose and whose ~= who then
    return 0
  end
  if milliseconds == "0" then
    redis.call("del", turn)
    return 0
  end
  if quiet ~= "0" and not redis.call("set", ns .. ":__dramaturg__.relay.quiet", who, "nx", "px", quiet) then
    return 0
  end
  redis.call("set", turn, who, "px", milliseconds)
  return 1
end
