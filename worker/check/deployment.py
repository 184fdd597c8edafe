"""Everything that is checked, in its order."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

import dramatiq

from db.errors import ConfigurationError
from middleware import sentry
from middleware.dramatiq_internals import check_version
from worker.check.alerts import judge_alerts
from worker.check.databases import Databases
from worker.check.findings import Finding, error, ok
from worker.check.guard import Guard, run_together
from worker.check.language_model import is_installed, judge_language_model
from worker.check.observers import judge_sentry, judge_traces
from worker.check.processes import Processes
from worker.check.procfile import consoles
from worker.check.redis_database import RedisDatabase
from worker.hidden_packages import explain, hidden_by
from worker.queues import Queue
from worker.settings import Settings


def check_deployment(
    environ: Mapping[str, str] | None = None,
    *,
    folder: Path | None = None,
    procfile: Path | None = None,
    stop_timeout: float = 30,
) -> list[Finding]:
    """Check the deployment that the environment describes. Raises nothing: what goes wrong is a finding.

    Arguments:
      environ: The settings; the process's environment by default.
      folder: Where workers are started; the current one by default.
      procfile: ``Procfile`` in ``folder`` by default, which need not be there.
      stop_timeout: Seconds that the host gives a process from SIGTERM to SIGKILL.
    """
    environ = os.environ if environ is None else environ
    folder = Path.cwd() if folder is None else folder
    guard = Guard(_passwords(environ))
    processes = Processes(environ, folder, procfile, guard)
    settings, findings = _load_settings(environ)
    findings = [
        *guard.run("packages", lambda: _check_packages(folder)),
        *guard.run("dramatiq", _check_dramatiq),
        *findings,
        *guard.run("procfile", lambda: processes.check(stop_timeout)),
    ]
    if settings is None:
        return findings
    findings += guard.run("alerts", lambda: judge_alerts(settings, processes.commands))
    findings += guard.run("llm", lambda: judge_language_model(settings, processes.entries, installed=is_installed()))
    of_entries = [{**environ, **entry.environment} for entry in processes.entries] or [dict(environ)]
    findings += guard.run("traces", lambda: judge_traces(of_entries))
    findings += guard.run("sentry", lambda: judge_sentry(of_entries, installed=sentry.is_installed()))
    databases, redis = Databases(settings, guard), RedisDatabase(settings, guard)
    declared = {*(queue.value for queue in Queue), *settings.extra_queues}
    try:
        findings += run_together(
            [*databases.credential_tasks(), *redis.server_task(), *processes.import_task(settings)]
        )
        # Importing has told which queues the application itself declares.
        declared |= processes.declared
        shared = databases.shared_task(processes.entries, consoles=len(consoles(processes.commands)))
        findings += run_together([*shared, *redis.queues_task(declared)])
    finally:
        databases.close()
    return findings


def _check_packages(folder: Path) -> Iterator[Finding]:
    for path in hidden_by(folder):
        yield error("packages", *explain(path))


def _check_dramatiq() -> Iterator[Finding]:
    try:
        check_version()
    except ConfigurationError as e:
        found, _, advice = str(e).partition(": ")
        yield error("dramatiq", found, advice)
    else:
        yield ok("dramatiq", f"Dramatiq {dramatiq.__version__}")


def _load_settings(environ: Mapping[str, str]) -> tuple[Settings | None, list[Finding]]:
    advice = "Set it as the README's table of settings says."
    try:
        settings = Settings.load(environ)
    except ConfigurationError as e:
        return None, [error("settings", line, advice) for line in str(e).splitlines()]
    findings = []
    if settings.stub:
        findings.append(error("settings", "REDIS_URL: stub:// is for tests: no message leaves its process", advice))
    if settings.database_url is None:
        findings.append(error("settings", "DATABASE_URL: required (postgres://user:password@host:port/name)", advice))
    return settings, findings or [ok("settings", "every variable can be used")]


def _passwords(environ: Mapping[str, str]) -> set[str]:
    """Return the passwords of all URLs of the environment, as they stand there and as they are sent."""
    found = set[str]()
    for value in environ.values():
        try:
            password = urlsplit(value).password if "://" in value else None
        except ValueError:
            continue
        if password:
            found |= {password, unquote(password)}
    return found
