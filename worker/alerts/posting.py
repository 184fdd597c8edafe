"""Posts an alert once, and says how that went without its address, which for many receivers is the secret itself.

Its own retries are off: a retry is a message's, which survives the process, and waits in Redis.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from middleware.text import clean, cut
from worker.alerts.errors import AlertNotDelivered, AlertRefused, AlertTimeout
from worker.alerts.signing import headers, read_secrets
from worker.explain.retry_after import retry_after
from worker.settings import Settings
from worker.text import one_line

if TYPE_CHECKING:
    import urllib3

#: Seconds to wait for a connection, and for each part of an answer.
CONNECT_WITHIN, ANSWER_WITHIN = 5.0, 10.0
#: Seconds for an answer's body, which is only for the eye.
BODY_WITHIN: Final = 2.0
#: Bytes of an answer that are read, and characters of it that are said.
_READ_AT_MOST, _SAID_AT_MOST = 4_096, 200
#: What of 4xx says that the server had no time for it.
_AGAIN: Final = {408, 425, 429}
#: Characters from which on a part of an address may be secret.
_SECRET_FROM: Final = 6


@dataclass(frozen=True, slots=True)
class Receiver:
    """Where alerts are posted, and what they are signed with."""

    url: str = field(repr=False)
    keys: tuple[bytes, ...] = field(repr=False, default=())

    @classmethod
    def of(cls, settings: Settings) -> Self | None:
        """Return the one of the settings; None where nobody is to be told."""
        if settings.alert_webhook_url is None:
            return None
        return cls(settings.alert_webhook_url, read_secrets(settings.alert_webhook_secrets or ""))

    def post(self, alert: Mapping[str, Any], now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> str:
        """Post an alert and return what the receiver answered, in words.

        Arguments:
          alert: With its ``id``, which the receiver knows it by when it comes again.
          now: The time, with a time zone.

        Raises:
          AlertRefused: When the receiver will not have it, or is elsewhere: redirections are not followed.
          AlertTimeout, AlertNotDelivered: When it could have it later; with the milliseconds to wait where it says how
            long.
        """
        body = json.dumps(alert, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")
        signed = headers(self.keys, str(alert["id"]), int(now().timestamp()), body)
        status, said, answered = self._ask("POST", body, {**signed, "Content-Type": "application/json"})
        words = f"the receiver of alerts answered {status}" + (f": {said}" if said else "")
        if 200 <= status < 300:
            return words
        if 300 <= status < 400:
            raise AlertRefused(f"{words} (redirections are not followed: ALERT_WEBHOOK_URL must be where they lead)")
        if status in _AGAIN or status >= 500:
            raise AlertNotDelivered(words, retry_after(answered, now()))
        raise AlertRefused(words)

    def get(self) -> int:
        """Ask for the address alone, and return the status of the answer.

        Raises:
          AlertTimeout, AlertNotDelivered: When there is none.
        """
        return self._ask("GET", None, {})[0]

    def _ask(self, method: str, body: bytes | None, more: Mapping[str, str]) -> tuple[int, str, Mapping[str, str]]:
        from urllib3 import exceptions

        try:
            with _unlogged(), _manager(self.url) as manager:
                response = manager.request(
                    method,
                    self.url,
                    body=body,
                    headers={"User-Agent": "dramaturg", **more, **_login(self.url)},
                    redirect=False,
                    preload_content=False,
                )
                try:
                    said = _beginning(response)
                finally:
                    response.close()
        except (exceptions.HTTPError, OSError, ValueError) as e:
            # Of the library's, one that is not let in is a timeout, too.
            if isinstance(e, exceptions.TimeoutError) and not isinstance(e, exceptions.NewConnectionError):
                raise AlertTimeout(f"the receiver of alerts did not answer in time: {type(e).__name__}") from None
            raise AlertNotDelivered(f"the receiver of alerts cannot be reached: {type(e).__name__}") from None
        return response.status, self._plain(said), response.headers

    def _plain(self, said: bytes) -> str:
        """Return what was answered, short, and without any part of the address that may be secret."""
        text = clean(said.decode("utf-8", "replace"))
        parts = urlsplit(self.url)
        words = {self.url, *re.split(r"[/?&=;:@]", f"{parts.path}?{parts.query}?{parts.netloc.rpartition('@')[0]}")}
        for word in sorted({*words, *map(unquote, words)}, key=len, reverse=True):
            if len(word) >= _SECRET_FROM:
                text = text.replace(word, "[redacted]")
        return cut(one_line(text), _SAID_AT_MOST)


def _beginning(response: urllib3.BaseHTTPResponse) -> bytes:
    """Return what an answer's body begins with; nothing where it does not come, which changes nothing of its status."""
    from urllib3 import exceptions

    said, until = b"", time.monotonic() + BODY_WITHIN
    try:
        # Each part is what has come by then: one that comes in drops would keep whoever reads all of it for hours.
        while len(said) < _READ_AT_MOST and (part := response.read1(_READ_AT_MOST - len(said), decode_content=False)):
            if time.monotonic() > until:
                return b""
            said += part
    except (exceptions.HTTPError, OSError, ValueError):
        # Nor a part of it, which may end amid a part of the address.
        return b""
    return said


def _manager(url: str) -> urllib3.PoolManager:
    """Return what posts, through the proxy that the environment names for this address, if it names one."""
    # Here, because it is 4 MB that a process which never posts can do without.
    import urllib3

    parts = urlsplit(url)
    timeout = urllib3.Timeout(connect=CONNECT_WITHIN, read=ANSWER_WITHIN)
    proxy = getproxies().get(parts.scheme)
    if proxy and not proxy_bypass(parts.hostname or ""):
        return urllib3.ProxyManager(
            proxy, proxy_headers=urllib3.make_headers(proxy_basic_auth=_user(proxy)), retries=False, timeout=timeout
        )
    return urllib3.PoolManager(retries=False, timeout=timeout)


def _login(url: str) -> dict[str, str]:
    import urllib3

    return dict(urllib3.make_headers(basic_auth=_user(url)))


def _user(url: str) -> str | None:
    user, at, _ = urlsplit(url).netloc.rpartition("@")
    return unquote(user) if at else None


_posting: ContextVar[bool] = ContextVar("dramaturg_posting", default=False)


@contextmanager
def _unlogged() -> Iterator[None]:
    """Keep the library from logging the address, which it does where everything is logged."""
    token = _posting.set(True)
    try:
        yield
    finally:
        _posting.reset(token)


def _is_to_be_logged(_record: logging.LogRecord) -> bool:
    return not _posting.get()


for _name in ("urllib3.connectionpool", "urllib3.connection", "urllib3.poolmanager", "urllib3.util.retry"):
    logging.getLogger(_name).addFilter(_is_to_be_logged)
