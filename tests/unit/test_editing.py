"""Arguments in a form, and what an edit changes."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from dramatiq import Broker
from dramatiq.brokers.stub import StubBroker

from db.failed.originals import as_kept
from db.replays.claims import Candidate
from db.replays.edits import Arguments, Edit
from db.sealing import Keys, generate
from middleware.redaction import Redactor
from worker.replay.editing import as_text, changes, draft, from_fields, in_fields
from worker.replay.messages import NotReplayable, content_of


@pytest.fixture
def broker() -> Broker:
    import dramatiq

    broker = StubBroker(middleware=[])

    def job(first: int, second: str = "", *rest: int, needed: int, **more: Any) -> None: ...

    dramatiq.actor(broker=broker, actor_name="job")(job)
    return broker


def test_a_job_whose_key_is_lost_is_sent_with_arguments_that_somebody_says() -> None:
    sealed = as_kept(*Keys.from_setting(generate()).seal(b"{}"))
    at = datetime(2026, 1, 1, tzinfo=UTC)
    job = Candidate(UUID(int=1), "m", "job", "llm", None, "unknown", [], {}, None, at, None, sealed)
    begun = draft(job, None, keys=None, renamed={})
    assert (begun.known, begun.actor_name, begun.was) == (False, "job", Arguments([], {}))
    content = content_of(job, keys=None, edit=Arguments([1], {"needed": 2}))
    assert (content.queue_name, content.args, content.kwargs) == ("llm", (1,), {"needed": 2})
    with pytest.raises(NotReplayable, match="its original cannot be read: FAILED_JOB_KEYS is not set"):
        content_of(job, keys=None)
    # What was asked to be forgotten does not come back.
    with pytest.raises(NotReplayable, match="its arguments were forgotten"):
        draft(replace(job, forgotten_at=at), None, keys=None, renamed={})


@pytest.mark.parametrize(("before", "after"), [(1, True), (1, 1.0), ({"a": [0]}, {"a": [False]})])
def test_what_python_takes_for_equal_is_a_change(broker: Broker, before: object, after: object) -> None:
    edit = Edit(Arguments([before], {}), Arguments([after], {}))
    (changed,) = changes(edit, broker, "job", Redactor())
    assert (changed.name, changed.before, changed.after) == ("first", json.dumps(before), json.dumps(after))


def test_fields_hold_what_was_given_and_then_what_was_not(broker: Broker) -> None:
    was = Arguments([1, "two", 3], {"colour": "red"})
    fields = in_fields(was, broker, "job")
    assert [(field.key, field.name, field.value, field.required) for field in fields] == [
        ("args.0", "first", "1", False),
        ("args.1", "second", '"two"', False),
        ("args.2", "rest", "3", False),
        ("kwargs.colour", "colour", '"red"', False),
        ("kwargs.needed", "needed", None, True),
    ]
    # As they are, they are what it was.
    assert from_fields({field.key: field.value or "" for field in fields}, fields) == was
    said = {"args.0": "1", "args.1": "", "args.2": " ", "kwargs.needed": "5"}
    assert from_fields(said, fields) == Arguments([1], {"needed": 5})
    with pytest.raises(ValueError, match="second cannot be left out: rest is given by position after it"):
        from_fields({"args.0": "1", "args.2": "3"}, fields)


@pytest.mark.parametrize("value", ['a\x1b\u202e\ud800\U000e0001\u00a0"\\', {"k\x85": ["x" * 90, None, 1.5]}])
def test_what_cannot_be_seen_is_an_escape_and_reads_back_as_it_was(value: object) -> None:
    text = as_text(value)
    assert all(c.isprintable() or c == "\n" for c in text)
    assert json.loads(text) == value
