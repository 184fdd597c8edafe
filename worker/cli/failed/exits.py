"""How commands on failed jobs end, beside 0 for all was done, 1 for wrong input and 2 for a wrong deployment."""

from __future__ import annotations

from typing import Final

#: Nothing matched, or something was refused.
NOTHING: Final = 3
