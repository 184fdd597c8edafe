"""What a scrape says, who may have one, and that there is an answer whatever is away; and the rules for alerts."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

import pytest
import redis
import yaml
from prometheus_client.core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics

from db.errors import ConfigurationError
from db.failed import Filter, stats
from db.failed.levels import levels
from db.session import operator_transaction
from middleware.heartbeat import Heartbeat
from middleware.job_metrics import JobMetrics
from middleware.lua_scripts import Scripts
from middleware.metric_families import FAMILIES
from middleware.metrics import Teller
from middleware.process_facts import process_facts
from tests.integration.command_line import CommandLine
from tests.integration.console import Console
from tests.integration.failed_rows import START, record_at_random
from tests.scraped import Scraped, scraped
from tests.servers import Database
from tests.wire import Wire
from worker.console_tokens import make_token
from worker.metrics import exposition as exposition_module
from worker.metrics.exposition import Exposition, make_exposition
from worker.metrics.latest import Latest
from worker.metrics.serving import check_where, make_server
from worker.queue_admin import pause
from worker.redis_client import make_redis
from worker.scheduler.state import State
from worker.settings import Settings

RULES = Path(exposition_module.__file__).parent / "alerts.yml"
OWN = "dramatiq:__dramaturg__."
NOWHERE = {"DATABASE_URL": "postgresql://u:secret@127.0.0.1:1/gone", "REDIS_URL": "redis://:secret@127.0.0.1:1/0"}


def shown(database: Database, redis_url: str, **environment: str) -> Scraped:
    """Scrape once."""
    settings = Settings.load({**database.environment(), "REDIS_URL": redis_url, **environment})
    with make_redis(settings) as client:
        return scraped(make_exposition(settings, client).render()[0])


@pytest.fixture
def everything(database: Database, redis_url: str) -> Iterator[Scraped]:
    """A scrape of a deployment in which something of every kind is."""
    record_at_random(database, 1)
    with redis.Redis.from_url(redis_url) as client:
        run, counts = Scripts(client, "dramatiq"), JobMetrics()
        for n, family in enumerate(FAMILIES, 1):
            labels = ["attribution" if name == "queue" else "failed" for name in family.labels]
            if family.bounds:
                counts.observe(family, 0.3, *labels)
            else:
                counts.add(family, *labels, n=n)
        assert Teller(counts, run).tell()
        lives = Heartbeat(
            *(run, "lives"), lease=60_000, grace=1, interval=3_600, facts=lambda: process_facts("w", threads=8)
        )
        lives.cover("attribution")
        client.hset(f"{OWN}started.lives", "attribution:r", 1_000)
        client.sadd("dramatiq:__acks__.lives.attribution", "r")
        client.hset("dramatiq:attribution.msgs", mapping={"r": "{}", "w": '{"message_timestamp": 1000}'})
        client.rpush("dramatiq:attribution", "w")
        client.hset(f"{OWN}spool", mapping={"a": "{}", "b": "{}"})
        client.set(f"{OWN}spool.since", 1)
        pause(client, "llm", by="ana")
        state = State(run, "one")
        state.look({"name": "s", "jobs": 3, "next": 1_000.0, "next_job": "app.nightly"}, ())
        sent = {"tick": "0", "message_id": "m", "by": "s"}
        client.hset(f"{OWN}schedule", "sent\n\napp.nightly", f"5000 {json.dumps(sent)}")
        yield shown(database, redis_url)
        lives.stop()


def test_how_things_stand(everything: Scraped, database: Database) -> None:
    assert everything("queue_messages", queue="attribution", state="waiting") == 1
    assert everything("queue_messages", queue="attribution", state="held") == 1
    assert everything("queue_messages", queue="llm", state="waiting") == 0
    assert (everything("queue_oldest_age_seconds", queue="attribution") or 0) > 1e9
    assert (everything("queue_paused", queue="llm"), everything("queue_paused", queue="attribution")) == (1, 0)
    assert everything("queue_consumers", queue="attribution") == 1
    assert (everything("workers", state="running"), everything("workers", state="stopping")) == (1, 0)
    assert (everything("worker_threads"), everything("jobs_running")) == (8, 1)
    assert (everything("running_oldest_age_seconds", queue="attribution") or 0) > 1e9
    assert (everything("worker_resident_max_bytes") or 0) == everything("worker_resident_bytes") > 1e7  # type: ignore[operator]
    assert (everything("spool_messages"), everything("spool_limit_messages")) == (2, 10_000)
    assert (everything("spool_age_seconds") or 0) > 1e9
    assert (everything("schedulers"), everything("scheduler_jobs")) == (1, 3)
    assert (everything("scheduler_late_seconds") or 0) > 1e9
    assert everything("schedule_last_sent_timestamp_seconds", actor="app.nightly") == 5
    assert (everything("redis_memory_used_bytes") or 0) > 1e5
    assert everything.sum("build_info") == 1
    for n, family in enumerate(FAMILIES, 1):
        name = f"{family.name}_bucket" if family.bounds else f"{family.name}_total"
        values = {value for (sample, _), value in everything.samples.items() if sample == f"dramaturg_{name}"}
        assert values == ({0, 1} if family.bounds else {n})
        if family.bounds:
            assert everything.sum(f"{family.name}_count") == 1
            assert everything.sum(f"{family.name}_sum") == pytest.approx(0.3)
    with operator_transaction() as session:
        expected, found = stats(session, Filter(), now=START), levels(session)
    assert found.by_status == expected.by_status
    assert {status: everything("failed_jobs", status=status) for status in found.by_status} == expected.by_status
    assert everything("failed_job_groups", state="open") == expected.open_groups > 0
    assert everything("failed_job_groups", state="regressed") == expected.regressed_groups
    assert everything("failed_jobs_oldest_pending_age_seconds") == pytest.approx(found.oldest_pending, abs=60)
    assert {state: everything("replay_runs", state=state) for state in found.replays} == found.replays


def test_of_nothing_it_is_nothing(database: Database, redis_url: str) -> None:
    found = shown(database, redis_url)
    assert found.sum("jobs_total") == found.sum("queue_messages") == found.sum("failed_jobs") == 0
    assert (found("up", part="redis"), found("up", part="postgres")) == (1, 1)
    assert found("failed_jobs_oldest_pending_age_seconds") == 0
    assert (found("schedulers"), found("scheduler_jobs")) == (0, 0)


def test_the_readme_names_all_of_it(everything: Scraped) -> None:
    table = (Path(__file__).parents[2] / "README.md").read_text("utf-8").split("<!-- metrics -->")[1]
    lines = [line.split("|") for line in table.split("<!-- /metrics -->")[0].splitlines()[3:]]
    said = {name: set(re.findall(r"`(\w+)`", line[2])) for line in lines for name in re.findall(r"`(\w+)`", line[1])}
    found: dict[str, set[str]] = {}
    for sample, labels in everything.samples:
        name = re.sub(r"^dramaturg_|_(bucket|count|sum)$", "", sample)
        found.setdefault(name, set()).update(label for label, _ in labels if label != "le")
    assert said == found


class TestAlerts:
    def test_every_name_in_them_is_one_that_a_scrape_has(self, everything: Scraped) -> None:
        groups = yaml.safe_load(RULES.read_text("utf-8"))["groups"]
        rules = [rule for group in groups for rule in group["rules"]]
        names = [rule["alert"] for rule in rules]
        assert len(names) == len(set(names)) > 20
        for rule in rules:
            used = set(re.findall(r"\bdramaturg_\w+", rule["expr"]))
            assert used, rule
            assert used <= everything.names, rule["alert"]
            # And so is what they ask of its labels.
            for name, selector in re.findall(r"(\bdramaturg_\w+){([^}]*)}", rule["expr"]):
                for label, values in re.findall(r'(\w+)=~?"([^"]*)"', selector):
                    known = {dict(labels).get(label) for sample, labels in everything.samples if sample == name}
                    assert None not in known, (rule["alert"], label)
                    if label != "outcome":
                        assert set(values.split("|")) <= known, (rule["alert"], label)
                    else:
                        assert set(values.split("|")) <= {"succeeded", "failed", "retried", "given_back"}
            assert rule["labels"]["severity"] in {"critical", "warning"}
            assert rule["annotations"]["summary"].endswith((".", ".'"))
            assert rule["annotations"]["runbook"] == f"RUNBOOK.md#{rule['alert'].lower()}"

    @pytest.mark.skipif(
        shutil.which("promtool") is None, reason="there is no promtool here; Debian has it in its package prometheus"
    )
    def test_prometheus_takes_them_and_they_come_when_they_should(self) -> None:
        for what, file in (("check", RULES), ("test", Path(__file__).with_name("alerts_test.yml"))):
            done = subprocess.run(["promtool", what, "rules", str(file)], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr

    def test_the_command_prints_them(self, worker: CommandLine) -> None:
        assert worker("metrics", "--rules").stdout == RULES.read_text("utf-8")


class TestWhateverIsAway:
    def test_postgres(self, redis_url: str, database: Database) -> None:
        from db import session

        session.configure(NOWHERE["DATABASE_URL"])
        found = shown(database, redis_url)
        assert (found("up", part="redis"), found("up", part="postgres")) == (1, 0)
        assert found("queue_consumers", queue="llm") == 0
        assert found("failed_jobs", status="pending") is None

    def test_redis(self, database: Database, capsys: pytest.CaptureFixture[str]) -> None:
        found = shown(database, NOWHERE["REDIS_URL"])
        assert (found("up", part="redis"), found("up", part="postgres")) == (0, 1)
        assert found("failed_jobs", status="pending") == 0
        assert found("schedulers") is None
        assert "secret" not in capsys.readouterr().err

    def test_a_server_that_never_answers(self) -> None:
        ever, began = threading.Event(), []

        def never() -> list[Metric]:
            began.append(1)
            ever.wait()
            return []

        one = Exposition({"redis": lambda: [Metric("dramaturg_x", "X.", "gauge")], "postgres": never}, within=0.1)
        for _ in range(5):
            text, _ = one.render()
            found = scraped(text)
            assert (found("up", part="redis"), found("up", part="postgres")) == (1, 0)
            assert b"dramaturg_x" in text
        # However often it is asked, one thread waits for that.
        assert began == [1]
        ever.set()

    def test_redis_that_takes_connections_and_says_nothing(self, database: Database, redis_url: str) -> None:
        with Wire(redis_url) as wire:
            wire.mute_new_connections()
            found = shown(database, wire.url, REDIS_TIMEOUT="0.2")
        assert (found("up", part="redis"), found("up", part="postgres")) == (0, 1)


def test_however_many_ask_it_is_found_out_once() -> None:
    made, gate = [], threading.Event()

    def make() -> list[Metric]:
        gate.wait(30)
        made.append(1)
        return []

    one = Exposition({"redis": make}, within=30)
    threads = [threading.Thread(target=one.render) for _ in range(10)]
    for thread in threads:
        thread.start()
    gate.set()
    for thread in threads:
        thread.join()
    one.render()
    assert made == [1]


@pytest.mark.parametrize("fails", [False, True])
def test_what_was_found_out_holds_for_a_while_and_then_not(fails: bool) -> None:
    now, made = [100.0], []

    def make() -> int:
        made.append(1)
        # As long as that takes.
        now[0] += 0.5
        if fails:
            raise ConnectionError("away")
        return len(made)

    one = Latest(make, 4.0, clock=lambda: now[0])
    for moment, times in ((0.0, 1), (0.5, 1), (9.0, 1), (11.0, 2)):
        # It took half a second, of which ten seconds are a twentieth.
        now[0] = 100.0 + moment
        found = one.ask().result(30)
        assert len(made) == times
        assert (found.value, type(found.error)) == ((None, ConnectionError) if fails else (times, type(None)))
        assert found.took == 0.5


class TestTheConsole:
    def test_who_sees_all_tenants_and_nobody_else(self, console: Console) -> None:
        tokens = {name: console.token("viewer", tenant) for name, tenant in (("all", None), ("one", UUID(int=0xA)))}
        with console.client() as client:
            nobody = client.get("/metrics")
            assert (nobody.status_code, nobody.headers["www-authenticate"]) == (401, "Bearer")
            of_one = client.get("/metrics", headers={"authorization": f"Bearer {tokens['one']}"})
            assert of_one.status_code == 403
            assert "dramaturg_" not in nobody.text + of_one.text
            answer = client.get("/metrics", headers={"authorization": f"Bearer {tokens['all']}"})
            assert answer.status_code == 200
            assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
            found = scraped(answer.text)
            assert (found("up", part="redis"), found("up", part="postgres")) == (1, 1)
            # As Prometheus asks.
            accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
            headers = {"authorization": f"Bearer {tokens['all']}", "accept": accept}
            answer = client.get("/metrics", headers=headers)
            assert answer.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
            assert "dramaturg_jobs" in {family.name for family in read_openmetrics(answer.text)}

    def test_without_tokens_this_machine(self, console: Console) -> None:
        with console.client(base_url="http://127.0.0.1") as client:
            assert client.get("/metrics").status_code == 200
            assert client.get("/metrics", headers={"x-forwarded-for": "10.0.0.1"}).status_code == 403
            assert client.get("/metrics", headers={"host": "console.example"}).status_code == 400


class TestByItself:
    @contextmanager
    def served(self, *tokens: str) -> Iterator[str]:
        kept = [made for name, made in self.made.items() if name in tokens]
        server = make_server(Exposition({"redis": list}), kept, port=0)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/metrics"
        finally:
            server.shutdown()
            thread.join()
            server.server_close()

    @pytest.fixture(autouse=True)
    def some_tokens(self) -> None:
        of_all, of_one = make_token("ana", "viewer"), make_token("bob", "operator", UUID(int=0xA))
        self.said = {"ana": of_all[0], "bob": of_one[0]}
        self.made = {"ana": of_all[1], "bob": of_one[1]}

    def ask(self, url: str, **headers: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30) as answer:  # noqa: S310
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as e:
            with e:
                return e.code, e.read().decode()

    def test_without_tokens_it_is_for_this_machine(self) -> None:
        with self.served() as url:
            status, text = self.ask(url)
            assert (status, scraped(text)("up", part="redis")) == (200, 1)
            assert self.ask(url.replace("127.0.0.1", "localhost"))[0] == 200
            # A name that somebody points here.
            assert self.ask(url, host="evil.example")[0] == 400
            assert self.ask(url.replace("/metrics", "/"))[0] == 404

    def test_with_tokens_whoever_sees_all_tenants(self) -> None:
        with self.served("ana", "bob") as url:
            assert self.ask(url)[0] == 401
            assert self.ask(url, authorization="Bearer dramaturg_wrong")[0] == 401
            assert self.ask(url, authorization=f"Basic {self.said['ana']}")[0] == 401
            status, text = self.ask(url, authorization=f"Bearer {self.said['bob']}")
            assert (status, "dramaturg_up" in text) == (403, False)
            assert self.ask(url, authorization=f"Bearer {self.said['ana']}", host="metrics.example")[0] == 200

    def test_it_is_open_to_others_with_tokens_alone(self) -> None:
        check_where("::1", [])
        check_where("0.0.0.0", list(self.made.values()))  # noqa: S104
        with pytest.raises(ConfigurationError, match=r"^CONSOLE_TOKENS: required to listen on '0\.0\.0\.0'"):
            check_where("0.0.0.0", [])  # noqa: S104


def test_the_command_prints_them_once(worker: CommandLine, redis_url: str) -> None:
    found = scraped(worker("metrics", "--once", REDIS_URL=redis_url).stdout)
    assert (found("up", part="redis"), found("up", part="postgres")) == (1, 1)
    refused = worker("metrics", "--once", status=2)
    assert "REDIS_URL: stub:// has no metrics" in refused.stderr
    refused = worker("metrics", "--host", "0.0.0.0", status=2, REDIS_URL=redis_url, CONSOLE_TOKENS="")  # noqa: S104
    assert "CONSOLE_TOKENS: required to listen on '0.0.0.0'" in refused.stderr
