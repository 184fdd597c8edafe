"""The description of the API, for programs: OpenAPI 3.1."""

from __future__ import annotations

from typing import Any, Final

from fastapi import Request
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse

from worker.console.access import Looking
from worker.console.api.routing import Problem, make_router
from worker.console.sessions import SESSION

router = make_router("openapi")

_SECURITY: Final = {
    "token": {"type": "http", "scheme": "bearer", "description": "As `worker console token` prints it."},
    "session": {
        "type": "apiKey",
        "in": "cookie",
        "name": SESSION,
        "description": "Of a browser that is logged in; what changes anything needs the header X-CSRF-Token, too.",
    },
}


@router.get("/openapi.json", include_in_schema=False)
def get_description(request: Request, _: Looking) -> JSONResponse:
    """Describe the API."""
    return JSONResponse(describe(request.app, request.scope.get("root_path", "")))


def describe(app: Any, root: str = "") -> dict[str, Any]:
    """Return the description of an application's API.

    Arguments:
      root: The path under which a proxy has it.
    """
    found = get_openapi(
        title="Dramaturg",
        version=app.version,
        summary=app.summary,
        routes=app.routes,
        servers=[{"url": root or "/"}],
    )
    components = found.setdefault("components", {})
    components.setdefault("schemas", {})["Problem"] = Problem.model_json_schema()
    components["securitySchemes"] = _SECURITY
    found["security"] = [{"token": []}, {"session": []}]
    return found
