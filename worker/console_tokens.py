"""Tokens of the console: whom each is for, what he may do, and for which tenant. Settings hold their hashes alone.

A token is 256 random bits, so a plain hash of it tells nothing: what makes passwords' hashes slow is that people choose
them.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal, get_args
from uuid import UUID

Role = Literal["viewer", "operator"]

#: What tokens begin with, so that a scanner for secrets knows one.
PREFIX: Final = "dramaturg_"
_NAME = r"[^\s,:=]{1,100}"
_ENTRY = re.compile(rf"(?P<name>{_NAME}):(?P<role>[^\s,:=]+)(?::(?P<tenant>[^\s,:=]+))?=sha256:(?P<hash>\S+)")


@dataclass(frozen=True, slots=True)
class Token:
    """Who has it, what he may do (``viewer`` looks, ``operator`` changes), and the one tenant that he sees; None for
    all."""

    name: str
    role: Role
    tenant_id: UUID | None
    #: SHA-256 in hexadecimal.
    digest: str

    def __str__(self) -> str:
        """Return it as an entry of ``CONSOLE_TOKENS``."""
        of_tenant = f":{self.tenant_id}" if self.tenant_id else ""
        return f"{self.name}:{self.role}{of_tenant}=sha256:{self.digest}"


def make_token(name: str, role: str, tenant_id: UUID | None = None) -> tuple[str, Token]:
    """Return a new token, which is to be shown once, and what is kept of it.

    Raises:
      ValueError: When a name or a role cannot be so; the message names it.
    """
    if not re.fullmatch(_NAME, name):
        raise ValueError(f"name must be 1 to 100 characters without spaces, commas, colons and =, not {name!r}")
    if role not in get_args(Role):
        raise ValueError(f"role must be {' or '.join(get_args(Role))}, not {role!r}")
    said = PREFIX + secrets.token_urlsafe(32)
    of_tenant = f":{tenant_id}" if tenant_id else ""
    (token,) = read_tokens(f"{name}:{role}{of_tenant}=sha256:{digest_of(said)}")
    return said, token


def digest_of(token: str) -> str:
    """Return what is kept of a token."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def read_tokens(value: str) -> tuple[Token, ...]:
    """Return the tokens of ``CONSOLE_TOKENS``.

    Raises:
      ValueError: Naming the entry that is none, by its name or its place, and never what may be a secret.
    """
    found: list[Token] = []
    for n, entry in enumerate(re.split(r"[\s,]+", value.strip()), 1):
        if not entry:
            continue
        match = _ENTRY.fullmatch(entry)
        if match is None:
            raise ValueError(
                f"entry {n} must be NAME:ROLE=sha256:... or NAME:ROLE:TENANT=sha256:..., as `worker console token` "
                "prints it"
            )
        name, role, digest = match["name"], match["role"], match["hash"].lower()
        if role not in get_args(Role):
            raise ValueError(f"{name}: the role must be {' or '.join(get_args(Role))}, not {role!r}")
        try:
            tenant_id = UUID(match["tenant"]) if match["tenant"] else None
        except ValueError:
            raise ValueError(f"{name}: the tenant must be a UUID, not {match['tenant']!r}") from None
        if not re.fullmatch("[0-9a-f]{64}", digest):
            raise ValueError(f"{name}: what follows sha256: must be 64 of 0-9 and a-f, the hash and not the token")
        if name in {token.name for token in found}:
            raise ValueError(f"{name} is there twice")
        found.append(Token(name, "viewer" if role == "viewer" else "operator", tenant_id, digest))
    return tuple(found)


def find_token(tokens: Iterable[Token], said: str) -> Token | None:
    """Return the one that somebody said, in a time that tells nothing of the others."""
    digest, found = digest_of(said), None
    for token in tokens:
        if hmac.compare_digest(token.digest, digest):
            found = token
    return found
