"""Whatever programs send, what the API's own description allows and what it does not, it answers and never fails."""

from __future__ import annotations

import warnings
from collections import Counter
from typing import Any, Final

import pytest
from fastapi.testclient import TestClient
from httpx2 import InvalidURL
from hypothesis import HealthCheck, Phase, given, reject, settings
from hypothesis import strategies as st

with warnings.catch_warnings():
    # Of its own imports.
    warnings.simplefilter("ignore")
    import schemathesis
    from schemathesis import APIOperation, GenerationMode

from tests.integration.console import Console
from tests.integration.replaying import Deployment
from tests.integration.test_console_failure_actions import Imported
from tests.integration.two_tenants import Things, plant

#: Requests of each kind for each operation. The same at each run: what is new is found elsewhere, and this is to be
#: relied on.
EXAMPLES: Final = 12
BOUNDED: Final = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
Operation = APIOperation[Any, Any, Any, Any]
#: What it does not do because of what there is: it is said why.
TELLING: Final = "application/problem+json"


def ids(things: Things) -> st.SearchStrategy[str]:
    """Give what a part of a path may be: mostly something that is there."""
    there = [*map(str, things.jobs), *map(str, things.replays), *things.fingerprints]
    return st.sampled_from(there)


def send(client: TestClient, case: Any) -> tuple[int, str, str]:
    """Send a request, and return what came of it: status, type and text."""
    arguments: dict[str, Any] = case.as_transport_kwargs(base_url="http://console.test")
    arguments.pop("timeout", None)
    cookies = arguments.pop("cookies", None)
    headers = {name: value for name, value in (arguments.pop("headers", None) or {}).items() if name != "Authorization"}
    if cookies:
        headers["cookie"] = "; ".join(f"{name}={value}" for name, value in cookies.items())
    if "data" in arguments:
        arguments["content"] = arguments.pop("data")
    try:
        answer = client.request(headers=headers, **arguments)
    except InvalidURL:
        # Longer than what sends it, takes.
        reject()
    return answer.status_code, answer.headers.get("content-type", ""), answer.text


class Fuzz:
    """Sends what schemathesis makes up."""

    def __init__(self, client: TestClient, things: Things) -> None:
        self._client = client
        self._things = things
        self.sent: Counter[str] = Counter()
        self.statuses: set[int] = set()
        self.changes: set[int] = set()

    def try_out(self, operation: Operation, mode: GenerationMode) -> None:
        """Send some requests of an operation."""

        @BOUNDED
        @given(case=operation.as_strategy(generation_mode=mode), real=st.none() | ids(self._things))
        def try_it(case: Any, real: str | None) -> None:
            if real is not None and case.path_parameters:
                case.path_parameters = dict.fromkeys(case.path_parameters, real)
            status, kind, text = send(self._client, case)
            self.sent[mode.value] += 1
            self.statuses.add(status)
            if case.method.upper() != "GET":
                self.changes.add(status)
            assert status < 500, f"{case.method} {case.formatted_path} {case.query} {case.body!r}: {text}"
            if status >= 400:
                assert kind == TELLING, f"{operation.label}: {status} {kind} {text}"

        try_it()


@pytest.mark.timeout(300)
def test_no_request_makes_it_fail(console: Console, deployment: Deployment, redis_url: str) -> None:
    _, theirs, _ = plant(console.database, redis_url)
    token = console.token("operator")
    imported = Imported(console, deployment.broker)
    console.deployment = lambda _: imported
    with console.client(headers={"authorization": f"Bearer {token}"}) as client:
        described = client.get("/api/v1/openapi.json").json()
        operations: list[Operation] = [
            result.ok()  # type: ignore[union-attr]
            for result in schemathesis.openapi.from_dict(described).get_all_operations()
        ]
        assert len(operations) > 20
        fuzz = Fuzz(client, theirs)
        for operation in operations:
            fuzz.try_out(operation, GenerationMode.POSITIVE)
            # There is nothing to be wrong where nothing can be said.
            if described["paths"][operation.path][operation.method].keys() & {"parameters", "requestBody"}:
                fuzz.try_out(operation, GenerationMode.NEGATIVE)
    assert min(fuzz.sent.values()) > 200, fuzz.sent
    # It was let in, found things, changed them, and refused.
    assert fuzz.statuses >= {200, 400, 404, 409, 422}
    # Whether a job can be retried still when its turn comes, or only closed, is the moment's.
    assert fuzz.changes & {200, 201}
