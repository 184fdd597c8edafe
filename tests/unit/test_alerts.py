"""What is news, how much of it goes out, and how it is posted; without servers of ours."""

from __future__ import annotations

import json
import logging
import re
import threading
from base64 import b64encode
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from io import BufferedIOBase
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from dramatiq import Worker
from loguru import logger

from db.errors import ConfigurationError
from db.failed.watch import OpenGroup
from tests.waiting import eventually
from tests.webhook import OTHER, PATH, SECRET, TOKEN, Receiver, receiver
from worker import housekeeping
from worker.alerts import groups, rates, signing
from worker.alerts.bundling import BUNDLED_AT_MOST, PERIOD, SINGLES, Chosen, Sent, choose
from worker.alerts.causes import Cause, Change, Kind
from worker.alerts.errors import AlertNotDelivered, AlertRefused, AlertTimeout
from worker.alerts.groups import POISON_AGAIN, Mark
from worker.alerts.message import Writer
from worker.alerts.posting import Receiver as Target
from worker.alerts.rates import Limits
from worker.broker import settings
from worker.check import Status
from worker.check.alerts import judge_alerts
from worker.housekeeping import deliver_alert, look_for_alerts, send_heartbeat
from worker.scheduler.jobs import jobs_of
from worker.settings import Settings
from worker.testing import TestBroker

README = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
DATABASE = {"DATABASE_URL": "postgres://h/x"}
WRITER = Writer("shop", "https://ops.example.com/console")


def verify(secret: str, headers: dict[str, str], body: bytes) -> Any:
    """Do what the README tells receivers to do."""
    (code,) = re.findall(r"```python\n((?:(?!```).)*webhook-signature.*?)```", README, flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)  # noqa: S102 - our own words
    return names["verify"](secret, headers, body)


def a_group(name: str = "a", **changes: Any) -> OpenGroup:
    facts = {"failures": 1, "regressions": 0, "open_since": 10.0, "open_lately": 10.0, "error_type": "timeout"}
    return OpenGroup(fingerprint=name, **{**facts, **changes})


class Groups:
    """What is remembered of groups, changed as Redis would."""

    def __init__(self) -> None:
        self.marks: dict[str, Mark] = {}
        self.closed: dict[str, int] = {}

    def remember(self, changes: Iterable[Change]) -> None:
        for change in changes:
            kept: dict[str, Any] = self.marks if change.part == groups.OPEN else self.closed
            if change.value is None:
                kept.pop(change.name, None)
            else:
                kept[change.name] = Mark.read(change.value) if change.part == groups.OPEN else int(change.value)

    def look(self, *found: OpenGroup, now: float = 100.0) -> list[tuple[str, str]]:
        silent, causes = groups.compare(found, self.marks, self.closed, now)
        self.remember([*silent, *(change for cause in causes for change in cause.changes)])
        return [(str(cause.kind), cause.fingerprint or "") for cause in causes]


class TestGroups:
    def test_a_new_one_is_told_once(self) -> None:
        known = Groups()
        assert known.look(a_group("a"), a_group("b")) == [("new_group", "a"), ("new_group", "b")]
        assert known.look(a_group("a", failures=9), a_group("b", open_lately=50.0)) == []

    def test_one_that_is_resolved_and_back_is_told_again(self) -> None:
        known = Groups()
        known.look(a_group())
        assert known.look() == []
        assert known.look(a_group(regressions=1, open_since=90.0, open_lately=90.0)) == [("regressed_group", "a")]
        # Resolved and back between two looks.
        again = a_group(regressions=2, open_since=95.0, open_lately=95.0)
        assert known.look(again) == [("regressed_group", "a")]
        assert known.look(again) == []

    def test_one_that_is_back_for_some_while_it_goes_on_for_others_is_no_news(self) -> None:
        known = Groups()
        known.look(a_group())
        assert known.look(a_group(regressions=1, open_lately=50.0)) == []
        assert known.look(a_group(regressions=2, open_lately=60.0)) == []
        # Those for whom it had gone on are resolved, and those for whom it was back are open still.
        assert known.look(a_group(regressions=2, open_since=60.0, open_lately=60.0)) == []
        assert known.look(a_group(regressions=3, open_since=70.0, open_lately=70.0)) == [("regressed_group", "a")]

    def test_one_that_was_given_up_is_no_news_when_it_fails_again(self) -> None:
        known = Groups()
        known.look(a_group())
        known.look()
        assert known.look(a_group(failures=2)) == []

    def test_what_a_tenant_that_left_had_counted_is_not_missed(self) -> None:
        known = Groups()
        known.look(a_group(regressions=5))
        assert known.look(a_group(regressions=1)) == []
        assert known.look(a_group(regressions=2, open_since=90.0)) == [("regressed_group", "a")]

    def test_one_that_was_never_told_and_is_back_says_so(self) -> None:
        assert Groups().look(a_group(regressions=1)) == [("regressed_group", "a")]

    def test_what_ends_its_worker_is_a_poison_pill_and_is_told_again_after_an_hour(self) -> None:
        known = Groups()
        pill = a_group(error_type="worker_lost")
        assert known.look(pill) == [("poison_pill", "a")]
        more = a_group(error_type="worker_lost", failures=2)
        assert known.look(more, now=100 + POISON_AGAIN - 1) == []
        assert known.look(more, now=100 + POISON_AGAIN) == [("poison_pill", "a")]
        assert known.look(more, now=100 + 3 * POISON_AGAIN) == []

    def test_what_is_there_at_first_is_no_news(self) -> None:
        known = Groups()
        known.remember(groups.begin({"a": 0, "closed": 2}, [a_group("a")], 5.0))
        assert known.look(a_group("a"), a_group("closed", regressions=2)) == []
        assert known.look(a_group("a"), a_group("closed", regressions=3, open_since=60.0)) == [
            ("regressed_group", "closed")
        ]

    def test_a_mark_that_is_none_is_left_out(self) -> None:
        assert Mark.read("{}") is Mark.read("x") is Mark.read('{"regressions": "x"}') is None


class TestRates:
    limits = Limits(overall=10, actor=5, minutes=5)

    def look(self, known: dict[str, float], now: float = 100.0, **failures: int) -> list[tuple[Any, bool | None]]:
        causes = rates.compare(failures, known, self.limits, now)
        for change in (change for cause in causes for change in cause.changes):
            if change.value is None:
                del known[change.name]
            else:
                known[change.name] = float(change.value)
        return [(cause.facts["actor"], cause.over) for cause in causes]

    def test_one_actor_is_told_once_and_when_it_is_over(self) -> None:
        known: dict[str, float] = {}
        assert self.look(known, a=5) == []
        assert self.look(known, a=6, b=1) == [("a", False)]
        assert self.look(known, now=110.0, a=7) == []
        # About the limit it does not come and go.
        assert self.look(known, a=4) == []
        assert self.look(known, a=6) == []
        assert self.look(known, a=2) == [("a", True)]
        assert self.look(known, a=6) == [("a", False)]
        assert self.look(known) == [("a", True)]
        assert known == {}

    def test_while_all_of_them_are_too_many_none_is_told_by_itself(self) -> None:
        known: dict[str, float] = {}
        assert self.look(known, a=9, b=8) == [(None, False)]
        assert self.look(known, a=3, b=3) == []
        assert self.look(known, a=4) == [(None, True)]
        assert self.look(known, a=6) == [("a", False)]

    def test_an_alert_about_all_names_the_first(self) -> None:
        (cause,) = rates.compare({f"a{n}": n for n in range(9)}, {}, self.limits, 1.0)
        assert cause.facts["actors"][0] == {"actor": "a8", "failures": 8}
        assert len(cause.facts["actors"]) == 5


def causes(count: int, kind: Kind = Kind.NEW_GROUP) -> list[Cause]:
    return [Cause(kind, f"{n}", (), fingerprint=f"{n:032d}") for n in range(count)]


class TestBundling:
    def test_few_go_out_by_themselves_the_worst_first(self) -> None:
        chosen = choose([*causes(1), *causes(1, Kind.POISON_PILL)], [], 0.0)
        assert [cause.kind for cause in chosen.singles] == [Kind.POISON_PILL, Kind.NEW_GROUP]
        assert not chosen.bundle

    def test_a_storm_is_one_message_and_then_one_in_each_period(self) -> None:
        storm = causes(1_000)
        assert choose(storm, [], 0.0) == Chosen(bundle=storm)
        sent = [Sent(0.0, bundle=True)]
        assert choose(storm, sent, PERIOD - 1) == Chosen()
        assert choose(storm, sent, PERIOD) == Chosen(bundle=storm)
        assert len(choose(causes(BUNDLED_AT_MOST + 1), [], 0.0).bundle) == BUNDLED_AT_MOST

    def test_a_trickle_becomes_one_message_too(self) -> None:
        sent = [Sent(float(n), bundle=False) for n in range(SINGLES)]
        one = causes(1)
        assert choose(one, sent[1:], 10.0) == Chosen(singles=one)
        assert choose(one, sent, 10.0) == Chosen(bundle=one)
        assert choose(one, sent, PERIOD) == Chosen(singles=one)

    def test_a_clock_that_was_wrong_keeps_nothing_back(self) -> None:
        assert choose(causes(9), [Sent(9e9, bundle=True)], 0.0).bundle

    def test_a_bundle_is_as_short_as_a_message(self) -> None:
        alert = WRITER.bundle(causes(1_000), {}, 0.0)
        assert (alert["event"], alert["counts"], len(alert["alerts"])) == ("bundle", {"new_group": 1_000}, 20)
        assert "and 980 more" in alert["text"]
        assert len(json.dumps(alert)) < 20_000
        assert WRITER.bundle(causes(1_000), {}, 9.0)["id"] == alert["id"] != WRITER.bundle(causes(999), {}, 0.0)["id"]


class TestSigning:
    def test_as_the_standard_has_it(self) -> None:
        (key,) = signing.read_secrets("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
        made = signing.headers([key], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
        assert made["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="

    def test_each_secret_signs_and_the_readme_verifies(self) -> None:
        now, body = int(datetime.now(UTC).timestamp()), b'{"a": 1}'
        made = signing.headers(signing.read_secrets(f"{SECRET}, {OTHER}"), "id", now, body)
        assert verify(SECRET, made, body) == verify(OTHER, made, body) == {"a": 1}
        old = signing.headers(signing.read_secrets(SECRET), "id", now - 600, body)
        for secret, headers, said in (
            (SECRET, made, b'{"a": 2}'),
            (signing.new_secret(), made, body),
            (SECRET, {**made, "webhook-id": "other"}, body),
            (SECRET, old, body),
        ):
            with pytest.raises(ValueError, match="webhook"):
                verify(secret, headers, said)

    @pytest.mark.parametrize("setting", ["hunter2hunter2", "whsec_hunter2", "whsec_" + b64encode(b"x" * 23).decode()])
    def test_what_is_no_secret_is_said_without_it(self, setting: str) -> None:
        with pytest.raises(ConfigurationError) as e:
            Settings.load({**DATABASE, "ALERT_WEBHOOK_SECRETS": f"{SECRET},{setting}"})
        assert str(e.value).startswith("ALERT_WEBHOOK_SECRETS: number 2 must be whsec_ and 24 to 64 bytes in base64")
        assert setting not in str(e.value)


@pytest.fixture
def target() -> Iterator[Receiver]:
    one = receiver()
    with one.up():
        yield one


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """Every line of ours, and of the libraries that log everything."""
    lines: list[str] = []
    sink = logger.add(lambda line: lines.append(str(line)), format="{message}\n{exception}", level="TRACE")
    with caplog.at_level(logging.DEBUG):
        yield lines
    logger.remove(sink)
    assert TOKEN not in "".join([*lines, *(record.getMessage() for record in caplog.get_records("call"))])


def an_alert() -> dict[str, Any]:
    return WRITER.test(uuid4(), 0.0)


class TestPosting:
    def test_signed_and_as_json(self, target: Receiver, said: list[str]) -> None:
        alert = an_alert()
        post = Target(target.url, signing.read_secrets(SECRET)).post
        assert post(alert) == "the receiver of alerts answered 200: 200 at /[redacted]/[redacted]"
        (posted,) = target.posts
        assert (posted.path, posted.headers["webhook-id"]) == (PATH, alert["id"])
        assert posted.headers["content-type"] == "application/json"
        assert verify(SECRET, posted.headers, posted.body) == alert

    @pytest.mark.parametrize("status", [400, 401, 404, 410, 301, 307])
    def test_what_is_final(self, target: Receiver, said: list[str], status: int) -> None:
        target.then(status, Location="/elsewhere")
        with pytest.raises(AlertRefused, match=f"answered {status}") as e:
            Target(target.url).post(an_alert())
        assert TOKEN not in str(e.value)
        assert len(target.posts) == 1
        assert "webhook-signature" not in target.posts[0].headers

    @pytest.mark.parametrize("status", [408, 425, 429, 500, 503])
    def test_what_may_pass(self, target: Receiver, said: list[str], status: int) -> None:
        target.then(status, Retry_After="30")
        with pytest.raises(AlertNotDelivered, match=f"answered {status}") as e:
            Target(target.url).post(an_alert())
        assert 30_000 <= (e.value.delay or 0) <= 34_000

    def test_nobody_there(self, said: list[str]) -> None:
        with pytest.raises(AlertNotDelivered, match="cannot be reached: NewConnectionError") as e:
            Target(receiver().url).post(an_alert())
        assert e.value.delay is None

    def test_no_answer_in_time(self, target: Receiver, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("worker.alerts.posting.ANSWER_WITHIN", 0.05)
        done: list[bool] = []
        target.during = lambda: eventually(lambda: done)
        with pytest.raises(AlertTimeout, match="did not answer in time"):
            Target(target.url).post(an_alert())
        done.append(True)

    @pytest.mark.parametrize("bytes_of_it", [0, 100])
    def test_an_alert_that_was_taken_is_not_posted_again_because_the_answers_body_does_not_end(
        self, target: Receiver, said: list[str], monkeypatch: pytest.MonkeyPatch, bytes_of_it: int
    ) -> None:
        monkeypatch.setattr("worker.alerts.posting.ANSWER_WITHIN", 0.5 if bytes_of_it else 0.05)
        monkeypatch.setattr("worker.alerts.posting.BODY_WITHIN", 0.05)
        done = threading.Event()

        def slowly(body: BufferedIOBase) -> None:
            for _ in range(bytes_of_it):
                body.write(b"y")
                if done.wait(0.01):
                    return
            done.wait(10)

        target.slowly = slowly
        assert Target(target.url).post(an_alert()) == "the receiver of alerts answered 200"
        done.set()

    def test_an_address_with_a_password_logs_in(self, target: Receiver, said: list[str]) -> None:
        Target(target.url.replace("//", "//ann:hunter%3A2@")).post(an_alert())
        assert target.posts[0].headers["authorization"] == "Basic " + b64encode(b"ann:hunter:2").decode()

    def test_a_command_to_be_typed_does_nothing_else_whatever_an_actor_is_called(self) -> None:
        (cause,) = rates.compare({"x; reboot": 6}, {}, TestRates.limits, 1.0)
        assert "worker failed groups --since 5m --actor 'x; reboot'" in WRITER.single(cause, None, 1.0)["commands"]
        group = Cause(Kind.NEW_GROUP, "", (), fingerprint="`reboot`/?")
        alert = WRITER.single(group, None, 1.0)
        assert alert["commands"][0] == "worker failed groups --fingerprint '`reboot`'"
        assert alert["link"] == "https://ops.example.com/console/groups/%60reboot%60%2F%3F"

    def test_nobody_is_called_by_what_a_failure_says(self) -> None:
        alert = Writer("<!channel> @all & co", None).test(uuid4(), 0.0)
        assert alert["text"].startswith("[&lt;!channel&gt; @\u200ball &amp; co] ")


class TestActors:
    @pytest.fixture(autouse=True)
    def told(self, monkeypatch: pytest.MonkeyPatch, target: Receiver) -> None:
        changed = {"alert_webhook_url": target.url, "alert_webhook_secrets": SECRET, "alert_heartbeat_url": target.url}
        monkeypatch.setattr(housekeeping, "settings", settings.model_copy(update=changed))
        monkeypatch.setitem(deliver_alert.options, "min_backoff", 1)

    def run(self, stub_broker: TestBroker, stub_worker: Worker) -> None:
        stub_broker.join(deliver_alert.queue_name)
        stub_worker.join()

    def test_an_alert_arrives_in_the_end(
        self, stub_broker: TestBroker, stub_worker: Worker, target: Receiver, said: list[str]
    ) -> None:
        target.then(500, 503)
        alert = an_alert()
        deliver_alert.send(alert=alert)
        self.run(stub_broker, stub_worker)
        assert [post.status for post in target.posts] == [500, 503, 200]
        assert {post.headers["webhook-id"] for post in target.posts} == {alert["id"]}
        assert target.taken == [alert]
        assert stub_broker.failed_jobs == []
        # Whoever waits for it finds out why it does not come.
        waits = [line for line in said if f"alert {alert['id']} is not delivered, and tried again later" in line]
        assert [re.findall(r"answered (\d+)", line) for line in waits] == [["500"], ["503"]]

    def test_one_that_is_refused_is_a_row_without_the_address(
        self, stub_broker: TestBroker, stub_worker: Worker, target: Receiver, said: list[str]
    ) -> None:
        target.then(400)
        deliver_alert.send(alert=an_alert())
        self.run(stub_broker, stub_worker)
        assert len(target.posts) == 1
        (failure,) = stub_broker.failed_jobs
        assert (failure.error_type, failure.retry_count) == ("upstream_error", 0)
        assert failure.error_message == "the receiver of alerts answered 400: 400 at /[redacted]/[redacted]"
        assert TOKEN not in repr(failure)
        assert any("is refused: the receiver of alerts answered 400" in line for line in said)

    @pytest.mark.parametrize("alert", [{}, {"id": "x"}, "x", None])
    def test_what_is_no_alert_is_a_row(self, stub_broker: TestBroker, stub_worker: Worker, alert: Any) -> None:
        deliver_alert.send(alert=alert)
        self.run(stub_broker, stub_worker)
        (failure,) = stub_broker.failed_jobs
        assert (failure.error_type, failure.retry_count) == ("validation_error", 0)

    def test_without_a_receiver_nothing_is_done(
        self, stub_broker: TestBroker, stub_worker: Worker, target: Receiver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        changed = {"alert_webhook_url": None, "alert_heartbeat_url": None}
        monkeypatch.setattr(housekeeping, "settings", settings.model_copy(update=changed))
        deliver_alert.send(alert=an_alert())
        look_for_alerts.send()
        send_heartbeat.send()
        self.run(stub_broker, stub_worker)
        assert (target.posts, target.asked, stub_broker.failed_jobs) == ([], [], [])


def test_they_are_scheduled_where_somebody_is_to_be_told(stub_broker: TestBroker) -> None:
    names = {look_for_alerts.actor_name, send_heartbeat.actor_name}

    def on(**environ: str) -> set[str]:
        chosen = Settings.load({**DATABASE, **environ})
        return {job.name for job in jobs_of(stub_broker, chosen) if job.on and job.name in names}

    assert on() == set()
    assert on(ALERT_WEBHOOK_URL="https://h/x") == {look_for_alerts.actor_name}
    assert on(ALERT_HEARTBEAT_URL="https://h/x") == {send_heartbeat.actor_name}
    # What stands in SCHEDULE does no harm where the address is taken out again.
    assert on(SCHEDULE=f"{look_for_alerts.actor_name}=* * * * *") == set()


@pytest.mark.parametrize("variable", ["ALERT_WEBHOOK_URL", "ALERT_HEARTBEAT_URL", "CONSOLE_URL"])
@pytest.mark.parametrize("value", ["hooks/hunter2", "ftp://h/hunter2", "https://h:x/hunter2", "https://h/a hunter2"])
def test_an_address_that_is_none_is_said_without_it(variable: str, value: str) -> None:
    with pytest.raises(ConfigurationError) as e:
        Settings.load({**DATABASE, variable: value})
    assert str(e.value) == f"{variable}: not a URL; expected https://host/path"


@pytest.mark.parametrize(
    ("environ", "procfile", "status", "said"),
    [
        ({}, {}, None, ""),
        ({"ALERT_WEBHOOK_URL": "https://h/x"}, {}, Status.OK, "and not signed"),
        (
            {"ALERT_WEBHOOK_URL": "https://h/x", "ALERT_WEBHOOK_SECRETS": SECRET},
            {"scheduler": "worker scheduler"},
            Status.OK,
            ", signed",
        ),
        ({"ALERT_WEBHOOK_URL": "https://h/x"}, {"web": "worker console"}, Status.WARNING, "no entry is a scheduler"),
        (
            {"ALERT_WEBHOOK_URL": "https://h/x", "SCHEDULE_OFF": look_for_alerts.actor_name},
            {},
            Status.WARNING,
            "SCHEDULE_OFF",
        ),
        ({"ALERT_WEBHOOK_URL": "http://h/x"}, {}, Status.WARNING, "http://"),
        ({"ALERT_WEBHOOK_URL": "http://localhost/x"}, {}, Status.OK, "not signed"),
    ],
)
def test_check(environ: dict[str, str], procfile: dict[str, str], status: Status | None, said: str) -> None:
    found = list(judge_alerts(Settings.load({**DATABASE, **environ}), procfile))
    assert [finding.status for finding in found] == ([status] if status else [])
    assert all(said in finding.found for finding in found)
    assert all("h/x" not in finding.found + finding.advice for finding in found)
