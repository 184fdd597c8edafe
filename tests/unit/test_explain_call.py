"""One call of a chat API, and each way in which it goes wrong, on a local server."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from db.errors import ConfigurationError
from middleware.classification import Classifier
from middleware.redaction import Redactor
from tests.llm_server import (
    ANSWER,
    TOKENS,
    Behaviour,
    LlmServer,
    answers,
    cut,
    endless,
    fails,
    raw,
    replies,
    running_llm,
    silent,
)
from worker.explain.budget import Prices, Usage
from worker.explain.call import ANSWER_AT_MOST, LanguageModel, Reply, ask
from worker.explain.errors import LimitReached, RequestRefused, UpstreamFailed, UpstreamTimeout, classify
from worker.explain.prompt import Prompt

KEY = "key-of-nobody-1234"
PROMPT = Prompt("Explain.", "<data>{}</data>")
#: The prompt's bytes and what is added to it, and the tokens that an answer may have.
MOST = Usage(PROMPT.tokens_at_most, 100, 2 * PROMPT.tokens_at_most + 300)


@pytest.fixture(scope="module")
def server() -> Iterator[LlmServer]:
    """One for all tests, for a client of its own takes each of them a third of a second."""
    with running_llm() as server:
        yield server


@pytest.fixture
def llm(server: LlmServer) -> LlmServer:
    server.forget()
    return server


@pytest.fixture
def model(llm: LlmServer) -> LanguageModel:
    return LanguageModel(llm.url, KEY, "small", 100, "max_completion_tokens", 5.0, Prices(Decimal(2), Decimal(3)))


def error_type(error: BaseException) -> str:
    classifier = Classifier()
    classify(classifier)
    return classifier(error)


def fails_with(model: LanguageModel, **more: Any) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - which one is what the caller looks at
        ask(model, PROMPT, **more)
    # Whatever a log or a row could tell of it.
    told = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    assert KEY not in told
    return caught.value


def test_an_answer_and_what_it_took(llm: LlmServer, model: LanguageModel) -> None:
    assert ask(model, PROMPT) == Reply(ANSWER, None, "stop", "small-2", Usage(400, 50, 2 * 400 + 3 * 50))
    assert llm.asked == [{"model": "small", "messages": PROMPT.messages(), "max_completion_tokens": 100}]
    assert llm.keys == [f"Bearer {KEY}"]
    assert KEY not in repr(model)


def test_an_older_api_is_told_its_own_name_of_the_limit(llm: LlmServer, model: LanguageModel) -> None:
    ask(replace(model, max_tokens_name="max_tokens"), PROMPT)
    assert llm.asked[0]["max_tokens"] == 100
    assert "max_completion_tokens" not in llm.asked[0]


@pytest.mark.parametrize(
    ("behaviour", "kind", "type_", "said"),
    [
        (fails(400, "bad"), RequestRefused, "validation_error", "answered 400: bad"),
        (fails(422, "bad"), RequestRefused, "validation_error", "422"),
        (
            fails(401, f"Incorrect API key provided: {KEY}"),
            ConfigurationError,
            "configuration_error",
            "LLM_API_KEY is not let in; ",
        ),
        (fails(403), ConfigurationError, "configuration_error", "LLM_API_KEY is not let in; "),
        (fails(404, "no such model"), ConfigurationError, "configuration_error", "LLM_MODEL 'small': "),
        (fails(402), ConfigurationError, "configuration_error", "nothing left to spend"),
        (fails(429, "pay", "insufficient_quota"), ConfigurationError, "configuration_error", "nothing left to spend"),
        (fails(429, "slow down"), LimitReached, "rate_limited", "429"),
        (fails(500), UpstreamFailed, "upstream_error", "500"),
        (fails(503), UpstreamFailed, "upstream_error", "503"),
        (fails(408), UpstreamFailed, "upstream_error", "408"),
        (raw(502, b"<html>"), UpstreamFailed, "upstream_error", "502"),
        (cut(), UpstreamFailed, "upstream_error", "no answer of http://127.0.0.1"),
        (raw(200, b"nonsense"), UpstreamFailed, "upstream_error", "no JSON object"),
        (raw(200, b"[" * 100_000), UpstreamFailed, "upstream_error", "no JSON object"),
        (raw(200, b"\xff"), UpstreamFailed, "upstream_error", "no JSON object"),
        (raw(200, b"[]"), UpstreamFailed, "upstream_error", "no JSON object"),
        (endless(), UpstreamFailed, "upstream_error", "longer than 1,048,576 bytes"),
    ],
)
def test_what_goes_wrong(
    llm: LlmServer, model: LanguageModel, behaviour: Behaviour, kind: type[Exception], type_: str, said: str
) -> None:
    llm.then(behaviour)
    error = fails_with(model)
    assert type(error) is kind
    assert error_type(error) == type_
    # Nothing of it looks like a secret to what keeps those out of rows.
    assert said in Redactor().text(str(error))
    # The client does not try again by itself.
    assert len(llm.asked) == 1


def test_no_part_of_the_key_is_told(llm: LlmServer, model: LanguageModel) -> None:
    # As OpenAI does it.
    llm.then(fails(401, "Incorrect API key provided: key-of-n******1234. You can find your API key elsewhere."))
    said = str(fails_with(model))
    assert "Incorrect API key provided: [redacted] You can find your API key elsewhere." in said
    assert "1234" not in said


@pytest.mark.parametrize(
    ("behaviour", "may_have"), [(fails(503), False), (cut(), True), (raw(200, b"nonsense"), True), (endless(), True)]
)
def test_whether_it_may_have_cost(llm: LlmServer, model: LanguageModel, behaviour: Behaviour, may_have: bool) -> None:
    llm.then(behaviour)
    error = fails_with(model)
    assert isinstance(error, UpstreamFailed)
    assert error.may_have_cost is may_have


def test_nobody_there_costs_nothing(model: LanguageModel) -> None:
    with running_llm() as gone:
        pass
    error = fails_with(replace(model, base_url=gone.url))
    assert isinstance(error, UpstreamFailed)
    assert not error.may_have_cost
    assert error_type(error) == "upstream_error"


def test_a_server_that_says_nothing_is_a_timeout(llm: LlmServer, model: LanguageModel) -> None:
    end = threading.Event()
    llm.then(silent(end))
    error = fails_with(replace(model, timeout=0.2))
    end.set()
    assert isinstance(error, UpstreamTimeout)
    assert error.may_have_cost
    assert error_type(error) == "timeout"


def test_one_that_does_not_come_to_an_end_in_time_too(llm: LlmServer, model: LanguageModel) -> None:
    times = iter([0.0, 1.0, 6.0])
    llm.then(endless())
    error = fails_with(model, clock=lambda: next(times))
    assert isinstance(error, UpstreamTimeout)
    assert "LLM_TIMEOUT" in str(error)


def test_retry_after_is_the_delay(llm: LlmServer, model: LanguageModel) -> None:
    date = {"Retry_After": "Wed, 01 Jan 2025 00:02:00 GMT"}
    for behaviour, at_least, at_most in (
        (fails(429, Retry_After="20"), 20_000, 23_000),
        (fails(503, Retry_After="20"), 20_000, 23_000),
        # Long ago, as it stands there.
        (fails(429, **date), 0, 1_000),
        # An hour is the most that is granted.
        (fails(429, Retry_After="86400"), 3_600_000, 3_961_000),
        # None that can be understood: as long as a wait of ours.
        (fails(429, Retry_After="soon"), 7_500, 15_000),
        (fails(429), 7_500, 15_000),
    ):
        llm.then(behaviour)
        error = fails_with(model)
        assert isinstance(error, LimitReached | UpstreamFailed)
        assert error.delay is not None
        assert at_least <= error.delay <= at_most
    llm.then(fails(429))
    waited = fails_with(model, waits=9)
    assert isinstance(waited, LimitReached)
    assert waited.delay is not None
    assert 150_000 <= waited.delay <= 300_000
    llm.then(fails(500))
    failed = fails_with(model)
    assert isinstance(failed, UpstreamFailed)
    # The ordinary back-off, which has jitter.
    assert failed.delay is None


@pytest.mark.parametrize(
    ("behaviour", "type_", "said"),
    [
        (answers(None, refusal=f"I will not, {KEY}"), "validation_error", "refused to explain this window: I will not"),
        (answers("He", finish_reason="content_filter"), "validation_error", "content filter"),
        (answers("", finish_reason="length"), "configuration_error", "LLM_MAX_TOKENS"),
        (answers(""), "upstream_error", "answered nothing"),
        (answers(None), "upstream_error", "answered nothing"),
        (replies({"choices": []}, TOKENS), "upstream_error", "answered nothing"),
        (replies({"choices": "none"}, TOKENS), "upstream_error", "answered nothing"),
        (replies({"choices": [{"message": {"content": [1]}}]}, TOKENS), "upstream_error", "answered nothing"),
    ],
)
def test_no_answer_has_its_cost_too(
    llm: LlmServer, model: LanguageModel, behaviour: Behaviour, type_: str, said: str
) -> None:
    llm.then(behaviour)
    reply = ask(model, PROMPT)
    problem = reply.problem()
    assert problem is not None
    assert (error_type(problem), said in str(problem), KEY in str(problem)) == (type_, True, False)
    assert reply.usage == Usage(400, 50, 950)


@pytest.mark.parametrize(
    "usage", [None, [], {"prompt_tokens": "many"}, {"prompt_tokens": -1, "completion_tokens": 10**30}, {"x": 1}]
)
def test_what_it_took_is_the_most_it_can_where_the_api_does_not_say(
    llm: LlmServer, model: LanguageModel, usage: object
) -> None:
    llm.then(answers(usage=usage))
    assert ask(model, PROMPT).usage == MOST


def test_a_long_answer_is_cut_and_one_without_an_end_says_so(llm: LlmServer, model: LanguageModel) -> None:
    llm.then(answers("x" * 20_000), answers("And so", finish_reason="length"), answers("a\x00b\ud800"))
    long = ask(model, PROMPT).text
    assert long.startswith("x" * ANSWER_AT_MOST + "… [10,000 more characters]")
    assert ask(model, PROMPT).text == "And so …"
    # What Postgres cannot store is written as an escape.
    assert ask(model, PROMPT).text == "a\\x00b\\ud800"


def test_an_address_without_such_an_api(llm: LlmServer, model: LanguageModel) -> None:
    error = fails_with(replace(model, base_url=llm.url + "/elsewhere"))
    assert error_type(error) == "configuration_error"
    assert "LLM_BASE_URL" in str(error)
