from __future__ import annotations

import copy
import pickle
from decimal import Decimal
from typing import Annotated, Literal

import pytest

from worker.fields import Field, Invalid, Model, field_validator
from worker.settings import Settings


class Example(Model):
    words: tuple[str, ...] = Field((), description="some")
    text: str | None = Field(None, repr=False)
    flag: bool | None = Field(None)
    count: Annotated[int, Field(ge=1, le=9)] | None = Field(5)
    share: Annotated[float, Field(gt=0, le=1)] = Field(0.5)
    price: Annotated[Decimal, Field(ge=0, le=100)] = Field(Decimal(0))
    kind: Literal["a", "b"] = Field("a")
    name: Annotated[str, Field(min_length=2, max_length=3)] = Field("ab")
    first: int = Field(1)
    second: int = Field(2)

    @field_validator("words", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(value.split()) if isinstance(value, str) else value

    @field_validator("first", "second")
    @classmethod
    def _double(cls, value: int) -> int:
        return value * 2

    @field_validator("second")
    @classmethod
    def _is_not_eight(cls, value: int) -> int:
        if value == 8:
            raise ValueError("must not be eight")
        return value

    def check_together(self) -> None:
        if self.first == self.second:
            raise ValueError("both are the same")


@pytest.mark.parametrize(
    ("field", "given", "value"),
    [
        ("words", "a b", ("a", "b")),
        ("text", "x", "x"),
        ("text", None, None),
        ("flag", "Yes", True),
        ("flag", "off", False),
        ("flag", True, True),
        ("count", "7", 7),
        ("count", 9, 9),
        ("count", "8.0", 8),
        ("count", 8.0, 8),
        ("words", ["a"], ("a",)),
        ("count", None, None),
        ("share", "1", 1.0),
        ("price", "7.5", Decimal("7.5")),
        ("price", 0.1, Decimal("0.1")),
        ("kind", "b", "b"),
        ("name", "abc", "abc"),
        ("first", "4", 8),
    ],
)
def test_what_is_given_becomes_of_its_fields_type(field: str, given: object, value: object) -> None:
    found = getattr(Example(**{field: given}), field)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("field", "given", "problem"),
    [
        ("words", 1, "must be words"),
        ("words", ("a", 1), "must be words"),
        ("text", 1, "must be text"),
        ("flag", "hunter2", "must be yes or no"),
        ("count", "hunter2", "must be a whole number"),
        ("count", "1.5", "must be a whole number"),
        ("count", 1.5, "must be a whole number"),
        ("count", True, "must be a whole number"),
        ("count", "1.", "must be a whole number"),
        ("count", "\u0661", "must be a whole number"),
        ("count", "9" * 50, f"must be less than or equal to 9, not {'9' * 20}…"),
        ("share", 10**400, "must be a number"),
        ("price", True, "must be a number"),
        ("text", "\udcff", "must be text in UTF-8"),
        ("count", "0", "must be greater than or equal to 1, not 0"),
        ("count", "10", "must be less than or equal to 9, not 10"),
        ("share", "hunter2", "must be a number"),
        ("share", "0", "must be greater than 0, not 0.0"),
        ("share", "nan", "must be greater than 0, not nan"),
        ("share", "inf", "must be less than or equal to 1, not inf"),
        ("price", "hunter2", "must be a number"),
        ("price", "NaN", "must be a number"),
        ("price", "-1", "must be greater than or equal to 0, not -1"),
        ("kind", "hunter2", "must be a or b"),
        ("name", "a", "must have at least 2 characters, not 1"),
        ("name", "abcd", "must have at most 3 characters, not 4"),
        ("second", "4", "must not be eight"),
    ],
)
def test_what_cannot_be_is_named_without_a_value_that_may_be_secret(field: str, given: object, problem: str) -> None:
    with pytest.raises(Invalid) as e:
        Example(**{field: given})
    assert e.value.problems == {field: problem}
    assert str(e.value) == f"{field}: {problem}"


def test_every_problem_is_named_and_what_hangs_on_several_fields_after_them() -> None:
    with pytest.raises(Invalid) as e:
        Example(count="0", kind="c", first=1, second=1)
    assert list(e.value.problems) == ["count", "kind"]
    with pytest.raises(Invalid, match=r"^both are the same$"):
        Example(first=3, second=3)


def test_what_is_made_stays_as_it_is() -> None:
    example = Example(text="hunter2", no_field=1)
    assert repr(example).startswith("Example(words=(), flag=None, count=5, ")
    assert "hunter2" not in repr(example)
    assert not hasattr(example, "no_field")
    with pytest.raises(AttributeError, match="count"):
        example.count = 6
    with pytest.raises(AttributeError, match="count"):
        del example.count
    other = example.model_copy(update={"count": 6})
    assert (example.count, other.count, other.text) == (5, 6, "hunter2")
    assert example == copy.copy(example) == pickle.loads(pickle.dumps(example)) != other  # noqa: S301 - our own
    assert hash(example) == hash(copy.copy(example))


def test_the_defaults_of_the_settings_can_be_given() -> None:
    for name, field in Settings.model_fields.items():
        assert Settings.checked(name, field.default) == field.default, name


def test_a_class_may_have_more_fields_than_the_one_it_is_made_from() -> None:
    class More(Example):
        shop: str = "none"
        count: int | None = Field(None, le=20)

    assert More.model_fields.keys() == {*Example.model_fields, "shop"}
    found = More(shop="ours", count="15", share="1")
    assert (found.shop, found.count, found.share) == ("ours", 15, 1.0)
    with pytest.raises(Invalid) as e:
        More(count="21", share="0", second="4")
    assert e.value.problems.keys() == {"count", "share", "second"}
    with pytest.raises(TypeError, match=r"Lacking\.more needs a default"):

        class Lacking(Example):
            more: str


def test_what_cannot_be_can_be_sent_elsewhere() -> None:
    with pytest.raises(Invalid) as e:
        Example(count="0")
    assert copy.copy(e.value).problems == e.value.problems
