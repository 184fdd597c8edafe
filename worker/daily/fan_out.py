"""Sends what a run sends: each message once, whoever dies between two of them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final
from uuid import UUID, uuid5

import dramatiq
from dramatiq import Broker, Message

from db.session import operator_transaction
from db.tenancy import tenant_context
from middleware.lossless_broker import LosslessBroker
from worker.daily import runs
from worker.daily.runs import Run
from worker.recompute import Model
from worker.replay import sending

#: Among a message's options, the run that it is a part of.
OPTION: Final = "attribution_run"


def fan_out(run: Run, models: Sequence[Model], actor: dramatiq.Actor[..., Any]) -> int:
    """Plan and send a run's children, as far as that was not done before, and return how many it has.

    Arguments:
      run: Which.
      models: Under which each tenant's day is recomputed.
      actor: ``recompute_window``.

    Raises:
      ConnectionClosed, ConnectionFailed: When Redis cannot be reached. Called again, it goes on.
    """
    expected = run.expected if run.expected is not None else _plan(run, models)
    last = None
    while True:
        with operator_transaction() as session:
            children = runs.unsent(session, run.id, last)
        if not children:
            return expected
        last = children[-1]
        messages = []
        for child in children:
            message = actor.message_with_options(
                kwargs={
                    "window_start": run.day.isoformat(),
                    "window_end": (run.day + timedelta(days=1)).isoformat(),
                    "model": child.model,
                },
            )
            message = message.copy(message_id=str(child.id), options={OPTION: str(run.id)})
            messages.append((child.tenant_id, message))
        send(actor.broker, run.correlation_id, messages)
        with operator_transaction() as session:
            runs.sent(session, children)
        _remember(actor.broker, [child.id for child in children])


def send_follower(run: Run, actor: dramatiq.Actor[..., Any]) -> None:
    """Send what follows a run to its end."""
    message = actor.message(run_id=str(run.id)).copy(message_id=str(uuid5(run.id, "follow")))
    send(actor.broker, run.correlation_id, [(None, message)])


def send(broker: Broker, correlation_id: UUID, messages: Sequence[tuple[UUID | None, Message[Any]]]) -> None:
    """Put messages on their queues, each for its tenant; those excepted that were put there before.

    Redis remembers them by their ids, which must be UUIDs, also after they have run. A broker that is not ours, as in
    tests, takes them as they come.

    Raises:
      ConnectionClosed, ConnectionFailed: When Redis cannot be reached. Saying it again does no harm.
    """
    if not isinstance(broker, LosslessBroker):
        for tenant_id, message in messages:
            with tenant_context(tenant_id, correlation_id):
                broker.enqueue(message)
        return
    entries = []
    for tenant_id, message in messages:
        # As every message is sent, up to the step that puts it on its queue.
        with tenant_context(tenant_id, correlation_id), broker.collecting():
            made = broker.enqueue(message)
        entries.append((UUID(made.message_id), made.copy(options={"redis_message_id": made.message_id})))
    sending.send(broker.run, entries)


def _plan(run: Run, models: Sequence[Model]) -> int:
    begin_with: UUID | None = UUID(int=0)
    while begin_with is not None:
        with operator_transaction() as session:
            begin_with = runs.plan(session, run, models, begin_with)
    with operator_transaction() as session:
        return runs.planned(session, run.id)


def _remember(broker: Broker, ids: Sequence[UUID]) -> None:
    if isinstance(broker, LosslessBroker):
        sending.remember(broker.run, ids)
