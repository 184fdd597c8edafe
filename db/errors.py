"""What ``db`` raises."""

from __future__ import annotations


class DramaturgError(Exception):
    """Base class of every error this project raises on its own account."""


class ConfigurationError(DramaturgError):
    """Raised when what the deployment provides (a setting, a table, a role) is missing or unusable."""


class InvalidTenant(DramaturgError, ValueError):
    """Raised when a tenant id or correlation id is not a UUID; the message names the value."""


class TenantRequired(DramaturgError):
    """Raised when tenant-scoped work is asked for where no tenant is bound."""


class OnceError(DramaturgError):
    """Raised when ``once()`` is called where its answer would be wrong: an effect would be skipped, or happen again."""


class RowLocked(DramaturgError):
    """Raised when a failure's row is held by somebody else; others can be written meanwhile."""
