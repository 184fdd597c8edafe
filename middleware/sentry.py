"""Tells Sentry of final failures: one event for each that became a row, or waits in the spool to become one.

Nothing is imported of Sentry's SDK before a worker starts, or a first failure; it needs the extra ``sentry``.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

from dramatiq import Broker, Worker
from dramatiq.middleware import Middleware
from loguru import logger

from db.failures import Failure
from middleware.errors import AlreadyRecorded
from middleware.redaction import Redactor

if TYPE_CHECKING:
    from middleware.sentry_client import SentryClient

#: Seconds for which a worker that stops waits for its last events to be sent.
FLUSH_WITHIN: Final = 2.0


def is_installed() -> bool:
    """Tell whether the extra ``sentry`` is installed."""
    return find_spec("sentry_sdk") is not None


def _nothing() -> None:
    pass


def _hand_over(client: SentryClient, event: Any, failure: Failure) -> None:
    try:
        client.send(event)
    except Exception as e:  # noqa: BLE001 - the message has ended, and must be let go of
        logger.error("Sentry is not told of failure {}: {}", failure.task_id, type(e).__name__)


class Sentry(Middleware):
    """Sends events from a thread of the SDK's; where Sentry is away, or there are too many, they are dropped.

    It has a client of its own, without any of the SDK's integrations: that for Dramatiq would send an event for each
    try, those for logging another for the line about it. What an application does with the SDK is left alone.

    Arguments:
      dsn: Where they go.
      redact: Takes secrets out of exceptions and source lines; a failure's other parts are redacted by now.
      worker_name: What failure rows call this process, without its number.
    """

    def __init__(self, dsn: str, redact: Redactor | None = None, worker_name: str | None = None) -> None:
        self._dsn = dsn
        self._redact = redact or Redactor()
        self._worker_name = worker_name
        self._lock = threading.Lock()
        self._client: SentryClient | None = None
        self._works = True

    def before_worker_boot(self, broker: Broker, worker: Worker) -> None:
        self._ready()
        sdk: Any = sys.modules.get("sentry_sdk")
        if sdk is not None and sdk.get_client().get_integration("dramatiq") is not None:
            logger.warning(
                "sentry_sdk.init() of this application has switched DramatiqIntegration on, which sends an event for "
                "each try, beside ours for each final failure: switch it off with "
                "disabled_integrations=[DramatiqIntegration()]"
            )

    def after_worker_shutdown(self, broker: Broker, worker: Worker) -> None:
        if self._client is not None:
            self._client.flush(FLUSH_WITHIN)

    def announce(self, failure: Failure, error: BaseException | None) -> Callable[[], None]:
        """Return what hands over the event of a failure, to be called when its message has ended. Neither raises
        anything, or waits for anybody.

        Arguments:
          failure: As it was recorded.
          error: What it died of, if there is an exception.
        """
        if isinstance(error, AlreadyRecorded):
            # Its worker was lost between row and end; the row is older than this.
            return _nothing
        try:
            client = self._ready()
            return _nothing if client is None else partial(_hand_over, client, client.event(failure, error), failure)
        except BaseException as e:  # noqa: BLE001 - a user's exception may raise anything while it is looked at
            logger.error("Sentry is not told of failure {}: {}", failure.task_id, type(e).__name__)
            return _nothing

    def _ready(self) -> SentryClient | None:
        if self._client is None and self._works:
            with self._lock:
                if self._client is None and self._works:
                    self._client = self._make()
                    self._works = self._client is not None
        return self._client

    def _make(self) -> SentryClient | None:
        if not is_installed():
            logger.warning(
                "Sentry is told of no failure: sentry-sdk is not installed (pip install 'dramaturg[sentry]')"
            )
            return None
        try:
            from middleware.sentry_client import SentryClient

            return SentryClient(self._dsn, self._redact, self._worker_name)
        except Exception as e:  # noqa: BLE001 - an SDK of another form; its text may hold the DSN
            logger.error("Sentry is told of no failure, because its SDK does not start: {}", type(e).__name__)
            return None
