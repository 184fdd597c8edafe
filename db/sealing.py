"""Encrypts the original messages of failures at rest, where ``FAILED_JOB_KEYS`` is set.

What is sealed is a Fernet token (https://github.com/fernet/spec), so it can be read without this project, too. Beside
it stands the id of its key, so that a key can be replaced, and one that is missing be named.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from base64 import b64decode, urlsafe_b64encode
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from db.errors import ConfigurationError, KeyMissing, SealBroken

if TYPE_CHECKING:
    from cryptography.fernet import Fernet

SETTING: Final = "FAILED_JOB_KEYS"

#: 32 bytes; either alphabet of base64, as Fernet takes both.
_KEY = re.compile(r"[A-Za-z0-9+/_-]{43}=")
_DOMAIN: Final = b"dramaturg.failed_job_key.1\0"


def generate() -> str:
    """Return a new key, as the setting takes it."""
    return urlsafe_b64encode(secrets.token_bytes(32)).decode("ascii")


class Keys:
    """Seals with the first of several keys and opens with any. Safe to use from any thread, and after a fork.

    Arguments:
      keys: Each of 32 bytes, at least one.
    """

    def __init__(self, keys: Iterable[bytes]) -> None:
        # Imported late: it costs every process that only sends.
        from cryptography.fernet import Fernet

        self._keys: dict[str, Fernet] = {_id_of(key): Fernet(urlsafe_b64encode(key)) for key in keys}
        #: The id of the key that seals.
        self.current: str = next(iter(self._keys))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self._keys)})"

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of the keys, the one that seals first."""
        return tuple(self._keys)

    @classmethod
    def from_setting(cls, value: str) -> Keys:
        """Return the keys of ``FAILED_JOB_KEYS``, separated by commas.

        Raises:
          ConfigurationError: When one is no key, or there is none; says which, and nothing of its value.
        """
        words = [word.strip() for word in value.split(",") if word.strip()]
        if not words:
            raise ConfigurationError(f"{SETTING}: it holds no key")
        for n, word in enumerate(words, 1):
            if not _KEY.fullmatch(word):
                raise ConfigurationError(
                    f"{SETTING}: key {n} of {len(words)} is not 32 bytes in base64 (44 characters, the last one '=')"
                )
        return cls(b64decode(word.replace("-", "+").replace("_", "/")) for word in words)

    def seal(self, data: bytes) -> tuple[bytes, str]:
        """Return ``data`` encrypted with the first key, and that key's id."""
        return self._keys[self.current].encrypt(data), self.current

    def open(self, sealed: bytes, key_id: str) -> bytes:
        """Return what was sealed with the key that ``key_id`` names.

        Raises:
          KeyMissing: When it is none of these keys.
          SealBroken: When ``sealed`` was changed since.
        """
        from cryptography.fernet import InvalidToken

        key = self._keys.get(key_id)
        if key is None:
            raise KeyMissing(f"{SETTING} does not hold the key {key_id!r}, with which this was encrypted")
        try:
            return key.decrypt(sealed)
        except InvalidToken:
            raise SealBroken(f"what was encrypted with the key {key_id!r} was changed since") from None


def _id_of(key: bytes) -> str:
    """Return a public name of ``key``, from which it cannot be told."""
    return hashlib.sha256(_DOMAIN + key).hexdigest()[:16]
