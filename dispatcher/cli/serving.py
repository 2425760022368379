"""`dispatcher serve`: the service, or its API alone, in one process or in several."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from dispatcher.cli.running import DataDir, read_settings, run
from dispatcher.cli.speaking import fail, warn
from dispatcher.config import Settings, unknown_variables
from dispatcher.errors import ConfigError
from dispatcher.serving.leash import Leash

app = typer.Typer(pretty_exceptions_enable=False)

Workers = Annotated[int | None, typer.Option(help="Processes that share the port (PostgreSQL) [1].")]
Host = Annotated[str | None, typer.Option(help="Address to listen on [127.0.0.1].")]
Processors = Annotated[
    list[str] | None, typer.Option(help="Module that registers processors. Can be repeated.", show_default=False)
]
#: how `--workers` starts a process: not for users
LeashText = Annotated[str | None, typer.Option("--leash", hidden=True)]


@app.command()
def serve(
    *,
    role: Annotated[
        str | None, typer.Option(help="all (the default), or api: what it accepts, workers deliver (PostgreSQL).")
    ] = None,
    workers: Workers = None,
    host: Host = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on [8080]; 0 picks a free one.")] = None,
    data_dir: DataDir = None,
    dev: Annotated[
        bool | None,
        typer.Option("--dev", help="Admit http, loopback and any port for what is sent; print a token."),
    ] = None,
    processors: Processors = None,
    leash: LeashText = None,
) -> None:
    """Run the whole service: API, task engine, delivery engine and maintenance."""
    run_as(role, leash, workers=workers, host=host, port=port, data_dir=data_dir, dev=dev, processors=processors)


def run_as(role: str | None, leash: str | None, *, processors: list[str] | None, **options: Any) -> None:
    """Run servers of this role until they are told to stop; on a leash, one of several."""
    settings = read_settings(role=role, processors=",".join(processors or ()) or None, **options)
    if leash is not None:
        _run_one(settings, leash)
        return
    for name in unknown_variables():
        warn(f"{name} is not a setting; docs/settings.md lists them")
    if settings.workers == 1:
        _run_one(settings)
    else:
        _run_several(settings)


# What the other one needs is not loaded: a parent is small.


def _run_one(settings: Settings, leash: str | None = None) -> None:
    from dispatcher.serving.server import serve as run_server  # noqa: PLC0415

    if leash is None:
        run(run_server(settings))
        return
    try:
        held = Leash.taken_from(leash)
    except ConfigError as exc:
        fail(str(exc))
    with held:
        run(run_server(settings, held))


def _run_several(settings: Settings) -> None:
    from dispatcher.serving.supervisor import supervise  # noqa: PLC0415

    # What stands in the working directory is no module of theirs if it is none of ours: `-m` alone would have it so.
    options = () if str(Path.cwd()) in sys.path else ("-P",)
    raise SystemExit(run(supervise(settings, [sys.executable, *options, "-m", "dispatcher.cli", *sys.argv[1:]])))
