"""How every command speaks to its user: it warns, asks, and says why it ends. It loads nothing of the rest."""

from __future__ import annotations

import sys
from typing import Annotated, NoReturn

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def confirm(question: str, *, yes: bool) -> None:
    """Ask on the terminal, and end the command unless the answer is yes. Without a terminal only `--yes` is one."""
    if yes:
        return
    if not sys.stdin.isatty():
        fail("this needs --yes when nobody can be asked")
    typer.echo(f"{question} [y/N] ", err=True, nl=False)  # not typer.confirm, which prints on stdout, too
    if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        fail("nothing was changed")


def warn(message: str) -> None:
    """Say something on stderr."""
    print(f"dispatcher: {message}", file=sys.stderr)  # noqa: T201 - a command line speaks to its user


def fail(message: str) -> NoReturn:
    """End the command: it is up to its user to change something."""
    warn(message)
    raise SystemExit(2)
