"""The tenant for whom the code at hand runs.

The tenant lives in a context variable: coroutines, ``asyncio.to_thread`` and everything called directly see it. A bare
``threading.Thread`` or an executor does not; hand it ``contextvars.copy_context().run``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from typing import Final
from uuid import UUID

from db.errors import InvalidTenant, TenantRequired


@dataclass(frozen=True, slots=True)
class Tenancy:
    """A binding: the tenant (``None`` where work belongs to no tenant) and the correlation id of the work."""

    tenant_id: UUID | None
    correlation_id: UUID | None = None


_current: ContextVar[Tenancy | None] = ContextVar("dramaturg_tenancy", default=None)


#: Each message names its own several times, and few tenants have most messages.
_read = lru_cache(maxsize=1_024)(UUID)


def parse_uuid(name: str, value: object) -> UUID:
    """Return ``value`` as a UUID.

    Arguments:
      name: What the value is called, for the error.
      value: A UUID, or a string in any form that :class:`uuid.UUID` reads.

    Raises:
      InvalidTenant: When it is neither.
    """
    if isinstance(value, UUID):
        return value
    if isinstance(value, str):
        try:
            return _read(value)
        except ValueError:
            pass
    raise InvalidTenant(f"{name} must be a UUID, not {value!r}")


_CANONICAL: Final = re.compile("[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


def is_canonical(value: object) -> bool:
    """Tell whether ``value`` is a string that says a UUID as ``str(UUID(value))`` does, as nearly all do."""
    return isinstance(value, str) and _CANONICAL.fullmatch(value) is not None


#: A UUID as text; making that takes as long as reading one.
text_of: Callable[[UUID], str] = lru_cache(maxsize=1_024)(str)


@contextmanager
def tenant_context(tenant_id: UUID | str | None, correlation_id: UUID | str | None = None) -> Iterator[Tenancy]:
    """Bind a tenant for the duration of the ``with`` block, in this thread or task.

    Arguments:
      tenant_id: The tenant; ``None`` says that the work belongs to no tenant, so that ``transaction()`` sees only
        rows without one.
      correlation_id: Joins messages and failures of one piece of work; inherited from an enclosing block when omitted.

    Raises:
      InvalidTenant: When either is not a UUID.
    """
    if correlation_id is not None:
        correlation_id = parse_uuid("correlation_id", correlation_id)
    else:
        correlation_id = current_correlation_id()
    tenancy = Tenancy(None if tenant_id is None else parse_uuid("tenant_id", tenant_id), correlation_id)
    token = _current.set(tenancy)
    try:
        yield tenancy
    finally:
        _current.reset(token)


def bind(tenancy: Tenancy | None) -> None:
    """Bind ``tenancy`` until the next call; for hooks that cannot wrap what they surround in a ``with`` block."""
    _current.set(tenancy)


def current_tenancy() -> Tenancy | None:
    """Return the binding, or ``None`` where nothing was bound (which is not the same as a binding to no tenant)."""
    return _current.get()


def current_tenant() -> UUID | None:
    """Return the bound tenant, or ``None``."""
    tenancy = _current.get()
    return tenancy.tenant_id if tenancy else None


def current_correlation_id() -> UUID | None:
    """Return the bound correlation id, or ``None``."""
    tenancy = _current.get()
    return tenancy.correlation_id if tenancy else None


def require_tenant() -> UUID:
    """Return the bound tenant.

    Raises:
      TenantRequired: When none is bound.
    """
    tenant_id = current_tenant()
    if tenant_id is None:
        raise TenantRequired(
            "no tenant is bound: call this inside tenant_context(tenant_id), or from a tenant-scoped actor"
        )
    return tenant_id
