"""``worker console``: serves the operations console, and makes tokens for it."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Annotated
from uuid import UUID

import typer

from db.errors import ConfigurationError
from worker.cli.common import configure_sessions, explained, tenant_argument
from worker.console_tokens import make_token

app = typer.Typer(invoke_without_command=True)


@app.callback()
def serve(
    context: typer.Context,
    port: Annotated[int | None, typer.Option(min=1, max=65_535, help="PORT by default, else 8000.")] = None,
    host: Annotated[
        str | None, typer.Option(help="Where to listen: every interface with CONSOLE_TOKENS and PORT, else loopback.")
    ] = None,
) -> None:
    """Serve the operations console. Without CONSOLE_TOKENS it is for this machine's user alone."""
    if context.invoked_subcommand is not None:
        return
    with explained():
        settings = configure_sessions(serves=True)
        if find_spec("uvicorn") is None or find_spec("fastapi") is None:
            raise ConfigurationError("the console is not installed: pip install 'dramaturg[console]'")
        from worker.console.serving import serve as serve_console

        serve_console(settings, host=host, port=port)


@app.command("token")
def token(
    name: Annotated[str, typer.Argument(help="Whose it is: what the history of changes calls him.")],
    role: Annotated[str, typer.Option(help="viewer looks; operator changes, too.")] = "viewer",
    tenant: Annotated[str | None, typer.Option(help="The one tenant (UUID) that he sees; all by default.")] = None,
) -> None:
    """Make a token. It is shown once; CONSOLE_TOKENS holds its hash."""
    with explained():
        tenant_id: UUID | None = tenant_argument(tenant) if tenant else None
        said, made = make_token(name, role, tenant_id)
        typer.echo(f"Token, for {name} alone; it is not shown again:\n  {said}")
        typer.echo(f"Add to CONSOLE_TOKENS, after a space, and start the console again:\n  {made}")
