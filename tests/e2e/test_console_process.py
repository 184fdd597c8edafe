"""``worker console`` as a process: where it listens, what it refuses, how it ends."""

from __future__ import annotations

import json
import signal
import urllib.error
import urllib.request
from http.client import HTTPConnection

import pytest

from db.errors import ConfigurationError
from tests.e2e.deployment import Deployment
from tests.servers import free_port
from tests.waiting import eventually
from worker.console.serving import PORT, where
from worker.console_tokens import make_token, read_tokens
from worker.settings import Settings

TOKEN, KEPT = make_token("ana", "operator")


def settings(**environment: str) -> Settings:
    return Settings.load({"DATABASE_URL": "postgres://h/x", "REDIS_URL": "stub://", **environment})


def test_it_listens_for_others_with_tokens_alone() -> None:
    tokens = {"CONSOLE_TOKENS": str(KEPT)}
    assert where(settings(), None, None) == ("127.0.0.1", PORT)
    assert where(settings(), "::1", 81) == ("::1", 81)
    assert where(settings(**tokens), None, None) == ("127.0.0.1", PORT)
    assert where(settings(**tokens), "10.0.0.1", None) == ("10.0.0.1", PORT)
    assert where(settings(**tokens, PORT="5000"), None, None) == ("0.0.0.0", 5000)  # noqa: S104
    for wrong, host in ((settings(PORT="5000"), None), (settings(), "0.0.0.0"), (settings(), "example.com")):  # noqa: S104
        with pytest.raises(ConfigurationError, match=r"^CONSOLE_TOKENS: required"):
            where(wrong, host, None)


def test_it_serves_until_it_is_told_to_stop(deployment: Deployment) -> None:
    made = deployment.run("worker", "console", "token", "bob", "--role", "operator").stdout
    said, entry = (line.strip() for line in made.splitlines() if line.startswith("  "))
    assert read_tokens(entry)[0].name == "bob"
    assert said not in entry
    port = free_port()
    # An empty value is none: as a host's PORT would be without tokens, and then it says what to do.
    refused = deployment.run("worker", "console", PORT="5000")
    assert (refused.returncode, "CONSOLE_TOKENS: required where PORT is set" in refused.stderr) == (2, True)
    log = deployment.start("worker", "console", PORT=str(port), CONSOLE_TOKENS=entry)
    process = deployment.processes[-1]
    eventually(lambda: "running on" in log.read_text(), seconds=60)

    asked = urllib.request.Request(
        f"http://127.0.0.1:{port}/failures",
        headers={"Authorization": f"Bearer {said}", "X-Forwarded-Proto": "https", "X-Forwarded-For": "1.2.3.4"},
    )
    with urllib.request.urlopen(asked) as answer:  # noqa: S310
        assert answer.status == 200
        # The router in front is believed.
        assert answer.headers["strict-transport-security"]
    connection = HTTPConnection("127.0.0.1", port)
    connection.request("GET", "/failures")
    assert connection.getresponse().status == 303
    connection.close()
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) in {0, -signal.SIGTERM}
    assert said not in log.read_text()
    assert "Traceback" not in log.read_text()
    # uvicorn's, and no access log, which would quote queries.
    assert {json.loads(line)["logger"] for line in log.read_text().splitlines()} == {"uvicorn.error"}
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(asked)  # noqa: S310
