"""The command line: `dispatcher serve`, and a module of this package for each group of commands."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer

from dispatcher import logs
from dispatcher.cli import conformance, keyring, receiver, subscriptions, tokens
from dispatcher.cli.running import DataDir, read_settings, run, warn
from dispatcher.config import unknown_variables
from dispatcher.server import serve as run_server

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
app.add_typer(tokens.app, name="token")
app.add_typer(keyring.app, name="keyring")
app.add_typer(subscriptions.app, name="subscriptions")
app.add_typer(conformance.app, name="conformance")
app.command()(receiver.receiver)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"webhook-dispatcher {version('webhook-dispatcher')}")
        raise typer.Exit


@app.callback()
def options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Accepts tasks, delivers signed webhooks, and loses nothing it accepted."""


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


def main() -> None:
    """Run the command line."""
    app()
