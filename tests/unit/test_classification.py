from __future__ import annotations

import subprocess
import urllib.error

import psycopg
import pydantic
import pytest
import sqlalchemy.exc
from dramatiq.errors import ActorNotFound, DecodeError, RateLimitExceeded
from dramatiq.middleware import TimeLimitExceeded

from db.errors import ConfigurationError, TenantRequired
from middleware.classification import Classifier
from middleware.errors import MessageExpired, TenantError


class Model(pydantic.BaseModel):
    n: int


def validation_error() -> Exception:
    try:
        Model.model_validate({"n": "x"})
    except pydantic.ValidationError as e:
        return e
    raise AssertionError


def wrapped(error: psycopg.Error) -> sqlalchemy.exc.DBAPIError:
    return sqlalchemy.exc.DBAPIError("SELECT 1", {}, error)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("x"), "validation_error"),
        (KeyError("x"), "validation_error"),
        (UnicodeDecodeError("utf-8", b"", 0, 1, "x"), "validation_error"),
        (validation_error(), "validation_error"),
        (psycopg.OperationalError("x"), "database_error"),
        (wrapped(psycopg.errors.UniqueViolation("x")), "database_error"),
        (sqlalchemy.exc.TimeoutError("pool"), "database_error"),
        (wrapped(psycopg.errors.QueryCanceled("x")), "timeout"),
        (psycopg.errors.LockNotAvailable("x"), "timeout"),
        (wrapped(psycopg.errors.UndefinedTable("x")), "configuration_error"),
        (TimeLimitExceeded(), "timeout"),
        (TimeoutError("x"), "timeout"),
        (TimeoutError(), "timeout"),
        (RateLimitExceeded("x"), "rate_limited"),
        (ConnectionResetError("x"), "upstream_error"),
        (urllib.error.URLError("x"), "upstream_error"),
        (MessageExpired("x"), "expired"),
        (ActorNotFound("x"), "unknown_actor"),
        (DecodeError("x", b"", ValueError()), "undecodable"),
        (TenantError("x"), "tenant_error"),
        (TenantRequired("x"), "tenant_error"),
        (ConfigurationError("x"), "configuration_error"),
        (RuntimeError("x"), "application_error"),
        (TypeError("x"), "application_error"),
        (subprocess.CalledProcessError(1, "x"), "application_error"),
        (SystemExit(1), "unknown"),
        (None, "unknown"),
    ],
)
def test_by_type_and_sqlstate(error: BaseException | None, expected: str) -> None:
    assert Classifier()(error) == expected


def test_text_does_not_matter() -> None:
    assert Classifier()(RuntimeError("ValueError: timeout, 57014")) == "application_error"


class CardDeclined(ValueError):
    pass


class CardExpired(CardDeclined):
    pass


def test_an_applications_own_types_win_by_class_or_name_the_nearest_first() -> None:
    by_class = Classifier({CardDeclined: "card_declined"})
    assert by_class(CardExpired("x")) == "card_declined"
    assert by_class(ValueError("x")) == "validation_error"
    by_name = Classifier({f"{__name__}.CardExpired": "card_expired", CardDeclined: "card_declined"})
    assert by_name(CardExpired("x")) == "card_expired"
    assert by_name(CardDeclined("x")) == "card_declined"


@pytest.mark.parametrize("name", ["", "x" * 101])
def test_an_own_type_must_fit_its_column(name: str) -> None:
    with pytest.raises(ValueError, match="1 to 100 characters"):
        Classifier({ValueError: name})
