"""``worker check`` on real servers: a good deployment is green, and each defect is found by itself."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psycopg
import pytest
import redis
from dramatiq import Message
from dramatiq.brokers.redis import RedisBroker

from tests.servers import Cluster, Database, running_redis
from worker.broker import make_broker
from worker.check import Finding, Status, check_deployment
from worker.console_tokens import make_token
from worker.queue_admin import pause, resume
from worker.queues import Queue
from worker.settings import Settings

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def durable_redis() -> Iterator[str]:
    """The URL of a Redis as it should be."""
    with running_redis(appendonly="yes", appendfsync="always") as url:
        yield url


@pytest.fixture
def good_redis(durable_redis: str) -> Iterator[str]:
    """The same, emptied, and with a worker on every queue."""
    settings = Settings.load({"DATABASE_URL": "postgres://h/x", "REDIS_URL": durable_redis})
    with closing(redis.Redis.from_url(durable_redis)) as client:
        client.flushall()
    with closing(make_broker(settings)) as broker:
        for queue in (*Queue, *(f"{queue}.DQ" for queue in Queue)):
            broker.consume(queue)
        yield durable_redis


@pytest.fixture
def environment(database: Database, good_redis: str) -> dict[str, str]:
    """The settings of a good deployment, whose pools fit a server as it comes."""
    pool = {"DB_POOL_SIZE": "2", "DB_MAX_OVERFLOW": "0"}
    tokens = {"CONSOLE_TOKENS": str(make_token("ana", "operator")[1])}
    llm = {"LLM_API_KEY": "key"}
    return {**os.environ, **database.environment(), "REDIS_URL": good_redis, **pool, **tokens, **llm}


def check(environment: dict[str, str], folder: Path) -> list[Finding]:
    return check_deployment(environment, folder=folder)


def wrong(environment: dict[str, str], folder: Path) -> list[Finding]:
    found = [finding for finding in check(environment, folder) if finding.status is not Status.OK]
    assert all(finding.advice for finding in found)
    return found


def only(environment: dict[str, str], folder: Path) -> Finding:
    (found,) = wrong(environment, folder)
    return found


def run(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def test_a_good_deployment_is_green(environment: dict[str, str]) -> None:
    found = check(environment, ROOT)
    assert [finding for finding in found if finding.status is not Status.OK] == []
    assert {finding.name for finding in found} == {
        "clock",
        "dramatiq",
        "llm",
        "postgres.connections",
        "postgres.history",
        "postgres.migrations",
        "postgres.outbox",
        "postgres.rights",
        "postgres.role",
        "postgres.row-level-security",
        "postgres.same-database",
        "postgres.version",
        "postgres.writable",
        "procfile",
        "procfile.queues",
        "procfile.scheduler",
        "queues.consumers",
        "redis.eviction",
        "redis.persistence",
        "redis.rights",
        "redis.role",
        "redis.version",
        "settings",
    }


def test_it_leaves_nothing_behind(environment: dict[str, str], good_redis: str, tmp_path: Path) -> None:
    with closing(redis.Redis.from_url(good_redis)) as client:
        before = set(client.keys())
        check(environment, tmp_path)
        assert set(client.keys()) == before


# --- Postgres: history ------------------------------------------------------------------------------


def test_a_trigger_that_is_disabled_is_an_error(
    environment: dict[str, str], database: Database, tmp_path: Path
) -> None:
    run(database.owner_url, "ALTER TABLE worker_failed_jobs DISABLE TRIGGER worker_failed_jobs_changed")
    found = only(environment, tmp_path)
    assert (found.name, found.status) == ("postgres.history", Status.ERROR)
    assert "worker_failed_jobs_changed" in found.found


def test_text_without_an_index_is_a_warning(environment: dict[str, str], database: Database, tmp_path: Path) -> None:
    run(database.owner_url, "DROP INDEX idx_worker_failed_jobs_text")
    found = only(environment, tmp_path)
    assert (found.name, found.status) == ("postgres.text-index", Status.WARNING)


# --- Postgres: who ----------------------------------------------------------------------------------


@pytest.fixture
def login(cluster: Cluster, database: Database) -> Iterator[Callable[[str], str]]:
    """Make a role with powers and give its URL."""
    made: list[str] = []

    def make(powers: str) -> str:
        name = f"dramaturg_check_{secrets.token_hex(4)}"
        run(cluster.admin_url, f"CREATE ROLE {name} LOGIN PASSWORD '{cluster.password}' {powers}")
        made.append(name)
        return cluster.url(name, database.name)

    yield make
    for name in made:
        run(database.admin_url, f"DROP OWNED BY {name}", f"DROP ROLE {name}")


@pytest.mark.parametrize(
    ("powers", "status", "said"),
    [
        ("SUPERUSER", Status.ERROR, "is a superuser"),
        ("BYPASSRLS IN ROLE app_user", Status.ERROR, "has BYPASSRLS"),
        ("IN ROLE app_user, app_operator", Status.ERROR, "has the rights of app_operator"),
    ],
)
def test_a_runtime_user_that_is_not_bound(
    environment: dict[str, str],
    login: Callable[[str], str],
    tmp_path: Path,
    powers: str,
    status: Status,
    said: str,
) -> None:
    found = only({**environment, "DATABASE_URL": login(powers)}, tmp_path)
    assert (found.name, found.status) == ("postgres.role", status)
    assert said in found.found


def test_a_runtime_user_that_may_become_one(
    environment: dict[str, str], database: Database, login: Callable[[str], str], tmp_path: Path
) -> None:
    powerful = psycopg.conninfo.conninfo_to_dict(login("BYPASSRLS"))["user"]
    url = login(f"IN ROLE app_user, {powerful}")
    found = only({**environment, "DATABASE_URL": url}, tmp_path)
    assert (found.name, found.status) == ("postgres.role", Status.WARNING)
    assert f"can SET ROLE {powerful}" in found.found
    run(database.admin_url, found.advice)
    assert wrong({**environment, "DATABASE_URL": url}, tmp_path) == []


def test_a_single_credential_is_told_what_is_weaker(
    environment: dict[str, str], database: Database, tmp_path: Path
) -> None:
    for name in ("OPERATOR_DATABASE_URL", "MIGRATION_DATABASE_URL"):
        del environment[name]
    found = only({**environment, "DATABASE_URL": database.owner_url}, tmp_path)
    assert (found.name, found.status) == ("postgres.role", Status.WARNING)
    assert "single credential" in found.found


def test_no_operator(environment: dict[str, str], tmp_path: Path) -> None:
    for name in ("OPERATOR_DATABASE_URL", "MIGRATION_DATABASE_URL"):
        del environment[name]
    operator, migrations = wrong(environment, tmp_path)
    assert "sees no rows across tenants" in operator.found
    assert "could not be read" in migrations.found
    assert {operator.status, migrations.status} == {Status.WARNING}


def test_an_operator_that_is_none(
    environment: dict[str, str], database: Database, login: Callable[[str], str], tmp_path: Path
) -> None:
    url = login("")
    role, rights = wrong({**environment, "OPERATOR_DATABASE_URL": url}, tmp_path)
    assert (role.name, role.status) == ("postgres.role", Status.ERROR)
    assert (rights.name, rights.status) == ("postgres.rights", Status.ERROR)
    run(database.admin_url, role.advice)
    assert wrong({**environment, "OPERATOR_DATABASE_URL": url}, tmp_path) == []


def test_an_owner_that_is_none(environment: dict[str, str], login: Callable[[str], str], tmp_path: Path) -> None:
    found = only({**environment, "MIGRATION_DATABASE_URL": login("")}, tmp_path)
    assert (found.name, found.status) == ("postgres.role", Status.ERROR)
    assert "does not own the tables" in found.found


# --- Postgres: what ---------------------------------------------------------------------------------


def test_a_database_that_was_not_migrated(
    environment: dict[str, str], empty_database: Database, tmp_path: Path
) -> None:
    found = only({**environment, **empty_database.environment()}, tmp_path)
    assert (found.name, found.status, found.advice) == ("postgres.migrations", Status.ERROR, "worker migrate")


def test_migrations_that_are_behind_or_ahead(environment: dict[str, str], database: Database, tmp_path: Path) -> None:
    run(database.admin_url, "UPDATE dramaturg_version SET version_num = 'of_tomorrow'")
    found = only(environment, tmp_path)
    assert (found.name, found.status) == ("postgres.migrations", Status.WARNING)
    assert "ahead: it is at of_tomorrow" in found.found
    run(database.admin_url, "DELETE FROM dramaturg_version")
    found = only(environment, tmp_path)
    assert (found.name, found.status) == ("postgres.migrations", Status.ERROR)


@pytest.mark.parametrize(
    ("defect", "status", "said"),
    [
        (
            "ALTER TABLE attribution_events DISABLE ROW LEVEL SECURITY",
            Status.ERROR,
            "not enabled on attribution_events",
        ),
        ("ALTER TABLE tenants NO FORCE ROW LEVEL SECURITY", Status.ERROR, "not forced on tenants"),
        ("DROP POLICY tenant_isolation_policy ON worker_failed_jobs", Status.ERROR, "no tenant_isolation_policy"),
        ("DROP POLICY operator_policy ON worker_failed_jobs", Status.ERROR, "no operator_policy on worker_failed_jobs"),
        (
            "ALTER POLICY tenant_isolation_policy ON worker_failed_jobs USING (true)",
            Status.ERROR,
            "is not the one that migrations made",
        ),
        (
            "ALTER POLICY tenant_isolation_policy ON attribution_events TO app_user",
            Status.ERROR,
            "is not the one that migrations made",
        ),
        ("ALTER POLICY operator_policy ON tenants TO PUBLIC", Status.ERROR, "operator_policy on tenants is for public"),
        (
            "ALTER POLICY operator_context_policy ON tenants TO app_user",
            Status.ERROR,
            "operator_context_policy on tenants is for app_user",
        ),
        (
            "CREATE POLICY support ON worker_failed_jobs FOR SELECT USING (true)",
            Status.WARNING,
            "policy support on worker_failed_jobs is not ours",
        ),
        ("CREATE VIEW failures AS SELECT * FROM worker_failed_jobs", Status.WARNING, "view failures acts"),
        ("CREATE MATERIALIZED VIEW kept AS SELECT * FROM tenants", Status.WARNING, "materialised view kept"),
    ],
)
def test_row_level_security_that_has_a_hole(
    environment: dict[str, str], database: Database, tmp_path: Path, defect: str, status: Status, said: str
) -> None:
    run(database.owner_url, defect)
    found = only(environment, tmp_path)
    assert (found.name, found.status) == ("postgres.row-level-security", status)
    assert said in found.found
    # What it advises mends it.
    advice = found.advice.rpartition(": ")[2]
    run(database.owner_url, "DROP MATERIALIZED VIEW kept" if "kept" in said else advice)
    assert wrong(environment, tmp_path) == []


def test_a_restrictive_policy_and_a_good_view_are_nobodys_business(
    environment: dict[str, str], database: Database, tmp_path: Path
) -> None:
    run(
        database.owner_url,
        "CREATE POLICY less ON worker_failed_jobs AS RESTRICTIVE USING (true)",
        "CREATE VIEW failures WITH (security_invoker) AS SELECT * FROM worker_failed_jobs",
    )
    assert wrong(environment, tmp_path) == []


def test_a_table_that_is_gone_or_the_applications(
    environment: dict[str, str], database: Database, tmp_path: Path
) -> None:
    run(database.owner_url, "DROP TABLE attribution_allocations")
    assert "there is no table attribution_allocations" in only(environment, tmp_path).found
    run(database.owner_url, "CREATE TABLE attribution_allocations (id integer)")
    found = only(environment, tmp_path)
    assert found.status is Status.WARNING
    assert "attribution_allocations belongs to the application" in found.found


def test_a_right_that_is_missing(environment: dict[str, str], database: Database, tmp_path: Path) -> None:
    run(database.owner_url, "REVOKE INSERT, UPDATE ON worker_failed_jobs FROM app_user")
    found = only(environment, tmp_path)
    assert (found.name, found.status) == ("postgres.rights", Status.ERROR)
    assert "lacks INSERT, UPDATE on worker_failed_jobs" in found.found
    run(database.owner_url, found.advice)
    assert wrong(environment, tmp_path) == []


def test_a_schema_that_may_not_be_used(environment: dict[str, str], database: Database, tmp_path: Path) -> None:
    run(database.admin_url, "REVOKE USAGE ON SCHEMA public FROM PUBLIC, app_user")
    found = [f for f in wrong(environment, tmp_path) if f.name == "postgres.rights"]
    assert [f.found.partition(" does not see ")[2] for f in found] == [
        "worker_failed_jobs, which is in schema public"
    ] * 2


def test_a_database_that_is_read_only(environment: dict[str, str], database: Database, tmp_path: Path) -> None:
    run(database.admin_url, f"ALTER DATABASE {database.name} SET default_transaction_read_only = on")
    found = wrong(environment, tmp_path)
    assert {(f.name, f.status) for f in found} == {("postgres.writable", Status.ERROR)}


def test_credentials_of_two_databases(
    environment: dict[str, str], cluster: Cluster, template: Database, tmp_path: Path
) -> None:
    with cluster.database(template.name) as other:
        found = only({**environment, "OPERATOR_DATABASE_URL": other.operator_url}, tmp_path)
    assert (found.name, found.status) == ("postgres.same-database", Status.ERROR)


def test_a_console_without_tokens(environment: dict[str, str]) -> None:
    found = only({**environment, "CONSOLE_TOKENS": ""}, ROOT)
    assert (found.name, found.status) == ("procfile.console", Status.WARNING)


def test_too_few_connections(environment: dict[str, str], database: Database) -> None:
    run(database.admin_url, f"ALTER DATABASE {database.name} CONNECTION LIMIT 20")
    found = only(environment, ROOT)
    assert (found.name, found.status) == ("postgres.connections", Status.WARNING)
    assert "up to 52 connections, and Postgres has 20" in found.found


# --- Redis ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "name", "status", "said"),
    [
        ({"maxmemory": "50mb", "maxmemory-policy": "allkeys-lru"}, "eviction", Status.ERROR, "throws messages away"),
        ({"maxmemory": "50mb", "maxmemory-policy": "volatile-ttl"}, "eviction", Status.WARNING, "though no messages"),
        ({"appendonly": "no", "save": ""}, "persistence", Status.ERROR, "nothing is on disk"),
        ({"appendonly": "no", "save": "3600 1"}, "persistence", Status.WARNING, "snapshots only (save 3600 1)"),
        ({"appendfsync": "everysec"}, "persistence", Status.WARNING, "about the last second"),
        ({"cluster-enabled": "yes"}, "mode", Status.ERROR, "cluster mode"),
    ],
)
def test_a_redis_that_can_lose_messages(
    environment: dict[str, str], tmp_path: Path, config: dict[str, str], name: str, status: Status, said: str
) -> None:
    with running_redis(**{"appendonly": "yes", "appendfsync": "always", **config}) as url:
        found = {f.name: f for f in wrong({**environment, "REDIS_URL": url}, tmp_path)}
    assert found[f"redis.{name}"].status is status
    assert said in found[f"redis.{name}"].found
    # Nothing else is wrong with it, but that it has no worker; a cluster without slots answers nothing.
    assert {*found} - {f"redis.{name}"} == ({"redis.rights", "queues"} if name == "mode" else {"queues.consumers"})


def test_a_replica(environment: dict[str, str], good_redis: str, tmp_path: Path) -> None:
    _, port = good_redis.removesuffix("/0").rsplit(":", 1)
    with running_redis(appendonly="yes", appendfsync="always", replicaof=f"127.0.0.1 {port}") as url:
        found = {f.name: f.status for f in wrong({**environment, "REDIS_URL": url}, tmp_path)}
    assert found["redis.role"] is Status.ERROR
    assert found["redis.rights"] is Status.ERROR


@pytest.fixture
def redis_user(durable_redis: str) -> Iterator[Callable[[str], str]]:
    """Make a Redis user with rights and give its URL."""
    with closing(redis.Redis.from_url(durable_redis)) as admin:

        def make(rights: str) -> str:
            admin.execute_command("ACL", "SETUSER", "checked", "reset", "on", ">hunter2secret", *rights.split())
            return durable_redis.replace("redis://", "redis://checked:hunter2secret@")

        yield make
        admin.execute_command("ACL", "DELUSER", "checked")


def test_a_managed_redis_that_forbids_config(
    environment: dict[str, str], redis_user: Callable[[str], str], tmp_path: Path
) -> None:
    environment["REDIS_URL"] = redis_user("~dramatiq* +@all -@admin -@dangerous +info")
    assert wrong(environment, tmp_path) == []


@pytest.mark.parametrize("lacking", ["eval", "blmove", "hsetnx", "zrangebyscore"])
def test_a_redis_user_that_lacks_a_right(
    environment: dict[str, str], redis_user: Callable[[str], str], tmp_path: Path, lacking: str
) -> None:
    found = only({**environment, "REDIS_URL": redis_user(f"~* +@all -{lacking}")}, tmp_path)
    assert (found.name, found.status) == ("redis.rights", Status.ERROR)
    assert lacking in found.found


def test_a_redis_user_without_the_namespace_itself(
    environment: dict[str, str], redis_user: Callable[[str], str], tmp_path: Path
) -> None:
    found = only({**environment, "REDIS_URL": redis_user("~dramatiq:* +@all")}, tmp_path)
    assert (found.name, found.status) == ("redis.rights", Status.ERROR)


def test_a_redis_that_tells_nothing(
    environment: dict[str, str], redis_user: Callable[[str], str], tmp_path: Path
) -> None:
    found = wrong({**environment, "REDIS_URL": redis_user("~* +@all -info -config")}, tmp_path)
    assert {f.status for f in found} == {Status.WARNING}
    assert all("could not be read" in f.found for f in found)


# --- Queues -----------------------------------------------------------------------------------------


def send(url: str, queue: str) -> None:
    with closing(redis.Redis.from_url(url)) as client:
        client.hset("dramatiq:" + queue + ".msgs", "id", Message(queue, "a", (), {}, {}).encode())
        client.rpush("dramatiq:" + queue, "id")


def test_messages_that_nobody_consumes(
    environment: dict[str, str], durable_redis: str, database: Database, tmp_path: Path
) -> None:
    settings = Settings.load({**environment, "EXTRA_QUEUES": "emails"})
    send(durable_redis, "emails")
    send(durable_redis, "strange")
    undeclared = only(environment, tmp_path)
    assert (undeclared.name, undeclared.status) == ("queues.consumers", Status.WARNING)
    assert "emails (1), strange (1)" in undeclared.found
    declared = wrong({**environment, "EXTRA_QUEUES": "emails"}, tmp_path)
    assert [f.found.partition(": ")[2] or f.found for f in declared] == ["strange (1)", "no worker consumes emails (1)"]
    with closing(make_broker(settings)) as broker:
        broker.consume("emails")
        assert "emails" not in only({**environment, "EXTRA_QUEUES": "emails"}, tmp_path).found


def test_a_queue_that_is_paused(environment: dict[str, str], durable_redis: str, tmp_path: Path) -> None:
    send(durable_redis, "llm")
    with closing(redis.Redis.from_url(durable_redis)) as client:
        pause(client, "llm", by="ann", reason="broken")
        found = only(environment, tmp_path)
        assert (found.name, found.status, found.advice) == (
            "queues.paused",
            Status.WARNING,
            "worker queues resume llm",
        )
        assert found.found.startswith("llm has been paused since ")
        assert found.found.endswith(" UTC by ann (broken), messages in it: 1")
        resume(client, "llm", by="ann")
        assert wrong(environment, tmp_path) == []


def test_no_worker_at_all(environment: dict[str, str], durable_redis: str, tmp_path: Path) -> None:
    with closing(redis.Redis.from_url(durable_redis)) as client:
        client.flushall()
    send(durable_redis, "llm")
    found = only(environment, tmp_path)
    assert (found.status, found.found) == (Status.WARNING, "no worker is up, and messages wait: llm (1)")


def test_stock_workers_that_live_and_that_are_gone(
    environment: dict[str, str], durable_redis: str, tmp_path: Path
) -> None:
    stock = RedisBroker(url=durable_redis, middleware=[])
    with closing(stock.client):
        stock.declare_queue("llm")
        stock.enqueue(Message("llm", "a", (), {}, {}))
        # A producer is welcome.
        assert wrong(environment, tmp_path) == []
        consumer = stock.consume("llm", prefetch=1, timeout=1000)
        assert next(consumer) is not None
        found = only(environment, tmp_path)
        assert (found.name, found.status) == ("queues.stock-workers", Status.WARNING)
        stock.client.zadd("dramatiq:__heartbeats__", {stock.broker_id: 1})
        found = only(environment, tmp_path)
        assert (found.name, found.status) == ("queues.left-behind", Status.WARNING)
        assert "1 messages are held" in found.found


# --- Out of reach -----------------------------------------------------------------------------------


@contextmanager
def silent_server() -> Iterator[int]:
    """The port of a server that takes connections, and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_servers_out_of_reach_do_not_keep_the_others(environment: dict[str, str], tmp_path: Path) -> None:
    with silent_server() as port:
        bad = {
            "OPERATOR_DATABASE_URL": f"postgres://u:hunter2secret@127.0.0.1:{port}/x",
            "MIGRATION_DATABASE_URL": "postgres://u:hunter2secret@127.0.0.1:1/x",
            "REDIS_URL": f"redis://:hunter2secret@127.0.0.1:{port}/0",
        }
        found = check({**environment, **bad}, tmp_path)
    errors = [f for f in found if f.status is Status.ERROR]
    assert [f.name for f in errors] == ["postgres.reachable", "postgres.reachable", "redis.reachable"]
    assert "Connection refused" in errors[1].found
    assert "hunter2secret" not in repr(found)
    # What can be told without them is told.
    assert "postgres.row-level-security" in {f.name for f in found if f.status is Status.OK}


def test_a_wrong_password_is_not_repeated(
    environment: dict[str, str], database: Database, good_redis: str, cluster: Cluster, tmp_path: Path
) -> None:
    bad = {
        # Refused also where a server trusts everybody.
        "DATABASE_URL": cluster.url("nobody", database.name).replace(cluster.password, "hunter2secret"),
        "REDIS_URL": good_redis.replace("redis://", "redis://nobody:hunter2secret@"),
    }
    found = check({**environment, **bad}, tmp_path)
    assert [f.name for f in found if f.status is Status.ERROR] == ["postgres.reachable", "redis.reachable"]
    assert "hunter2secret" not in repr(found)
    assert cluster.password not in repr(found)


def test_settings_that_are_wrong_are_all_named(environment: dict[str, str], tmp_path: Path) -> None:
    found = wrong({**environment, "MAX_RETRIES": "many", "REDIS_URL": "http://u:hunter2@h"}, tmp_path)
    assert [(f.name, f.found.partition(":")[0]) for f in found] == [
        ("settings", "REDIS_URL"),
        ("settings", "MAX_RETRIES"),
    ]
    assert "hunter2" not in repr(found)


def test_tests_settings_are_no_deployment(environment: dict[str, str], tmp_path: Path) -> None:
    found = only({**environment, "REDIS_URL": "stub://"}, tmp_path)
    assert (found.name, found.status) == ("settings", Status.ERROR)


def test_workers_need_a_url_of_their_own(environment: dict[str, str], tmp_path: Path) -> None:
    del environment["DATABASE_URL"]
    found = only(environment, tmp_path)
    assert (found.name, found.status) == ("settings", Status.ERROR)
    assert "DATABASE_URL: required" in found.found


# --- Procfile ---------------------------------------------------------------------------------------


def project(folder: Path, procfile: str, **modules: str) -> Path:
    (folder / "Procfile").write_text(procfile)
    for name, code in modules.items():
        (folder / f"{name}.py").write_text(code)
    return folder


FOUR = "all: dramatiq worker.attribution worker.llm worker.maintenance worker.housekeeping --processes 1\n"
SCHEDULER = "scheduler: worker scheduler\n"


def test_queues_that_no_entry_consumes(environment: dict[str, str], tmp_path: Path) -> None:
    procfile = "attribution: dramatiq worker.attribution -p 1\nrest: dramatiq worker.llm --queues maintenance -p 1\n"
    found = only(environment, project(tmp_path, procfile + SCHEDULER))
    assert (found.name, found.status) == ("procfile.queues", Status.ERROR)
    assert "no entry consumes housekeeping, llm: " in found.found


def test_a_queue_that_the_application_declares(environment: dict[str, str], tmp_path: Path) -> None:
    code = "from worker.routing import register\nregister('mails', 'emails')\nprint('noise')\n"
    found = only(environment, project(tmp_path, FOUR + SCHEDULER + "mails: dramatiq mails --processes 1\n", mails=code))
    assert found.found == "no worker consumes emails"


def test_what_has_a_schedule_and_nobody_to_send_it(environment: dict[str, str], tmp_path: Path) -> None:
    code = (
        "from worker.routing import actor, register\nregister('mails', 'llm')\n"
        "@actor(tenant_scoped=False, schedule='0 3 * * *')\ndef digest(): pass\n"
    )
    folder = project(tmp_path, FOUR + "mails: dramatiq mails --processes 1\n", mails=code)
    named, _ = sorted(wrong({**environment, "SCHEDULE_OFF": "mails.other"}, folder), key=lambda f: f.status)
    assert (named.name, named.status) == ("settings.schedule", Status.ERROR)
    assert named.found.startswith(
        "SCHEDULE_OFF: no actor 'mails.other' has a schedule; those that have: mails.digest, "
    )
    found = only({**environment, "SCHEDULE": "mails.digest=0 4 * * *"}, folder)
    assert (found.name, found.status) == ("procfile.scheduler", Status.WARNING)


def test_a_module_that_cannot_be_imported(environment: dict[str, str], tmp_path: Path) -> None:
    procfile = FOUR + SCHEDULER + "mails: dramatiq mails --processes 1\nnone: dramatiq no.such --processes 1\n"
    code = "raise RuntimeError('no api_key=hunter2secret')"
    found = wrong(environment, project(tmp_path, procfile, mails=code))
    assert [(f.name, f.status) for f in found] == [("procfile.imports", Status.ERROR)] * 2
    assert "mails would not start: mails: RuntimeError" in found[0].found
    assert "No module named 'no'" in found[1].found
    assert "hunter2secret" not in repr(found)


def test_entries_that_ask_for_too_much(environment: dict[str, str], tmp_path: Path) -> None:
    # The first of the four says neither.
    procfile = FOUR.replace("--processes 1", "", 1) + SCHEDULER
    slow = {**environment, "STOP_WITHIN": "50"}
    *timeouts, processes = sorted(wrong(slow, project(tmp_path, procfile)), key=lambda f: f.status)
    assert {(f.name, f.status) for f in timeouts} == {("procfile.stop-timeout", Status.ERROR)}
    assert (processes.name, processes.status) == ("procfile.processes", Status.WARNING)
    patient = check_deployment(slow, folder=tmp_path, stop_timeout=60)
    assert [f.name for f in patient if f.status is not Status.OK] == ["procfile.processes"]
    # Heroku's cannot be changed.
    on_heroku = check_deployment({**slow, "DYNO": "all.1"}, folder=tmp_path, stop_timeout=60)
    assert "procfile.stop-timeout" in {f.name for f in on_heroku if f.status is Status.ERROR}


def test_a_procfile_that_is_named_must_be_there(environment: dict[str, str], tmp_path: Path) -> None:
    found = check_deployment(environment, folder=tmp_path, procfile=tmp_path / "none")
    (missing,) = [f for f in found if f.status is not Status.OK]
    assert (missing.name, missing.status) == ("procfile", Status.ERROR)
