"""`dispatcher serve`: the service, or its API alone."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from dispatcher import logs
from dispatcher.cli.running import DataDir, read_settings, run
from dispatcher.cli.speaking import warn
from dispatcher.config import unknown_variables
from dispatcher.server import serve as run_server

app = typer.Typer(pretty_exceptions_enable=False)

Host = Annotated[str | None, typer.Option(help="Address to listen on [127.0.0.1].")]
Dev = Annotated[
    bool | None, typer.Option("--dev", help="Admit http, loopback and any port for what is sent; print a token.")
]
Processors = Annotated[
    list[str] | None, typer.Option(help="Module that registers processors. Can be repeated.", show_default=False)
]


@app.command()
def serve(
    *,
    role: Annotated[
        str | None, typer.Option(help="all, or api: what it accepts, workers deliver (PostgreSQL) [all].")
    ] = None,
    host: Host = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on [8080]; 0 picks a free one.")] = None,
    data_dir: DataDir = None,
    dev: Dev = None,
    processors: Processors = None,
) -> None:
    """Run the whole service: API, task engine, delivery engine and maintenance."""
    run_as(role, host=host, port=port, data_dir=data_dir, dev=dev, processors=processors)


def run_as(role: str | None, *, processors: list[str] | None, **options: Any) -> None:
    """Run a server of this role until it is told to stop."""
    settings = read_settings(role=role, processors=",".join(processors or ()) or None, **options)
    logs.configure(level=settings.log_level, style=settings.log_format)
    for name in unknown_variables():
        warn(f"{name} is not a setting; docs/settings.md lists them")
    run(run_server(settings))
