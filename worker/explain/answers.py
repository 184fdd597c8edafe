"""What a language model answered, one answer for each window, model and version: the newest."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from db.tenancy import current_correlation_id
from worker.explain.budget import Usage
from worker.recompute import Model, Window


@dataclass(frozen=True, slots=True)
class Answer:
    """A stored answer.

    Attributes:
      fingerprint: Of what was asked; see :class:`worker.explain.prompt.Prompt`.
      language_model: Who answered, as the API calls itself.
      text: What it said.
      usage: What that took.
      call_id: Of the message that asked.
      answered_at: When.
    """

    fingerprint: str
    language_model: str
    text: str
    usage: Usage
    call_id: UUID
    answered_at: datetime


def stored_answer(session: Session, tenant_id: UUID, window: Window, model: Model, model_version: str) -> Answer | None:
    """Return the answer about a window, if there is one; it may be of allocations that have changed since.

    Arguments:
      session: Bound to the tenant, or an operator's.
    """
    row = session.execute(_FIND, _key(tenant_id, window, model, model_version)).one_or_none()
    if row is None:
        return None
    return Answer(
        row.fingerprint,
        row.language_model,
        row.answer,
        Usage(row.input_tokens, row.output_tokens, row.cost_microcents),
        row.call_id,
        row.answered_at,
    )


def store_answer(
    session: Session,
    tenant_id: UUID,
    window: Window,
    model: Model,
    model_version: str,
    *,
    fingerprint: str,
    language_model: str,
    answer: str,
    usage: Usage,
    call_id: UUID,
) -> None:
    """Keep an answer in the place of the one before; doing it twice for a ``call_id`` keeps the first.

    Arguments:
      session: Bound to the tenant. The caller commits, together with the call's cost.
    """
    session.execute(
        _STORE,
        {
            **_key(tenant_id, window, model, model_version),
            "fingerprint": fingerprint,
            "language_model": language_model,
            "answer": answer,
            "input_tokens": usage.input_tokens,
            "output_tokens": usage.output_tokens,
            "microcents": usage.microcents,
            "call_id": call_id,
            "correlation_id": current_correlation_id(),
        },
    )


def _key(tenant_id: UUID, window: Window, model: Model, model_version: str) -> dict[str, Any]:
    return {
        "tenant_id": tenant_id,
        "start": window.start,
        "end": window.end,
        "model": model.value,
        "model_version": model_version,
    }


_FIND = text(
    """
    SELECT fingerprint, language_model, answer, input_tokens, output_tokens, cost_microcents, call_id, answered_at
    FROM worker_llm_answers
    WHERE tenant_id = :tenant_id AND window_start = :start AND window_end = :end
      AND model = :model AND model_version = :model_version
    """
)

_STORE = text(
    """
    INSERT INTO worker_llm_answers AS known (
        tenant_id, window_start, window_end, model, model_version, fingerprint, language_model, answer,
        input_tokens, output_tokens, cost_microcents, call_id, correlation_id
    )
    VALUES (
        :tenant_id, :start, :end, :model, :model_version, :fingerprint, :language_model, :answer,
        :input_tokens, :output_tokens, :microcents, :call_id, CAST(:correlation_id AS uuid)
    )
    ON CONFLICT (tenant_id, window_start, window_end, model, model_version) DO UPDATE SET
        fingerprint = EXCLUDED.fingerprint,
        language_model = EXCLUDED.language_model,
        answer = EXCLUDED.answer,
        input_tokens = EXCLUDED.input_tokens,
        output_tokens = EXCLUDED.output_tokens,
        cost_microcents = EXCLUDED.cost_microcents,
        call_id = EXCLUDED.call_id,
        correlation_id = EXCLUDED.correlation_id,
        answered_at = CURRENT_TIMESTAMP
    WHERE known.call_id <> EXCLUDED.call_id
    """
)
