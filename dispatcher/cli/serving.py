"""`dispatcher serve`: the whole service."""

from __future__ import annotations

from typing import Annotated

import typer

from dispatcher import logs
from dispatcher.cli.running import DataDir, read_settings, run
from dispatcher.cli.speaking import warn
from dispatcher.config import unknown_variables
from dispatcher.server import serve as run_server

app = typer.Typer(pretty_exceptions_enable=False)


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on [127.0.0.1].")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on [8080]; 0 picks a free one.")] = None,
    data_dir: DataDir = None,
    dev: Annotated[
        bool | None,
        typer.Option("--dev", help="Admit http, loopback and any port for what is sent; print a token."),
    ] = None,
    processors: Annotated[
        list[str] | None, typer.Option(help="Module that registers processors. Can be repeated.")
    ] = None,
) -> None:
    """Run the whole service: API, task engine, delivery engine and maintenance."""
    settings = read_settings(
        host=host, port=port, data_dir=data_dir, dev=dev, processors=",".join(processors or ()) or None
    )
    logs.configure(level=settings.log_level, style=settings.log_format)
    for name in unknown_variables():
        warn(f"{name} is not a setting; docs/settings.md lists them")
    run(run_server(settings))
