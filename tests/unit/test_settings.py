from __future__ import annotations

import pytest

from db.errors import ConfigurationError
from worker.settings import Settings

KEY = "aHVudGVyMmh1bnRlcjJodW50ZXIyaHVudGVyMiEhISE="
URL = "postgres://app:hunter2@db.example.com:5432/app?sslmode=require"


def test_a_deployment_needs_one_variable() -> None:
    settings = Settings.load({"DATABASE_URL": URL})
    assert settings.database_url == URL
    assert settings.operator_url == URL
    assert settings.migration_url == URL


def test_credentials_fall_back_from_migration_to_operator_to_database() -> None:
    settings = Settings.load({"DATABASE_URL": URL, "OPERATOR_DATABASE_URL": "postgresql://operator@h/x"})
    assert settings.migration_url == "postgresql://operator@h/x"
    settings = Settings.load({"DATABASE_URL": URL, "MIGRATION_DATABASE_URL": "postgresql://owner@h/x"})
    assert settings.operator_url == URL
    assert settings.migration_url == "postgresql://owner@h/x"


def test_tests_need_no_database() -> None:
    assert Settings.load({"REDIS_URL": "stub://"}).stub


def test_a_mapping_is_read_instead_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAX_RETRIES", "9")
    assert Settings.load({"DATABASE_URL": URL}).max_retries == 3
    monkeypatch.setenv("DATABASE_URL", URL)
    assert Settings.load().max_retries == 9


def test_empty_means_unset() -> None:
    assert Settings.load({"DATABASE_URL": URL, "OPERATOR_DATABASE_URL": "", "MAX_AGE": " "}).max_age is None


@pytest.mark.parametrize(
    ("environ", "problem"),
    [
        ({}, "DATABASE_URL: required"),
        ({"DATABASE_URL": "mysql://u:hunter2@h/x"}, "DATABASE_URL: the URL's scheme must be postgres://"),
        ({"DATABASE_URL": "hunter2"}, "DATABASE_URL: not a database URL"),
        ({"DATABASE_URL": URL, "OPERATOR_DATABASE_URL": "hunter2"}, "OPERATOR_DATABASE_URL: not a database URL"),
        ({"DATABASE_URL": URL, "REDIS_URL": "hunter2"}, "REDIS_URL: the scheme must be redis://"),
        ({"DATABASE_URL": URL, "REDIS_URL": "hunter2://h"}, "REDIS_URL: the scheme must be redis://"),
        ({"DATABASE_URL": URL, "REDIS_URL": "redis://:hunter2@h:port"}, "REDIS_URL: not a URL"),
        ({"DATABASE_URL": URL, "MAX_RETRIES": "hunter2"}, "MAX_RETRIES: "),
        ({"DATABASE_URL": URL, "MAX_RETRIES": "-1"}, "MAX_RETRIES: "),
        ({"DATABASE_URL": URL, "TIME_LIMIT": "0"}, "TIME_LIMIT: "),
        ({"DATABASE_URL": URL, "EXTRA_QUEUES": "emails,bad name"}, "EXTRA_QUEUES: 'bad name' is not a queue name"),
        ({"DATABASE_URL": URL, "EXTRA_QUEUES": "emails.DQ"}, "EXTRA_QUEUES: 'emails.DQ' is not a queue name"),
        ({"DATABASE_URL": URL, "FAILED_JOB_KEYS": "hunter2"}, "FAILED_JOB_KEYS: key 1 of 1 is not 32 bytes in base64"),
        ({"DATABASE_URL": URL, "FAILED_JOB_KEYS": f"{KEY},hunter2"}, "FAILED_JOB_KEYS: key 2 of 2 is not 32 bytes"),
        ({"DATABASE_URL": URL, "LLM_API_KEY": "hunter2 hunter2"}, "LLM_API_KEY: must be printable ASCII"),
        ({"DATABASE_URL": URL, "LLM_BASE_URL": "hunter2"}, "LLM_BASE_URL: not a URL"),
        ({"DATABASE_URL": URL, "LLM_BASE_URL": "https://h:port/v1"}, "LLM_BASE_URL: not a URL"),
        ({"DATABASE_URL": URL, "LLM_BASE_URL": "https://u:hunter2@h/v1"}, "LLM_BASE_URL: must hold no user, password"),
        ({"DATABASE_URL": URL, "LLM_PRICE_INPUT": "-1"}, "LLM_PRICE_INPUT: "),
        ({"DATABASE_URL": URL, "LLM_PRICE_INPUT": "NaN"}, "LLM_PRICE_INPUT: "),
        ({"DATABASE_URL": URL, "LLM_MONTHLY_BUDGET": "5"}, "LLM_MONTHLY_BUDGET: needs LLM_PRICE_INPUT"),
        ({"DATABASE_URL": URL, "LLM_RATE": "0"}, "LLM_RATE: "),
        ({"DATABASE_URL": URL, "MIN_BACKOFF": "10", "MAX_BACKOFF": "5"}, "MIN_BACKOFF: 10 is more than MAX_BACKOFF"),
    ],
)
def test_an_error_names_the_variable_and_never_a_secret(environ: dict[str, str], problem: str) -> None:
    with pytest.raises(ConfigurationError) as e:
        Settings.load(environ)
    assert problem in str(e.value)
    assert "hunter2" not in str(e.value)
    assert KEY not in str(e.value)
    assert str(e.value).count("FAILED_JOB_KEYS") <= 1


def test_every_problem_is_named_at_once() -> None:
    with pytest.raises(ConfigurationError) as e:
        Settings.load({"DATABASE_URL": URL, "MAX_RETRIES": "x", "TIME_LIMIT": "y"})
    assert "MAX_RETRIES" in str(e.value)
    assert "TIME_LIMIT" in str(e.value)


def test_a_representation_shows_no_secret() -> None:
    settings = Settings.load(
        {"DATABASE_URL": URL, "REDIS_URL": "redis://:hunter2@h:6379", "FAILED_JOB_KEYS": KEY, "LLM_API_KEY": "hunter2"}
    )
    assert "hunter2" not in f"{settings!r} {settings}"
    assert KEY not in f"{settings!r} {settings} {settings.keys!r}"


def test_keys_are_optional() -> None:
    assert Settings.load({"DATABASE_URL": URL}).keys is None
    keys = Settings.load({"DATABASE_URL": URL, "FAILED_JOB_KEYS": f"{KEY},"}).keys
    assert keys is not None
    assert keys.open(*keys.seal(b"x")) == b"x"


def test_heroku_names_its_processes_and_signs_its_own_certificates() -> None:
    settings = Settings.load({"DATABASE_URL": URL, "DYNO": "attribution.1"})
    assert settings.worker_name == "attribution.1"
    assert settings.redis_ssl_verify is False
    assert Settings.load({"DATABASE_URL": URL}).redis_ssl_verify is None
    assert Settings.load({"DATABASE_URL": URL, "DYNO": "x", "REDIS_SSL_VERIFY": "true"}).redis_ssl_verify is True


def test_a_tls_url_reaches_redis_with_the_verification_asked_for() -> None:
    from worker.redis_client import make_redis

    def verification(**environ: str) -> object:
        settings = Settings.load({"DATABASE_URL": URL, "REDIS_URL": "rediss://:secret@h:6380", **environ})
        return make_redis(settings).connection_pool.connection_kwargs.get("ssl_cert_reqs")

    assert verification(DYNO="attribution.1") == "none"
    assert verification() != "none"


def test_no_thread_is_refused_a_connection_to_redis() -> None:
    from worker.redis_client import make_redis

    with make_redis(Settings.load({"DATABASE_URL": URL, "REDIS_URL": "redis://h:6379"})) as client:
        for _ in range(200):
            client.connection_pool.make_connection()


def test_what_is_not_given_is_read_from_the_process_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAX_RETRIES", "7")
    monkeypatch.setenv("FAIR", "")
    assert Settings().max_retries == 7
    assert Settings(max_retries=2).max_retries == 2
    assert Settings().fair is True
    # A mapping is all there is.
    assert Settings.load({"DATABASE_URL": "postgres://h/x"}).max_retries == 3
