"""``worker failed list | show | groups | stats``."""

from __future__ import annotations

import re
import shlex
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from db import failed_jobs
from db.failed import Filter, abandon, note, resolve
from db.session import operator_transaction
from tests.integration.command_line import CommandLine
from tests.integration.failed_rows import every_row, fingerprint, record_at_random
from tests.integration.test_failed_jobs import A, B, a_failure, set_status
from tests.servers import Database

TRACEBACK = """Traceback (most recent call last):
  File "/app/.venv/lib/python3.11/site-packages/dramatiq/worker.py", line 485, in process_message
    res = actor(*message.args, **message.kwargs)
          ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "/app/shop/billing.py", line 42, in charge_card
    gateway.charge(order.card)
httpx.ConnectError: refused

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "/app/shop/billing.py", line 44, in charge_card
    raise GatewayDown("no answer") from e
shop.errors.GatewayDown: no answer
"""


def now() -> datetime:
    return datetime.now(UTC)


def fail(**changes: Any) -> UUID:
    """Record a failure of just now."""
    values = {"failed_at": now() - timedelta(minutes=3), "fingerprint": fingerprint(0), **changes}
    return failed_jobs.record(a_failure(**values))


def ids(found: dict[str, Any]) -> list[str]:
    return [job["id"] for job in found["jobs"]]


# --- list -----------------------------------------------------------------------------------------


def test_open_ones_are_listed_by_default_and_it_says_so(database: Database, worker: CommandLine) -> None:
    by_status = {status: fail() for status in ("pending", "in_progress", "resolved", "abandoned")}
    for status, row_id in by_status.items():
        set_status(database, row_id, status)
    said = worker("failed", "list").stdout
    assert "Open ones only; --status all shows every one." in said
    shown = {status for status, row_id in by_status.items() if str(row_id)[:8] in said}
    assert shown == {"pending", "in_progress"}
    every = worker("failed", "list", "--status", "all").stdout
    assert all(str(row_id)[:8] in every for row_id in by_status.values())
    assert "Open ones only" not in every
    assert ids(worker.json("failed", "list", "--status", "abandoned", "--status", "resolved")) == [
        str(by_status["abandoned"]),
        str(by_status["resolved"]),
    ]
    assert set(ids(worker.json("failed", "list", "--status", "open"))) == {str(by_status[s]) for s in shown}
    # What is named is listed, whatever its status.
    assert ids(worker.json("failed", "list", by_status["resolved"])) == [str(by_status["resolved"])]


def test_a_line_says_what_failed(worker: CommandLine) -> None:
    acme = worker.add_tenant("Acme")
    row_id = fail(
        task_name="shop.billing.charge",
        exception_class="shop.errors.GatewayDown",
        error_message="\n  no answer\nsecond line",
        tenant_id=acme,
    )
    (line,) = [x for x in worker("failed", "list").stdout.splitlines() if str(row_id)[:8] in x]
    assert line.split() == [str(row_id)[:8], "3m", "charge", "GatewayDown", "no", "answer", "Acme", "pending"]


def test_a_job_that_failed_again_says_how_often(worker: CommandLine) -> None:
    failure = a_failure(failed_at=now())
    failed_jobs.record(failure)
    failed_jobs.record(a_failure(task_id=failure.task_id, failed_at=now()))
    assert "pending x2" in worker("failed", "list").stdout
    assert worker.json("failed", "list")["jobs"][0]["failures"] == 2


@pytest.mark.parametrize("columns", [80, 100, 120, 200])
def test_tables_are_as_wide_as_the_terminal_and_lose_no_column(
    database: Database, worker: CommandLine, columns: int
) -> None:
    tenant = worker.add_tenant("A tenant with quite a long name, 株式会社")
    row_id = fail(
        task_name="application.package.a_function_with_a_very_long_name_indeed",
        exception_class="package.errors.AnExceptionWithAVeryLongName",
        error_message="word " * 100,
        title="word " * 30,
        place="application.package:" + "x" * 100,
        tenant_id=tenant,
        traceback=TRACEBACK,
        task_kwargs={"long": "x" * 300},
    )
    set_status(database, row_id, "in_progress")
    for command in (("list",), ("groups",), ("stats",)):
        said = worker("failed", *command, COLUMNS=str(columns)).stdout
        tables = [line for line in said.splitlines() if "worker failed" not in line]
        assert max(len(line.rstrip()) for line in tables) <= columns, said
        assert "word w" in said or command == ("stats",)
    assert "in_progress" in worker("failed", "list", COLUMNS=str(columns)).stdout
    page = worker("failed", "show", row_id, COLUMNS=str(columns)).stdout.splitlines()
    steps = page.index("What next")
    assert max(len(line.rstrip()) for line in page[:steps]) <= columns


def test_each_filter_reaches_the_library(database: Database, worker: CommandLine) -> None:
    rows = record_at_random(database, 7, 80)
    row = next(r for r in rows if r["tenant_id"] == A)
    since = row["failed_at"].isoformat()
    for options, matches in (
        (["--queue", row["queue"]], lambda r: r["queue"] == row["queue"]),
        (["--actor", row["task_name"].rpartition(".")[2]], lambda r: r["task_name"].endswith(row["task_name"][-8:])),
        (["--tenant", A], lambda r: r["tenant_id"] == A),
        (["--tenant", A, "--tenant", B], lambda r: r["tenant_id"] in {A, B}),
        (["--error-type", row["error_type"]], lambda r: r["error_type"] == row["error_type"]),
        (["--exception", row["exception_class"]], lambda r: r["exception_class"] == row["exception_class"]),
        (["--fingerprint", row["fingerprint"][:6].upper()], lambda r: r["fingerprint"] == row["fingerprint"]),
        (["--correlation-id", row["correlation_id"]], lambda r: r["correlation_id"] == row["correlation_id"]),
        (["--since", since], lambda r: r["failed_at"] >= row["failed_at"]),
        (["--until", since], lambda r: r["failed_at"] < row["failed_at"]),
        (["--text", "100%"], lambda r: "100%" in r["searched"]),
        ([str(row["id"])[:8], str(rows[5]["id"])], lambda r: r["id"] in {row["id"], rows[5]["id"]}),
        (["--queue", "billing", "--queue", "llm", "--text", "o-1"],
         lambda r: r["queue"] in {"billing", "llm"} and "o-1" in r["searched"]),
    ):  # fmt: skip
        wanted = [str(r["id"]) for r in rows if matches(r)]
        assert wanted
        found = worker.json("failed", "list", *options, "--status", "all", "--limit", 1000)
        assert ids(found) == wanted, options
        stats = worker.json("failed", "stats", *options)
        assert stats["jobs"] == len(wanted), options
        lines = worker("failed", "export", *options).stdout.splitlines()
        assert len(lines) == len(wanted), options
        if not {"--since", "--until"} & set(options):
            groups = worker.json("failed", "groups", *options, "--status", "all")["groups"]
            assert {g["fingerprint"] for g in groups} == {r["fingerprint"] for r in rows if matches(r)}, options


def test_a_tenant_by_its_name(worker: CommandLine) -> None:
    acme, other = worker.add_tenant("Acme"), worker.add_tenant("twins")
    row_id = fail(tenant_id=acme)
    fail(tenant_id=other)
    found = worker.json("failed", "list", "--tenant", "Acme")
    assert ids(found) == [str(row_id)]
    assert found["jobs"][0]["tenant_name"] == "Acme"
    twin = worker.add_tenant("twins")
    several = worker("failed", "list", "--tenant", "twins", status=1)
    assert "'twins' is the name of several" in several.stderr
    assert str(other) in several.stderr
    assert str(twin) in several.stderr
    unknown = worker("failed", "list", "--tenant", "nobody", status=1)
    assert "tenant must be a UUID or the name of one that is there, not 'nobody'" in unknown.stderr


def test_an_id_that_is_the_beginning_of_several_is_refused_with_them(database: Database, worker: CommandLine) -> None:
    row_id = fail()
    twin = UUID(str(row_id)[:9] + "0000-4000-8000-000000000000")
    with psycopg.connect(database.admin_url) as connection:
        connection.execute(
            "INSERT INTO worker_failed_jobs (id, task_id, task_name, error_type, exception_class, error_message)"
            " VALUES (%s, 't', 'a', 'unknown', 'E', 'm')",
            [twin],
        )
    for command in ("list", "show", "resolve", "purge"):
        done = worker("failed", command, str(row_id)[:8], *(["--note", "n"] if command == "resolve" else []), status=1)
        assert f"id {str(row_id)[:8]!r} is the beginning of several: " in done.stderr
        assert str(twin) in done.stderr
        assert str(row_id) in done.stderr
    assert ids(worker.json("failed", "list", str(row_id)[:23])) == [str(row_id)]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--status", "done"], "status must be one of pending, in_progress, resolved, abandoned, open, all, not"),
        (["--since", "yesterday"], "since must be a time such as 2h"),
        (["--since", "1h", "--until", "2h"], "must be before until"),
        (["--text", "ab"], "text must be at least 3 characters, not 'ab'"),
        (["--fingerprint", "xyz"], "fingerprint must be 4 to 32"),
        (["--correlation-id", "x"], "correlation-id must be a UUID, not 'x'"),
        (["--as-tenant", "acme"], "--as-tenant must be a UUID, not 'acme'"),
        (["--limit", "0"], "limit must be 1 to 1000, not 0"),
        (["--after", "x"], "after must be what a page gave as its next, not 'x'"),
        (["abc"], "id must be a UUID, or the first four characters"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(worker: CommandLine, options: list[str], said: str) -> None:
    done = worker("failed", "list", *options, status=1)
    assert said in done.stderr
    assert done.stdout == ""


def test_pages_follow_by_the_command_that_is_printed(database: Database, worker: CommandLine) -> None:
    at = now() - timedelta(minutes=5)
    failed_jobs.record_all([a_failure(failed_at=at, queue="llm", error_message="it's") for _ in range(11)])
    fail(queue="other")
    seen: list[str] = []
    arguments = ["failed", "list", "--queue", "llm", "--text", "it's", "--since", "1h", "--limit", "4"]
    for page in range(3):
        said = worker(*arguments).stdout
        seen += re.findall(r"^([0-9a-f]{8}) ", said, flags=re.MULTILINE)
        more = [line for line in said.splitlines() if line.startswith("More: ")]
        assert len(more) == (page < 2), said
        if more:
            program, *arguments = shlex.split(more[0].removeprefix("More: "))
            assert program == "worker"
            # An hour ago is another moment by then.
            assert "1h" not in arguments
    assert seen == [str(row["id"])[:8] for row in every_row(database) if row["queue"] == "llm"]


def test_a_list_for_programs(worker: CommandLine) -> None:
    failure = a_failure(failed_at=now(), fingerprint=fingerprint(0))
    row_id = failed_jobs.record(failure)
    found = worker.json("failed", "list")
    assert found["next"] is None
    (job,) = found["jobs"]
    assert job == {
        "id": str(row_id),
        "task_id": failure.task_id,
        "task_name": "test.job",
        "queue": "attribution",
        "worker": "host/1",
        "tenant_id": str(A),
        "tenant_name": None,
        "error_type": "validation_error",
        "exception_class": "ValueError",
        "error_message": "bad input",
        "retry_count": 2,
        "status": "pending",
        "correlation_id": str(failure.correlation_id),
        "failed_at": failure.failed_at.isoformat(),
        "fingerprint": fingerprint(0),
        "failures": 1,
    }
    fail()
    after = worker.json("failed", "list", "--limit", 1)["next"]
    assert ids(worker.json("failed", "list", "--after", after)) != ids(worker.json("failed", "list", "--limit", 1))


def test_nothing_is_said_kindly(worker: CommandLine) -> None:
    assert "No failed job waits for anybody." in worker("failed", "list").stdout
    assert "No open failed job matches" in worker("failed", "list", "--queue", "llm").stdout
    assert worker("failed", "list", "--status", "all").stdout.strip() == "No failed job matches."
    assert worker.json("failed", "list") == {"jobs": [], "next": None}
    assert "No failure with open jobs matches." in worker("failed", "groups").stdout
    assert worker.json("failed", "groups") == {"groups": [], "next": None}
    assert worker("failed", "stats").stdout.strip() == "No job has failed."
    assert worker("failed", "show", status=3).stderr.strip() == "worker: no failed job matches"


# --- show -----------------------------------------------------------------------------------------


def test_a_page_about_an_incident(database: Database, worker: CommandLine) -> None:
    acme = worker.add_tenant("Acme")
    work = uuid4()
    common: dict[str, Any] = {
        "task_name": "shop.billing.charge_card",
        "tenant_id": acme,
        "place": "shop.billing:charge_card",
    }
    first = fail(**common, failed_at=now() - timedelta(days=2))
    resolve(operator_transaction, Filter(ids=(first,)), by="bob", note="mended")
    row_id = fail(
        **common,
        exception_class="shop.errors.GatewayDown",
        error_type="upstream_error",
        error_message="no answer",
        traceback=TRACEBACK,
        correlation_id=work,
        original=b"{}",
        attempts=[
            {
                "at": (now() - timedelta(minutes=9)).isoformat(),
                "worker": "w/1",
                "exception_class": "shop.errors.GatewayDown",
                "message": "the first time",
                "place": None,
            }
        ],
    )
    other = fail(task_name="shop.mail.receipt", correlation_id=work, fingerprint=fingerprint(1))
    note(operator_transaction, Filter(ids=(row_id,)), by="bob", note="asked the gateway's people")
    said = worker("failed", "show", str(row_id)[:8]).stdout
    text = " ".join(said.split())
    for expected in (
        f"PENDING {row_id}",
        "shop.errors.GatewayDown: no answer",
        "what shop.billing.charge_card on queue attribution",
        f"for Acme ({acme})",
        "failed 3m ago (20",
        "tried 3 times, last begun",
        "group abcd0000: failed 2 times for 1 tenant, first 2d ago, last 3m ago (1 pending, 1 resolved)",
        "REGRESSED 3m ago",
        f"correlation id {work}",
        "notes asked the gateway's people",
        "original kept",
        "/app/shop/billing.py:44 charge_card raise GatewayDown(\"no answer\") from e",
        "caused by httpx.ConnectError: refused /app/shop/billing.py:42 charge_card gateway.charge(order.card)",
        "1 frame of libraries folded",
        'three=3',
        "9m ago GatewayDown: the first time on w/1",
        "captured by host/1",
        "noted by bob: asked the gateway's people",
        "What next",
        f"worker failed list --status all --correlation-id {work}",
        f"worker failed resolve {str(row_id)[:8]} --note",
        f"worker failed abandon {str(row_id)[:8]} --reason",
    ):  # fmt: skip
        assert expected in text, (expected, said)
    assert "site-packages" not in said
    assert str(other)[:8] in said[said.index("Failed in the same piece of work") :]
    assert f"worker failed retry {str(row_id)[:8]}" in said
    # The innermost of its own comes first.
    assert said.index("billing.py:44") < said.index("billing.py:42")


@pytest.mark.parametrize(
    ("tenants", "said"),
    [
        ([None, None], "failed 2 times for no tenant,"),
        ([A], "failed 1 time for 1 tenant,"),
        ([A, B, None], "failed 3 times for 2 tenants, and no tenant,"),
    ],
)
def test_for_how_many_tenants_a_group_failed(worker: CommandLine, tenants: list[UUID | None], said: str) -> None:
    (row_id, *_) = [fail(tenant_id=tenant) for tenant in tenants]
    assert said in " ".join(worker("failed", "show", row_id).stdout.split())
    of_none = worker("failed", "groups").stdout.splitlines()[1].split()
    assert of_none[2] == ("-" if tenants == [None, None] else str(len(set(tenants) - {None})))


def test_every_frame_where_asked_for(worker: CommandLine) -> None:
    row_id = fail(task_name="shop.billing.charge_card", traceback=TRACEBACK, error_message="x\n" * 40)
    said = worker("failed", "show", row_id, "--traceback").stdout
    assert "* /app/shop/billing.py:42 charge_card" in said
    assert "  …/site-packages/dramatiq/worker.py:485 process_message" in said
    assert "folded" not in said
    assert said.splitlines().count("  x") == 40
    folded = worker("failed", "show", row_id).stdout
    assert "28 more lines (--traceback)" in folded


@pytest.mark.parametrize(
    ("status", "said", "never"),
    [
        ("pending", ["retry", "resolve", "abandon", "note"], ["reopen"]),
        ("in_progress", ["reopen", "resolve", "abandon", "note"], ["retry {id}"]),
        ("abandoned", ["retry", "reopen", "note", "Abandoned: nothing more"], ["resolve", "abandon {id}"]),
        ("resolved", ["Resolved, which is final.", "note"], ["reopen", "resolve {id}", "abandon {id}"]),
    ],
)
def test_what_can_be_done_next_can_be_done(
    database: Database, worker: CommandLine, status: str, said: list[str], never: list[str]
) -> None:
    row_id = fail()
    set_status(database, row_id, status)
    page = worker("failed", "show", row_id).stdout
    steps = page[page.index("What next") :]
    short = str(row_id)[:8]
    for word in said:
        assert (word if " " in word else f"worker failed {word} {short}") in steps
    for word in never:
        assert f"worker failed {word.format(id=short)}" not in steps
    for step in worker.json("failed", "show", row_id)["next_steps"]:
        command = shlex.split(step["command"].replace("'...'", "'because'"))
        if command[2] in {"show", "list", "note"}:
            assert worker(*command[1:]).exit_code == 0


def test_a_page_for_programs(worker: CommandLine) -> None:
    row_id = fail(task_name="shop.billing.charge_card", traceback=TRACEBACK, original=b"s", original_key="k1")
    found = worker.json("failed", "show", row_id)
    assert found["id"] == str(row_id)
    assert found["traceback"] == TRACEBACK
    assert (found["has_original"], found["original_sealed"]) == (True, True)
    assert found["group"]["fingerprint"] == fingerprint(0)
    assert found["group"]["regressed"] is False
    assert [event["event"] for event in found["history"]] == ["captured"]
    assert [job["id"] for job in found["chain"]] == [str(row_id)]
    assert [frame["line"] for frame in found["exceptions"][0]["frames"] if frame["own"]] == [44]
    assert found["exceptions"][1]["link"] == "caused by"
    assert "kept, encrypted" in worker("failed", "show", row_id).stdout
    # Nothing shows the original itself.
    assert "original" not in {key for key in found if key not in {"has_original", "original_sealed"}}


def test_the_newest_that_matches_where_no_id_is_given(worker: CommandLine) -> None:
    fail(queue="llm", failed_at=now() - timedelta(hours=2))
    newest = fail(queue="llm")
    fail(queue="billing", failed_at=now())
    assert worker.json("failed", "show", "--queue", "llm")["id"] == str(newest)
    two = worker("failed", "show", newest, worker.json("failed", "show", "--queue", "billing")["id"])
    assert two.stdout.count("What next") == 2


def test_what_was_removed_has_its_history_still(worker: CommandLine) -> None:
    job = fail()
    worker("failed", "purge", job, "--yes", "--reason", "test data")
    gone = worker("failed", "show", job, status=3)
    assert gone.stderr == f"worker: no such failed job: {job}\n"
    head, *lines = [line.split() for line in gone.stdout.splitlines() if line]
    assert head == ["GONE", str(job)]
    assert [" ".join(line[2:5]) for line in lines[1:]] == ["captured by host/1", "purged by ada:"]
    assert lines[-1][-2:] == ["test", "data"]
    # For programs, nothing that is no job.
    assert worker("failed", "show", job, "--json", status=3).stdout == ""


def test_what_is_not_there_is_named(worker: CommandLine) -> None:
    unknown = uuid4()
    assert worker("failed", "show", unknown, status=3).stderr == f"worker: no such failed job: {unknown}\n"
    assert worker("failed", "show", "0123", status=3).stderr == "worker: no failed job's id begins with '0123'\n"


# --- groups and stats -----------------------------------------------------------------------------


def test_groups_those_that_are_back_first(worker: CommandLine) -> None:
    back = fail(failed_at=now() - timedelta(days=3), title="bad *")
    resolve(operator_transaction, Filter(ids=(back,)), by="ada", note="mended")
    fail(failed_at=now() - timedelta(days=1), title="bad *", place="shop:run")
    for tenant in (A, B, None):
        fail(fingerprint=fingerprint(1), title="worse *", tenant_id=tenant)
    abandon(operator_transaction, Filter(ids=(fail(fingerprint=fingerprint(2)),)), by="ada", reason="no")
    said = worker("failed", "groups").stdout
    assert "Those with open jobs only; --status all shows every one." in said
    lines = said.splitlines()
    assert lines[0].split() == ["group", "pend", "resol", "tenants", "first", "last", "what", "failed"]
    assert lines[1].split() == [
        *("abcd0000", "1", "1", "1", "3d", "1d", "REGRESSED", "ValueError:", "bad", "*")
    ]  # fmt: skip
    assert lines[2].split() == ["test.job", "at", "shop:run"]
    assert lines[3].split()[:4] == ["abcd1000", "3", "0", "2"]
    assert "worker failed list --fingerprint abcd0000" in said
    found = worker.json("failed", "groups", "--status", "all")["groups"]
    assert found[0]["fingerprint"] == fingerprint(0)
    assert {group["fingerprint"] for group in found} == {fingerprint(n) for n in range(3)}
    assert (found[0]["regressed"], found[0]["regressions"], found[0]["open"], found[0]["failures"]) == (True, 1, 1, 2)
    assert "abandoned" not in worker("failed", "groups", "--queue", "attribution").stdout


def test_groups_page_by_page(worker: CommandLine) -> None:
    for n in range(5):
        fail(fingerprint=fingerprint(n), failed_at=now() - timedelta(minutes=n))
    seen: list[str] = []
    arguments = ["failed", "groups", "--limit", "2"]
    while arguments:
        said = worker(*arguments).stdout
        seen += re.findall(r"^(abcd\d)", said, flags=re.MULTILINE)
        more = [line for line in said.splitlines() if line.startswith("More: worker ")]
        arguments = shlex.split(more[0].removeprefix("More: worker ")) if more else []
    assert seen == [f"abcd{n}" for n in range(5)]


def test_stats_for_people_and_for_programs(worker: CommandLine) -> None:
    acme = worker.add_tenant("Acme")
    fail(tenant_id=acme, queue="llm", failed_at=now() - timedelta(days=4))
    fail(tenant_id=None, error_type="timeout")
    abandon(operator_transaction, Filter(ids=(fail(tenant_id=acme),)), by="ada", reason="no")
    said = worker("failed", "stats").stdout
    assert "3 failed jobs: 2 pending, 0 in_progress, 0 resolved, 1 abandoned" in said
    assert "The oldest pending failed 4d ago" in said
    assert re.search(r"Last 24 hours \|.{24}\| 2 failed", said)
    assert re.search(rf"Acme  {acme} +1 +2", said)
    assert re.search(r"\(none\) +1 +1", said)
    found = worker.json("failed", "stats")
    assert found["by_status"] == {"pending": 2, "in_progress": 0, "resolved": 0, "abandoned": 1}
    assert found["jobs"] == 3
    assert len(found["by_hour"]) == 24
    assert sum(hour["jobs"] for hour in found["by_hour"]) == 2
    assert {"name": str(acme), "jobs": 2, "open": 1, "tenant_name": "Acme"} in found["by_tenant"]
    assert {"by_queue", "by_error_type", "by_actor", "open_groups", "regressed_groups", "oldest_pending"} <= set(found)


# --- Bound to a tenant ----------------------------------------------------------------------------


def test_a_tenants_operator_sees_that_ones_alone(database: Database, worker: CommandLine) -> None:
    record_at_random(database, 8, 60)
    own = [str(row["id"]) for row in every_row(database) if row["tenant_id"] == A]
    theirs = next(row for row in every_row(database) if row["tenant_id"] == B)
    # Without any right of an operator's.
    bound: dict[str, Any] = {"OPERATOR_DATABASE_URL": "postgres://nobody:x@127.0.0.1:1/x", "WORKER_TENANT": str(A)}
    found = worker.json("failed", "list", "--status", "all", "--limit", 1000, **bound)
    assert ids(found) == own
    assert ids(worker.json("failed", "list", "--status", "all", "--tenant", B, **bound)) == []
    assert worker.json("failed", "stats", **bound)["jobs"] == len(own)
    assert sum(g["failures"] for g in worker.json("failed", "groups", "--status", "all", **bound)["groups"]) == len(own)
    assert len(worker("failed", "export", **bound).stdout.splitlines()) == len(own)
    assert "no such failed job" in worker("failed", "show", theirs["id"], status=3, **bound).stderr
    assert "no failed job's id" in worker("failed", "show", str(theirs["id"])[:8], status=3, **bound).stderr
    page = worker("failed", "show", own[0], "--as-tenant", A, OPERATOR_DATABASE_URL=bound["OPERATOR_DATABASE_URL"])
    assert f"--as-tenant {A}" in page.stdout[page.stdout.index("What next") :]
    assert "original  for operators of all tenants alone" in page.stdout
    more = worker("failed", "list", "--status", "all", "--limit", 1, **bound).stdout
    assert f"--as-tenant {A}" in more
