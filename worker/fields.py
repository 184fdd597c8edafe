"""Classes whose fields are read from text and checked, declared as pydantic's are.

Pydantic itself takes every worker process 40 ms and 9 MiB before its first job, more than all of ours together.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from decimal import Decimal, InvalidOperation
from types import NoneType, SimpleNamespace, UnionType
from typing import (
    Annotated,
    Any,
    ClassVar,
    Final,
    Literal,
    NamedTuple,
    Self,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

_YES: Final = frozenset({"1", "on", "t", "true", "y", "yes"})
_NO: Final = frozenset({"0", "off", "f", "false", "n", "no"})
_CHECKS: Final = "_checks_fields"
_Method = TypeVar("_Method")


#: What is shown of a number.
_SHOWN: Final = 20


class Invalid(ValueError):
    """Values that cannot be.

    Attributes:
      problems: What is wrong, by field; under an empty name, what is wrong with several together.
    """

    def __init__(self, problems: Mapping[str, str]) -> None:
        super().__init__("\n".join(f"{name}: {problem}" if name else problem for name, problem in problems.items()))
        self.problems = dict(problems)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.problems,)


class FieldInfo(NamedTuple):
    """What :func:`Field` was given."""

    default: Any
    description: str
    repr: bool
    gt: float | None
    ge: float | None
    le: float | None
    min_length: int | None
    max_length: int | None

    def check(self, value: Any) -> None:
        """Check a value against the limits.

        Raises:
          ValueError: When it is not within them.
        """
        shown = value
        if isinstance(value, int | float | Decimal) and len(shown := str(value)) > _SHOWN:
            shown = f"{shown[:_SHOWN]}…"
        # So that what is not a number at all is not within them either.
        if self.gt is not None and not value > self.gt:
            raise ValueError(f"must be greater than {self.gt}, not {shown}")
        if self.ge is not None and not value >= self.ge:
            raise ValueError(f"must be greater than or equal to {self.ge}, not {shown}")
        if self.le is not None and not value <= self.le:
            raise ValueError(f"must be less than or equal to {self.le}, not {shown}")
        if self.min_length is not None and len(value) < self.min_length:
            raise ValueError(f"must have at least {self.min_length} characters, not {len(value)}")
        if self.max_length is not None and len(value) > self.max_length:
            raise ValueError(f"must have at most {self.max_length} characters, not {len(value)}")


def Field(
    default: Any = None,
    *,
    description: str = "",
    repr: bool = True,  # noqa: A002 - pydantic's name
    gt: float | None = None,
    ge: float | None = None,
    le: float | None = None,
    min_length: int | None = None,
    max_length: int | None = None,
) -> Any:
    """Declare a field, or in ``Annotated`` its limits, as pydantic's function of this name."""
    return FieldInfo(default, description, repr, gt, ge, le, min_length, max_length)


def field_validator(*names: str, mode: Literal["before", "after"] = "after") -> Callable[[_Method], _Method]:
    """Have a class method check, and return, what is given for fields: before it is of its type, or after."""

    def mark(method: _Method) -> _Method:
        setattr(method, _CHECKS, (names, mode))
        return method

    return mark


class Model:
    """A class of fields; what it is made with is checked, and stays. What has the default is not checked."""

    model_fields: ClassVar[dict[str, FieldInfo]] = {}
    _declared: ClassVar[dict[str, tuple[Any, dict[str, Any]]]] = {}
    _checks: ClassVar[dict[tuple[str, str], list[str]]] = {}

    def __init_subclass__(cls) -> None:
        cls.model_fields, cls._declared = dict(cls.model_fields), dict(cls._declared)
        cls._checks = {which: list(names) for which, names in cls._checks.items()}
        for name, annotation in vars(cls).get("__annotations__", {}).items():
            if name.startswith("_") or "ClassVar" in str(annotation):
                continue
            if name not in vars(cls):
                raise TypeError(f"{cls.__name__}.{name} needs a default")
            default = vars(cls)[name]
            cls.model_fields[name] = default if isinstance(default, FieldInfo) else Field(default)
            # What its words mean there, whatever becomes of the module.
            cls._declared[name] = annotation, vars(sys.modules[cls.__module__])
            delattr(cls, name)
        for method_name, method in vars(cls).items():
            names, mode = getattr(method, _CHECKS, ((), ""))
            for name in names:
                checks = cls._checks.setdefault((name, mode), [])
                if method_name not in checks:
                    checks.append(method_name)

    def __init__(self, **given: Any) -> None:
        """Take values by field; what is no field is ignored.

        Raises:
          Invalid: Naming every field that is wrong.
        """
        values, problems = dict[str, Any](), dict[str, str]()
        for name, field in self.model_fields.items():
            value = given.get(name, field.default)
            try:
                values[name] = value if value is field.default else self.checked(name, value)
            except ValueError as e:
                problems[name] = str(e)
        if problems:
            raise Invalid(problems)
        vars(self).update(values)
        try:
            self.check_together()
        except ValueError as e:
            raise Invalid({"": str(e)}) from None

    @classmethod
    def checked(cls, name: str, value: object) -> Any:
        """Return a value for a field as it will be there.

        Raises:
          ValueError: When it cannot be.
        """
        for check in cls._checks.get((name, "before"), ()):
            value = getattr(cls, check)(value)
        # One at a time: to make sense of all of them takes longer than all else here.
        annotation, words = cls._declared[name]
        said = SimpleNamespace(__annotations__={name: annotation})
        value = _read(get_type_hints(said, words, include_extras=True)[name], value)
        cls.model_fields[name].check(value)
        for check in cls._checks.get((name, "after"), ()):
            value = getattr(cls, check)(value)
        return value

    def check_together(self) -> None:
        """Check what hangs on several fields.

        Raises:
          ValueError: When it cannot be so.
        """

    def model_copy(self, *, update: Mapping[str, Any] | None = None) -> Self:
        """Return a copy in which some fields have other values, which are not checked."""
        copy = object.__new__(type(self))
        vars(copy).update({**vars(self), **(update or {})})
        return copy

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} does not change: {name}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__} does not change: {name}")

    def __repr__(self) -> str:
        shown = (f"{name}={getattr(self, name)!r}" for name, field in self.model_fields.items() if field.repr)
        return f"{type(self).__name__}({', '.join(shown)})"

    def __eq__(self, other: object) -> bool:
        return vars(self) == vars(other) if type(other) is type(self) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(vars(self).items()))


def _read(kind: Any, value: Any) -> Any:
    """Return a value, which may be text, as one of a type."""
    origin = get_origin(kind)
    if origin is Annotated:
        kind, *limits = get_args(kind)
        value = _read(kind, value)
        for limit in limits:
            limit.check(value)
        return value
    if origin in {Union, UnionType}:
        (kind,) = (each for each in get_args(kind) if each is not NoneType)
        return None if value is None else _read(kind, value)
    if origin is Literal:
        if value not in get_args(kind):
            raise ValueError(f"must be {' or '.join(map(str, get_args(kind)))}")
        return value
    # Not the value, where it is not of the type: it may be a secret in the wrong place.
    if origin is tuple:
        if not isinstance(value, tuple | list | set | frozenset) or not all(isinstance(each, str) for each in value):
            raise ValueError("must be words")
        return tuple(value)
    return _READ[kind](value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("must be text")  # noqa: TRY004 - as whatever else is wrong
    try:
        value.encode()
    except UnicodeEncodeError:
        # As the environment gives it where it is in another encoding.
        raise ValueError("must be text in UTF-8") from None
    # Of an enumeration, what it stands for.
    return str.__str__(value)


def _bool(value: Any) -> bool:
    said = str(value).strip().lower()
    if said not in _YES | _NO:
        raise ValueError("must be yes or no")
    return said in _YES


def _plain(value: Any) -> Any:
    """Return what may be a number: one, or text without the digits of other scripts."""
    if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal):
        raise TypeError
    if isinstance(value, str) and not value.isascii():
        raise ValueError
    return value


def _int(value: Any) -> int:
    try:
        value = _plain(value)
        if isinstance(value, str):
            # "8.0", as templates write what they took for a fraction.
            whole, point, rest = value.strip().partition(".")
            return int(whole if point and rest and not rest.strip("0") else value)
        if int(value) != value:
            raise ValueError
        return int(value)
    except (ValueError, TypeError, OverflowError):
        raise ValueError("must be a whole number") from None


def _float(value: Any) -> float:
    try:
        return float(_plain(value))
    except (ValueError, TypeError, OverflowError):
        raise ValueError("must be a number") from None


def _decimal(value: Any) -> Decimal:
    try:
        value = _plain(value)
        # Of a float, what is written and not what the machine has.
        number = Decimal(str(value) if isinstance(value, float) else value)
        if not number.is_finite():
            raise ValueError
    except (InvalidOperation, ValueError, TypeError):
        raise ValueError("must be a number") from None
    return number


_READ: Final[dict[Any, Callable[[Any], Any]]] = {
    str: _text,
    bool: _bool,
    int: _int,
    float: _float,
    Decimal: _decimal,
}
