"""A language model that misbehaves in each of its ways now and then, and mostly answers."""

from __future__ import annotations

import random
import time
from typing import Any

from tests import llm_server
from tests.llm_server import Behaviour, LlmServer, answers, cut, endless, fails, raw


def _says_nothing(handler: Any) -> None:
    # Longer than whoever asks waits.
    time.sleep(3)
    handler.close_connection = True


#: How often each comes.
BEHAVIOURS: list[tuple[float, Behaviour]] = [
    (70, answers()),
    (5, answers(usage={"prompt_tokens": 900, "completion_tokens": 90, "total_tokens": 990})),
    (1, answers(finish_reason="length")),
    (2, answers(None, refusal="I cannot help with that.")),
    (2, answers("", finish_reason="content_filter")),
    (1, raw(200, b"<html>no JSON</html>")),
    (3, fails(429, "slow down", "rate_limit_exceeded", Retry_After="1")),
    (1, fails(429, "no money", "insufficient_quota")),
    (5, fails(500)),
    (3, fails(503, Retry_After="1")),
    (1, fails(400)),
    (1, fails(401, "no such key")),
    (3, cut()),
    (1, endless()),
    (1, _says_nothing),
]


def misbehave(server: LlmServer, seed: int) -> None:
    """Have a server behave so from now on."""
    rng = random.Random(f"model {seed}")  # noqa: S311 - to be repeated
    behaviours, weights = [each for _, each in BEHAVIOURS], [weight for weight, _ in BEHAVIOURS]

    def any_of_them(handler: llm_server._Handler) -> None:
        # What it was asked is of no interest, and would be much after an hour.
        del server.asked[:], server.keys[:]
        rng.choices(behaviours, weights)[0](handler)

    server.always(any_of_them)
