"""Signs what is posted, as Standard Webhooks has it, so that receivers verify it with any library of theirs.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from base64 import b64decode, b64encode
from collections.abc import Sequence
from typing import Final

_PREFIX: Final = "whsec_"
#: Bytes of a secret, by the standard, and of those that are made here.
_AT_LEAST, _AT_MOST, _MADE = 24, 64, 32


def new_secret() -> str:
    """Return a secret as the setting takes it."""
    return _PREFIX + b64encode(secrets.token_bytes(_MADE)).decode()


def read_secrets(setting: str) -> tuple[bytes, ...]:
    """Return the secrets of ``ALERT_WEBHOOK_SECRETS``.

    Raises:
      ValueError: When one is none; its text holds nothing of it.
    """
    found = []
    for number, word in enumerate((word.strip() for word in setting.split(",") if word.strip()), 1):
        try:
            secret = b64decode(word.removeprefix(_PREFIX), validate=True) if word.startswith(_PREFIX) else b""
        except ValueError:
            secret = b""
        if not _AT_LEAST <= len(secret) <= _AT_MOST:
            raise ValueError(
                f"number {number} must be {_PREFIX} and {_AT_LEAST} to {_AT_MOST} bytes in base64;"
                " `worker alerts secret` makes one"
            )
        found.append(secret)
    return tuple(found)


def headers(keys: Sequence[bytes], webhook_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """Return the headers that go with a body.

    Arguments:
      keys: What it is signed with, each by itself; without any it is not signed.
      webhook_id: The same at each try.
      timestamp: Of this try, in seconds since 1970.
      body: What is posted.
    """
    found = {"webhook-id": webhook_id, "webhook-timestamp": str(timestamp)}
    if keys:
        signed = f"{webhook_id}.{timestamp}.".encode() + body
        made = (b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode() for key in keys)
        found["webhook-signature"] = " ".join(f"v1,{each}" for each in made)
    return found
