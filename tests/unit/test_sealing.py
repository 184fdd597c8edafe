"""Original messages, encrypted at rest."""

from __future__ import annotations

import base64
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.fernet import Fernet

from db.errors import ConfigurationError, KeyMissing, SealBroken
from db.sealing import Keys, generate

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("data", [b"", b"\x00\xff not utf-8", b"x" * 1_000_000], ids=["nothing", "bytes", "much"])
def test_what_is_sealed_opens_byte_for_byte(data: bytes) -> None:
    keys = Keys.from_setting(generate())
    sealed, key_id = keys.seal(data)
    assert data == b"" or data not in sealed
    assert keys.open(sealed, key_id) == data


def test_twice_sealed_is_not_twice_the_same() -> None:
    keys = Keys.from_setting(generate())
    assert keys.seal(b"x") != keys.seal(b"x")


def test_what_is_sealed_is_a_fernet_token() -> None:
    key = generate()
    sealed, _ = Keys.from_setting(key).seal(b"x")
    assert Fernet(key).decrypt(sealed) == b"x"


def test_a_key_is_replaced() -> None:
    old, new = generate(), generate()
    before = Keys.from_setting(old).seal(b"before")
    both = Keys.from_setting(f"{new}, {old}")
    after = both.seal(b"after")
    assert both.open(*before) == b"before"
    assert both.open(*after) == b"after"
    assert after[1] == both.current != before[1]
    only_new = Keys.from_setting(new)
    assert only_new.open(*after) == b"after"
    with pytest.raises(KeyMissing, match=before[1]):
        only_new.open(*before)


def test_an_id_is_short_and_always_the_same() -> None:
    key = base64.urlsafe_b64encode(bytes(range(32))).decode()
    # It stands beside every row that was sealed: another way to make it would orphan them.
    assert Keys.from_setting(key).current == "9f7f496e1c56b8e2"


@pytest.mark.parametrize("change", [lambda b: b[:-1], lambda b: b"A" + b[1:], lambda b: b[:40] + b[41:], lambda _: b""])
def test_what_was_changed_does_not_open(change: object) -> None:
    keys = Keys.from_setting(generate())
    sealed, key_id = keys.seal(b"hunter2")
    with pytest.raises(SealBroken, match=key_id) as e:
        keys.open(change(sealed), key_id)  # type: ignore[operator]
    assert "hunter2" not in str(e.value)


def test_another_keys_id_does_not_help() -> None:
    keys = Keys.from_setting(f"{generate()},{generate()}")
    sealed, _ = keys.seal(b"x")
    (other,) = set(re.findall("[0-9a-f]{16}", repr(keys))) - {keys.current}
    with pytest.raises(SealBroken):
        keys.open(sealed, other)


#: Always the same: processes that share tests must know them by one name.
GOOD = base64.b64encode(bytes(range(32))).decode()


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("", "it holds no key"),
        (" , ", "it holds no key"),
        ("hunter2", "key 1 of 1 is not"),
        (f"{GOOD},hunter2", "key 2 of 2 is not"),
        (f"hunter2,{GOOD}", "key 1 of 2 is not"),
        (GOOD[:-1], "key 1 of 1 is not"),
        (f"{GOOD} {GOOD}", "key 1 of 1 is not"),
        (f"{GOOD[:-4]}hé2=", "key 1 of 1 is not"),
    ],
)
def test_what_is_no_key_is_named_by_its_place_and_not_shown(value: str, problem: str) -> None:
    with pytest.raises(ConfigurationError) as e:
        Keys.from_setting(value)
    assert str(e.value).startswith(f"FAILED_JOB_KEYS: {problem}")
    assert "hunter2" not in str(e.value)
    assert GOOD[:8] not in str(e.value)


def test_keys_of_openssl_and_spaces_and_a_comma_at_the_end() -> None:
    raw = b"\xfb\xff" * 16
    url_safe, plain = base64.urlsafe_b64encode(raw).decode(), base64.b64encode(raw).decode()
    assert url_safe != plain
    assert Keys.from_setting(f" {plain} ,\n").current == Keys.from_setting(url_safe).current


def test_no_representation_shows_a_key() -> None:
    keys = Keys.from_setting(GOOD)
    assert repr(keys) == f"Keys({keys.current})"
    assert GOOD[:8] not in repr(keys)


def test_who_has_no_keys_does_not_pay_for_them() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import sys, worker.broker; print('cryptography.fernet' in sys.modules)"],
        cwd=ROOT,
        env={"REDIS_URL": "stub://"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "False"
