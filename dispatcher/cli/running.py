"""What commands on an installation do: read the settings, open it, run, and say what went wrong."""

from __future__ import annotations

import asyncio
import getpass
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
import uvloop
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_random

from dispatcher import logs
from dispatcher.cli.speaking import fail
from dispatcher.config import Settings, load
from dispatcher.errors import ConfigError, DispatcherError, StoreUnavailable
from dispatcher.installation import Installation, open_installation

T = TypeVar("T")

#: seconds for which a command tries to open a database that is busy
PATIENCE = 20.0

DataDir = Annotated[
    Path | None,
    typer.Option(help="Where database and keyring are. [env: DISPATCHER_DATA_DIR]", show_default=False),
]


def read_settings(**options: Any) -> Settings:
    """The settings, these options first; from here on what is logged goes to stderr, as they say.

    Ends the command when they are not valid.
    """
    try:
        settings = load(**options)
    except ConfigError as exc:
        fail(str(exc))
    logs.configure(level=settings.log_level, style=settings.log_format)
    return settings


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Installation]:
    """The installation, open within the block. A server that writes all the time may keep us waiting for a moment."""
    async for attempt in AsyncRetrying(
        retry=retry_if_exception_type(StoreUnavailable),
        wait=wait_random(0.05, 0.25),
        stop=stop_after_delay(PATIENCE),
        reraise=True,
    ):
        with attempt:
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


def actor() -> str:
    """Who runs this command, for the audit log."""
    try:
        return f"command line, {getpass.getuser()}"[:100]
    except (KeyError, OSError):
        return "command line"
