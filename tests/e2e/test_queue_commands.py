"""``worker queues``, as people and scripts call it."""

from __future__ import annotations

import getpass
import json
import os
import pty
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
import redis
from dramatiq import Message
from typer.testing import CliRunner, Result

from tests.forks import Fork
from tests.integration.nothing_lost import put
from tests.servers import Database
from worker.cli import app, queues
from worker.queue_admin import pauses

ROOT = Path(__file__).parents[2]
ACME, GLOBEX = UUID(int=0xA), UUID(int=0xB)


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture(autouse=True)
def environment(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", redis_url)
    # Redis alone is asked.
    monkeypatch.setenv("DATABASE_URL", "postgres://nobody:hunter2@127.0.0.1:1/none")
    monkeypatch.setenv("EXTRA_QUEUES", "emails")
    monkeypatch.delenv("WORKER_OPERATOR", raising=False)


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """What was audited."""
    told: list[tuple[str, dict[str, Any]]] = []
    for name in ("audit", "strict_audit"):
        monkeypatch.setattr(queues, name, lambda event, **said: told.append((event, said)))
    return told


def run(*words: str) -> Result:
    return CliRunner().invoke(app, ["queues", *words])


def fill(client: redis.Redis, queue: str = "llm", count: int = 3, tenant: UUID = ACME, actor: str = "a") -> None:
    for n in range(count):
        redis_id = f"{tenant}-{actor}-{n}"
        options = {"redis_message_id": redis_id, "tenant_id": str(tenant)}
        put(client, redis_id, Message(queue, actor, (), {}, options).encode(), queue)


def minute(client: redis.Redis) -> int:
    """Return the server's; what is two minutes ago now was full a minute ago, and will be for a few."""
    found: Any = client.time()
    return int(found[0] // 60)


class TestList:
    def test_for_people(self, client: redis.Redis) -> None:
        fill(client, count=1_234)
        fill(client, "strange", 1)
        client.hset(f"dramatiq:__dramaturg__.ended.{minute(client)}", "failed:llm", "7")
        client.hset(f"dramatiq:__dramaturg__.ended.{minute(client) - 2}", "succeeded:llm", "12345")
        client.lmove("dramatiq:strange", "dramatiq:__dramaturg__.suspects.strange", "LEFT", "RIGHT")
        run("pause", "emails", "--by", "ann", "--reason", "[red]broken")
        done = run("list")
        assert done.exit_code == 0
        lines = {line.split()[0]: line for line in done.stdout.splitlines()}
        assert set(lines) >= {"attribution", "llm", "maintenance", "housekeeping", "emails", "strange"}
        assert all(len(line) <= 80 for line in done.stdout.splitlines()[:7])
        assert lines["queue"].split() == [
            "queue", "waiting", "delayed", "running", "oldest", "/min", "failed/h", "consumers", "state",
        ]  # fmt: skip
        assert lines["llm"].split()[1] == "1,234"
        assert lines["llm"].split()[-5:] == ["2,469", "7", "0", "no", "workers"]
        assert lines["emails"].split()[-4:] == ["0", "0", "0", "paused"]
        assert all("no workers" in lines[name] for name in ("llm", "attribution"))
        assert "paused" in lines["emails"]
        # Neither on a pipe, nor by what an operator wrote.
        assert "\x1b" not in done.stdout
        paused, suspect = done.stdout.splitlines()[-2:]
        assert paused.startswith("emails: paused since ")
        assert paused.endswith(" UTC by ann: [red]broken")
        assert suspect == "strange: 1 message that ran when a worker was lost, waiting to run alone"

    def test_for_programs(self, client: redis.Redis) -> None:
        fill(client, count=2)
        counts: dict[Any, Any] = {"succeeded:llm": 10, "failed:llm": 5, "retried:llm": 3}
        client.hset(f"dramatiq:__dramaturg__.ended.{minute(client) - 2}", mapping=counts)
        run("pause", "llm", "--by", "ann", "--reason", "broken")
        states = {state["name"]: state for state in json.loads(run("list", "--json").stdout)}
        assert list(states) == ["attribution", "llm", "maintenance", "housekeeping", "emails"]
        pause = states["llm"].pop("pause")
        assert (pause["by"], pause["reason"], pause["since"][-6:]) == ("ann", "broken", "+00:00")
        assert 0 <= states["llm"].pop("oldest") < 60
        assert states["llm"] == {
            "name": "llm", "waiting": 2, "delayed": 0, "running": 0, "suspects": 0, "consumers": [],
            "stock_consumers": 0, "ended_a_minute": 3.0,
            "last_hour": {"succeeded": 10, "failed": 5, "retried": 3},
            # Postgres is not there to be asked.
            "outbox": None,
        }  # fmt: skip
        assert states["emails"]["oldest"] is states["emails"]["pause"] is None


class TestShares:
    def test_what_a_tenant_has_is_set_shown_and_taken_back(
        self, client: redis.Redis, events: list[tuple[str, dict[str, Any]]]
    ) -> None:
        fill(client, count=30)
        fill(client, count=2, tenant=GLOBEX)
        assert run("share", "llm", "--tenant", str(ACME), "--weight", "0.5", "--by", "ann").stdout == (
            f"In llm tenant {ACME}: weight 0.5, limit as everybody.\n"
        )
        done = run("share", "llm", "--default", "--limit", "3", "--reason", "their API", "--by", "ann")
        assert done.stdout == "In llm everybody: weight as everybody, limit 3.\n"
        run("share", "llm", "--nobody", "--limit", "0", "--by", "bob")
        done = run("list", "--by-tenant", "--most", "1")
        lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
        assert lines[0] == "llm waiting running oldest weight limit"
        assert lines[1].startswith(f"{ACME} 30 0 ")
        assert lines[1].endswith(" s 0.5 3")
        assert lines[2] == "llm: 1 tenant more, with less; --most shows more"
        assert [line.partition(" since ")[0] for line in lines[3:]] == [
            "llm: everybody has limit 3", "llm: jobs without a tenant has no limit", f"llm: {ACME} has weight 0.5",
        ]  # fmt: skip
        assert lines[3].endswith("UTC by ann: their API")
        (found,) = json.loads(run("list", "--by-tenant", "--json").stdout)
        assert [(one["tenant_id"], one["waiting"], one["weight"], one["limit"]) for one in found["tenants"]] == [
            (str(ACME), 30, 0.5, 3), (str(GLOBEX), 2, 1, 3),
        ]  # fmt: skip
        assert (found["queue"], found["count"], found["unsorted"], set(found["shares"])) == (
            "llm", 2, 0, {"*", "-", str(ACME)},
        )  # fmt: skip
        assert run("unshare", "llm", "--tenant", str(ACME)).stdout == (
            f"In llm tenant {ACME} has no share of its own any more.\n"
        )
        assert run("unshare", "llm", "--tenant", str(ACME)).stdout == f"In llm tenant {ACME} had no share of its own.\n"
        assert [(event, said["changed_by"], said["reason"]) for event, said in events[:2]] == [
            ("queue_shared", "ann", None), ("queue_shared", "ann", "their API"),
        ]  # fmt: skip
        assert len(events) == 4

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (("nowhere", "--default", "--weight", "2"), "there is no queue 'nowhere'"),
            (("llm", "--weight", "2"), "say one of --tenant, --default and --nobody"),
            (("llm", "--default", "--nobody", "--weight", "2"), "say one of --tenant"),
            (("llm", "--default"), "--weight or --limit: say one of them"),
            (("llm", "--default", "--weight", "-1"), "--weight: -1 is not from 0.01 to 1,000"),
            (("llm", "--default", "--limit", "-1"), "--limit: -1 is not from 0"),
        ],
    )
    def test_what_is_wrong_is_named(self, words: tuple[str, ...], said: str) -> None:
        done = run("share", *words)
        assert done.exit_code == 1
        assert said in done.stderr

    def test_without_turns_it_says_so(self, monkeypatch: pytest.MonkeyPatch, events: list[Any]) -> None:
        monkeypatch.setenv("FAIR", "no")
        assert "FAIR is off here" in run("share", "llm", "--default", "--limit", "1").stdout

    def test_merging(self, client: redis.Redis) -> None:
        assert run("list", "--by-tenant").stdout == "No queue holds anything.\n"
        client.zadd("dramatiq:__dramaturg__.turns.llm", {ACME.hex: 0})
        client.rpush(f"dramatiq:__dramaturg__.lane.llm.{ACME.hex}", "1", "2")
        assert run("merge", "llm").stdout == "Put back into the list of llm: 2 messages.\n"
        assert client.lrange("dramatiq:llm", 0, -1) == [b"1", b"2"]


class TestWorkers:
    def run_(self, *words: str) -> Result:
        done = CliRunner().invoke(app, ["workers", "list", *words])
        assert done.exit_code == 0
        return done

    def test_nobody(self) -> None:
        assert self.run_().stdout.startswith("No worker lives.")
        assert json.loads(self.run_("--json").stdout) == []

    def test_what_each_runs(self, client: redis.Redis) -> None:
        own, now = "dramatiq:__dramaturg__.", int(client.time()[0])
        options = {"redis_message_id": "1", "tenant_id": str(ACME)}
        client.zadd(f"{own}alive", {"one": now * 1000})
        client.sadd(f"{own}queues.one", "llm", "llm.DQ", "emails")
        facts = {"worker": "web.1/\x1b[31m7", "threads": 4, "resident": 93, "since": now - 7_200, "at": now}
        client.hset(f"{own}facts", "one", json.dumps({**facts, "stopping": True}))
        for n, data in enumerate([b"{", Message("llm", "a.job", ("secret",), {}, options, "m-1").encode()]):
            client.hset(f"{own}started.one", f"llm:{n}", str((now - 60 + n) * 1000))
            client.sadd("dramatiq:__acks__.one.llm", str(n))
            client.hset("dramatiq:llm.msgs", str(n), data)
        lines = self.run_().stdout.splitlines()
        assert lines[0].split() == ["worker", "queues", "running", "threads", "memory", "up", "heard", "of"]
        assert lines[1].split()[:9] == ["web.1/\\x1b[31m7", "emails,", "llm", "2", "4", "93", "MiB", "2", "h"]
        assert [line.partition(": ")[2].rpartition(", for ")[0] or line.partition(": ")[2] for line in lines[2:]] == [
            "was told to stop",
            "message 0 of queue llm, which cannot be read",
            f"job m-1 of tenant {ACME}",
        ]
        (state,) = json.loads(self.run_("--json").stdout)
        assert (state["threads"], state["more"], state["queues"]) == (4, 0, ["emails", "llm"])
        (unread, read) = state["running"]
        assert (unread["redis_id"], unread["actor"]) == ("0", None)
        assert (read["actor"], read["tenant_id"], read["message_id"]) == ("a.job", str(ACME), "m-1")
        assert "secret" not in "".join(lines) + json.dumps(state)


class TestPauseAndResume:
    def test_each_says_what_it_did_and_is_audited(
        self, client: redis.Redis, events: list[tuple[str, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fill(client, count=1)
        monkeypatch.setenv("WORKER_OPERATOR", "ann")
        done = run("pause", "llm", "--reason", "broken")
        assert (done.exit_code, done.stdout) == (0, "llm is paused; 1 message waiting, 0 with workers.\n")
        again = run("pause", "llm", "--by", "bob")
        assert again.exit_code == 0
        assert again.stdout.startswith("llm was paused already since ")
        assert again.stdout.endswith(" UTC by ann: broken.\n")
        assert set(pauses(client)) == {"llm"}
        resumed = run("resume", "llm", "--by", "bob")
        assert "llm is resumed; it was paused since " in resumed.stdout
        assert (run("resume", "llm").exit_code, run("resume", "llm").stdout) == (0, "llm was not paused.\n")
        assert pauses(client) == {}
        assert [(event, said["changed_by"]) for event, said in events] == [
            ("queue_paused", "ann"), ("queue_resumed", "bob"),
        ]  # fmt: skip

    def test_by_default_it_was_this_user(self, client: redis.Redis) -> None:
        run("pause", "llm")
        assert pauses(client)["llm"].by == f"{getpass.getuser()}@{socket.gethostname()}"

    def test_a_user_without_a_name_has_a_number(self, client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
        def nobody() -> str:
            raise KeyError("uid not found")

        monkeypatch.setattr("worker.cli.operator.getpass.getuser", nobody)
        run("pause", "llm")
        assert pauses(client)["llm"].by == f"uid{os.getuid()}@{socket.gethostname()}"


@pytest.fixture
def with_history(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Postgres that keeps the history, without which nothing is removed."""
    for name, value in database.environment().items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("with_history")
class TestPurge:
    def test_nobody_can_be_asked(self, client: redis.Redis, events: list[Any]) -> None:
        fill(client)
        done = run("purge", "llm")
        assert done.exit_code == 1
        said = "worker: this would remove 3 waiting messages, 0 delayed in queue llm: say --yes"
        assert done.stderr.startswith(said)
        assert (client.llen("dramatiq:llm"), events) == (3, [])

    def test_with_yes(self, client: redis.Redis, events: list[tuple[str, dict[str, Any]]]) -> None:
        fill(client)
        fill(client, tenant=GLOBEX)
        fill(client, tenant=GLOBEX, actor="b")
        done = run("purge", "llm", "--tenant", str(GLOBEX), "--actor", "b", "--yes", "--by", "ann", "--reason", "left")
        assert (done.exit_code, done.stdout) == (0, "Removed: 3 waiting messages, 0 delayed. 0 with workers, left.\n")
        ((event, said),) = events
        assert (event, said["changed_by"], said["reason"], said["tenant_id"]) == (
            "messages_purged",
            "ann",
            "left",
            GLOBEX,
        )
        done = run("purge", "llm", "--yes", "--json")
        assert json.loads(done.stdout) == {
            "queue": "llm", "waiting": 6, "delayed": 0, "suspects": 0, "running": 0, "outbox": 0, "released": 0,
        }  # fmt: skip
        assert json.loads(run("purge", "llm", "--json").stdout)["waiting"] == 0

    def test_tenants_and_actors_as_the_commands_about_failures_take_them(
        self, client: redis.Redis, database: Database
    ) -> None:
        with psycopg.connect(database.admin_url) as connection:
            connection.execute("INSERT INTO tenants (id, name) VALUES (%s, 'Acme'), (%s, 'Globex')", [ACME, GLOBEX])
        for actor in ("worker.llm.ask", "shop.ask", "mask", "ask.others"):
            fill(client, actor=actor)
            fill(client, actor=actor, tenant=GLOBEX)
        said = json.loads(run("purge", "llm", "--tenant", "Globex", "--actor", "ask", "--yes", "--json").stdout)
        assert said["waiting"] == 6
        assert client.llen("dramatiq:llm") == 18
        # One that is called so is meant alone.
        fill(client, actor="ask")
        done = run("purge", "llm", "--actor", "ask")
        assert "3 waiting messages, 0 delayed of actor ask in queue llm" in done.stderr
        assert json.loads(run("purge", "llm", "--actor", "ask", "--yes", "--json").stdout)["waiting"] == 3
        done = run("purge", "llm", "--actor", "ask")
        assert "6 waiting messages, 0 delayed of actors whose name ends with .ask in queue llm" in done.stderr

    @pytest.mark.parametrize("tenant", ["Nobody", ""])
    def test_a_tenant_that_is_nobody(self, client: redis.Redis, tenant: str) -> None:
        fill(client)
        done = run("purge", "llm", "--tenant", tenant, "--yes")
        said = f"worker: tenant must be a UUID or the name of one that is there, not {tenant!r}\n"
        assert (done.exit_code, done.stderr) == (1, said)
        assert client.llen("dramatiq:llm") == 3

    @pytest.mark.parametrize(("answer", "left"), [("y", 3), ("n", 6), ("", 6)])
    def test_it_asks_whoever_is_there_with_the_counts(self, client: redis.Redis, answer: str, left: int) -> None:
        fill(client)
        fill(client, tenant=GLOBEX)
        said, status = on_a_terminal("queues", "purge", "llm", "--tenant", str(GLOBEX), answer=answer)
        assert f"Remove 3 waiting messages, 0 delayed of tenant {GLOBEX} in queue llm, for ever? [y/N]" in said
        assert (client.llen("dramatiq:llm"), status) == (left, 0 if left == 3 else 1)
        assert ("nothing was removed" in said) == (left == 6)


class TestWhatIsWrong:
    @pytest.mark.parametrize("command", ["pause", "resume", "purge"])
    def test_a_queue_that_is_not_there(self, command: str) -> None:
        done = run(command, "lmm")
        assert done.exit_code == 1
        known = "attribution, llm, maintenance, housekeeping, emails"
        assert done.stderr == f"worker: there is no queue 'lmm', but {known} (EXTRA_QUEUES declares more)\n"

    def test_an_actor_without_a_name(self) -> None:
        done = run("purge", "llm", "--actor", "", "--yes")
        assert (done.exit_code, done.stderr) == (1, "worker: actor: must not be empty\n")

    def test_a_redis_that_cannot_be_reached(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("REDIS_URL", "redis://:hunter2@127.0.0.1:1/0")
        done = run("list")
        assert done.exit_code == 2
        assert done.stderr.startswith("worker: Redis cannot be asked: ")
        assert "hunter2" not in done.stderr

    def test_tests_settings_have_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("REDIS_URL", "stub://")
        assert run("list").exit_code == 2


@pytest.mark.parametrize(("no_color", "coloured"), [("", True), ("1", False)])
def test_colours_are_for_terminals(client: redis.Redis, no_color: str, coloured: bool) -> None:
    fill(client)
    said, status = on_a_terminal("queues", "list", NO_COLOR=no_color)
    assert status == 0
    assert ("\x1b[1;31mno workers" in said) == coloured


def on_a_terminal(*words: str, answer: str = "", **environment: str) -> tuple[str, int]:
    """Run a command on a terminal; return what it shows, and its exit status."""
    ours, theirs = pty.openpty()
    env = {**{k: v for k, v in os.environ.items() if k != "NO_COLOR"}, "TERM": "xterm", "COLUMNS": "120"}
    env |= {name: value for name, value in environment.items() if value}
    process = Fork(words, cwd=ROOT, env=env, streams=(theirs, theirs, theirs))
    os.close(theirs)
    os.write(ours, f"{answer}\n".encode())
    said = b""
    try:
        while part := os.read(ours, 4096):
            said += part
    except OSError:
        # How Linux says that nobody writes any more.
        pass
    os.close(ours)
    status = process.wait()
    # As wide as it is, or not.
    return " ".join(said.decode().split()), status


@pytest.mark.usefixtures("with_history")
class TestHistory:
    def told(self, database: Database) -> list[tuple[str, str, str | None]]:
        with psycopg.connect(database.admin_url) as connection:
            return connection.execute(
                "SELECT event, changed_by, reason FROM worker_failed_job_events ORDER BY id"
            ).fetchall()

    def test_of_what_was_done_to_a_queue(self, client: redis.Redis, database: Database) -> None:
        fill(client, count=2)
        run("pause", "llm", "--by", "ann", "--reason", "broken")
        run("resume", "llm", "--by", "bob")
        assert run("purge", "llm", "--by", "cay", "--yes").exit_code == 0
        assert self.told(database) == [
            ("queue_paused", "ann", "broken"), ("queue_resumed", "bob", None), ("messages_purged", "cay", None),
        ]  # fmt: skip

    def test_nothing_is_removed_without_it(self, client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OPERATOR_DATABASE_URL", "postgres://nobody:hunter2@127.0.0.1:1/none")
        fill(client, count=2)
        done = run("purge", "llm", "--yes")
        assert done.exit_code == 2
        assert "hunter2" not in done.output
        assert client.llen("dramatiq:llm") == 2

    def test_a_pause_does_not_wait_for_it(self, client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OPERATOR_DATABASE_URL", "postgres://nobody:hunter2@127.0.0.1:1/none")
        done = run("pause", "llm")
        assert done.exit_code == 0
        assert "in the log alone" in done.stderr
        assert set(pauses(client)) == {"llm"}
