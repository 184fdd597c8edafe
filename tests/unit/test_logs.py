"""What log lines say, and what not: Dramatiq logs arguments and exceptions as they are."""

from __future__ import annotations

import json
import logging
import logging.handlers
import os
import queue
import re
import subprocess
import sys
import threading
import uuid
import warnings
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dramatiq
import pytest
from dramatiq import Worker
from dramatiq.threading import Interrupt
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from loguru import logger
from sqlalchemy import create_engine, text

from db.errors import ConfigurationError
from middleware.dramatiq_internals import ChildLogging
from tests.logged import Written, logging_to
from tests.unit.test_dead_letters import A
from worker.logs.as_json import FIELDS, fit
from worker.logs.levels import Levels
from worker.logs.options import options_of
from worker.logs.setup import configure, configure_dramatiq
from worker.settings import Settings
from worker.testing import TestBroker

README = Path(__file__).parents[2] / "README.md"


#: What a job prints with.
say = print


def of_library(name: str = "anybody") -> logging.Logger:
    return logging.getLogger(name)


class TestSecrets:
    def test_a_failing_jobs_stay_out_of_the_log(self, stub_broker: TestBroker, stub_worker: Worker) -> None:
        def login(user: str, password: str, url: str) -> None:
            raise ValueError(f"cannot reach {url}")

        name = f"test.{uuid.uuid4().hex}"
        actor = dramatiq.actor(broker=stub_broker, actor_name=name, queue_name="attribution", max_retries=0)(login)
        with logging_to(LOG_LEVEL="DEBUG") as written:
            actor.send_with_options(args=("ada", "hunter2"), kwargs={"url": "postgres://app:hunter2@db/x"}, tenant_id=A)
            stub_broker.join("attribution", timeout=20_000)
            stub_worker.join()
        said = written.getvalue()
        assert "cannot reach postgres://app:[redacted]@db/x" in said
        assert f"{name}('ada', '[redacted]', url='postgres://app:[redacted]@db/x')" in said
        assert "hunter2" not in said

    def test_nor_do_those_of_any_other_line(self, caplog: pytest.LogCaptureFixture) -> None:
        url = "postgres://app:hunter2@db/x"
        with logging_to() as written, caplog.at_level(logging.INFO):
            of_library().info("password=hunter2")
            of_library().info("%s and %s", {"password": "hunter2"}, [url])
            of_library().info("%(url)s", {"url": url})
            try:
                raise ValueError(url)
            except ValueError:
                of_library().exception("broken")
                logger.exception("broken")
            logger.info("connecting to {}", url)
            with warnings.catch_warnings():
                warnings.simplefilter("always")
                warnings.warn(f"connecting to {url}", stacklevel=1)
        said = written.getvalue()
        assert said.count("app:[redacted]@db") >= 7
        # Whoever else handles the standard library's records gets them so, too.
        assert caplog.text.count("app:[redacted]@db") >= 4
        assert "hunter2" not in said + caplog.text

    def test_nor_extras_with_secret_names(self) -> None:
        with logging_to(REDACT_KEYS="iban") as written:
            logger.bind(api_key="hunter2", iban="hunter2", order=5).info("one")
            with logger.contextualize(password="hunter2"):
                logger.info("two {token} {user}", token="hunter2", user={"secret": "hunter2", "name": "ada"})
            of_library().info("three", extra={"passwd": "hunter2", "iban": "hunter2", "order": 6})
        one, two, three = written.lines()
        assert (one["api_key"], one["iban"], one["order"]) == ("[redacted]", "[redacted]", 5)
        # What a secret name was given for is none in the text, either.
        assert two["message"].startswith("two [redacted] {")
        assert json.loads(two["user"]) == {"secret": "[redacted]", "name": "ada"}
        assert (three["passwd"], three["iban"], three["order"]) == ("[redacted]", "[redacted]", 6)
        assert "hunter2" not in written.getvalue()

    def test_nor_a_statements_parameters_by_name(self) -> None:
        with logging_to(REDACT_KEYS="iban", LOG_LEVELS="sqlalchemy.engine=INFO") as written:
            engine = create_engine("sqlite://", paramstyle="named")
            with engine.connect() as connection:
                connection.execute(text("SELECT :iban, :note"), {"iban": "hunter2", "note": "seen"})
                connection.execute(text("CREATE TABLE t (iban text)"))
                connection.execute(text("INSERT INTO t VALUES (:iban)"), [{"iban": "hunter2"}] * 20)
            engine.dispose()
        said = written.getvalue()
        assert "SELECT :iban, :note" in said
        assert "{'iban': '[redacted]', 'note': 'seen'}" in said
        assert "[10 more rows]" in said
        assert "hunter2" not in said

    def test_records_that_somebody_elses_factory_has_made(self) -> None:
        with logging_to() as written:
            logging.setLogRecordFactory(logging.LogRecord)
            of_library().info("password=%s", "hunter2")
            record = logging.LogRecord("anybody", logging.INFO, "", 1, "token=hunter2", None, None)
            of_library().handle(record)
        assert [line["message"] for line in written.lines()] == ["password=[redacted]", "token=[redacted]"]


def test_importing_the_broker_leaves_an_applications_logging_alone() -> None:
    code = (
        "import logging, sys\n"
        "from loguru import logger\n"
        "logger.remove(); logger.add(sys.stdout, format='mine {message}')\n"
        "factory = logging.getLogRecordFactory()\n"
        "streams = sys.stdout, sys.stderr\n"
        "import worker.attribution\n"
        "logger.info('still'); print(factory is logging.getLogRecordFactory())\n"
        "print(streams == (sys.stdout, sys.stderr), logging.getLogger().handlers, logging.getLogger().level)\n"
    )
    environment = {"REDIS_URL": "stub://", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "mine still\nTrue\nTrue [] 30\n"


class TestFields:
    def test_of_loguru_and_of_the_standard_library(self) -> None:
        before = datetime.now(UTC)
        with logging_to(WORKER_NAME="web.1") as written:
            logger.warning("one {}", 1)
            of_library("my.app").warning("two %s", 2)
        one, two = written.lines()
        assert (one["logger"], one["message"]) == (__name__, "one 1")
        assert (two["logger"], two["message"]) == ("my.app", "two 2")
        for line in (one, two):
            assert line["level"] == "WARNING"
            assert (line["process"], line["pid"], line["thread"]) == ("web.1", os.getpid(), "MainThread")
            assert line["function"] == "test_of_loguru_and_of_the_standard_library"
            assert isinstance(line["line"], int)
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"])
            written_at = datetime.fromisoformat(line["time"])
            assert abs((written_at - before).total_seconds()) < 60
            assert not {"queue", "actor", "message_id", "tenant_id", "correlation_id", "attempt"} & set(line)
        assert two["line"] == one["line"] + 1

    def test_the_readme_lists_all_of_them(self) -> None:
        (table,) = re.findall(r"^\| `time`.*?\n\n", README.read_text("utf-8"), re.DOTALL | re.MULTILINE)
        listed = set(re.findall(r"`([a-z_]+)`", table))
        assert listed >= FIELDS

    def test_an_exception_is_three(self) -> None:
        with logging_to() as written:
            try:
                try:
                    raise KeyError("inner")
                except KeyError as e:
                    raise ConfigurationError("token=hunter2") from e
            except ConfigurationError as e:
                logger.opt(exception=True).error("one")
                logger.opt(exception=e).error("two")
                of_library().exception("three")
            logger.opt(exception=ValueError("never raised")).error("four")
            logger.opt(exception=True).error("none")
        *raised, four, none = written.lines()
        assert [line["message"] for line in raised] == ["one", "two", "three"]
        for line in raised:
            assert line["exception_type"] == "db.errors.ConfigurationError"
            assert line["exception_message"] == "token=[redacted]"
            assert line["exception_traceback"].startswith("Traceback (most recent call last):\n")
            assert "KeyError: 'inner'" in line["exception_traceback"]
            assert line["exception_traceback"].endswith("ConfigurationError: token=[redacted]")
        assert (four["exception_type"], four["exception_message"]) == ("ValueError", "never raised")
        assert "exception_traceback" not in four
        assert "exception_type" not in none

    def test_an_extra_that_is_called_like_one_of_ours_has_another_name(self) -> None:
        with logging_to() as written:
            logger.bind(tenant_id="x", level="y", pid=1).info("one")
            of_library().info("two", extra={"queue": "x"})
        one, two = written.lines()
        assert (one["extra_tenant_id"], one["extra_level"], one["extra_pid"]) == ("x", "y", 1)
        assert one["pid"] == os.getpid()
        assert two["extra_queue"] == "x"
        assert "queue" not in two

    def test_what_a_record_says_of_its_stack(self) -> None:
        with logging_to() as written:
            of_library().info("here", stack_info=True)
        assert written.line()["stack"].startswith("Stack (most recent call last):")

    def test_what_is_printed_in_a_worker_is_lines(self) -> None:
        with logging_to(streams=True) as written:
            say("password=hunter2", "and", 1)
            say("half a line ", end="")
            thread = threading.Thread(target=say, args=("of another thread",))
            thread.start()
            thread.join()
            say("and the rest\nand one more")
            sys.stderr.write("an error\n\n")
            say("flushed", end="", flush=True)
        assert [(line["logger"], line["level"], line["message"]) for line in written.lines()] == [
            ("stdout", "INFO", "password=[redacted] and 1"),
            ("stdout", "INFO", "of another thread"),
            ("stdout", "INFO", "half a line and the rest"),
            ("stdout", "INFO", "and one more"),
            ("stderr", "WARNING", "an error"),
            ("stdout", "INFO", "flushed"),
        ]

    def test_what_nobody_caught_is_one_line(self) -> None:
        def dies() -> None:
            raise ValueError("token=hunter2")

        with logging_to() as written:
            thread = threading.Thread(target=dies, name="mine")
            thread.start()
            thread.join()
            sys.excepthook(ValueError, ValueError("of the process"), None)
        of_thread, of_process = written.lines()
        assert (of_thread["level"], of_thread["message"]) == ("CRITICAL", "thread mine has died")
        assert of_thread["exception_message"] == "token=[redacted]"
        assert of_process["exception_message"] == "of the process"


class TestText:
    def test_on_a_terminal_it_is_coloured(self) -> None:
        with logging_to(terminal=True) as written:
            logger.bind(order=5).error("broken")
        assert re.fullmatch(
            r"\x1b\[32m\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}\x1b\[0m \| \x1b\[31m\x1b\[1mERROR   \x1b\[0m \| "
            r"\x1b\[36mtests\.unit\.test_logs:test_on_a_terminal_it_is_coloured:\d+\x1b\[0m - "
            r"\x1b\[31m\x1b\[1mbroken\x1b\[0m\x1b\[2m \| order=5\x1b\[0m\n",
            written.getvalue(),
        )

    def test_but_for_those_who_want_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("NO_COLOR", "1")
        with logging_to(terminal=True) as written:
            logger.info("plain")
        assert "\x1b" not in written.getvalue()

    def test_where_it_is_asked_for_without_a_terminal_it_has_no_colour(self) -> None:
        with logging_to(LOG_FORMAT="text") as written:
            try:
                raise ValueError("token=hunter2")
            except ValueError:
                of_library("my.app").exception("broken")
        first, *trace = written.getvalue().splitlines()
        assert re.fullmatch(r"[-0-9]{10} [:.0-9]{12} \| ERROR    \| my\.app:test_\w+:\d+ - broken", first)
        assert (trace[0], trace[-1]) == ("Traceback (most recent call last):", "ValueError: token=[redacted]")

    @pytest.mark.parametrize(
        ("terminal", "told", "asked", "is_json"),
        [
            (True, {}, "auto", False),
            (False, {}, "auto", True),
            # Nobody looks at a file.
            (True, {"to_file": True}, "auto", True),
            (True, {}, "json", True),
            (False, {}, "text", False),
        ],
    )
    def test_of_dramatiqs_processes_standard_error_itself_is_asked(
        self, monkeypatch: pytest.MonkeyPatch, terminal: bool, told: dict[str, bool], asked: str, is_json: bool
    ) -> None:
        monkeypatch.setattr(os, "isatty", lambda fd: terminal and fd == 2)
        settings = Settings.load({"REDIS_URL": "stub://", "LOG_FORMAT": asked})
        with logging_to():
            written = Written()
            all_told = ChildLogging(**{"verbose": False, "to_file": False, "skip": False, **told})
            configure_dramatiq(settings, written, all_told, is_child=True)
            logger.info("one")
            print("two")  # noqa: T201
        assert [line.startswith("{") for line in written.getvalue().splitlines()] == [is_json, is_json]
        assert ("\x1b" in written.getvalue()) is (terminal and not is_json)

    def test_the_standard_librarys_may_be_left_alone(self) -> None:
        root = logging.getLogger()
        with logging_to():
            before = list(root.handlers)
            root.handlers.append(kept := logging.NullHandler())
            configure_dramatiq(
                Settings.load({"REDIS_URL": "stub://", "LOG_LEVEL": "ERROR"}),
                Written(),
                ChildLogging(verbose=False, to_file=False, skip=True),
                is_child=False,
            )
            assert root.handlers == [*before, kept]
            assert root.level == logging.INFO

    def test_what_goes_elsewhere_is_the_applications(self) -> None:
        root, elsewhere = logging.getLogger(), logging.StreamHandler(Written())
        twice = logging.StreamHandler(sys.stderr)
        with logging_to():
            root.handlers += [elsewhere, twice]
            configure(options_of(Settings.load({"REDIS_URL": "stub://"}), terminal=False))
            assert elsewhere in root.handlers
            assert twice not in root.handlers
            assert sum(type(handler).__module__ == "worker.logs.records" for handler in root.handlers) == 1

    def test_what_somebody_added_to_loguru_meanwhile_is_gone_when_it_is_configured_again(self) -> None:
        def again(level: str) -> None:
            options = options_of(Settings.load({"REDIS_URL": "stub://", "LOG_LEVEL": level}), terminal=False)
            configure(options, stream=second)

        second, elsewhere = Written(), Written()
        with logging_to() as first:
            again("INFO")
            logger.info("one")
            logger.add(elsewhere)
            again("INFO")
            logger.info("two")
            # Its only handler is somebody else's.
            logger.remove()
            logger.add(elsewhere)
            again("INFO")
            logger.info("three")
            again("DEBUG")
            logger.debug("four")
        assert [line["message"] for line in second.lines()] == ["one", "two", "three", "four"]
        assert first.getvalue() == elsewhere.getvalue() == ""

    def test_a_terminal_may_have_json_as_well(self) -> None:
        with logging_to(terminal=True, LOG_FORMAT="json") as written:
            logger.info("one")
        assert written.line()["message"] == "one"

    def test_nothing_drives_the_terminal(self) -> None:
        with logging_to(terminal=True) as written:
            logger.bind(order="\x1b[2J").info("\x1b]0;title\x07")
        assert "\\x1b]0;title\\x07" in written.getvalue()
        assert "\x1b[2J" not in written.getvalue()


class TestLevels:
    def test_one_for_all(self) -> None:
        with logging_to(LOG_LEVEL="WARNING") as written:
            logger.info("no")
            of_library().info("no")
            logger.warning("yes")
            of_library().warning("yes")
        assert [line["message"] for line in written.lines()] == ["yes", "yes"]

    def test_others_by_name_and_below(self) -> None:
        with logging_to(LOG_LEVELS="my.app=debug, my.app.loud = ERROR, tests.unit=TRACE,my=CRITICAL") as written:
            for name in ("my.app", "my.app.sub", "my.apple", "my.app.loud.sub", "my", "other"):
                of_library(name).debug(name)
                of_library(name).error(name)
            logger.trace("of this module")
        said = [(line["level"], line["message"]) for line in written.lines()]
        assert said == [
            ("DEBUG", "my.app"),
            ("ERROR", "my.app"),
            ("DEBUG", "my.app.sub"),
            ("ERROR", "my.app.sub"),
            ("ERROR", "my.app.loud.sub"),
            ("ERROR", "other"),
            ("TRACE", "of this module"),
        ]

    def test_verbose_asks_for_more_of_those_that_have_none_of_their_own(self) -> None:
        with logging_to(verbose=True, LOG_LEVELS="my=ERROR") as written:
            logger.debug("yes")
            of_library().debug("yes")
            of_library("my.app").info("no")
        assert [line["message"] for line in written.lines()] == ["yes", "yes"]

    def test_never_for_less(self) -> None:
        with logging_to(verbose=True, LOG_LEVEL="TRACE") as written:
            logger.trace("yes")
        assert written.line()["message"] == "yes"

    def test_names_are_not_remembered_without_bound(self) -> None:
        levels = Levels("INFO", {"a": "DEBUG"})
        for n in range(20_000):
            assert levels.of(f"a.{n}") == 10
        assert len(levels._known) <= 10_000

    @pytest.mark.parametrize(
        ("name", "value", "said"),
        [
            ("LOG_LEVELS", "dramatiq", "'dramatiq' is not of the form logger=LEVEL"),
            ("LOG_LEVELS", "=INFO", "'=INFO' is not of the form logger=LEVEL"),
            ("LOG_LEVELS", "a b=INFO", "'a b=INFO' is not of the form logger=LEVEL"),
            ("LOG_LEVELS", "a=INFO,b=LOUD", "'b=LOUD': the level must be one of TRACE, DEBUG, .*, not 'LOUD'"),
            ("LOG_LEVELS", "a=INFO,a=DEBUG", "'a' is there twice"),
            ("LOG_LEVEL", "loud", "must be one of TRACE, DEBUG, INFO, WARNING, ERROR, CRITICAL, not 'loud'"),
            ("LOG_FORMAT", "xml", "must be auto, json or text, not 'xml'"),
            ("LOG_LINE_LIMIT", "10", "greater than or equal to 1000"),
        ],
    )
    def test_what_is_none_is_named(self, name: str, value: str, said: str) -> None:
        with pytest.raises(ConfigurationError, match=f"^{name}: .*{said}"):
            Settings.load({"REDIS_URL": "stub://", name: value})


class Raises:
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __str__(self) -> str:
        raise self.error

    __repr__ = __str__


class TestNothingFails:
    @pytest.mark.parametrize("error", [ValueError("hunter2"), SystemExit(1)])
    def test_whoever_logs_what_has_no_text(self, error: BaseException) -> None:
        bad = Raises(error)
        with logging_to() as written:
            logger.info("one {}", bad)
            of_library().info("two %s", bad)
            logger.bind(bad=bad, worse=[bad]).info("three")
            of_library().info("four", extra={"bad": bad})
            of_library().info("five %d", "x")
            logger.info("six {nothing}", something=1)
            logger.log("LOUD", "seven")
            logger.opt(exception=ValueError(bad)).error("eight")
            of_library().error("nine %d token=hunter2", "x", exc_info=KeyError("token=hunter2"))
        one, two, three, four, five, six, eight, nine = written.lines()
        assert one["message"].startswith("one {} (")
        assert type(error).__name__ in one["message"]
        assert one["function"] == "test_whoever_logs_what_has_no_text"
        assert two["message"] == f"two %s (what belongs in here cannot be formatted: {type(error).__name__})"
        assert (three["message"], four["message"]) == ("three", "four")
        assert "TypeError" in five["message"]
        assert six["message"].startswith("six {nothing} (")
        assert (eight["message"], eight["exception_type"]) == ("eight", "ValueError")
        # What it is about is still said.
        assert nine["message"].startswith("nine %d token=[redacted] (")
        assert (nine["exception_type"], nine["exception_message"]) == ("KeyError", "'token=[redacted]'")
        assert "hunter2" not in written.getvalue()

    def test_but_an_interrupt_comes_through(self) -> None:
        with logging_to():
            for error in (Interrupt("time limit"), KeyboardInterrupt()):
                with pytest.raises(type(error)):
                    logger.info("{}", Raises(error))
                with pytest.raises(type(error)):
                    of_library().info("%s", Raises(error))

    @pytest.mark.parametrize(
        ("value", "shown"),
        [
            (None, None),
            (float("nan"), "nan"),
            (float("-inf"), "-inf"),
            (10**5_000, "[integer of 16610 bits]"),
            (b"\xff\x00", "[2 bytes]"),
            ("\ud800\x00", "\\ud800\\x00"),
            (datetime(2026, 1, 1, tzinfo=UTC), "datetime.datetime(2026, 1, 1, 0, 0, tzinfo=datetime.timezone.utc)"),
        ],
        ids=lambda value: type(value).__name__,
    )
    def test_values_that_json_has_no_word_for(self, value: object, shown: object) -> None:
        with logging_to() as written:
            logger.bind(value=value).info("one")
            of_library().info("two", extra={"value": value})
        assert [line["value"] for line in written.lines()] == [shown, shown]

    def test_text_that_is_none(self) -> None:
        with logging_to() as written:
            logger.info("\ud800 {}", "\udfff")
            of_library("\ud800").info("\ud800")
            logger.bind(**{"\ud800": 1}).info(b"bytes")
        assert [line["message"] for line in written.lines()] == ["\\ud800 \\udfff", "\\ud800", "b'bytes'"]

    def test_containers_without_end(self) -> None:
        loop: list[Any] = []
        loop.append(loop)
        with logging_to() as written:
            logger.bind(loop=loop, wide={str(n): n for n in range(10_000)}).info("one")
            logger.bind(**{f"extra{n}": n for n in range(10_000)}).info("two")
        assert [line["message"] for line in written.lines()] == ["one", "two"]

    def test_a_logger_in_a_value_that_is_logged(self) -> None:
        class Chatty:
            def __repr__(self) -> str:
                logger.info("inner")
                of_library().info("inner")
                return "chatty"

        with logging_to() as written:
            logger.bind(value=Chatty()).info("outer {}", Chatty())
            of_library().info("%s", Chatty())
        assert {line["message"] for line in written.lines()} == {"inner", "outer chatty", "chatty"}

    @pytest.mark.parametrize("error", [OSError("no space"), ValueError("closed"), RuntimeError("whatever")])
    def test_where_lines_go_is_broken(self, error: Exception) -> None:
        class Broken:
            def write(self, text: str) -> int:
                raise error

            flush = write

        with logging_to(Broken()):
            logger.info("one")
            of_library().info("two")

    def test_loguru_itself_stands_as_it_is_known_here(self) -> None:
        kind: Any = type(logger)
        with logging_to():
            assert kind._log.__name__ == "_log"
            assert getattr(kind._log, "_dramaturg_guarded", False)


class TestCutting:
    def test_a_long_message_has_a_mark(self) -> None:
        with logging_to() as written:
            logger.info("é\n" * 100_000)
        line = written.line()
        assert line["message"].endswith("… [cut]")
        assert 7_900 < len(written.getvalue().encode()) <= 8_000
        assert line["function"] == "test_a_long_message_has_a_mark"

    def test_a_traceback_keeps_its_ends(self) -> None:
        def deep(n: int) -> None:
            if n:
                deep(n - 1)
            raise ValueError("x" * 3_000)

        with logging_to(LOG_LINE_LIMIT="4000") as written:
            try:
                deep(100)
            except ValueError:
                logger.bind(order="kept").exception("broken")
        line = written.line()
        assert len(written.getvalue().encode()) <= 4_000
        assert (line["message"], line["order"]) == ("broken", "kept")
        assert line["exception_traceback"].startswith("Traceback (most recent call last):\n")
        assert "\n… [cut] …\n" in line["exception_traceback"]

    def test_names_that_are_too_many_leave_what_is_ours(self) -> None:
        with logging_to(LOG_LINE_LIMIT="1000") as written:
            logger.bind(**{f"extra{n}": "y" * 500 for n in range(50)}).info("x" * 5_000)
        line = written.line()
        assert len(written.getvalue().encode()) <= 1_000
        assert len(line["message"]) > 300
        assert "extra0" not in line

    # On a busy machine it takes long to make what is written.
    @hypothesis_settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(
        st.dictionaries(st.sampled_from(sorted(FIELDS - {"time", "level"})), st.text(max_size=3_000) | st.integers()),
        st.booleans(),
    )
    @example({"message": '"' * 3_000, "exception_traceback": "\x01" * 3_000, "thread": "\U0001f600" * 3_000}, False)
    def test_whatever_there_is_fits(self, fields: dict[str, Any], ascii: bool) -> None:  # noqa: A002
        fields = {"time": "2026-11-26T00:00:00.000Z", "level": "INFO", **fields}
        line = fit(fields, 1_000, ascii=ascii)
        assert len(line.encode()) <= 1_000
        found = json.loads(line)
        assert (found["time"], found["level"]) == (fields["time"], "INFO")
        whole = json.dumps(fields, ensure_ascii=ascii)
        assert found == fields or len(whole.encode()) > 1_000
        assert line.isascii() or not ascii


def test_a_record_that_another_thread_handles_keeps_its_job(stub_broker: TestBroker, stub_worker: Worker) -> None:
    records: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    log = of_library("queued")
    handler = logging.handlers.QueueHandler(records)
    handler.prepare = lambda record: record  # type: ignore[method-assign]
    name = f"test.{uuid.uuid4().hex}"

    def job() -> None:
        log.warning("from the job")

    actor = dramatiq.actor(broker=stub_broker, actor_name=name, queue_name="attribution")(job)
    log.addHandler(handler)
    log.propagate = False
    try:
        with logging_to() as written:
            sent = actor.send_with_options(tenant_id=A)
            stub_broker.join("attribution", timeout=20_000)
            for own in logging.getLogger().handlers:
                own.handle(records.get(timeout=10)) if type(own).__module__ == "worker.logs.records" else None
    finally:
        log.removeHandler(handler)
        log.propagate = True
    (line,) = [line for line in written.lines() if line["logger"] == "queued"]
    assert (line["actor"], line["message_id"], line["tenant_id"]) == (name, sent.message_id, str(A))
