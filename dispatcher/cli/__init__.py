"""The command line. Each command has a module here, loaded when it is asked for: most need little of the rest."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

#: command -> module here, which has it as `app`
COMMANDS = {
    "serve": "serving",
    "worker": "working",
    "workers": "workers",
    "init": "installing",
    "token": "tokens",
    "keyring": "keyring",
    "outbox": "outbox",
    "subscriptions": "subscriptions",
    "receiver": "receiver",
    "conformance": "conformance",
}


class _Commands(TyperGroup):
    """The commands, by name."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 - the name is click's
        """Their names, as `--help` has them."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002 - the name is click's
        """One of them; None if there is none of that name."""
        return _command(cmd_name) if cmd_name in COMMANDS else None


@cache
def _command(name: str) -> Any:
    """A command with all its options: typer takes longer to make it than most need for their work."""
    command = get_command(import_module(f"dispatcher.cli.{COMMANDS[name]}").app)
    command.name = name
    return command


app = typer.Typer(cls=_Commands, no_args_is_help=True, pretty_exceptions_enable=False)


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


def main() -> None:
    """Run the command line."""
    app()
