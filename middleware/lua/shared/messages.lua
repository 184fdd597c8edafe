-- What a message says of itself, whatever it is.

-- As Python's uuid.UUID reads it.
local function digits(uuid)
  return (string.gsub(string.gsub(string.gsub(string.lower(uuid), "urn:", ""), "uuid:", ""), "[{}-]", ""))
end
local function decode(data)
  local ok, message = pcall(cjson.decode, data)
  if not ok then
    -- A lone surrogate, for example, which is in neither of the two fields.
    ok, message = pcall(cjson.decode, (string.gsub(data, "\\u[dD][89a-fA-F]%x%x", "\\u0020")))
  end
  return ok and type(message) == "table" and message or {}
end
-- Returns when it was first sent, in milliseconds since 1970, or false.
local function sent_at(data)
  -- As Dramatiq writes it, so that most need not be decoded.
  local at = string.match(string.sub(data or "", -40), '"message_timestamp":(%d+)}$')
  at = at and tonumber(at) or decode(data or "").message_timestamp
  return type(at) == "number" and at > 0 and at < 1e15 and at or false
end
