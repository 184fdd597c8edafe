"""Whether ``explain_window`` can ask anybody; without it everything else works."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib.util import find_spec

from worker.check.findings import Finding, ok, warning
from worker.check.procfile import Entry
from worker.queues import Queue
from worker.settings import Settings

NAME = "llm"
_MODULE = f"worker.{Queue.LLM}"


def is_installed() -> bool:
    """Tell whether the extra ``llm`` is installed."""
    return find_spec("openai") is not None


def judge_language_model(settings: Settings, entries: Iterable[Entry], *, installed: bool) -> Iterator[Finding]:
    """Judge what is there for ``explain_window``, where something is.

    Arguments:
      settings: Of the deployment.
      entries: Those that run dramatiq.
      installed: Whether the extra is.
    """
    has_key = settings.llm_api_key is not None or any(entry.environment.get("LLM_API_KEY") for entry in entries)
    if has_key and not installed:
        yield warning(
            NAME,
            "LLM_API_KEY is set, and openai is not installed: explain_window fails with configuration_error",
            "pip install 'dramaturg[llm]'",
        )
    elif has_key:
        budget = settings.llm_monthly_budget
        yield ok(
            NAME,
            f"explain_window asks {settings.llm_model}; a tenant may spend "
            + ("without a limit" if budget is None else f"{budget:,} cents a month"),
        )
    elif installed:
        yield warning(
            NAME,
            "LLM_API_KEY is not set: explain_window fails with configuration_error",
            "Set it, or, if nobody sends to explain_window, let it be.",
        )
    elif any(_consumes(entry) for entry in entries):
        yield ok(NAME, "the extra llm is not installed: explain_window, if anybody sent to it, would fail")


def _consumes(entry: Entry) -> bool:
    return any(module == _MODULE or module.startswith(f"{_MODULE}.") for module in entry.command.modules)
