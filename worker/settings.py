"""What a deployment may set, read from environment variables and checked at start."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from db.configuration import check_url
from db.errors import ConfigurationError
from db.sealing import Keys
from worker.fields import Field, Invalid, Model, field_validator
from worker.logs.levels import LEVELS, read_levels
from worker.queues import check_queue_name

#: ``REDIS_URL`` for tests: Dramatiq's StubBroker, no server.
STUB = "stub://"

Words = tuple[str, ...]
#: The time limit is looked at once a second, and a job needs a moment to heed it.
MIN_OVERTIME = 3_000
Milliseconds = Annotated[int, Field(gt=0, le=7 * 86_400_000)]
#: Characters of what signs cookies.
SECRET_AT_LEAST = 32


#: The Celery system's tasks, and the actors that took their place.
OF_CELERY = {
    "app.tasks.attribution.recompute_window": "worker.attribution.recompute_window",
    "app.tasks.housekeeping.ping": "worker.housekeeping.ping",
}


class Settings(Model):
    """Every field is an environment variable of the same name in capitals.

    Use :meth:`load`, whose error names each variable and what is wrong with it, and never a value that may be secret.
    """

    database_url: str | None = Field(
        None,
        repr=False,
        description="Postgres for workers and tenant-bound work; required, but for `worker migrate` alone",
    )
    operator_database_url: str | None = Field(
        None,
        repr=False,
        description="Postgres for work across tenants, as a role in app_operator; default DATABASE_URL",
    )
    migration_database_url: str | None = Field(
        None,
        repr=False,
        description="Postgres for `worker migrate`, as the tables' owner; default OPERATOR_DATABASE_URL",
    )
    redis_url: str = Field(
        "redis://127.0.0.1:6379/0",
        repr=False,
        description="Redis or Valkey: redis://, rediss://, unix://; stub:// in tests",
    )
    redis_ssl_verify: bool | None = Field(
        None,
        description="check the certificate of rediss://; default yes, but no on Heroku, which signs its own",
    )
    redis_namespace: str = Field(
        "dramatiq", description="prefix of every key in Redis; stock producers use the default"
    )
    redis_timeout: Annotated[float, Field(gt=0, le=60)] = Field(
        5.0, description="seconds to wait for a connection or an answer of Redis"
    )
    extra_queues: Words = Field((), description="queues of your own beside the four, separated by commas")
    db_pool_size: Annotated[int, Field(ge=1, le=200)] = Field(8, description="Postgres connections a process keeps")
    db_max_overflow: Annotated[int, Field(ge=0, le=200)] = Field(4, description="and opens beyond them under load")
    db_lock_timeout: Milliseconds = Field(30_000, description="milliseconds a statement may wait for a lock")
    max_retries: Annotated[int, Field(ge=0, le=1000)] = Field(
        3, description="executions of a failing message after the first, where the actor does not say"
    )
    min_backoff: Milliseconds = Field(15_000, description="milliseconds before the first retry; doubles with each")
    max_backoff: Milliseconds = Field(3_600_000, description="milliseconds between retries at most")
    time_limit: Milliseconds = Field(
        600_000, description="milliseconds a job may run, its SQL included, where the actor does not say"
    )
    overtime: Annotated[int, Field(ge=MIN_OVERTIME, le=7 * 86_400_000)] = Field(
        60_000, description="milliseconds past its time limit after which a job that runs on costs its process"
    )
    max_age: Milliseconds | None = Field(
        None, description="milliseconds after which a message that has not run is expired; default never"
    )
    stop_within: Annotated[float, Field(ge=5, le=3600)] = Field(
        20.0, description="seconds from SIGTERM until every process has ended; less than the host waits before it kills"
    )
    spool_limit: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        10_000, description="failures that may wait in Redis while Postgres is away, before workers wait"
    )
    max_starts: Annotated[int, Field(ge=2, le=100)] = Field(
        3, description="starts of a message that end with the loss of its worker, after which it is a `worker_lost` row"
    )
    keeper: bool = Field(
        True, description="a small parent for each worker process, which says how that one ended; on Linux only"
    )
    metrics: bool = Field(
        True, description="count jobs for Prometheus, which asks the console for `/metrics`, or `worker metrics`"
    )
    fair: bool = Field(
        True, description="the tenants of a queue take turns, and are held to their limits; see Fair shares"
    )
    outbox: bool = Field(
        True,
        description="what is sent inside `transaction()` is sent if that commits; `no` sends it at once",
    )
    redact_keys: Words = Field((), description="further argument names whose values are redacted, separated by commas")
    failed_job_keys: str | None = Field(
        None,
        repr=False,
        description="Fernet keys that failures' original messages are encrypted with, separated by commas: the first "
        "encrypts, all decrypt; default none, so they are not",
    )
    renamed_actors: Words = Field(
        (), description="actors that have another name now, as old=new, separated by commas: replays go to the new one"
    )
    once_keep_days: Annotated[int, Field(ge=30, le=36_500)] | None = Field(
        90,
        description="days that `once()` without a key remembers a message, and for as long as it has a failed job; "
        "`forever` for ever",
    )
    once_keys_keep_days: Annotated[int, Field(ge=1, le=36_500)] | None = Field(
        None, description="the same of a key; default for ever, because another message may have the same"
    )
    schedule: Words = Field(
        (),
        description="when scheduled actors run instead, as name=expression, separated by semicolons; "
        "their time zone stays",
    )
    schedule_off: Words = Field((), description="scheduled actors that are not to run, separated by commas")
    attribution_models: Words = Field(
        (), description="models under which `recompute_day` recomputes, separated by commas; default linear"
    )
    llm_base_url: str = Field(
        "https://api.openai.com/v1", description="chat API that `explain_window` asks: OpenAI's, or one like it"
    )
    llm_api_key: str | None = Field(
        None, repr=False, description="its key; without one `explain_window` fails with `configuration_error`"
    )
    llm_model: Annotated[str, Field(min_length=1, max_length=200)] = Field(
        "gpt-4o-mini", description="the language model to ask"
    )
    llm_max_tokens: Annotated[int, Field(ge=16, le=100_000)] = Field(
        800, description="tokens that an answer may have, hidden reasoning included"
    )
    llm_max_tokens_name: Literal["max_completion_tokens", "max_tokens"] = Field(
        "max_completion_tokens", description="what the API calls that limit; older ones `max_tokens`"
    )
    llm_timeout: Annotated[float, Field(gt=0, le=3_600)] = Field(
        60.0, description="seconds that a call may take; no more than four fifths of TIME_LIMIT"
    )
    llm_price_input: Annotated[Decimal, Field(ge=0, le=1_000_000)] = Field(
        Decimal(0), description="cents for 1,000,000 tokens of what is asked, such as 15 or 7.5"
    )
    llm_price_output: Annotated[Decimal, Field(ge=0, le=1_000_000)] = Field(
        Decimal(0), description="cents for 1,000,000 tokens of answers"
    )
    llm_monthly_budget: Annotated[int, Field(ge=0, le=10**12)] | None = Field(
        None,
        description="cents that a tenant may spend on the language model in a calendar month (UTC); "
        "`worker_llm_budgets` has what some have of their own; default no limit",
    )
    llm_rate: Annotated[int, Field(ge=1, le=100_000)] = Field(
        60, description="calls of the language model within a minute, at most, of all processes and tenants together"
    )
    llm_tenant_rate: Annotated[int, Field(ge=1, le=100_000)] = Field(20, description="the same of one tenant")
    alert_webhook_url: str | None = Field(
        None,
        repr=False,
        description="where alerts are posted, as https://host/path; default nowhere, and nothing is looked for",
    )
    alert_webhook_secrets: str | None = Field(
        None,
        repr=False,
        description="what alerts are signed with, as `worker alerts secret` prints it, separated by commas: each "
        "signs, so that it can be changed; default not signed",
    )
    alert_failures: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        100, description="failed jobs of all actors within ALERT_WITHIN, above which there is an alert"
    )
    alert_actor_failures: Annotated[int, Field(ge=1, le=10_000)] = Field(50, description="the same of one actor")
    alert_within: Annotated[int, Field(ge=1, le=60)] = Field(5, description="minutes in which they are counted")
    alert_environment: Annotated[str, Field(max_length=100)] = Field(
        "", description="what alerts call this deployment; default HEROKU_APP_NAME, else nothing"
    )
    alert_heartbeat_url: str | None = Field(
        None,
        repr=False,
        description="asked for once a minute while scheduler, Redis, `housekeeping` and Postgres work, for a service "
        "that tells when that stops; default none",
    )
    console_url: str | None = Field(
        None, description="where people reach the console, for the links in alerts; default no links"
    )
    console_tokens: str | None = Field(
        None,
        repr=False,
        description="who may use the console, as `worker console token` prints it, separated by spaces or commas; "
        "default nobody but this machine",
    )
    console_secret: str | None = Field(
        None,
        repr=False,
        description="signs the console's cookies; default made from CONSOLE_TOKENS and the passwords in the URLs",
    )
    console_prefix: str = Field("", description="path under which a proxy has the console, such as /ops; default none")
    console_hosts: Words = Field(
        (), description="names by which the console may be asked for, separated by commas; default any, with tokens"
    )
    console_https: bool | None = Field(
        None, description="answer what came by plain http with a redirection; default yes on Heroku, else no"
    )
    console_session_hours: Annotated[float, Field(gt=0, le=24 * 90)] = Field(
        12.0, description="hours after which whoever is logged in to the console logs in again"
    )
    port: Annotated[int, Field(ge=1, le=65_535)] | None = Field(
        None, description="where the host expects the console; it then listens on every interface"
    )
    sentry_dsn: str | None = Field(
        None, repr=False, description="Sentry's project, which is told of each final failure; default none"
    )
    worker_name: str | None = Field(None, description="names this process in failure rows; default DYNO, else the host")
    log_level: Literal["TRACE", "DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = Field(
        "INFO", description="the least severe messages to log"
    )
    log_levels: Words = Field(
        (),
        description="the same of loggers, and of those below them, as logger=LEVEL, separated by commas: "
        "sqlalchemy.engine=INFO,dramatiq=WARNING",
    )
    log_format: Literal["auto", "json", "text"] = Field(
        "auto", description="json is an object a line, text for people; auto: json unless standard error is a terminal"
    )
    log_line_limit: Annotated[int, Field(ge=1_000, le=100_000)] = Field(
        8_000, description="bytes of a line of JSON at most; longer ones are cut"
    )

    def __init__(self, **given: Any) -> None:
        """What is not given is read from the process' environment, but empty values; see :meth:`load`."""
        missing = type(self).model_fields.keys() - given.keys()
        found = {name: value for name in missing if (value := os.environ.get(name.upper(), "").strip())}
        super().__init__(**found, **given)

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None) -> Self:
        """Read settings from ``environ``, by default the process's environment. Empty values count as unset.

        Raises:
          ConfigurationError: Naming every variable that is wrong or missing.
        """
        environ = os.environ if environ is None else environ
        # Every field is given, so that none is read from the process's environment behind a mapping's back.
        given: dict[str, Any] = {
            name: environ.get(name.upper(), "").strip() or field.default for name, field in cls.model_fields.items()
        }
        if environ.get("DYNO"):
            given["worker_name"] = given["worker_name"] or environ["DYNO"]
            if given["redis_ssl_verify"] is None:
                given["redis_ssl_verify"] = False
            if given["console_https"] is None:
                given["console_https"] = True
            given["alert_environment"] = given["alert_environment"] or environ.get("HEROKU_APP_NAME", "")
        try:
            return cls(**given)
        except Invalid as e:
            said = (f"{name.upper()}: {problem}" if name else problem for name, problem in e.problems.items())
            raise ConfigurationError("\n".join(said)) from None

    @field_validator(
        "extra_queues",
        "redact_keys",
        "renamed_actors",
        "schedule_off",
        "attribution_models",
        "console_hosts",
        "log_levels",
        mode="before",
    )
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(w.strip() for w in value.split(",") if w.strip()) if isinstance(value, str) else value

    @field_validator("once_keep_days", mode="before")
    @classmethod
    def _read_days(cls, value: object) -> object:
        return None if value == "forever" else value

    @field_validator("extra_queues")
    @classmethod
    def _check_queues(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(check_queue_name(name) for name in value))

    @field_validator("attribution_models")
    @classmethod
    def _check_models(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            return value
        # It imports SQLAlchemy, which worker processes do after their first jobs, if at all.
        from worker.recompute import parse_model

        return tuple(parse_model(name).value for name in value)

    @field_validator("renamed_actors")
    @classmethod
    def _check_renamed(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for pair in value:
            old, _, new = (part.strip() for part in pair.partition("="))
            if not old or not new:
                raise ValueError(f"{pair!r} is not of the form old=new")
        return value

    @field_validator("schedule", mode="before")
    @classmethod
    def _split_schedule(cls, value: object) -> object:
        # Expressions have commas.
        return tuple(w.strip() for w in value.split(";") if w.strip()) if isinstance(value, str) else value

    @field_validator("schedule")
    @classmethod
    def _check_schedule(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            return value
        from worker.scheduler.cron import Cron, InvalidExpression

        names = set[str]()
        for pair in value:
            name, _, expression = (part.strip() for part in pair.partition("="))
            if not name or not expression:
                raise ValueError(f"{pair!r} is not of the form name=expression")
            if name in names:
                raise ValueError(f"{name!r} is there twice")
            names.add(name)
            try:
                Cron(expression)
            except InvalidExpression as e:
                raise ValueError(f"{name!r}: {e}") from None
        return value

    @field_validator("log_level", mode="before")
    @classmethod
    def _check_level(cls, value: object) -> object:
        if isinstance(value, str) and value.upper() not in LEVELS:
            raise ValueError(f"must be one of {', '.join(LEVELS)}, not {value!r}")
        return value.upper() if isinstance(value, str) else value

    @field_validator("log_levels")
    @classmethod
    def _check_levels(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        read_levels(value)
        return value

    @field_validator("log_format", mode="before")
    @classmethod
    def _check_format(cls, value: object) -> object:
        if isinstance(value, str) and value.lower() not in {"auto", "json", "text"}:
            raise ValueError(f"must be auto, json or text, not {value!r}")
        return value.lower() if isinstance(value, str) else value

    @field_validator("database_url", "operator_database_url", "migration_database_url")
    @classmethod
    def _check_database_url(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                check_url(value)
            except ConfigurationError as e:
                raise ValueError(str(e)) from None
        return value

    @field_validator("llm_base_url")
    @classmethod
    def _check_llm_base_url(cls, value: str) -> str:
        try:
            parts = urlsplit(value)
            host, _ = parts.hostname, parts.port
        except ValueError:
            host, parts = None, urlsplit("")
        if parts.scheme not in {"http", "https"} or not host:
            raise ValueError("not a URL; expected https://host/v1")
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise ValueError("must hold no user, password or query: LLM_API_KEY is for what is secret")
        return value.rstrip("/")

    @field_validator("alert_webhook_url", "alert_heartbeat_url", "console_url")
    @classmethod
    def _check_url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        try:
            parts = urlsplit(value)
            host, _ = parts.hostname, parts.port
        except ValueError:
            host, parts = None, urlsplit("")
        # It may hold a secret, so nothing of it is said.
        if parts.scheme not in {"http", "https"} or not host or parts.fragment or not re.fullmatch(r"[!-~]+", value):
            raise ValueError("not a URL; expected https://host/path")
        return value

    @field_validator("console_url")
    @classmethod
    def _check_console_url(cls, value: str | None) -> str | None:
        return None if value is None else value.rstrip("/")

    @field_validator("alert_webhook_secrets")
    @classmethod
    def _check_alert_secrets(cls, value: str | None) -> str | None:
        if value is not None:
            from worker.alerts.signing import read_secrets

            read_secrets(value)
        return value

    @field_validator("llm_api_key")
    @classmethod
    def _check_llm_api_key(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[!-~]+", value):
            raise ValueError("must be printable ASCII without spaces, to travel in a header")
        return value

    @field_validator("sentry_dsn")
    @classmethod
    def _check_sentry_dsn(cls, value: str | None) -> str | None:
        if value is None:
            return None
        try:
            parts = urlsplit(value)
            host, _ = parts.hostname, parts.port
        except ValueError:
            raise ValueError("not a DSN; expected https://key@host/project") from None
        if parts.scheme not in {"http", "https"} or not host or not parts.username:
            raise ValueError("not a DSN; expected https://key@host/project")
        if not parts.path.rpartition("/")[2].isdigit():
            raise ValueError("must end with the number of a project: https://key@host/project")
        return value

    @field_validator("failed_job_keys")
    @classmethod
    def _check_keys(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                Keys.from_setting(value)
            except ConfigurationError as e:
                raise ValueError(str(e).removeprefix("FAILED_JOB_KEYS: ")) from None
        return value

    @field_validator("console_tokens")
    @classmethod
    def _check_tokens(cls, value: str | None) -> str | None:
        if value is not None:
            from worker.console_tokens import read_tokens

            read_tokens(value)
        return value

    @field_validator("console_secret")
    @classmethod
    def _check_secret(cls, value: str | None) -> str | None:
        if value is not None and len(value) < SECRET_AT_LEAST:
            raise ValueError(f"must be at least {SECRET_AT_LEAST} characters, not {len(value)}")
        return value

    @field_validator("console_prefix")
    @classmethod
    def _check_prefix(cls, value: str) -> str:
        if value in {"", "/"}:
            return ""
        if not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+/?", value):
            raise ValueError(f"must be a path such as /ops, not {value!r}")
        return value.rstrip("/")

    @field_validator("redis_url")
    @classmethod
    def _check_redis_url(cls, value: str) -> str:
        if value == STUB:
            return value
        try:
            parts = urlsplit(value)
            scheme, _ = parts.scheme, parts.port
        except ValueError:
            raise ValueError("not a URL; expected redis://:password@host:port/0") from None
        if scheme not in {"redis", "rediss", "unix"}:
            # A URL without a scheme may begin with the password.
            known = scheme if scheme in {"http", "https", "valkey", "valkeys", "amqp", "postgres"} else "this"
            raise ValueError(f"the scheme must be redis://, rediss://, unix:// or stub://, not {known}")
        return value

    def check_together(self) -> None:
        if not (self.database_url or self.operator_database_url or self.migration_database_url or self.stub):
            raise ValueError("DATABASE_URL: required (postgres://user:password@host:port/name)")
        if self.min_backoff > self.max_backoff:
            raise ValueError(f"MIN_BACKOFF: {self.min_backoff} is more than MAX_BACKOFF, {self.max_backoff}")
        if self.llm_monthly_budget and not (self.llm_price_input or self.llm_price_output):
            raise ValueError("LLM_MONTHLY_BUDGET: needs LLM_PRICE_INPUT and LLM_PRICE_OUTPUT, or nothing has a cost")

    @property
    def stub(self) -> bool:
        """Whether messages go to Dramatiq's StubBroker."""
        return self.redis_url == STUB

    @property
    def renamed(self) -> dict[str, str]:
        """Today's names of actors by those that they had, the Celery system's included."""
        pairs = (pair.partition("=") for pair in self.renamed_actors)
        return {**OF_CELERY, **{old.strip(): new.strip() for old, _, new in pairs}}

    @property
    def schedules(self) -> dict[str, str]:
        """The expressions of ``schedule``, by actor."""
        pairs = (pair.partition("=") for pair in self.schedule)
        return {name.strip(): expression.strip() for name, _, expression in pairs}

    @property
    def logger_levels(self) -> dict[str, str]:
        """The levels of ``log_levels``, by logger."""
        return read_levels(self.log_levels)

    @property
    def idle(self) -> frozenset[str]:
        """The scheduled actors that have nothing to do, for want of a setting."""
        needed = {
            "worker.housekeeping.look_for_alerts": self.alert_webhook_url,
            "worker.housekeeping.send_heartbeat": self.alert_heartbeat_url,
        }
        return frozenset(name for name, setting in needed.items() if setting is None)

    @property
    def keys(self) -> Keys | None:
        """The keys of ``failed_job_keys``, if there are any."""
        return None if self.failed_job_keys is None else Keys.from_setting(self.failed_job_keys)

    @property
    def operator_url(self) -> str | None:
        """The Postgres URL for work across tenants, falling back as documented."""
        return self.operator_database_url or self.database_url

    @property
    def migration_url(self) -> str:
        """The Postgres URL for migrations, falling back as documented.

        Raises:
          ConfigurationError: When none of the three is set.
        """
        url = self.migration_database_url or self.operator_url
        if url is None:
            raise ConfigurationError("MIGRATION_DATABASE_URL or DATABASE_URL: required (postgres://user@host/name)")
        return url
