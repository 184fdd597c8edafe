"""One call of a chat API that speaks as OpenAI's does, through the official client.

That one's own retries are off: a retry is a message's, which survives the process, and waits in Redis.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Self

from db.errors import ConfigurationError
from middleware.text import clean, cut
from worker.explain.budget import Prices, Usage
from worker.explain.errors import LimitReached, RequestRefused, UpstreamFailed, UpstreamTimeout
from worker.explain.patience import wait_for
from worker.explain.prompt import Prompt
from worker.explain.retry_after import retry_after
from worker.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    import openai

#: Bytes of a reply that are read, and characters of an answer that are kept.
REPLY_AT_MOST: Final = 1_048_576
ANSWER_AT_MOST: Final = 10_000
#: Characters of what the API says is wrong.
_REASON_AT_MOST: Final = 300
#: Seconds to wait for a connection.
_CONNECT_WITHIN: Final = 5.0
#: A count of tokens beyond is none.
_TOKENS_AT_MOST: Final = 10**9
#: What of HTTP says that the server had no time for it, or is on its way.
_AGAIN: Final = {408, 409, 425}
#: Of httpx and of httpx2, one of which is below the client: nothing was sent yet.
_NOT_SENT: Final = {"ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError", "UnsupportedProtocol"}

#: A word with its middle in stars; read once from left to right, however long the text.
_STARRED: Final = re.compile(r"(?<![^\s*])[^\s*]*\*{3}\S*")

#: Not "LLM_API_KEY: ...": what follows that is redacted wherever it is shown.
NO_KEY: Final = "LLM_API_KEY is not set, so no language model can be asked"


@dataclass(frozen=True, slots=True)
class LanguageModel:
    """Whom to ask, how, and for how much; see the settings of the same names."""

    base_url: str
    api_key: str = field(repr=False)
    name: str
    max_tokens: int
    max_tokens_name: str
    #: Seconds.
    timeout: float
    prices: Prices

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Return the one that the settings describe.

        Raises:
          ConfigurationError: When there is no key.
        """
        if settings.llm_api_key is None:
            raise ConfigurationError(NO_KEY)
        return cls(
            base_url=settings.llm_base_url,
            api_key=settings.llm_api_key,
            name=settings.llm_model,
            max_tokens=settings.llm_max_tokens,
            max_tokens_name=settings.llm_max_tokens_name,
            # What is left is for the transactions before and after.
            timeout=min(settings.llm_timeout, settings.time_limit / 1000 * 0.8),
            prices=Prices(settings.llm_price_input, settings.llm_price_output),
        )

    def cost_at_most(self, prompt: Prompt) -> Usage:
        """Return what a call may take at most."""
        return self._usage(prompt.tokens_at_most, self.max_tokens)

    def _usage(self, input_tokens: int, output_tokens: int) -> Usage:
        return Usage(input_tokens, output_tokens, self.prices.cost(input_tokens, output_tokens))


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back, and what it took.

    Attributes:
      text: The answer; empty where there is none.
      refusal: Why there is none, in the API's words.
      finish_reason: How the answer ended.
      language_model: Who answered, as the API says.
      usage: As the API says; what it may be at most where it does not.
    """

    text: str
    refusal: str | None
    finish_reason: str | None
    language_model: str
    usage: Usage

    def problem(self) -> Exception | None:
        """Return why this is no answer, to be raised; None where it is one."""
        if self.refusal is not None:
            return RequestRefused(f"{self.language_model} refused to explain this window: {self.refusal}")
        if self.finish_reason == "content_filter":
            return RequestRefused(f"a content filter stopped the answer of {self.language_model}")
        if self.text:
            return None
        if self.finish_reason == "length":
            return ConfigurationError("LLM_MAX_TOKENS: used up before an answer began")
        return UpstreamFailed(f"{self.language_model} answered nothing", may_have_cost=True)


def ask(model: LanguageModel, prompt: Prompt, waits: int = 0, clock: Callable[[], float] = time.monotonic) -> Reply:
    """Ask once.

    Arguments:
      model: Whom.
      prompt: What.
      waits: How often this message waited before, for how long it does next.
      clock: Seconds.

    Raises:
      ConfigurationError: When key, address, model or account do not let us, or ``openai`` is not installed.
      RequestRefused: When the API takes the request for a bad one.
      LimitReached: At 429, with the milliseconds to wait.
      UpstreamTimeout, UpstreamFailed: When there is no answer, in time or at all; with the milliseconds to wait where
        the API says how long.
    """
    client = _client(model)
    deadline = clock() + model.timeout
    with _explained(model, waits):
        # What is read is not for the client to parse: it may be of any length.
        create: Any = client.chat.completions.with_streaming_response.create
        with create(
            model=model.name, messages=prompt.messages(), **{model.max_tokens_name: model.max_tokens}
        ) as response:
            body = bytearray()
            for chunk in response.iter_bytes():
                body += chunk
                if len(body) > REPLY_AT_MOST:
                    raise UpstreamFailed(f"the reply is longer than {REPLY_AT_MOST:,} bytes", may_have_cost=True)
                if clock() > deadline:
                    raise UpstreamTimeout(
                        f"LLM_TIMEOUT: the reply did not end within {model.timeout:g} s", may_have_cost=True
                    )
    return _read(model, prompt, bytes(body))


@lru_cache(maxsize=4)
def _client(model: LanguageModel) -> openai.OpenAI:
    """Return a client, which keeps its connections; made in the process that asks."""
    try:
        # Takes a second and more, which a process that never asks should not wait for.
        import openai
    except ModuleNotFoundError:
        raise ConfigurationError("openai is not installed: pip install 'dramaturg[llm]'") from None
    return openai.OpenAI(
        api_key=model.api_key,
        base_url=model.base_url,
        timeout=openai.Timeout(model.timeout, connect=min(_CONNECT_WITHIN, model.timeout)),
        max_retries=0,
    )


@contextmanager
def _explained(model: LanguageModel, waits: int) -> Iterator[None]:
    """Turn what the client raises into what a person, and a retry, can do something with."""
    import openai

    try:
        yield
    except (UpstreamFailed, LimitReached):
        raise
    except openai.APIStatusError as e:
        raise _of_status(e, model, waits) from None
    except Exception as e:  # noqa: BLE001 - of the client, or of the HTTP library below, which is one of two
        names = {kind.__name__ for error in (e, e.__cause__) for kind in type(error).__mro__}
        kind = UpstreamTimeout if names & {"APITimeoutError", "TimeoutException"} else UpstreamFailed
        what = type(e.__cause__ or e).__name__
        raise kind(f"no answer of {model.base_url}: {what}", may_have_cost=not names & _NOT_SENT) from None


def _of_status(e: openai.APIStatusError, model: LanguageModel, waits: int) -> Exception:
    status = e.status_code
    # Its message is all of the body in some releases of the client.
    reason = e.body.get("message") if isinstance(e.body, dict) else None
    said = f"{model.base_url} answered {status}: {_plain(reason or e.message, model)}"
    delay = retry_after(e.response.headers, datetime.now(UTC))
    if status in {401, 403}:
        return ConfigurationError(f"LLM_API_KEY is not let in; {said}")
    if status == 404:
        return ConfigurationError(f"LLM_BASE_URL, LLM_MODEL {model.name!r}: {said}")
    if status == 402 or (status == 429 and "insufficient_quota" in {e.code, e.type}):
        return ConfigurationError(f"the account of LLM_API_KEY has nothing left to spend; {said}")
    if status == 429:
        return LimitReached(said, wait_for(waits) if delay is None else delay)
    if status in _AGAIN or not 400 <= status < 500:
        return UpstreamFailed(said, delay, may_have_cost=False)
    return RequestRefused(said)


def _read(model: LanguageModel, prompt: Prompt, body: bytes) -> Reply:
    try:
        reply = json.loads(body)
    except (ValueError, RecursionError):
        reply = None
    if not isinstance(reply, dict):
        raise UpstreamFailed(f"{model.base_url} answered with what is no JSON object", may_have_cost=True)
    message: dict[Any, Any]
    choice: dict[Any, Any]
    match reply:
        case {"choices": [{"message": dict(message), **choice}, *_]}:
            pass
        case _:
            message, choice = {}, {}
    text, finish_reason = _plain_text(message.get("content")), _word(choice.get("finish_reason"))
    return Reply(
        text=cut(text, ANSWER_AT_MOST) + (" …" if text and finish_reason == "length" else ""),
        refusal=_plain(message["refusal"], model) if message.get("refusal") else None,
        finish_reason=finish_reason,
        language_model=(_word(reply.get("model")) or model.name)[:200],
        usage=_usage(model, prompt, reply.get("usage")),
    )


def _usage(model: LanguageModel, prompt: Prompt, said: object) -> Usage:
    """Return what the API says that it took, or, where it says nothing that can be so, the most that it can have."""
    most, counts = model.cost_at_most(prompt), said if isinstance(said, dict) else {}
    asked = _count(counts.get("prompt_tokens"), most.input_tokens)
    answered = _count(counts.get("completion_tokens"), most.output_tokens)
    return Usage(asked, answered, model.prices.cost(asked, answered))


def _count(said: object, otherwise: int) -> int:
    return said if isinstance(said, int) and not isinstance(said, bool) and 0 <= said <= _TOKENS_AT_MOST else otherwise


def _word(value: object) -> str | None:
    return clean(value) if isinstance(value, str) and value else None


def _plain_text(value: object) -> str:
    return clean(value).strip() if isinstance(value, str) else ""


def _plain(said: object, model: LanguageModel) -> str:
    """Return what the API says, short, and without the key, which some repeat, or its beginning and end with stars."""
    without = clean(str(said)).replace(model.api_key, "[redacted]")
    return cut(_STARRED.sub("[redacted]", without), _REASON_AT_MOST)
