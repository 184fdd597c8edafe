"""``worker metrics``: what Prometheus scrapes, for those who run no console; and the rules for its alerts."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Final

import typer

from db.errors import ConfigurationError
from worker.cli.common import configure_sessions, console, explained, fail
from worker.console_tokens import read_tokens
from worker.redis_client import make_redis

#: Seconds that Redis may take to answer.
ANSWERS_WITHIN: Final = 2.0


def metrics(
    once: Annotated[bool, typer.Option("--once", help="Print them, and end.")] = False,
    rules: Annotated[bool, typer.Option("--rules", help="Print alert rules for Prometheus, and end.")] = False,
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Where to listen; 0 for any.")] = 9191,
    host: Annotated[str, typer.Option(help="The same; others than loopback need CONSOLE_TOKENS.")] = "127.0.0.1",
) -> None:
    """Serve /metrics for Prometheus; the console does so, too. With CONSOLE_TOKENS whoever asks needs one."""
    if rules:
        sys.stdout.write((Path(__file__).parents[1] / "metrics" / "alerts.yml").read_text("utf-8"))
        return
    with explained():
        settings = configure_sessions(serves=True)
        if settings.stub:
            fail("REDIS_URL: stub:// has no metrics", 2)
        if find_spec("prometheus_client") is None:
            raise ConfigurationError("metrics are not installed: pip install 'dramaturg[metrics]'")
        from worker.metrics.exposition import make_exposition
        from worker.metrics.serving import make_server

        exposition = make_exposition(settings, make_redis(settings, answers_within=ANSWERS_WITHIN))
        if once:
            text, _ = exposition.render()
            sys.stdout.write(text.decode())
            return
        server = make_server(exposition, read_tokens(settings.console_tokens or ""), host=host, port=port)
    console.print(f"Metrics are at http://{host}:{server.server_address[1]}/metrics", soft_wrap=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        server.server_close()
