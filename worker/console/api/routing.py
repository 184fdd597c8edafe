"""What all routes of the API have in common: their path, how errors are told, and what they take."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Path, Request
from pydantic import BaseModel

from db.failed import InvalidFilter

PREFIX: Final = "/api/v1"
ERRORS: Final = "application/problem+json"


class Problem(BaseModel):
    """What is wrong (RFC 9457)."""

    type: str
    #: What HTTP calls it.
    title: str
    status: int
    #: In a sentence, which names the field and its value.
    detail: str


def only_what_is_taken(request: Request) -> None:
    """Refuse parameters of a query that the route does not have, which somebody mistyped.

    Raises:
      InvalidFilter: Naming the first.
    """
    taken: set[str] = set()
    for parameter in request.scope["route"].dependant.query_params:
        model = parameter.field_info.annotation
        fields = model.model_fields if isinstance(model, type) and issubclass(model, BaseModel) else {parameter.alias}
        taken |= set(fields)
    unknown = sorted(set(request.query_params) - taken)
    if unknown:
        there = f"there is {', '.join(sorted(taken))}" if taken else "there is none"
        raise InvalidFilter(f"there is no parameter {unknown[0]!r}; {there}")


def make_router(tag: str) -> APIRouter:
    """Return a router for a resource, whose name is ``tag``."""
    return APIRouter(
        prefix=PREFIX,
        tags=[tag],
        dependencies=[Depends(only_what_is_taken)],
        responses=_responses(),
        generate_unique_id_function=lambda route: route.name,
    )


def _responses() -> dict[int | str, dict[str, Any]]:
    content = {ERRORS: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {
        "4XX": {"description": "It cannot be so; the detail says why.", "content": content},
        "5XX": {"description": "Postgres or Redis does not answer, or took too long.", "content": content},
    }


Ident = Annotated[str, Path(max_length=100, description="Its id, or what that begins with, four characters at least.")]
