"""Connections to Redis, as the settings say."""

from __future__ import annotations

import ssl
from typing import Final

import redis
from redis.backoff import NoBackoff
from redis.exceptions import ClusterDownError, MasterDownError
from redis.retry import Retry

from middleware.quick_pool import QuickPool
from worker.settings import Settings

#: Seconds that a worker may be told to wait for a message at a time (``dramatiq_worker_timeout``; delayed ones twice).
LONGEST_WAIT = 10.0
#: From a server that cannot be reached, or that is not the one to ask any more: a demoted master, a replica that lost
#: its own. On these redis-py closes the connection, and the next finds the new master; after all others it stays open,
#: to the same server for ever.
NOT_THE_SERVER = (redis.ConnectionError, redis.ReadOnlyError, MasterDownError, ClusterDownError)

#: That redis-py says its name and release on each connection takes two calls, and 1 ms to find out what the release is.
#: It is told not to in another way from 8.0 on; in between there is none.
_NAMELESS: Final[dict[str, object]] = (
    {"driver_info": None} if hasattr(redis, "DriverInfo") else {"lib_name": None, "lib_version": None}
)


class ExplainedTls(redis.SSLConnection):
    """A connection of rediss:// that says, where the certificate is not trusted, which setting mends it."""

    def connect(self) -> None:
        """Connect, unless that has happened.

        Raises:
          ConnectionError: When that fails.
        """
        try:
            super().connect()
        except redis.ConnectionError as e:
            cause = e.__context__
            if isinstance(cause, ssl.SSLCertVerificationError):
                raise redis.ConnectionError(
                    f"{self.host}:{self.port} shows a certificate that cannot be trusted: {cause.verify_message}. "
                    "REDIS_SSL_VERIFY=no takes it all the same; ?ssl_ca_certs=FILE in REDIS_URL names whose signature "
                    "is trusted"
                ) from e
            raise


def make_redis(settings: Settings, *, waits: bool = False, answers_within: float | None = None) -> redis.Redis:
    """Return a client for ``REDIS_URL``; it connects when first used.

    Arguments:
      settings: Say where, and how long to wait for an answer.
      answers_within: Seconds to wait at most for a connection or an answer, where that is less than the settings say.
      waits: For commands that wait on the server, and are not to be sent again where a reply was lost.
    """
    timeout = min(settings.redis_timeout, answers_within or settings.redis_timeout)
    options: dict[str, object] = {
        "socket_timeout": timeout + (LONGEST_WAIT if waits else 0),
        "socket_connect_timeout": timeout,
        # A connection that the server closed meanwhile is opened again at once; a server that is not there is an error
        # at once, too, and one that does not answer is not asked again.
        "retry": Retry(NoBackoff(), 0 if waits else 1, supported_errors=NOT_THE_SERVER),
        "health_check_interval": 30,
        # One for each thread that asks at the same moment. From 8.0 redis-py makes a hundred, and refuses the rest.
        "max_connections": 2**31,
        **_NAMELESS,
    }
    if settings.redis_url.startswith("rediss://"):
        options["connection_class"] = ExplainedTls
        if settings.redis_ssl_verify is False:
            # Heroku signs its own: https://devcenter.heroku.com/articles/connecting-heroku-redis
            options |= {"ssl_cert_reqs": "none", "ssl_check_hostname": False}
    client = redis.Redis(connection_pool=QuickPool.from_url(settings.redis_url, **options))
    # As from_url() does of the pool that it makes.
    client.auto_close_connection_pool = True
    return client
