"""What a span shows of a statement: none of the values that were written into it."""

from __future__ import annotations

import pytest

from middleware.sql_spans import shown


@pytest.mark.parametrize(
    ("statement", "text"),
    [
        ("SELECT a.b1, :p1, %(p2)s, $1 FROM t2", "SELECT a.b1, :p1, %(p2)s, $1 FROM t2"),
        ("SELECT 'it''s hunter2', ''::text, 'x'", "SELECT ?, ?::text, ?"),
        ("SELECT -12.50, 1e5, 0x1F, x1", "SELECT ?, ?, ?, x1"),
        ("SELECT $$hun'ter2$$, $a$hunter2$$hunter2$a$, 'x'", "SELECT ?, ?, ?"),
        # An apostrophe in a name or a comment begins no value, or the next would end it.
        ("SELECT \"it's\", 'hunter2'", 'SELECT "it\'s", ?'),
        ("-- don't\nSELECT 'hunter2' -- hunter2", "\nSELECT ? "),
        ("/* the shop's\n */SELECT 'hunter2'", "SELECT ?"),
        # What is in a backslash depends on what the string is, and in one without an E on the server's settings.
        (r"SELECT E'a\'hunter2', e'\\', 'b'", "SELECT ?, ?, ?"),
        (r"SELECT 'C:\Users', 'b'", "SELECT ?, ?"),
        (r"SELECT 'a', 'C:\', 'hunter2', 5", "SELECT ?, ?"),
        # Cut off.
        ("SELECT 'a', 'hunter2''", "SELECT ?, ?"),
        ("SELECT 'a', $x$hunter2", "SELECT ?, ?"),
        ("SELECT 'a' /* hunter2", "SELECT ? "),
    ],
)
def test_no_value_is_shown(statement: str, text: str) -> None:
    assert shown(statement) == text
    assert "hunter2" not in shown(statement)
