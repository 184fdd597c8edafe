"""The Redis server: what it is, and whether it keeps the messages that it accepted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import redis

from worker.check.findings import Finding, error, ok, warning

OLDEST = 7


def address(url: str) -> str:
    """Return ``url`` as ``host:port/database``, without user, password and options."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return parts.path
    return f"{parts.hostname or '127.0.0.1'}:{parts.port or 6379}{parts.path or '/0'}"


def read_config(client: redis.Redis) -> dict[str, str]:
    """Return the settings that matter here; empty where the host forbids CONFIG, as managed ones do."""
    try:
        found: dict[Any, Any] = client.config_get("appendfsync", "save")
    except redis.ResponseError:
        return {}
    return {_text(name): _text(value) for name, value in found.items()}


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def judge_server(info: Mapping[str, Any], config: Mapping[str, str], where: str) -> Iterator[Finding]:
    """Judge a server by what it says of itself.

    Arguments:
      info: What INFO says; a section may be missing.
      config: See :func:`read_config`.
      where: Its address, for people.
    """
    yield _judge_version(info, where)
    yield _judge_role(info)
    if info.get("redis_mode", "standalone") != "standalone" or info.get("cluster_enabled"):
        yield error(
            "redis.mode",
            f"Redis runs in {info.get('redis_mode', 'cluster')} mode: scripts use keys of several slots",
            "Name a server that is not in a cluster (cluster-enabled no) in REDIS_URL.",
        )
    yield _judge_eviction(info)
    yield from _judge_persistence(info, config)


def _judge_version(info: Mapping[str, Any], where: str) -> Finding:
    # Valkey says which Redis it is like, too.
    product, version = "Valkey", info.get("valkey_version")
    if version is None:
        product, version = "Redis", info.get("redis_version")
    found = f"REDIS_URL: {product} {version} at {where}"
    major = str(version).partition(".")[0]
    if not major.isdecimal():
        return warning("redis.version", f"{where}: the version could not be read", "Let this user run INFO.")
    if product == "Redis" and int(major) < OLDEST:
        return error("redis.version", found, f"Use Redis {OLDEST} or newer, or Valkey.")
    return ok("redis.version", found)


def _judge_role(info: Mapping[str, Any]) -> Finding:
    role = info.get("role")
    if role == "master":
        return ok("redis.role", "a primary")
    if role is None:
        return warning("redis.role", "whether it is a primary could not be read", "Let this user run INFO.")
    return error("redis.role", "Redis is a replica: it takes no writes", "Name the primary in REDIS_URL.")


def _judge_eviction(info: Mapping[str, Any]) -> Finding:
    policy, most, used = info.get("maxmemory_policy"), info.get("maxmemory"), info.get("used_memory", 0)
    if policy is None or most is None:
        return warning(
            "redis.eviction", "maxmemory-policy could not be read", "See to it at the host that it is noeviction."
        )
    if not most:
        return ok("redis.eviction", f"maxmemory is not set, so {policy} removes nothing")
    found = f"maxmemory-policy is {policy}, {used / most:.0%} of {most / 2**20:,.0f} MiB are used"
    if policy.startswith("allkeys"):
        return error(
            "redis.eviction",
            f"{found}: when it is full, Redis throws messages away",
            "CONFIG SET maxmemory-policy noeviction, and in redis.conf or at the host",
        )
    if used > 0.9 * most:
        return warning(
            "redis.eviction",
            f"{found}: when it is full, send() raises",
            "Raise maxmemory, or find out why messages are not consumed.",
        )
    if policy != "noeviction":
        # It removes what has a time to live, and no message has one.
        return warning(
            "redis.eviction",
            f"{found}: it removes results and rate limits, though no messages",
            "CONFIG SET maxmemory-policy noeviction, and in redis.conf or at the host",
        )
    return ok("redis.eviction", found)


def _judge_persistence(info: Mapping[str, Any], config: Mapping[str, str]) -> Iterator[Finding]:
    name, advice = "redis.persistence", "CONFIG SET appendonly yes, and in redis.conf or at the host"
    if info.get("aof_last_write_status", "ok") != "ok" or info.get("rdb_last_bgsave_status", "ok") != "ok":
        yield error(
            name,
            "the last write of Redis to its disk failed: it refuses messages, or would lose them",
            "See Redis' log; often its disk is full.",
        )
    aof, snapshots = info.get("aof_enabled"), config.get("save")
    if aof is None:
        yield warning(name, "whether messages are on disk could not be read", "Let this user run INFO.")
    elif aof:
        yield _judge_fsync(name, config.get("appendfsync"))
    elif snapshots == "":
        yield error(name, "nothing is on disk: a restart of Redis loses every message", advice)
    elif snapshots is None:
        yield warning(
            name, "appendonly is off, and CONFIG may not be read: a restart loses messages, if not all", advice
        )
    else:
        yield warning(
            name, f"snapshots only (save {snapshots}): a crash loses every message since the last one", advice
        )


def _judge_fsync(name: str, fsync: str | None) -> Finding:
    match fsync:
        case "always":
            return ok(name, "appendonly, on disk before send() returns")
        case None:
            return ok(name, "appendonly; appendfsync could not be read (everysec may lose the last second)")
        case "everysec":
            lost = "about the last second"
        case _:
            lost = "the last half minute"
    return warning(
        name,
        f"appendonly with appendfsync {fsync}: a power failure can lose {lost}",
        "CONFIG SET appendfsync always, if that matters more than speed",
    )
