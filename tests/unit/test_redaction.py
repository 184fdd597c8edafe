from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from middleware.redaction import REDACTED, Limits, Redactor

redactor = Redactor()


@pytest.mark.parametrize(
    "key",
    [
        "password", "PASSWORD", "db_password", "passwordHash", "userPassword", "passwd", "pwd", "secret",
        "clientSecret", "client-secret", "token", "access_token", "accessToken", "X-Auth-Token", "Authorization",
        "api_key", "apiKey", "API-Key", "X-Api-Key", "apikey", "APIKey", "private_key", "aws_secret_access_key",
        "credentials", "cookie", "passwords", "access_tokens", "api_keys", "dbpassword", "PGPASSWORD", "accesstoken",
        "refreshtoken", "clientsecret", "secretkey", "jwt", "pass", "passcode",
        "Set-Cookie", "session_id", "sessionId",
    ],
)  # fmt: skip
def test_values_under_secret_names_are_redacted(key: str) -> None:
    assert redactor.value({key: "hunter2"}) == {key: REDACTED}
    assert redactor.value({key: {"deep": ["hunter2"]}}) == {key: REDACTED}
    assert redactor.value([{"outer": {key: 1234}}]) == [{"outer": {key: REDACTED}}]


@pytest.mark.parametrize(
    "key",
    [
        "max_tokens",
        "input_tokens",
        "address",
        "process",
        "passenger",
        "window_start",
        "author",
        "secretary",
        "keyboard",
        "id",
    ],
)
def test_values_under_other_names_are_not(key: str) -> None:
    assert redactor.value({key: "shown"}) == {key: "shown"}


def test_names_can_be_added() -> None:
    own = Redactor(["iban", "Card Number"])
    assert own.value({"customer_iban": "x", "cardNumber": "y", "password": "z", "name": "n"}) == {
        "customer_iban": REDACTED,
        "cardNumber": REDACTED,
        "password": REDACTED,
        "name": "n",
    }


def test_positional_arguments_are_redacted_by_the_names_of_their_parameters() -> None:
    assert redactor.arguments(["ada", "hunter2", 3], ("user", "password")) == ["ada", REDACTED, 3]


@pytest.mark.parametrize(
    "text",
    [
        "postgres://app:hunter2@db:5432/x",
        "cannot reach redis://:hunter2@10.0.0.1:6379/0, giving up",
        "amqp://u:hunter2@x@host",
        "Authorization: Bearer hunter2hunter2",
        "Authorization: Basic aHVudGVyMmh1bnRlcjI=",
        "{'Authorization': 'Bearer hunter2.hunter2'}",
        "password=hunter2",
        "password = 'hunter2'",
        "host=db user=app password=hunter2 dbname=x",
        '{"api_key": "hunter2"}',
        "{'client_secret': 'hunter2 with spaces'}",
        "access_token=hunter2&next=1",
        "api-key: hunter2",
        "Authorization: Token hunter2hunter2",
        "Cookie: session=hunter2; theme=dark",
        '{\\"password\\": \\"hunter2\\"}',
        'password="a\\"hunter2"',
        "password=b'hunter2'",
        "PGPASSWORD=hunter2 psql",
        "SECRET_KEY_BASE=hunter2",
        "passwords: hunter2",
        "https://s3/x?X-Amz-Signature=hunter2",
        "postgres://app:hun/hunter2'x@db/x",
        "DETAIL:  Failing row contains (hunter2, null).",
        "DETAIL:  Key (api_key)=(hunter2) already exists.",
        "-----BEGIN RSA PRIVATE KEY-----\nhunter2\n-----END RSA PRIVATE KEY-----",
        "-----BEGIN PRIVATE KEY-----\nhunter2 cut off",
    ],
)
def test_secrets_are_found_in_text(text: str) -> None:
    shown = redactor.text(text)
    assert "hunter2" not in shown
    assert "aHVudGVy" not in shown
    assert REDACTED in shown
    assert redactor.value({"note": text}) == {"note": shown}
    # What is redacted already stays as it is.
    assert redactor.text(shown) == shown


@pytest.mark.parametrize("spelt", [str.upper, lambda word: word.replace("s", "\u017f").replace("k", "\u212a")])
@pytest.mark.parametrize(
    "word",
    [
        *("password", "passwd", "passphrase", "passcode", "pwd", "token", "secret", "credential", "signature"),
        *("api_key", "apikey", "access-key", "private_key", "signingkey"),
    ],
)
def test_words_are_found_however_they_are_spelt(word: str, spelt: Callable[[str], str]) -> None:
    # A long s and a Kelvin sign are equal to s and k for whoever looks at letters without their case.
    assert redactor.text(f"{spelt(word)}=hunter2") == f"{spelt(word)}={REDACTED}"


@pytest.mark.parametrize(
    "key",
    [
        "sk-proj-abcdefghijklmnop0123",
        "sk_live_abcdefghijklmnop0123",
        "ghp_abcdefghijklmnopqrstuvwxyz0123",
        "xoxb-1234567890-abcdef",
        "AKIAABCDEFGHIJKLMNOP",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl",
    ],
)
def test_keys_are_known_by_their_shape(key: str) -> None:
    assert redactor.text(f"refused: {key}.") == f"refused: {REDACTED}."


@pytest.mark.parametrize(
    "text",
    [
        "http://localhost:8080/path@x",
        "max_tokens=100",
        "token validation failed: basic understanding",
        "DETAIL:  Key (email)=(ada@example.com) already exists.",
        "attribution recompute failure requested",
        "https://example.com/a:b@c",
        "id 6f1c at 2025-01-01T00:00:00Z",
    ],
)
def test_other_text_stays(text: str) -> None:
    assert redactor.text(text) == text


def test_a_secret_across_the_cut_does_not_show() -> None:
    text = "x" * 90 + " postgres://app:hunter2hunter2hunter2@db/x " + "y" * 1000
    for limit in range(90, 150):
        assert "hunter2" not in redactor.text(text, limit)


def test_nor_does_one_that_moves_before_the_cut_as_others_before_it_shrink() -> None:
    text = "token=" + "y" * 1_500 + " postgres://app:hunter2hunter2hunter2@db/x " + "z" * 5_000
    for limit in (500, 1_000, 1_510, 1_520, 1_530, 1_540, 3_000):
        assert "hunter" not in redactor.text(text, limit)
        assert "hunter" not in redactor.text_ends(text[::-1].replace("2retnuh", "hunter2"), limit)


def test_a_key_whose_beginning_was_cut_off_does_not_show() -> None:
    body = "\n".join(["aHVudGVyMmh1bnRlcjI"] * 200)
    text = f"-----BEGIN PRIVATE KEY-----\n{body}\n-----END PRIVATE KEY-----\n" + "z" * 100
    assert "aHVudGVy" not in redactor.text_ends("x" * 10_000 + text, 4_000)


def test_names_are_redacted_by_their_shape_too() -> None:
    assert redactor.value({"redis://:hunter2@h/0": 1}) == {f"redis://:{REDACTED}@h/0": 1}


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "unit",
    ["a-", "1-2-3-", "6f1c7a52-6c0e-4a43-9d2b-1f0f8f1f7b11-", "eyJa-", "eyJaaaaaaa.", "a://a:", "password ", 'token="',
     "token='\\\\", " ", "QUJD\n", "-----BEGIN PRIVATE KEY-----", "sk-", "cookie:", "Key (password", "xoxb-a ", "\\"],
)  # fmt: skip
def test_no_text_takes_long(unit: str) -> None:
    # Quadratic patterns need minutes for this, holding the interpreter's lock; these need milliseconds.
    redactor.text(unit * (1_000_000 // len(unit)))


def test_a_cut_says_how_much_is_missing() -> None:
    assert redactor.text("a" * 1_500, 1_000) == "a" * 1_000 + "… [500 more characters]"
    shown = redactor.text_ends("a" * 700 + "\n" + "b" * 700 + "\nthe end", 1_000)
    assert shown.startswith("aaa")
    assert "characters cut]" in shown
    assert shown.endswith("the end")


def test_what_json_cannot_hold_is_represented() -> None:
    class Broken:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    shown = redactor.value(
        {
            "nan": float("nan"),
            "infinity": float("-inf"),
            "bytes": b"\x00\x01",
            "uuid": UUID(int=1),
            "set": {1},
            "broken": Broken(),
            "huge": 10**5000,
            "nul": "a\x00b",
            "surrogate": "\ud800",
            3: "number as key",
            "k\x00": 1,
        }
    )
    assert shown == {
        "nan": "nan",
        "infinity": "-inf",
        "bytes": "[2 bytes]",
        "uuid": "UUID('00000000-0000-0000-0000-000000000001')",
        "set": [1],
        "broken": "[Broken, whose __repr__ raised RuntimeError]",
        "huge": "[integer of 16610 bits]",
        "nul": "a\\x00b",
        "surrogate": "\\ud800",
        "3": "number as key",
        "k\\x00": 1,
    }


def test_many_positional_arguments_are_bounded() -> None:
    shown = redactor.arguments(list(range(1_000_000)), ("password",))
    assert shown[:2] == [REDACTED, 1]
    assert shown[-1] == "… [999,000 more]"


def test_what_goes_round_ends() -> None:
    loop: list[Any] = []
    loop.append(loop)
    assert "nested deeper than 20" in json.dumps(redactor.value(loop))


def test_size_is_bounded_and_what_is_missing_is_counted() -> None:
    limits = Limits(string=100, items=10, depth=5, total=2_000)
    shown = Redactor(limits=limits).value({"long": "x" * 10_000_000, "many": list(range(1_000_000))})
    assert shown["long"] == "x" * 100 + "… [9,999,900 more characters]"
    assert shown["many"][-1] == "… [999,990 more]"
    big = {f"key{i}": ["y" * 90] * 9 for i in range(10)}
    assert len(json.dumps(Redactor(limits=limits).value(big))) < 10_000


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=20,
)


@settings(deadline=None)
@given(json_like)
def test_whatever_it_was_it_is_json_that_postgres_takes(value: object) -> None:
    text = json.dumps(redactor.value(value), allow_nan=False, ensure_ascii=False)
    assert "\x00" not in text
    assert "\\u0000" not in text.replace("\\\\", "")
    text.encode("utf-8")
