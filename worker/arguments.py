"""What an argument must be, and how its value is shown in an error."""

from __future__ import annotations


def check_text(argument: str, value: object, longest: int) -> str:
    """Return ``value`` if Postgres can hold it as text of at most ``longest`` characters that says something.

    Raises:
      ValueError: Naming the argument and what is wrong with it.
    """
    if not isinstance(value, str):
        # Callers tell bad input by ValueError alone, whatever is bad about it.
        raise ValueError(f"{argument}: must be a string, not {shown(value)}")  # noqa: TRY004
    if not value.strip():
        raise ValueError(f"{argument}: must not be empty")
    if len(value) > longest:
        raise ValueError(f"{argument}: {shown(value)} has {len(value)} characters, at most {longest} are allowed")
    if "\0" in value:
        raise ValueError(f"{argument}: {shown(value)} holds a NUL character, which Postgres cannot store")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{argument}: {shown(value)} is not valid Unicode") from None
    return value


def shown(value: object) -> str:
    """Return ``value`` for an error's text, cut at 80 characters."""
    if isinstance(value, str):
        return repr(value) if len(value) <= 80 else repr(value[:80]) + "..."
    written = repr(value)
    return written if len(written) <= 80 else written[:80] + "..."
