"""The filters of the command line in a URL, and back: a link shows whoever follows it the same."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, fields
from typing import Any, Final
from urllib.parse import urlencode

from starlette.datastructures import ImmutableMultiDict

from db.failed import Filter, InvalidFilter
from db.replays.runs import filter_as_json
from worker.failed.asked import Asked

#: Filters that may be given several times.
SEVERAL: Final = ("status", "queue", "actor", "tenant", "error_type", "exception", "fingerprint")
ONE: Final = ("correlation_id", "since", "until", "text", "replay")
NAMES: Final = ("id", *SEVERAL, *ONE)
#: Values of one filter: what an id begins with is looked up for each.
AT_MOST: Final = 1_000


def asked_in(query: ImmutableMultiDict[str, Any], *, also: Collection[str] = ()) -> Asked:
    """Return what a URL, or a form, asks for; what is empty is not asked for.

    Arguments:
      also: Other parameters that the page has.

    Raises:
      InvalidFilter: When there is a parameter of another name, which somebody mistyped; or two of which there is one,
        or too many.
    """
    unknown = sorted(set(query) - {*NAMES, *also})
    if unknown:
        raise InvalidFilter(f"there is no filter {unknown[0]!r}; there is {', '.join(NAMES)}")
    given: dict[str, Any] = {}
    for name in ("id", *SEVERAL):
        values = [value.strip() for value in query.getlist(name) if value.strip()]
        if len(values) > AT_MOST:
            raise InvalidFilter(f"{name} can be given {AT_MOST:,} times, not {len(values):,}")
        given["ids" if name == "id" else name] = values or None
    for name in ONE:
        values = [value.strip() for value in query.getlist(name) if value.strip()]
        if len(values) > 1:
            raise InvalidFilter(f"{name} can be given once, not {len(values)} times")
        given[name] = values[0] if values else None
    return Asked(**given)


def pairs(asked: Asked, **others: str | None) -> list[tuple[str, str]]:
    """Return what was asked for as the parameters of a URL; ``others`` take the place of what it says, or None its
    absence."""
    values: dict[str, Any] = {
        "id" if f.name == "ids" else f.name: getattr(asked, f.name) for f in fields(asked) if f.name != "as_tenant"
    }
    return _pairs({**values, **others})


def _pairs(values: Mapping[str, str | Iterable[str] | None]) -> list[tuple[str, str]]:
    return [
        (name, each)
        for name, value in values.items()
        for each in ([value] if isinstance(value, str) else value or ())
        if each
    ]


def query(asked: Asked, **others: str | None) -> str:
    """Return it as a query string, with its question mark; empty where nothing is asked for."""
    found = urlencode(pairs(asked, **others))
    return f"?{found}" if found else ""


def pairs_of(where: Filter) -> list[tuple[str, str]]:
    """Return the parameters of a URL that asks for the same later, whoever follows it: ids in full, and times."""
    names = {"ids": "id", "tenant_id": "tenant"}
    return _pairs({names.get(name, name): value for name, value in filter_as_json(where).items()})


def is_narrow(asked: Asked) -> bool:
    """Tell whether anything is asked for beside statuses."""
    return any(value for name, value in asdict(asked).items() if name not in {"status", "as_tenant"})
