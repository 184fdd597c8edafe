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


class KeyMissing(DramaturgError):
    """Raised when what was sealed names a key that is not among ``FAILED_JOB_KEYS``; names the key's id."""


class SealBroken(DramaturgError):
    """Raised when what was sealed is not what its key sealed: it was changed, or cut; names the key's id."""


class RowLocked(DramaturgError):
    """Raised when a failure's row is held by somebody else; others can be written meanwhile."""
