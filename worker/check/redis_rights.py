"""Whether the Redis user may run what workers run, tried on keys that nobody else uses."""

from __future__ import annotations

import json
from collections.abc import Iterator

import redis

from worker.check.findings import Finding, error, ok

NAME = "redis.rights"

#: Every command of our scripts, with arguments that do no harm; ``KEY`` stands for a key of the type that it works on.
KEY = "{key}"
PROBES: dict[str, tuple[str, ...]] = {
    "time": (),
    "set": (KEY, "1", "px", "1000"),
    "get": (KEY,),
    "exists": (KEY,),
    "pexpire": (KEY, "1000"),
    "expire": (KEY, "1"),
    "hset": (KEY, "f", "1"),
    "hsetnx": (KEY, "f", "1"),
    "hincrby": (KEY, "n", "1"),
    "hget": (KEY, "f"),
    "hmget": (KEY, "f"),
    "hexists": (KEY, "f"),
    "hlen": (KEY,),
    "hstrlen": (KEY, "f"),
    "hkeys": (KEY,),
    "hgetall": (KEY,),
    "hrandfield": (KEY,),
    "hdel": (KEY, "f"),
    "rpush": (KEY, "m"),
    "lpush": (KEY, "m"),
    "llen": (KEY,),
    "lindex": (KEY, "0"),
    "lmove": (KEY, KEY, "LEFT", "RIGHT"),
    "lrange": (KEY, "0", "-1"),
    "lset": (KEY, "0", "m"),
    "lrem": (KEY, "1", "none"),
    "ltrim": (KEY, "0", "-1"),
    "lpop": (KEY,),
    "rpop": (KEY,),
    "sadd": (KEY, "m"),
    "sismember": (KEY, "m"),
    "smismember": (KEY, "m"),
    "smembers": (KEY,),
    "scard": (KEY,),
    "sscan": (KEY, "0"),
    "srem": (KEY, "m"),
    "zadd": (KEY, "1", "m"),
    "zscore": (KEY, "m"),
    "zrange": (KEY, "0", "-1"),
    "zcard": (KEY,),
    "zscan": (KEY, "0"),
    "zrangebyscore": (KEY, "-inf", "+inf"),
    "zrem": (KEY, "m"),
    "del": (KEY,),
}
_TYPES = {"h": "hash", "l": "list", "r": "list", "s": "set", "z": "zset"}
_STRINGS = {"set", "get", "exists", "pexpire", "expire", "del"}

# All in one step, so that two checks at a time do not meet, and the keys are gone at its end.
_SCRIPT = """#!lua flags=allow-oom
local refused = {}
for _, call in ipairs(cjson.decode(ARGV[1])) do
  local answer = redis.pcall(unpack(call))
  if type(answer) == "table" and answer.err then
    refused[#refused + 1] = call[1] .. ": " .. answer.err
  end
end
for _, kind in ipairs({"string", "hash", "list", "set", "zset"}) do
  redis.pcall("del", ARGV[2] .. "." .. kind)
end
return refused
"""


def check_rights(client: redis.Redis, namespace: str) -> Iterator[Finding]:
    """Run each command that workers run, on keys under ``NAMESPACE:__dramaturg__.check``, and leave none behind."""
    base = f"{namespace}:__dramaturg__.check"
    calls = [
        [command, *(word.replace(KEY, f"{base}.{_kind(command)}") for word in words)]
        for command, words in PROBES.items()
    ]
    # The scripts are given the namespace itself as their key.
    rights = "+@all -@admin -@dangerous +info +client|id +client|unblock"
    advice = f"Give the user of REDIS_URL the rights: ACL SETUSER NAME ~{namespace}* {rights}"
    try:
        refused = [said.decode() for said in client.eval(_SCRIPT, 1, namespace, json.dumps(calls), base)]
        # A list that is not there: it moves nothing, and waits a hundredth of a second.
        client.execute_command("BLMOVE", f"{base}.none", f"{base}.list", "LEFT", "RIGHT", 0.01)
    except redis.ResponseError as e:
        yield error(NAME, f"Redis refuses what workers do: {e}", advice)
        return
    if refused:
        yield error(NAME, f"Redis refuses what workers do: {'; '.join(refused[:3])}", advice)
    else:
        yield ok(NAME, "scripts and every command that they use may be run")


def _kind(command: str) -> str:
    return "string" if command in _STRINGS else _TYPES.get(command[0], "string")
