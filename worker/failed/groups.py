"""Groups of failed jobs in words."""

from __future__ import annotations

from db.failed import Group
from worker.text import counted


def tenants_touched(group: Group) -> str:
    """Return how many tenants a group touched; work of no tenant is none."""
    if not group.without_tenant:
        return counted(group.tenants, "tenant")
    return f"{counted(group.tenants, 'tenant')}, and no tenant" if group.tenants else "no tenant"
