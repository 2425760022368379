"""`dispatcher worker`: all of the service but its API."""

from __future__ import annotations

from typing import Annotated

import typer

from dispatcher.cli.running import DataDir
from dispatcher.cli.serving import Host, LeashText, Processors, Workers, run_as

app = typer.Typer(pretty_exceptions_enable=False)


@app.command()
def worker(
    *,
    workers: Workers = None,
    host: Host = None,
    port: Annotated[
        int | None, typer.Option(help="Port to listen on for health and metrics [8081]; 0 picks a free one.")
    ] = None,
    data_dir: DataDir = None,
    dev: Annotated[
        bool | None, typer.Option("--dev", help="Admit http, loopback and any port for what is sent.")
    ] = None,
    processors: Processors = None,
    leash: LeashText = None,
) -> None:
    """Run task engine, delivery engine and maintenance, beside others on one PostgreSQL."""
    run_as("worker", leash, workers=workers, host=host, port=port, data_dir=data_dir, dev=dev, processors=processors)
