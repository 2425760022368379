"""What every command does: read the settings, open the installation, run, and say what went wrong."""

from __future__ import annotations

import asyncio
import getpass
import sys
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import typer
import uvloop

from dispatcher.config import Settings, load
from dispatcher.errors import ConfigError, DispatcherError
from dispatcher.installation import Installation, open_installation

T = TypeVar("T")

DataDir = Annotated[
    Path | None,
    typer.Option(help="Where database and keyring are. [env: DISPATCHER_DATA_DIR]", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def read_settings(**options: Any) -> Settings:
    """The settings, these options first. Ends the command when they are not valid."""
    try:
        return load(**options)
    except ConfigError as exc:
        fail(str(exc))


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Installation]:
    """The installation, open within the block."""
    installation = await open_installation(settings)
    try:
        yield installation
    finally:
        await installation.database.close()


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run this to its end. Ends the command when it fails in a way that its user can do something about."""
    try:
        return uvloop.run(work)
    except DispatcherError as exc:
        fail(str(exc))
    except asyncio.CancelledError:
        raise SystemExit(130) from None


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


def actor() -> str:
    """Who runs this command, for the audit log."""
    try:
        return f"command line, {getpass.getuser()}"[:100]
    except (KeyError, OSError):
        return "command line"
