"""Takes secrets out of what people will read: arguments by their names, text by its patterns.

What remains is for the eye. It is JSON whatever the arguments were, and of bounded size.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping, Set
from functools import lru_cache
from itertools import groupby
from typing import Any, NamedTuple

from middleware.late_patterns import LatePattern
from middleware.text import clean

REDACTED = "[redacted]"

#: Names whose values are secret, as words of a key: ``api_key``, ``apiKey`` and ``X-Api-Keys`` are one name.
SECRET_KEYS = (
    *("password", "passwd", "passphrase", "passcode", "pass", "pwd", "secret", "token", "jwt", "authorization", "auth"),
    *("api key", "apikey", "access key", "private key", "encryption key", "signing key", "credential", "cookie"),
    *("session id", "sessionid", "csrf", "dsn", "otp", "cvv", "ssn", "signature"),
)

#: A word that ends like this is secret, whatever stands before: ``PGPASSWORD``, ``clientsecret``, ``accesstoken``.
_ENDINGS = ("password", "passwd", "passphrase", "secret", "secretkey", "token", "apikey", "accesskey", "credential")

#: Before ``tokens`` these make it a count, as language models have it.
_COUNTS = {"max", "min", "prompt", "completion", "input", "output", "total", "num", "n", "reasoning", "cached"}

_KEYWORD = (
    r"(?:password|passwd|passphrase|passcode|pwd|(?<!max[_-])(?<!input[_-])(?<!output[_-])(?<!prompt[_-])token|secret"
    r"|api[_-]?key|access[_-]?key|private[_-]?key|signing[_-]?key|credential|signature)"
)
_KEYWORD_NEEDLES = ("pass", "pwd", "token", "secret", "key", "credential", "signature")


class _Pattern(NamedTuple):
    pattern: LatePattern
    replacement: str
    #: Some of these, in lower case, stands in whatever it matches, as long as that is ASCII. To look for them costs a
    #: hundredth of what the pattern does, and most text holds none.
    needles: tuple[str, ...]


# Each is linear in the text: nothing is repeated that can begin in the middle of itself, or it is bounded. The engine
# holds the interpreter's lock while it runs, so a slow pattern would stop every thread.
_PATTERNS: tuple[_Pattern, ...] = (
    # The rest of the line: what stands behind the name comes in too many forms.
    _Pattern(
        LatePattern(r"(?i)\b((?:proxy-)?authorization|(?:set-)?cookie)(\\{0,4}[\"']?\s{0,5}[=:])[^\n]{1,4000}"),
        rf"\1\2 {REDACTED}",
        ("authorization", "cookie"),
    ),
    # scheme://user:password@host and scheme://:password@host; the password may itself hold an @. Not host:port/path@.
    _Pattern(
        LatePattern(r"(?i)(?<![a-z0-9+.-])([a-z][a-z0-9+.-]{0,30}://[^\s:/@'\"]{0,200}):(?!\d{1,5}/)[^\s]{1,300}@"),
        rf"\1:{REDACTED}@",
        ("://",),
    ),
    # scheme://token@host, as git and Sentry write it.
    _Pattern(
        LatePattern(r"(?i)(?<![a-z0-9+.-])([a-z][a-z0-9+.-]{0,30}://)[A-Za-z0-9_-]{16,200}@"),
        rf"\1{REDACTED}@",
        ("://",),
    ),
    _Pattern(
        LatePattern(r"(?i)\b(bearer|basic|digest|negotiate)(\s{1,5})(?=\S{0,200}[0-9=])[a-z0-9._~+/=-]{6,4000}"),
        rf"\1\2{REDACTED}",
        ("bearer", "basic", "digest", "negotiate"),
    ),
    # JSON Web Tokens.
    _Pattern(LatePattern(r"(?<![\w.-])eyJ[\w-]{6,}\.[\w-]{2,}(?:\.[\w-]*)?"), REDACTED, ("eyj",)),
    # Keys that say by their prefix what they are: OpenAI, Stripe, GitHub, GitLab, Slack, AWS, Google.
    _Pattern(
        LatePattern(
            r"(?<![\w-])(?:(?:sk|pk|rk)[-_](?:live[-_]|test[-_]|proj[-_]|ant[-_])?[\w-]{16,}|gh[pousr]_\w{20,}"
            r"|github_pat_\w{20,}|glpat-[\w-]{16,}|xox[abeprs]-[\w-]{10,}|(?:AKIA|ASIA)[A-Z0-9]{16}|AIza[\w-]{30,})"
        ),
        REDACTED,
        (
            *("sk-", "sk_", "pk-", "pk_", "rk-", "rk_", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"),
            *("glpat-", "xox", "akia", "asia", "aiza"),
        ),
    ),
    _Pattern(
        LatePattern(
            r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----.*?(?:-----END [A-Z ]{0,40}PRIVATE KEY-----|\Z)", re.DOTALL
        ),
        REDACTED,
        ("private key-----",),
    ),
    # The end of one whose beginning was cut off.
    _Pattern(
        LatePattern(r"(?<![\w+/=\s])[\w+/=\s]*-----END [A-Z ]{0,40}PRIVATE KEY-----"), REDACTED, ("private key-----",)
    ),
    # Postgres' DETAIL of a refused row holds all its values.
    _Pattern(LatePattern(r"(Failing row contains )\([^\n]*"), rf"\1({REDACTED})", ("failing row contains ",)),
    _Pattern(
        LatePattern(rf"(?i)(Key \([^()\n]{{0,100}}{_KEYWORD}[^()\n]{{0,100}}\)=)\([^\n]*\)"),
        rf"\1({REDACTED})",
        _KEYWORD_NEEDLES,
    ),
    # password=..., "api_keys": "...", SECRET_KEY_BASE => ..., {\\"token\\": \\"...\\"}
    _Pattern(
        LatePattern(
            rf"(?i)({_KEYWORD}s?(?:[_-](?:key|base|id|hash|value)){{0,3}}\\{{0,4}}[\"']?\s{{0,5}}(?:=>|[=:])\s{{0,5}}b?)"
            # Not what was redacted before.
            r"(?!b?\[redacted\](?:[\s\"',;&)\]}]|$))"
            r"(?:\\{0,4}\"(?:\\.|[^\"\\\n])*(?:\"|$)?|\\{0,4}'(?:\\.|[^'\\\n])*(?:'|$)?|[^\s\"',;&)\]}]+)"
        ),
        rf"\1{REDACTED}",
        _KEYWORD_NEEDLES,
    ),
)

#: Those that stand side by side and have the same needles, together.
_BY_NEEDLES = tuple(
    (needles, tuple((one.pattern, one.replacement) for one in group))
    for needles, group in groupby(_PATTERNS, key=lambda one: one.needles)
)

#: Characters looked at beyond a cut, so that a secret across it is still seen as one.
_SPARE = 1_024

#: Characters of a key that are looked at.
_NAME_READ = 500

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")


def _words(key: str) -> tuple[str, ...]:
    return tuple(word.lower() for word in _WORD.findall(key[:_NAME_READ]))


class Limits(NamedTuple):
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
        # The same few names come again and again.
        self._is_secret = lru_cache(maxsize=4_096)(self._is_secret_name)

    def is_secret(self, key: object) -> bool:
        """Tell whether the value under ``key`` is to be redacted."""
        return isinstance(key, str) and self._is_secret(key[:_NAME_READ])

    def _is_secret_name(self, key: str) -> bool:
        words = _words(key)
        if words[-1:] == ("tokens",) and words[-2:-1] and words[-2] in _COUNTS:
            return False
        words = tuple(word if word.endswith("ss") or len(word) < 4 else word.removesuffix("s") for word in words)
        return any(word.endswith(_ENDINGS) for word in words) or any(
            words[start : start + length] in self._secret
            for start in range(len(words))
            for length in range(1, self._longest + 1)
        )

    def text(self, text: str, limit: int | None = None) -> str:
        """Return ``text`` with secrets redacted, fit for a Postgres column, and cut to ``limit`` characters."""
        if limit is None or len(text) <= limit:
            return self._redact(text)
        kept = self._redact(text[: limit + _SPARE])
        if len(text) > limit + _SPARE:
            # What stands last may be a part of something.
            kept = kept[:-_SPARE]
        return f"{kept[:limit]}… [{len(text) - limit:,} more characters]"

    def text_ends(self, text: str, limit: int) -> str:
        """Return ``text`` redacted as :meth:`text` does; a longer one keeps its two ends."""
        if len(text) <= limit + 2 * _SPARE:
            whole = self._redact(text)
            return whole if len(whole) <= limit else self._ends(whole, whole, limit, len(text))
        half = limit // 2
        head = self._redact(text[: half + _SPARE])[:-_SPARE]
        tail = self._redact(text[-half - _SPARE :])[_SPARE:]
        return self._ends(head, tail, limit, len(text))

    @staticmethod
    def _ends(head: str, tail: str, limit: int, length: int) -> str:
        half = limit // 2
        return f"{head[:half]}\n… [{length - 2 * half:,} characters cut] …\n{tail[-half:]}"

    @staticmethod
    def _redact(text: str) -> str:
        # Beyond ASCII there are letters that match others without being them in lower case.
        is_ascii, lower = text.isascii(), text.lower()
        for needles, patterns in _BY_NEEDLES:
            # Not any(): it is most of what a short text costs.
            for needle in needles:
                if needle in lower:
                    break
            else:
                if is_ascii:
                    continue
            before = text
            for pattern, replacement in patterns:
                text = pattern.sub(replacement, text)
            if text is not before:
                lower = text.lower()
        return clean(text)

    def value(self, value: object) -> Any:
        """Return ``value`` as JSON for the eye: redacted, bounded, and represented where JSON has no word for it."""
        return _Pass(self).value(value, 0)

    def arguments(self, args: Collection[object], names: tuple[str, ...] = ()) -> list[Any]:
        """Return positional arguments as :meth:`value` does, redacted by the names of their parameters, too."""
        hidden = {i for i, name in enumerate(names) if self.is_secret(name)}
        return _Pass(self).sequence(args, 0, hidden)


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
                    return self.sequence(value, depth)
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
            name = self._redactor.text(key if isinstance(key, str) else repr(key), 255)
            self._left -= len(name)
            shown[name] = REDACTED if self._redactor.is_secret(key) else self.value(item, depth + 1)
        return shown

    def sequence(self, value: Collection[Any], depth: int, hidden: Collection[int] = ()) -> list[Any]:
        shown: list[Any] = []
        for i, item in enumerate(value):
            if i >= self._limits.items or self._left <= 0:
                shown.append(f"… [{len(value) - i:,} more]")
                break
            shown.append(REDACTED if i in hidden else self.value(item, depth + 1))
        return shown

    def _other(self, value: object) -> str:
        try:
            return self._string(repr(value))
        except BaseException as e:  # noqa: BLE001 - whatever a user's __repr__ raises
            return f"[{type(value).__name__}, whose __repr__ raised {type(e).__name__}]"
