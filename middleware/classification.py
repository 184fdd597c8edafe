"""What kind of failure it is, by exception type and SQLSTATE; never by matching text, and never changing retries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import dramatiq.errors
from dramatiq.middleware import TimeLimitExceeded

from db.errors import ConfigurationError, InvalidTenant, TenantRequired
from middleware.errors import MessageExpired, TenantError, WorkerLost
from middleware.message_checks import InvalidMessage

VALIDATION_ERROR: Final = "validation_error"
DATABASE_ERROR: Final = "database_error"
APPLICATION_ERROR: Final = "application_error"
UNKNOWN: Final = "unknown"
TIMEOUT: Final = "timeout"
RATE_LIMITED: Final = "rate_limited"
UPSTREAM_ERROR: Final = "upstream_error"
EXPIRED: Final = "expired"
UNKNOWN_ACTOR: Final = "unknown_actor"
UNDECODABLE: Final = "undecodable"
TENANT_ERROR: Final = "tenant_error"
WORKER_LOST: Final = "worker_lost"
CONFIGURATION_ERROR: Final = "configuration_error"

#: By exception class, the nearest base first. Classes of libraries that may not be installed, or are not
#: needed by every process, are named, not imported.
BY_CLASS: Final[Mapping[type[BaseException] | str, str]] = {
    ValueError: VALIDATION_ERROR,  # pydantic's ValidationError is one
    KeyError: VALIDATION_ERROR,
    "sqlalchemy.exc.SQLAlchemyError": DATABASE_ERROR,
    "psycopg.Error": DATABASE_ERROR,
    TimeoutError: TIMEOUT,
    TimeLimitExceeded: TIMEOUT,
    dramatiq.errors.RateLimitExceeded: RATE_LIMITED,
    dramatiq.errors.ActorNotFound: UNKNOWN_ACTOR,
    dramatiq.errors.DecodeError: UNDECODABLE,
    InvalidMessage: UNDECODABLE,
    ConnectionError: UPSTREAM_ERROR,
    "urllib.error.URLError": UPSTREAM_ERROR,
    "http.client.HTTPException": UPSTREAM_ERROR,
    "requests.exceptions.RequestException": UPSTREAM_ERROR,
    "requests.exceptions.Timeout": TIMEOUT,
    "httpx.HTTPError": UPSTREAM_ERROR,
    "httpx.TimeoutException": TIMEOUT,
    "aiohttp.client_exceptions.ClientError": UPSTREAM_ERROR,
    "openai.APIError": UPSTREAM_ERROR,
    "openai.APITimeoutError": TIMEOUT,
    "openai.RateLimitError": RATE_LIMITED,
    "redis.exceptions.RedisError": UPSTREAM_ERROR,
    "redis.exceptions.TimeoutError": TIMEOUT,
    WorkerLost: WORKER_LOST,
    MessageExpired: EXPIRED,
    TenantError: TENANT_ERROR,
    TenantRequired: TENANT_ERROR,
    InvalidTenant: TENANT_ERROR,
    ConfigurationError: CONFIGURATION_ERROR,
    Exception: APPLICATION_ERROR,
}

#: By SQLSTATE, where it says more than "database".
#: https://www.postgresql.org/docs/current/errcodes-appendix.html
BY_SQLSTATE: Final[Mapping[str, str]] = {
    "57014": TIMEOUT,  # query_canceled: statement_timeout, or the watchdog at the job's time limit
    "55P03": TIMEOUT,  # lock_not_available: lock_timeout
    "42P01": CONFIGURATION_ERROR,  # undefined_table: a migration is missing
    "42703": CONFIGURATION_ERROR,  # undefined_column
}


def sqlstate_of(error: BaseException) -> str | None:
    """Return Postgres' code for ``error``, which SQLAlchemy wraps."""
    origin = getattr(error, "orig", error)
    code = getattr(origin, "sqlstate", None)
    return code if isinstance(code, str) else None


class Classifier:
    """Gives exceptions their ``error_type``.

    Arguments:
      own: An application's own types, by class or full name (``"stripe.error.CardError"``); they win over ours. At
        most 100 characters each.
    """

    def __init__(self, own: Mapping[type[BaseException] | str, str] | None = None) -> None:
        self._own: dict[type[BaseException] | str, str] = {}
        for key, name in (own or {}).items():
            self.add(key, name)

    def add(self, error: type[BaseException] | str, error_type: str) -> None:
        """Give a class of exceptions, and those below it, an error type of one's own.

        Arguments:
          error: The class, or its full name.
          error_type: At most 100 characters.

        Raises:
          ValueError: When it does not fit.
        """
        if not isinstance(error_type, str) or not 0 < len(error_type) <= 100:
            raise ValueError(f"the error type for {error!r} must have 1 to 100 characters, not {error_type!r}")
        self._own[error] = error_type

    def __call__(self, error: BaseException | None) -> str:
        """Return the error type; ``unknown`` where a message was rejected without an exception."""
        if error is None:
            return UNKNOWN
        return (
            _nearest(type(error), self._own)
            or BY_SQLSTATE.get(sqlstate_of(error) or "")
            or _nearest(type(error), BY_CLASS)
            or UNKNOWN
        )


def _nearest(kind: type[BaseException], table: Mapping[type[BaseException] | str, str]) -> str | None:
    for base in kind.__mro__:
        found = table.get(base) or table.get(f"{base.__module__}.{base.__qualname__}")
        if found is not None:
            return found
    return None
