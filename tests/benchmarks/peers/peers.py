"""Who is measured: how each is installed, started and told to enqueue."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Peer:
    """One variant.

    Attributes:
      name: What tables call it.
      app: The module beside this file that has ``send_all(numbers, job)``, ``sender()`` and what else it can.
      worker: The command of the worker, whose program is one of its environment.
      left: What counts those that have not ended, that is, been acknowledged: commands of Redis, or statements of SQL.
      environment: Which environment it runs in, one of those of ``environments.py``.
      python: The oldest Python that it runs on.
      prepare: A command that makes its tables.
      settings: Variables of its own.
      share: Of a row's jobs, for those whom all of them would take minutes; tables and charts say how many.
      extra: Measured only when it is asked for.
    """

    name: str
    app: str
    worker: tuple[str, ...]
    left: tuple[str, ...]
    environment: str
    python: tuple[int, int] = (3, 11)
    prepare: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    share: float = 1.0
    extra: bool = False

    def but(self, name: str, *, extra: bool = False, **settings: str) -> Peer:
        """Return a variant with other settings."""
        return replace(self, name=name, extra=extra, settings={**self.settings, **settings})


_CELERY = ("celery", "-A", "app_celery", "worker", "--without-gossip", "--without-mingle", "-l", "ERROR", "-c", "8")
_CELERY_LEFT = ("LLEN celery", "HLEN unacked")
_TAKES_PREFETCH = "dramatiq_queue_prefetch"
#: Of 32, 128, 256 and 512 that with which stock Dramatiq drains fastest; from 128 on they differ little.
BEST_PREFETCH = "512"

_EIGHT = ("--processes", "1", "--threads", "8")
#: One queue, as the others have, and as an entry of the Procfile.
OURS = Peer(
    "Dramaturg",
    "app_ours",
    ("dramatiq", "app_ours", *_EIGHT, "--queues", "attribution"),
    ("HLEN dramatiq:attribution.msgs",),
    "dramaturg",
)
STOCK = Peer(
    "Dramatiq", "app_dramatiq", ("dramatiq", "app_dramatiq", *_EIGHT), ("HLEN dramatiq:default.msgs",), "dramatiq"
)
STOCK_PREFETCHES = tuple(
    STOCK.but(f"Dramatiq, prefetch {size}", extra=size != BEST_PREFETCH, **{_TAKES_PREFETCH: size})
    for size in ("32", "128", "256", "512")
)
STOCK_AT_BEST = next(peer for peer in STOCK_PREFETCHES if peer.settings[_TAKES_PREFETCH] == BEST_PREFETCH)
CELERY_THREADS = Peer("Celery, threads", "app_celery", (*_CELERY, "-P", "threads"), _CELERY_LEFT, "celery")
CELERY_PREFORK = Peer("Celery, prefork", "app_celery", (*_CELERY, "-P", "prefork"), _CELERY_LEFT, "celery")
RQ = Peer(
    "RQ",
    "app_rq",
    ("rq", "worker", "--url", "$REDIS_URL", "--quiet"),
    ("LLEN rq:queue:default", "ZCARD rq:wip:default"),
    "rq",
    share=0.1,
    extra=True,
)
TASKIQ = Peer(
    "taskiq, Redis streams",
    "app_taskiq",
    ("taskiq", "worker", "app_taskiq:broker", "--workers", "1", "--log-level", "ERROR"),
    # What was not delivered yet is nothing here: it is asked for when all have run.
    ("XPENDING taskiq taskiq",),
    "taskiq",
)
PGQUEUER_DEFAULT = Peer(
    "PgQueuer, 10 at a time",
    "app_pgqueuer",
    ("python", "app_pgqueuer.py"),
    ("SELECT count(*) FROM pgqueuer",),
    "pgqueuer",
    prepare=("pgq", "install"),
)
PGQUEUER = replace(PGQUEUER_DEFAULT, name="PgQueuer, 100 at a time", worker=("python", "app_pgqueuer.py", "100"))
OBAN = Peer(
    "Oban for Python",
    "app_oban",
    ("python", "app_oban.py"),
    ("SELECT count(*) FROM oban_jobs WHERE state <> 'completed'",),
    "oban",
    python=(3, 12),
    prepare=("oban", "install", "--dsn", "$PGDSN"),
)
PROCRASTINATE = Peer(
    "procrastinate",
    "app_procrastinate",
    ("procrastinate", "--app", "app_procrastinate.app", "worker", "--concurrency", "8"),
    ("SELECT count(*) FROM procrastinate_jobs WHERE status <> 'succeeded'",),
    "procrastinate",
    prepare=("procrastinate", "--app", "app_procrastinate.app", "schema", "--apply"),
    share=0.1,
)
