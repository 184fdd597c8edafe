from __future__ import annotations

from worker.testing import stub_broker, stub_worker, tenant

__all__ = ["stub_broker", "stub_worker", "tenant"]
