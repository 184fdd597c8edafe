"""Makes any text, however long or broken, fit for a Postgres column."""

from __future__ import annotations

#: Postgres' text cannot hold NUL, and its UTF-8 no lone surrogate.
_NUL = "\\x00"


def clean(text: str) -> str:
    """Return ``text`` with NUL characters and lone surrogates written as escapes."""
    if text.isascii():
        return text.replace("\x00", _NUL)
    return text.replace("\x00", _NUL).encode("utf-8", "backslashreplace").decode("utf-8")


def cut(text: str, limit: int) -> str:
    """Return ``text``, or its first ``limit`` characters with a mark that says how many are missing."""
    if len(text) <= limit:
        return text
    return f"{text[:limit]}… [{len(text) - limit:,} more characters]"


def name_of(kind: type[BaseException]) -> str:
    """Return the name for ``exception_class``: bare for builtins, else with its module."""
    if kind.__module__ == "builtins":
        return kind.__qualname__
    return f"{kind.__module__}.{kind.__qualname__}"


def class_of(error: BaseException) -> str:
    """Return the name of an exception's class for a column, also where its metaclass does not tell it."""
    try:
        return cut(clean(name_of(type(error))), 200)
    except Exception:  # noqa: BLE001 - a user's metaclass may raise anything; a row with half a name beats no row
        return cut(clean(type.__dict__["__name__"].__get__(type(error))), 200)


def message_of(error: BaseException) -> str:
    """Return ``str(error)``, also where that raises, be it ``SystemExit``: it is a user's code, on the way to a row."""
    try:
        return str(error)
    except BaseException as e:  # noqa: BLE001 - see above
        return f"(the exception's __str__ raised {type(e).__name__})"
