"""Where a page begins, as programs give it back: they need not know what it says, and it may change."""

from __future__ import annotations

import base64
import binascii

from db.failed import InvalidFilter


def sealed(after: str | None) -> str | None:
    """Return the cursor of what the library gave as the next; None after the last page."""
    return None if after is None else base64.urlsafe_b64encode(after.encode()).decode().rstrip("=")


def opened(cursor: str | None) -> str | None:
    """Return what the library gave.

    Raises:
      InvalidFilter: When it is no cursor.
    """
    if cursor is None:
        return None
    try:
        return base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        raise InvalidFilter(f"after must be what a page gave as its next, not {cursor!r}") from None
