"""Dramatiq's groups with completion callbacks, of which none gets lost, and none comes early or twice.

Stock Dramatiq counts a child before it is acknowledged and enqueues the callbacks after the count: a child that is
delivered twice counts twice, and callbacks that cannot be enqueued just then never will be. Here the child's end, its
count and, with the last child, the callbacks are one step in Redis.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import uuid4

from dramatiq import Broker, Message, MessageProxy
from dramatiq.errors import ConnectionClosed, ConnectionFailed
from dramatiq.middleware import GroupCallbacks
from dramatiq.rate_limits import RateLimiterBackend

from middleware.deliveries import Delivery, GroupChild
from middleware.dramatiq_internals import sent_by_somebody
from middleware.hooks import BeforeEnqueue
from middleware.lossless_broker import LosslessBroker
from middleware.lua_scripts import Scripts
from middleware.safe_follow_ups import failing

#: Milliseconds for which a group is remembered after it was begun or a child of it succeeded: 30 days.
KEEP = 30 * 86_400_000
#: Which of its group's children a message is, through retries and redeliveries. Its id does not say: a group may hold
#: one message several times.
_CHILD = "group_completion_child"
#: Options of which one is there where it, or what follows from it, may be of a group.
_OF_GROUPS = frozenset({"group_completion_uuid", "pipe_target"})


class GroupCounts(RateLimiterBackend):
    """Begins groups in Redis. It is no other rate limiter's backend: children are counted where deliveries end.

    Arguments:
      run: Runs the scripts, in the namespace of the broker.
    """

    def __init__(self, run: Scripts) -> None:
        self._run = run

    def add(self, key: str, value: int, ttl: int) -> bool:
        """Begin the group ``key`` of ``value`` children, to be remembered for ``ttl`` milliseconds.

        Raises:
          ConnectionFailed: When Redis did not say that it has it. No child was enqueued.
        """
        try:
            return bool(self._run("begin_group", key, value, ttl))
        except ConnectionClosed as e:
            raise ConnectionFailed(
                f"group {key} of {value} children was not begun, and none of them enqueued: {e}"
            ) from e


class SafeGroupCallbacks(BeforeEnqueue, GroupCallbacks):
    """Enqueues a group's callbacks once, when each of its children has succeeded.

    A child that ends as a failure keeps its group open: the callbacks come should it succeed later, under the same
    message id and options, while the group is remembered.

    Arguments:
      rate_limiter_backend: :class:`GroupCounts` on a ``LosslessBroker``; with another it does as stock Dramatiq.
      barrier_ttl: Milliseconds, see :data:`KEEP`. Children that are delayed for longer are not counted.

    Raises (from ``group.run()``):
      ConnectionFailed: When the group could not be begun.
    """

    def __init__(self, rate_limiter_backend: RateLimiterBackend, *, barrier_ttl: int = KEEP) -> None:
        super().__init__(rate_limiter_backend, barrier_ttl=barrier_ttl)

    def before_enqueue_many(self, broker: Broker, messages: Sequence[Message[Any]], delay: int | None) -> None:
        for message in sent_by_somebody(messages):
            if not _OF_GROUPS.isdisjoint(message.options):
                message.options.update(_marked(message.options))

    def after_process_message(
        self,
        broker: Broker,
        message: MessageProxy,
        *,
        result: Any = None,
        exception: BaseException | None = None,
    ) -> None:
        uuid, callbacks = (message.options.get(f"group_completion_{name}") for name in ("uuid", "callbacks"))
        if exception is not None or message.failed or not uuid or not callbacks:
            return
        with failing(message, "group_completion_callbacks", exception):
            if not isinstance(self.rate_limiter_backend, GroupCounts):
                super().after_process_message(broker, message, result=result, exception=exception)
                return
            if not isinstance(broker, LosslessBroker) or not isinstance(message, Delivery):
                raise TypeError(f"GroupCounts needs a LosslessBroker, not {type(broker).__name__}")
            # Every child brings the callbacks along, because only Redis knows which is the last.
            with broker.collecting() as collected:
                for callback in callbacks:
                    broker.enqueue(Message(**callback))
            child = message.options.get(_CHILD) or message.message_id
            message.group = GroupChild(uuid, child, self.barrier_ttl, [entry for _, entry in collected])


def _marked(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what to change in a message's options for it, and the last of its pipeline, to be known as a child."""
    changes: dict[str, Any] = {}
    if options.get("group_completion_uuid") and not options.get(_CHILD):
        changes[_CHILD] = str(uuid4())
    target = options.get("pipe_target")
    if isinstance(target, Mapping) and isinstance(target.get("options"), Mapping):
        changes["pipe_target"] = {**target, "options": {**target["options"], **_marked(target["options"])}}
    return changes
