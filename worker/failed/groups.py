"""Groups of failed jobs in words."""

from __future__ import annotations

from db.failed import Group
from worker.text import counted


def tenants_touched(group: Group) -> str:
    """Return how many tenants a group touched; work of no tenant is none."""
    tenants = group.tenants - group.of_nobody
    if not group.of_nobody:
        return counted(tenants, "tenant")
    return f"{counted(tenants, 'tenant')}, and no tenant" if tenants else "no tenant"
