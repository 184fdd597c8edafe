"""What ``worker check`` makes of what servers and Procfiles say; the servers' part is an integration test."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

import middleware
from db.models import Base
from worker.check.clock import judge_skew
from worker.check.connections import judge_connections, needed
from worker.check.consumers import Seen
from worker.check.consumers import judge_queues as judge_seen
from worker.check.findings import Finding, Status, error, ok, warning, worst_first
from worker.check.guard import Guard, Task, run_together
from worker.check.language_model import judge_language_model
from worker.check.migrations import judge_revisions
from worker.check.postgres import address, credentials, judge_version, judge_writable
from worker.check.procfile import (
    Entry,
    judge_console,
    judge_processes,
    judge_queues,
    judge_schedule,
    judge_stop_timeouts,
    read_entries,
)
from worker.check.redis_rights import PROBES
from worker.check.redis_server import address as redis_address
from worker.check.redis_server import judge_server
from worker.check.rights import OF_APP_USER
from worker.check.row_level_security import judge_tables
from worker.check.tables import Policy, Table
from worker.procfile import read_procfile
from worker.queues import Queue
from worker.settings import Settings

ROOT = Path(__file__).parents[2]
HEALTHY = {
    "valkey_version": "8.1.0",
    "redis_version": "7.2.4",
    "redis_mode": "standalone",
    "role": "master",
    "maxmemory": 100 * 2**20,
    "used_memory": 10 * 2**20,
    "maxmemory_policy": "noeviction",
    "aof_enabled": 1,
    "aof_last_write_status": "ok",
    "rdb_last_bgsave_status": "ok",
}
ALWAYS = {"appendfsync": "always", "save": ""}


def entries(**commands: str) -> list[Entry]:
    found, wrong = read_entries(commands, {})
    assert wrong == []
    return found


def only(findings: Iterable[Finding]) -> Finding:
    (found,) = [finding for finding in findings if finding.status is not Status.OK]
    assert found.advice
    return found


class TestFindings:
    def test_the_worst_comes_first(self) -> None:
        found = [ok("a", ""), warning("b", "", ""), error("c", "", ""), warning("d", "", "")]
        assert [finding.name for finding in worst_first(found)] == ["c", "b", "d", "a"]


class TestGuard:
    def test_what_is_raised_is_an_error_beside_what_was_found_before(self) -> None:
        def check() -> Iterator[Finding]:
            yield ok("first", "fine")
            raise KeyError("postgres://u:hunter2@h/x")

        first, second = Guard().run("x", check, about="here")
        assert first == ok("first", "fine")
        assert (second.name, second.status) == ("x", Status.ERROR)
        assert second.found.startswith("here: ")
        assert "hunter2" not in second.found

    def test_a_password_that_a_driver_repeats_is_taken_out(self) -> None:
        assert Guard(["pla!n words"]).explain(OSError("no pla!n words here")) == "no [redacted] here"

    def test_one_that_does_not_end_keeps_no_other(self) -> None:
        never = threading.Event()

        def wait() -> list[Finding]:
            never.wait(60)
            return []

        late = error("late", "no answer", "wait")
        found = run_together([Task(wait, 0.05, late), Task(lambda: [ok("fine", "")], 30, late)])
        never.set()
        assert found == [late, ok("fine", "")]


class TestPostgres:
    @pytest.mark.parametrize(("version", "status"), [(140_011, Status.ERROR), (150_000, Status.OK)])
    def test_the_version(self, version: int, status: Status) -> None:
        assert judge_version(version, "x").status is status

    def test_a_replica_takes_no_failures(self) -> None:
        assert judge_writable("x", in_recovery=True, read_only=False).status is Status.ERROR
        assert judge_writable("x", in_recovery=False, read_only=True).status is Status.ERROR
        assert judge_writable("x", in_recovery=False, read_only=False).status is Status.OK

    def test_what_waits_elsewhere_than_in_a_queue(self) -> None:
        seen = Seen({"q": 5}, {"b": {"q"}}, set(), spooled=3, suspects={"q": 2})
        found = {finding.name: finding for finding in judge_seen(seen, ["q"])}
        assert found["queues.spool"].found.startswith("3 failures wait in Redis")
        assert found["queues.suspects"].found.endswith("q (2)")

    def test_an_address_has_no_password(self) -> None:
        assert address("postgres://u:hunter2@h:5433/x?sslpassword=hunter2") == "u@h:5433/x"
        assert address("postgres:///x?host=/run/pg") == "default user@/run/pg:5432/x"

    def test_one_credential_is_asked_once(self) -> None:
        one, two = "postgres://a@h/x", "postgres://b@h/x"
        settings = Settings.load({"DATABASE_URL": one, "OPERATOR_DATABASE_URL": two, "MIGRATION_DATABASE_URL": one})
        assert credentials(settings) == {
            one: ["DATABASE_URL", "MIGRATION_DATABASE_URL"],
            two: ["OPERATOR_DATABASE_URL"],
        }

    @pytest.mark.parametrize(
        ("found", "status", "said"),
        [
            ({"2"}, Status.OK, "up to date (2)"),
            ({"1"}, Status.ERROR, "behind: it is at 1, and this code needs 2"),
            (set(), Status.ERROR, "nothing was migrated yet"),
            ({"3"}, Status.WARNING, "ahead: it is at 3"),
            (None, Status.WARNING, "could not be read"),
        ],
    )
    def test_revisions(self, found: set[str] | None, status: Status, said: str) -> None:
        judged = judge_revisions(found, {"2"}, {"1", "2"})
        assert judged.status is status
        assert said in judged.found

    def test_operators_need_a_policy_of_their_own(self) -> None:
        def judge(policy: str, *, has_operator: bool) -> list[Finding]:
            setting = "app.current_tenant_id"
            policies = [Policy("tenant_isolation_policy", True, True, setting, setting, ["public"])]
            says_so = "current_setting('app.execution_context', true) = 'operator'"
            policies.append(Policy(policy, True, False, says_so, says_so, ["app_operator"]))
            tables = [Table(name, "app_operator", True, True, policies, True) for name in Base.metadata.tables]
            return list(judge_tables(tables, has_operator=has_operator))

        assert judge("operator_policy", has_operator=True) == []
        # With a single credential, it is the owner's.
        assert judge("operator_context_policy", has_operator=False) == []
        assert only(judge("operator_context_policy", has_operator=True)).found.startswith("no operator_policy on ")
        assert "TO CURRENT_USER" in only(judge("operator_policy", has_operator=False)).advice

    def test_connections_are_those_of_the_readme(self) -> None:
        procfile = read_entries(read_procfile(ROOT / "Procfile"), {})[0]
        settings = Settings.load({"DATABASE_URL": "postgres://h/x"})
        assert needed(procfile, settings, 1) == 24 + 20 + 12 + 12
        assert needed(procfile, settings, 2) == 2 * (24 + 20 + 12 + 12)
        assert needed(procfile, settings, 2, consoles=1) == 2 * (24 + 20 + 12 + 12 + 12)
        assert judge_connections(100, 97).status is Status.WARNING
        assert judge_connections(97, 97).status is Status.OK

    def test_rights_are_those_that_migrations_grant(self) -> None:
        source = "".join(path.read_text() for path in (ROOT / "migrations" / "versions").glob("*.py"))
        tables = re.findall(r'Table\(\n    "(\w+)",.*?app_user="([A-Z, ]+)"', source, flags=re.DOTALL)
        granted = {name: tuple(rights.split(", ")) for name, rights in tables}
        # Revision 0004 adds one.
        assert "GRANT DELETE, SELECT (failed_job_id, tenant_id) ON {ORIGINALS} TO app_user" in source
        granted["worker_failed_job_originals"] += ("DELETE",)
        # And what tenants may say of events.
        assert "GRANT INSERT ({_SAID}) ON {EVENTS.name} TO app_user" in source
        (said,) = re.findall(r'_SAID = "(.*?)"', source)
        granted["worker_failed_job_events"] += (f"INSERT ({said})",)
        assert granted == OF_APP_USER


class TestRedis:
    def judge(self, config: dict[str, str] = ALWAYS, **info: Any) -> list[Finding]:
        return list(judge_server({**HEALTHY, **info}, config, "h:6379/0"))

    def test_a_healthy_one(self) -> None:
        assert {finding.status for finding in self.judge()} == {Status.OK}

    @pytest.mark.parametrize(
        ("info", "name", "status"),
        [
            ({"valkey_version": None, "redis_version": "6.2.1"}, "redis.version", Status.ERROR),
            ({"role": "slave"}, "redis.role", Status.ERROR),
            ({"redis_mode": "cluster"}, "redis.mode", Status.ERROR),
            ({"maxmemory_policy": "allkeys-lru"}, "redis.eviction", Status.ERROR),
            ({"maxmemory_policy": "volatile-lru"}, "redis.eviction", Status.WARNING),
            ({"used_memory": 95 * 2**20}, "redis.eviction", Status.WARNING),
            ({"aof_last_write_status": "err"}, "redis.persistence", Status.ERROR),
            ({"rdb_last_bgsave_status": "err"}, "redis.persistence", Status.ERROR),
        ],
    )
    def test_what_is_wrong(self, info: dict[str, Any], name: str, status: Status) -> None:
        found = only(self.judge(**info))
        assert (found.name, found.status) == (name, status)

    def test_nothing_is_evicted_without_a_limit(self) -> None:
        assert {f.status for f in self.judge(maxmemory=0, maxmemory_policy="allkeys-lru")} == {Status.OK}

    @pytest.mark.parametrize(
        ("aof", "config", "status"),
        [
            (1, ALWAYS, Status.OK),
            (1, {"appendfsync": "everysec"}, Status.WARNING),
            (1, {"appendfsync": "no"}, Status.WARNING),
            (1, {}, Status.OK),
            (0, {"save": "3600 1"}, Status.WARNING),
            (0, {}, Status.WARNING),
            (0, {"save": ""}, Status.ERROR),
        ],
    )
    def test_persistence(self, aof: int, config: dict[str, str], status: Status) -> None:
        found = {finding.name: finding.status for finding in self.judge(config, aof_enabled=aof)}
        assert found["redis.persistence"] is status

    def test_what_could_not_be_read_is_said(self) -> None:
        found = list(judge_server({}, {}, "h:6379/0"))
        assert {finding.status for finding in found} == {Status.WARNING}
        assert all("could not be read" in finding.found for finding in found)

    def test_an_address_has_no_password(self) -> None:
        assert redis_address("rediss://u:hunter2@h:6380/3?password=hunter2") == "h:6380/3"
        assert redis_address("redis://:hunter2@h") == "h:6379/0"
        assert redis_address("unix://:hunter2@/run/redis.sock?db=1") == "/run/redis.sock"

    def test_every_command_of_our_scripts_is_tried(self) -> None:
        scripts = (Path(str(middleware.__file__)).parent / "lua").rglob("*.lua")
        used = {command for path in scripts for command in re.findall(r'redis\.p?call\("(\w+)"', path.read_text())}
        assert used
        assert used <= PROBES.keys()


class TestClock:
    @pytest.mark.parametrize(
        ("ahead", "uncertain", "status"),
        [
            (0.2, 0.1, Status.OK),
            (-1.5, 0.1, Status.WARNING),
            # A slow network is no skew.
            (1.5, 0.6, Status.OK),
            (6.0, 0.1, Status.ERROR),
            (-5.05, 0.1, Status.WARNING),
        ],
    )
    def test_skew(self, ahead: float, uncertain: float, status: Status) -> None:
        found = judge_skew("Redis", ahead, uncertain)
        assert found.status is status
        if status is not Status.OK:
            assert ("ahead of" if ahead > 0 else "behind") in found.found


class TestQueues:
    def judge(self, **seen: Any) -> list[Finding]:
        return list(
            judge_seen(Seen(**{"messages": {}, "consumed": {"b": ["a", "a.DQ", "b"]}, "stock": [], **seen}), "ab")
        )

    def test_all_are_consumed(self) -> None:
        assert {finding.status for finding in self.judge(messages={"a": 3})} == {Status.OK}

    def test_one_is_not(self) -> None:
        found = only(self.judge(consumed={"broker": ["a"]}, messages={"a": 9, "b": 1200}))
        assert (found.name, found.status) == ("queues.consumers", Status.WARNING)
        assert "b (1,200)" in found.found
        assert "a (" not in found.found

    def test_nobody_is_up(self) -> None:
        assert only(self.judge(consumed={}, messages={"a": 2})).found == "no worker is up, and messages wait: a (2)"
        assert only(self.judge(consumed={})).found == "no worker is up"

    def test_a_queue_that_nobody_declared(self) -> None:
        found = only(self.judge(messages={"emails": 4}))
        assert "emails (4)" in found.found
        assert "EXTRA_QUEUES=emails" in found.advice

    def test_stock_workers_and_what_they_leave(self) -> None:
        assert only(self.judge(stock={"a"})).name == "queues.stock-workers"
        assert "5 messages" in only(self.judge(left={"a": 2, "b": 3})).found

    def test_keys_that_were_not_looked_at(self) -> None:
        assert only(self.judge(complete=False)).name == "queues.keys"


class TestProcfile:
    def test_ours_is_as_it_should_be(self) -> None:
        found, wrong = read_entries(read_procfile(ROOT / "Procfile"), {})
        assert [entry.name for entry in found] == list(Queue)
        assert [*wrong, *judge_processes(found), *judge_stop_timeouts(found, 30)] == []
        assert found[1].environment == {"DB_POOL_SIZE": "16"}

    @pytest.mark.parametrize(
        "command",
        [
            "dramatiq a.b -p 2",
            "exec dramatiq a.b:broker --processes=2",
            "A=1 /app/bin/dramatiq a.b --processes 2",
            "python -m dramatiq a.b --proc 2",
            "cd x && dramatiq a.b -p 2 | cat",
            "dramatiq a.b -p ${WORKERS:-2}",
            "dramatiq a.b -p $COUNT",
        ],
    )
    def test_commands_are_read_as_hosts_run_them(self, command: str) -> None:
        ((entry,), wrong) = read_entries({"w": command}, {"COUNT": "2"})
        assert wrong == []
        assert (entry.command.modules, entry.command.processes) == (["a.b"], 2)

    def test_what_dramatiq_refuses_is_said(self) -> None:
        found, (wrong, other) = read_entries({"w": "dramatiq a -p many", "x": 'dramatiq "a'}, {})
        assert found == []
        assert "w: dramatiq would refuse its command: " in wrong.found
        assert "'many'" in wrong.found
        assert other.status is Status.ERROR

    def test_processes_are_to_be_said(self) -> None:
        found = only(judge_processes(entries(a="dramatiq a", b="dramatiq b -p 1")))
        assert found.status is Status.WARNING
        assert found.found.startswith("a: ")

    def test_time_to_stop(self) -> None:
        asking = entries(a="dramatiq a", b="env STOP_WITHIN=60 dramatiq b --worker-shutdown-timeout 600000")
        found = only(judge_stop_timeouts(asking, 30))
        assert found.status is Status.ERROR
        assert found.found.startswith("b: ends within 60 s, but the host kills it after 30 s")
        assert found.advice.startswith("STOP_WITHIN=28, ")
        assert list(judge_stop_timeouts(asking, 600)) == []
        assert [f.found[:1] for f in judge_stop_timeouts(asking, 10, 9.5)] == ["a", "b"]

    def test_an_option_that_ends_workers_too_early(self) -> None:
        found = only(judge_stop_timeouts(entries(a="dramatiq a --worker-shutdown-timeout 3000"), 30))
        assert found.status is Status.ERROR
        assert "--worker-shutdown-timeout 3000 ends it before its jobs are interrupted" in found.found

    @pytest.mark.parametrize("command", ["worker console", "exec worker console --host 0.0.0.0"])
    def test_the_console_needs_tokens(self, command: str) -> None:
        commands = {"web": command, "made": "worker console token x", "a": "dramatiq a"}
        found = only(judge_console(commands, {}))
        assert found.status is Status.WARNING
        assert found.found.startswith("web: ")
        assert list(judge_console(commands, {"CONSOLE_TOKENS": "x"})) == []
        assert list(judge_console({"web": "gunicorn myapp"}, {})) == []

    def test_what_has_a_schedule_needs_a_scheduler(self) -> None:
        without, with_one = {"a": "dramatiq a"}, {"a": "dramatiq a", "clock": "exec worker scheduler --module b"}
        found = judge_schedule(without, ["a.x", "a.y"], ["a.y"])
        assert found is not None
        assert (found.status, found.found) == (Status.WARNING, "no entry is a scheduler, and nothing sends a.x")
        assert judge_schedule(without, ["a.x"], ["a.x"]) is None
        assert judge_schedule(without, [], []) is None
        found = judge_schedule(with_one, ["a.x"], [])
        assert found is not None
        assert found.status is Status.OK
        assert judge_schedule(read_procfile(ROOT / "Procfile"), ["a.x"], []) == found

    def test_every_queue_has_an_entry(self) -> None:
        two = entries(a="dramatiq a", b="dramatiq b")
        assert judge_queues(two, {"a": ["a"], "b": ["b"]}, "ab").status is Status.OK
        assert judge_queues(two, {"a": ["a"], "b": None}, "abc").status is Status.OK
        missing = judge_queues(two, {"a": ["a"], "b": []}, ["a", "b", "llm"])
        assert missing.status is Status.ERROR
        assert "no entry consumes b, llm" in missing.found
        assert "llm: dramatiq worker.llm --processes 1" in missing.advice


class TestLanguageModel:
    @pytest.mark.parametrize(
        ("environ", "procfile", "installed", "status", "said"),
        [
            ({}, {}, False, None, ""),
            ({}, {"llm": "dramatiq worker.llm"}, False, Status.OK, "the extra llm is not installed"),
            ({}, {"llm": "dramatiq worker.llm"}, True, Status.WARNING, "LLM_API_KEY is not set"),
            ({"LLM_API_KEY": "k"}, {}, False, Status.WARNING, "openai is not installed"),
            ({"LLM_API_KEY": "k"}, {}, True, Status.OK, "asks gpt-4o-mini; a tenant may spend without a limit"),
            (
                {"LLM_MONTHLY_BUDGET": "500", "LLM_PRICE_INPUT": "1"},
                {"llm": "env LLM_API_KEY=k dramatiq worker.llm"},
                True,
                Status.OK,
                "a tenant may spend 500 cents a month",
            ),
        ],
    )
    def test_it_is_a_warning_at_most(
        self, environ: dict[str, str], procfile: dict[str, str], installed: bool, status: Status | None, said: str
    ) -> None:
        settings = Settings.load({"DATABASE_URL": "postgres://h/x", **environ})
        found = list(judge_language_model(settings, read_entries(procfile, {})[0], installed=installed))
        assert [finding.status for finding in found] == ([status] if status else [])
        assert all(said in finding.found for finding in found)
        assert all(finding.advice for finding in found if finding.status is not Status.OK)
