"""Takes secrets out of what people will read: arguments by their names, text by its patterns.

What remains is for the eye. It is JSON whatever the arguments were, and of bounded size.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping, Set
from dataclasses import dataclass
from typing import Any

from middleware.text import clean, cut

REDACTED = "[redacted]"

#: Names whose values are secret: matched as whole words of a key, so that ``api_key``, ``apiKey`` and ``X-Api-Key`` are
#: found and ``max_tokens`` or ``passenger`` are not.
SECRET_KEYS = (
    "password",
    "passwd",
    "passphrase",
    "pwd",
    "secret",
    "secrets",
    "token",
    "authorization",
    "auth",
    "api key",
    "apikey",
    "access key",
    "private key",
    "encryption key",
    "signing key",
    "credential",
    "credentials",
    "cookie",
    "cookies",
    "set cookie",
    "session id",
    "sessionid",
    "csrf",
    "dsn",
    "otp",
    "cvv",
    "ssn",
)

_PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = (
    # scheme://user:password@host and scheme://:password@host; the password may itself hold an @.
    (
        re.compile(r"(?i)\b([a-z][a-z0-9+.-]{0,30}://[^\s:/@'\"]{0,200}):[^\s'\"/]{1,500}@"),
        rf"\1:{REDACTED}@",
    ),
    # scheme://token@host, as git and Sentry write it.
    (re.compile(r"(?i)\b([a-z][a-z0-9+.-]{0,30}://)[A-Za-z0-9_-]{16,200}@"), rf"\1{REDACTED}@"),
    (re.compile(r"(?i)\b(bearer|basic|digest|negotiate)(\s+)[a-z0-9._~+/=-]{6,}"), rf"\1\2{REDACTED}"),
    # JSON Web Tokens.
    (re.compile(r"\beyJ[A-Za-z0-9_-]{6,}\.[A-Za-z0-9_-]{2,}(?:\.[A-Za-z0-9_-]*)?"), REDACTED),
    # Keys that say by their prefix what they are: OpenAI, Stripe, GitHub, GitLab, Slack, AWS, Google.
    (
        re.compile(
            r"\b(?:(?:sk|pk|rk)[-_](?:live[-_]|test[-_]|proj[-_]|ant[-_])?[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{20,}"
            r"|github_pat_\w{20,}|glpat-[\w-]{16,}|xox[abeprs]-[\w-]{10,}|(?:AKIA|ASIA)[A-Z0-9]{16}|AIza[\w-]{30,})"
        ),
        REDACTED,
    ),
    (
        re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL),
        REDACTED,
    ),
    # password=..., "api_key": "...", token => ...
    (
        re.compile(
            r"(?i)\b((?:[a-z0-9]+[_-])*(?:password|passwd|passphrase|pwd|secret|token|api[_-]?key|access[_-]?key"
            r"|private[_-]?key|authorization|credentials?)[\"']?\s*(?:=>|[=:])\s*)"
            r"(?:\"[^\"\n]*(?:\"|$)|'[^'\n]*(?:'|$)|[^\s\"',;&)\]}]+)"
        ),
        rf"\1{REDACTED}",
    ),
)

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")


def _words(key: str) -> tuple[str, ...]:
    return tuple(word.lower() for word in _WORD.findall(key[:500]))


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of a message's arguments is kept for the eye."""

    #: Characters of one string.
    string: int = 4_096
    #: Items of one list or object.
    items: int = 1_000
    #: Levels of nesting.
    depth: int = 20
    #: Characters of all strings and keys together, each value counted with at least 8.
    total: int = 262_144


class Redactor:
    """Redacts arguments and text.

    Arguments:
      keys: Names to redact beside :data:`SECRET_KEYS`.
      limits: How much to keep.
    """

    def __init__(self, keys: Iterable[str] = (), limits: Limits | None = None) -> None:
        self._secret = {_words(key) for key in (*SECRET_KEYS, *keys)} - {()}
        self._longest = max(len(words) for words in self._secret)
        self.limits = limits or Limits()

    def is_secret(self, key: object) -> bool:
        """Tell whether the value under ``key`` is to be redacted."""
        if not isinstance(key, str):
            return False
        words = _words(key)
        return any(
            words[start : start + length] in self._secret
            for start in range(len(words))
            for length in range(1, self._longest + 1)
        )

    def text(self, text: str, limit: int | None = None) -> str:
        """Return ``text`` with secrets redacted, fit for a Postgres column, and cut to ``limit`` characters."""
        if limit is None or len(text) <= limit:
            return self._redact(text)
        # Enough beyond the cut that a secret across it is still seen as one, and no more: texts can be huge.
        kept = self._redact(text[: limit + 1_024])[:limit]
        return f"{kept}… [{len(text) - limit:,} more characters]"

    def text_ends(self, text: str, limit: int) -> str:
        """Return ``text`` redacted as :meth:`text` does; a longer one keeps its two ends."""
        if len(text) <= limit:
            return self._redact(text)
        half = limit // 2
        head = self._redact(text[: half + 1_024])[:half]
        # The end begins at a line, so that a secret before it is either whole or gone.
        tail = self._redact(text[-half:].partition("\n")[2] or text[-half:])
        return f"{head}\n… [{len(text) - 2 * half:,} characters cut] …\n{tail}"

    @staticmethod
    def _redact(text: str) -> str:
        for pattern, replacement in _PATTERNS:
            text = pattern.sub(replacement, text)
        return clean(text)

    def value(self, value: object) -> Any:
        """Return ``value`` as JSON for the eye: redacted, bounded, and represented where JSON has no word for it."""
        return _Pass(self).value(value, 0)

    def arguments(self, args: Iterable[object], names: tuple[str, ...] = ()) -> list[Any]:
        """Return positional arguments as :meth:`value` does, redacted by the names of their parameters, too."""
        one = _Pass(self)
        return [
            REDACTED if i < len(names) and self.is_secret(names[i]) else one.value(value, 1)
            for i, value in enumerate(args)
        ]


class _Pass:
    """One walk over a message's arguments, with what is left of the allowance."""

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._limits = redactor.limits
        self._left = redactor.limits.total

    def value(self, value: object, depth: int) -> Any:
        if self._left <= 0:
            return "… [cut]"
        self._left -= 8
        match value:
            case None | bool():
                return value
            case str():
                return self._string(value)
            case int():
                # A JSON number this long is no number to anybody, and Python refuses to write it in decimal.
                return int(value) if value.bit_length() <= 256 else f"[integer of {value.bit_length()} bits]"
            case float():
                return float(value) if math.isfinite(value) else repr(float(value))
            case bytes() | bytearray():
                return f"[{len(value):,} bytes]"
        if depth >= self._limits.depth:
            return f"… [nested deeper than {self._limits.depth}]"
        try:
            match value:
                case Mapping():
                    return self._mapping(value, depth)
                case list() | tuple() | Set():
                    return self._sequence(value, depth)
        except RecursionError:
            return "… [nested too deep]"
        except Exception as e:  # noqa: BLE001 - a user's container may raise anything
            return f"[{type(value).__name__}, unreadable: {type(e).__name__}]"
        return self._other(value)

    def _string(self, value: str) -> str:
        text = self._redactor.text(value, min(self._limits.string, max(self._left, 0)))
        self._left -= len(text)
        return text

    def _mapping(self, value: Mapping[Any, Any], depth: int) -> dict[str, Any]:
        shown: dict[str, Any] = {}
        for i, (key, item) in enumerate(value.items()):
            if i >= self._limits.items or self._left <= 0:
                shown["…"] = f"[{len(value) - i:,} more]"
                break
            name = clean(cut(key if isinstance(key, str) else repr(key), 255))
            self._left -= len(name)
            shown[name] = REDACTED if self._redactor.is_secret(key) else self.value(item, depth + 1)
        return shown

    def _sequence(self, value: Collection[Any], depth: int) -> list[Any]:
        shown: list[Any] = []
        for i, item in enumerate(value):
            if i >= self._limits.items or self._left <= 0:
                shown.append(f"… [{len(value) - i:,} more]")
                break
            shown.append(self.value(item, depth + 1))
        return shown

    def _other(self, value: object) -> str:
        try:
            return self._string(repr(value))
        except Exception as e:  # noqa: BLE001 - whatever a user's __repr__ raises
            return f"[{type(value).__name__}, whose __repr__ raised {type(e).__name__}]"
