"""What a failure has in common with its like: fingerprint, title and place, whatever the message died of."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from typing import Any
from uuid import UUID

import dramatiq
import pytest
from dramatiq import Broker, Message, MessageProxy
from dramatiq.errors import ActorNotFound

from db.failures import Failure
from middleware.crash_evidence import worker_lost
from middleware.dead_letters import DeadLetters
from middleware.deliveries import NotToRun, condemn, deliver
from middleware.errors import MessageExpired, TenantError
from middleware.fingerprint import MESSAGE_KEPT, fingerprint
from worker.testing import TestBroker

A = UUID(int=0xA)


def fields(**changes: Any) -> dict[str, Any]:
    """Return those of a message, but for what is ``...``."""
    options = {"redis_message_id": "r", **changes.pop("options", {})}
    given = {
        "queue_name": "attribution",
        "actor_name": "test.job",
        "args": [],
        "kwargs": {},
        "options": options,
        "message_id": str(uuid.uuid4()),
        "message_timestamp": 1,
        **changes,
    }
    return {name: value for name, value in given.items() if value is not ...}


class Recorder:
    """Gives the failure that a message with an exception becomes."""

    def __init__(self, broker: Broker) -> None:
        self.failures: list[Failure] = []
        self.broker = broker
        self.middleware = DeadLetters(self.failures.append)

    def of(self, message: MessageProxy, error: BaseException | None = None) -> Failure:
        if error is not None:
            message.stuff_exception(error)
        self.middleware.before_nack(self.broker, message)
        return self.failures[-1]

    def failed(self, error: BaseException | None, actor_name: str = "test.job") -> Failure:
        return self.of(MessageProxy(Message("attribution", actor_name, (), {}, {})), error)

    def arrived(self, **changes: Any) -> Failure:
        return self.raw(json.dumps(fields(**changes)).encode())

    def raw(self, data: bytes) -> Failure:
        delivery = deliver(data, "attribution", "r")
        return self.of(delivery)


@pytest.fixture
def recorder(stub_broker: TestBroker) -> Recorder:
    return Recorder(stub_broker)


def caught(fn: Callable[..., object], *args: Any) -> BaseException:
    """Return what ``fn`` raises, with the traceback from it on, as Dramatiq's own code is none of the application's."""
    try:
        fn(*args)
    except BaseException as e:  # noqa: BLE001 - it is what is asked for
        return e.with_traceback(e.__traceback__.tb_next if e.__traceback__ else None)
    raise AssertionError("nothing was raised")


def close(number: object) -> None:
    raise ValueError(f"order {number} is closed\nat least since noon")


def parses(text: str) -> None:
    json.loads(text)


def lacks(key: str) -> object:
    return dict[str, object]()[key]


class TestActors:
    def test_one_cause_is_one_group(self, recorder: Recorder) -> None:
        one, other = (recorder.failed(caught(close, n)) for n in (17, 4_711))
        assert one.fingerprint == other.fingerprint == fingerprint("test.job", caught(close, 5))
        assert one.title == other.title == "order * is closed"
        assert one.place == "tests.unit.test_groups:close"
        assert recorder.failed(caught(close, 17), "test.other").fingerprint != one.fingerprint
        assert recorder.failed(caught(lacks, "x")).fingerprint != one.fingerprint

    def test_what_a_library_said_is_no_part_of_it_and_is_read_all_the_same(self, recorder: Recorder) -> None:
        one, other = (recorder.failed(caught(parses, text)) for text in ("[1,", "{'a'}"))
        assert one.fingerprint == other.fingerprint
        assert (one.title or "").startswith("Expecting value: line * column * ")
        assert (other.title or "").startswith("Expecting property name enclosed in double quotes: line * column * ")
        assert one.place == "tests.unit.test_groups:parses"

    def test_no_message_has_no_title(self, recorder: Recorder) -> None:
        failure = recorder.failed(ValueError())
        assert (failure.title, failure.place) == (None, None)
        assert failure.fingerprint is not None

    def test_no_exception(self, recorder: Recorder) -> None:
        failure = recorder.failed(None)
        assert failure.fingerprint == fingerprint("test.job", None)
        assert failure.title == "the message was rejected without an exception"

    def test_a_long_title(self, recorder: Recorder) -> None:
        assert recorder.failed(ValueError("word " * 1_000)).title == ("word " * 1_000)[:MESSAGE_KEPT]

    @pytest.mark.parametrize(
        "text",
        [
            "password=hunter",
            "cannot reach postgres://app:hunter@db/x",
            "Failing row contains (1, hunter, null).",
            "(1) Key (api_key)=(hunter) already exists.",
            "Authorization: Basic 1 hunter",
        ],
    )
    def test_no_title_shows_a_secret(self, recorder: Recorder, text: str) -> None:
        failure = recorder.failed(ValueError(text))
        assert failure.title
        assert "hunter" not in f"{failure!r} {failure.as_json()}"

    def test_through_a_worker(self, stub_broker: TestBroker, stub_worker: dramatiq.Worker) -> None:
        actor = dramatiq.actor(broker=stub_broker, actor_name="test.job", queue_name="attribution", max_retries=1)(
            close
        )
        actor.send_with_options(args=(1,), tenant_id=A)
        actor.send_with_options(args=(2,), tenant_id=A)
        stub_broker.join("attribution", timeout=20_000)
        stub_worker.join()
        assert len(stub_broker.failed_jobs) == 2
        assert {(f.fingerprint, f.title, f.place) for f in stub_broker.failed_jobs} == {
            (fingerprint("test.job", caught(close, 1)), "order * is closed", "tests.unit.test_groups:close")
        }


class TestOthers:
    def test_lost_workers_are_one_group_of_an_actor(self, recorder: Recorder) -> None:
        def lost(host: str, times: int, actor_name: str = "test.job") -> Failure:
            evidence = [{"started": n, "silent": n + 1, "facts": {"worker": host}} for n in range(times)]
            delivery = deliver(json.dumps(fields(actor_name=actor_name)).encode(), "attribution", "r")
            return recorder.of(condemn(delivery, worker_lost(evidence)))

        one = lost("a/1", 3)
        assert one.error_type == "worker_lost"
        assert one.fingerprint == lost("b/2", 5).fingerprint
        assert one.fingerprint != lost("a/1", 3, "test.other").fingerprint
        assert one.title == "its worker was lost * times while it ran, so it is not started again"
        assert one.place is None
        assert [a["worker"] for a in one.attempts or []] == ["a/1"] * 3

    def test_expired(self, recorder: Recorder) -> None:
        one, other = (recorder.failed(MessageExpired(f"waited {n} ms, at most 100 ms")) for n in (500, 70_000))
        assert one.fingerprint == other.fingerprint
        assert one.title == "waited * ms, at most * ms"

    def test_unknown_actors(self, recorder: Recorder) -> None:
        def unknown(name: str) -> Failure:
            return recorder.failed(caught(recorder.broker.get_actor, name), name)

        assert isinstance(caught(recorder.broker.get_actor, "gone.job"), ActorNotFound)
        assert unknown("gone.job").fingerprint == unknown("gone.job").fingerprint
        assert unknown("gone.job").fingerprint != unknown("gone.other").fingerprint
        assert unknown("gone.job").title == "gone.job"

    def test_tenant_errors(self, recorder: Recorder, stub_broker: TestBroker) -> None:
        from middleware.tenant_context import TenantContext

        name = f"test.{uuid.uuid4().hex}"
        dramatiq.actor(broker=stub_broker, actor_name=name, queue_name="attribution")(lambda: None)

        def refused(**options: Any) -> Failure:
            message = MessageProxy(Message("attribution", name, (), {}, options))
            context = TenantContext()
            error = caught(context.before_process_message, stub_broker, message)
            context.after_skip_message(stub_broker, message)
            assert isinstance(error, TenantError)
            return recorder.of(message, error)

        missing, wrong = refused(), refused(tenant_id="acme")
        assert wrong.fingerprint == refused(tenant_id="another").fingerprint
        assert wrong.fingerprint != missing.fingerprint
        assert missing.title == "actor * is tenant-scoped and the message has no tenant_id"
        assert "acme" not in (wrong.title or "")


WHOLE = "option retries must be a whole number, not negative"
ACTORS = "option throws can be given to the actor only"


class TestUndecodable:
    @pytest.mark.parametrize(
        ("one", "other", "title"),
        [
            ({"options": {"retries": "a"}}, {"options": {"retries": True}}, WHOLE),
            ({"options": {"retries": -1}}, {"options": {"retries": [None]}}, WHOLE),
            ({"options": {"throws": "A"}}, {"options": {"throws": {"a": 1}}}, ACTORS),
            ({"args": 5}, {"args": "text"}, "field args is of the wrong type"),
            ({"args": ...}, {"args": ..., "message_timestamp": 2}, "field args is missing"),
            ({"one": 1}, {"other": 1}, "a field is unknown"),
            ({"queue_name": "llm"}, {"queue_name": "elsewhere"}, "field queue_name is not its queue"),
            (
                {"options": {"redis_message_id": "x"}},
                {"options": {"redis_message_id": "y"}},
                "option redis_message_id is not what it is kept under",
            ),
            (
                {"options": {"pipe_target": 5}},
                {"options": {"pipe_target": {"actor_name": "x"}}},
                "option pipe_target must be a message",
            ),
        ],
    )
    def test_one_problem_is_one_group_whatever_the_value(
        self, recorder: Recorder, one: dict[str, Any], other: dict[str, Any], title: str
    ) -> None:
        first, second = recorder.arrived(**one), recorder.arrived(**other)
        assert first.error_type == second.error_type == "undecodable"
        assert (first.title, second.title) == (title, title)
        assert first.fingerprint == second.fingerprint

    def test_problems_are_told_apart(self, recorder: Recorder) -> None:
        failures = [
            recorder.arrived(args=...),
            recorder.arrived(kwargs=...),
            recorder.arrived(args=5),
            recorder.arrived(options={"max_age": "a"}),
            recorder.arrived(options={"min_backoff": "a"}),
            recorder.raw(b"{"),
            recorder.raw(b"[]"),
        ]
        assert len({f.fingerprint for f in failures}) == len(failures)

    def test_what_is_not_json_is_one_group_whatever_is_wrong_with_it(self, recorder: Recorder) -> None:
        failures = [recorder.raw(data) for data in (b"{", b"\xff\xfe", b'{"a": 1,}', b"[" * 100_000)]
        assert {(f.task_name, f.title) for f in failures} == {("(undecodable)", "not JSON")}
        assert len({f.fingerprint for f in failures}) == 1

    def test_its_attempts_are_none(self, recorder: Recorder) -> None:
        assert recorder.raw(b"{").attempts == []


class NoName(type):
    def __getattribute__(cls, name: str) -> Any:
        if name in ("__module__", "__qualname__"):
            raise RuntimeError(f"no {name}")
        return super().__getattribute__(name)


class Nameless(Exception, metaclass=NoName):
    pass


def test_a_class_that_does_not_tell_its_name_is_a_failure_all_the_same(recorder: Recorder) -> None:
    failure = recorder.failed(Nameless("x"))
    assert (failure.exception_class, failure.error_message, failure.title) == ("Nameless", "x", "x")
    assert failure.fingerprint is not None


@pytest.mark.parametrize("part", ["fingerprint", "place", "normalise"])
def test_a_failure_without_it_beats_none(recorder: Recorder, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> str:
        raise RuntimeError("broken")

    monkeypatch.setattr(f"middleware.dead_letters.{part}", broken)
    failure = recorder.failed(caught(close, 1))
    assert getattr(failure, {"normalise": "title"}.get(part, part)) is None
    assert failure.error_message.startswith("order 1 is closed")


class TestSealing:
    DATA = b'{"args": ["hunter2"]}'

    def delivered(self, recorder: Recorder, seal: Callable[[bytes], tuple[bytes, str]]) -> Failure:
        recorder.middleware = DeadLetters(recorder.failures.append, seal=seal)
        return recorder.raw(self.DATA)

    def test_the_original_is_sealed(self, recorder: Recorder) -> None:
        failure = self.delivered(recorder, lambda data: (data[::-1], "key"))
        assert (failure.original, failure.original_key) == (self.DATA[::-1], "key")

    def test_without_keys_it_is_as_it_was_fetched(self, recorder: Recorder) -> None:
        failure = recorder.raw(self.DATA)
        assert (failure.original, failure.original_key) == (self.DATA, None)

    def test_what_cannot_be_sealed_is_not_kept(self, recorder: Recorder) -> None:
        from loguru import logger

        said: list[str] = []

        def broken(data: bytes) -> tuple[bytes, str]:
            raise ValueError(f"cannot seal {data!r}")

        handler = logger.add(said.append, level="CRITICAL", format="{level} {message}")
        try:
            failure = self.delivered(recorder, broken)
        finally:
            logger.remove(handler)
        assert (failure.original, failure.original_key) == (None, None)
        assert failure.error_type == "undecodable"
        assert len(said) == 1
        assert "is recorded without its original" in said[0]
        assert "hunter2" not in said[0]


def test_a_condemned_actor_keeps_its_name_in_the_fingerprint() -> None:
    assert fingerprint(NotToRun("test.job"), None) == fingerprint("test.job", None)
