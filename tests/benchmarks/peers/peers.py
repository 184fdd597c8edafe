"""Who is measured: how each is installed, started and told to enqueue."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Peer:
    """One variant.

    Attributes:
      name: What the table calls it.
      app: The module beside this file that has ``send_all(count)``.
      worker: The command of the worker, whose program is one of its environment.
      environment: Which environment it runs in; ours is the one that runs this.
      packages: What that one holds.
      python: The oldest Python that they run on.
      prepare: A command that makes its tables.
      settings: Variables of its own.
    """

    name: str
    app: str
    worker: tuple[str, ...]
    environment: str = ""
    packages: tuple[str, ...] = ()
    python: tuple[int, int] = (3, 11)
    prepare: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)


_CELERY = ("celery", "-A", "app_celery", "worker", "--without-gossip", "--without-mingle", "-l", "ERROR", "-c", "8")
_DRAMATIQ = ("dramatiq", "app_dramatiq", "--processes", "1", "--threads", "8")

PEERS = (
    Peer("Dramaturg", "app_ours", ("dramatiq", "app_ours", "--processes", "1", "--threads", "8")),
    Peer("Dramatiq", "app_dramatiq", _DRAMATIQ, "dramatiq", ("dramatiq[redis]==2.2.1",)),
    Peer(
        "Dramatiq, prefetch 32",
        "app_dramatiq",
        _DRAMATIQ,
        "dramatiq",
        ("dramatiq[redis]==2.2.1",),
        settings={"dramatiq_queue_prefetch": "32"},
    ),
    Peer(
        "Dramatiq, prefetch 128",
        "app_dramatiq",
        _DRAMATIQ,
        "dramatiq",
        ("dramatiq[redis]==2.2.1",),
        settings={"dramatiq_queue_prefetch": "128"},
    ),
    Peer("Celery, threads", "app_celery", (*_CELERY, "-P", "threads"), "celery", ("celery[redis]",)),
    Peer("Celery, prefork", "app_celery", (*_CELERY, "-P", "prefork"), "celery", ("celery[redis]",)),
    Peer("RQ", "app_rq", ("rq", "worker", "--url", "$REDIS_URL", "--quiet"), "rq", ("rq",)),
    Peer(
        "taskiq, Redis streams",
        "app_taskiq",
        ("taskiq", "worker", "app_taskiq:broker", "--workers", "1", "--log-level", "ERROR"),
        "taskiq",
        ("taskiq-redis",),
    ),
    Peer(
        "PgQueuer",
        "app_pgqueuer",
        ("python", "app_pgqueuer.py"),
        "pgqueuer",
        ("pgqueuer[asyncpg,cli]",),
        prepare=("pgq", "install"),
    ),
    Peer(
        "PgQueuer, 100 at a time",
        "app_pgqueuer",
        ("python", "app_pgqueuer.py", "100"),
        "pgqueuer",
        ("pgqueuer[asyncpg,cli]",),
        prepare=("pgq", "install"),
    ),
    Peer(
        "Oban for Python",
        "app_oban",
        ("python", "app_oban.py"),
        "oban",
        ("oban", "psycopg[binary]"),
        python=(3, 12),
        prepare=("oban", "install", "--dsn", "$PGDSN"),
    ),
    Peer(
        "procrastinate",
        "app_procrastinate",
        ("procrastinate", "--app", "app_procrastinate.app", "worker", "--concurrency", "8"),
        "procrastinate",
        ("procrastinate", "psycopg[binary]"),
        prepare=("procrastinate", "--app", "app_procrastinate.app", "schema", "--apply"),
    ),
)
