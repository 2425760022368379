"""Which way a command on subscriptions goes, and with what exit status it ends.

An option decides before the environment does: `--url` or `--token-file` name a server, `--data-dir` or `--account` the
database. Without one, `DISPATCHER_URL` names a server.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from dispatcher.cli import inputs
from dispatcher.cli.api_client import ApiClient, check_token, check_url, is_in_clear
from dispatcher.cli.clients import Client
from dispatcher.cli.direct_client import DirectClient
from dispatcher.cli.running import actor, opened, read_settings, run
from dispatcher.cli.speaking import fail, warn
from dispatcher.config import Settings
from dispatcher.errors import ConfigError, Problem, StoreUnavailable
from dispatcher.ids import ACCOUNT_NAME
from dispatcher.installation import is_made
from subscriptions.keyring import KeyringError
from subscriptions.secrets import Secret

T = TypeVar("T")

#: exit status: the server, or the database, said no
REFUSED = 1
#: exit status: neither could be asked
UNAVAILABLE = 3
EXITS = (
    "Exit status: 0 done; 1 refused: not found, conflict, not valid, not allowed; 2 wrong usage, settings or token;"
    " 3 the server or the database cannot be reached now."
)

Url = Annotated[str | None, typer.Option(help="By the API of this server. [env: DISPATCHER_URL]", show_default=False)]
TokenFile = Annotated[
    Path | None,
    typer.Option(help="File with the API token; - is stdin. [env: DISPATCHER_TOKEN, the token]", show_default=False),
]
Account = Annotated[str | None, typer.Option(help="Directly on the database: the account's name.", show_default=False)]
Dev = Annotated[bool | None, typer.Option("--dev", help="Directly on the database: admit what `serve --dev` does.")]


@dataclass(frozen=True, kw_only=True)
class OverApi:
    """By the API of a server."""

    url: str
    token: Secret


@dataclass(frozen=True, kw_only=True)
class OnDatabase:
    """Directly on the database."""

    settings: Settings = field(repr=False)
    account: str


Way = OverApi | OnDatabase


def find_way(
    *,
    url: str | None,
    token_file: Path | None,
    account: str | None,
    data_dir: Path | None,
    dev: bool | None = None,
) -> Way:
    """The way that options and environment name. Ends the command when they name none, or two."""
    by_api, by_database = (url, token_file) != (None, None), (account, data_dir, dev) != (None, None, None)
    if by_api and by_database:
        fail("give --url and --token-file to go by the API, or --account and --data-dir to go to the database")
    if by_api or (not by_database and os.environ.get("DISPATCHER_URL")):
        return _over_api(url or os.environ.get("DISPATCHER_URL"), token_file)
    if account is None:
        fail("give --url to go by a server's API, or --account to go to the database directly")
    if not ACCOUNT_NAME.match(account):
        fail("an account's name has 1 to 64 letters, digits, dots, dashes and underscores")
    settings = read_settings(data_dir=data_dir, dev=dev)
    if not is_made(settings):
        fail(f"there is no installation in {settings.data_dir}")
    return OnDatabase(settings=settings, account=account)


def _over_api(url: str | None, token_file: Path | None) -> OverApi:
    if not url:
        fail("--token-file needs --url, or DISPATCHER_URL")
    try:
        checked = check_url(url)
        if token_file is not None:
            token = check_token(inputs.read_secret(token_file, "the API token"))
        else:
            token = check_token(os.environ.get("DISPATCHER_TOKEN") or inputs.ask_secret("the API token"))
    except ConfigError as exc:
        fail(str(exc))
    if is_in_clear(checked):
        warn("the token and every secret travel unencrypted: use https")
    return OverApi(url=checked, token=token)


@asynccontextmanager
async def connected(way: Way) -> AsyncIterator[Client]:
    """A client, open within the block."""
    if isinstance(way, OverApi):
        client = ApiClient(way.url, way.token)
        try:
            yield client
        finally:
            await client.close()
        return
    async with opened(way.settings) as installation:
        yield DirectClient(installation, way.settings, account=way.account, actor=actor())


def carry_out(way: Way, work: Callable[[Client], Awaitable[T]]) -> T:
    """Do this with a client. Ends the command, with the exit status that fits, when it cannot be done."""

    async def attempt() -> T | Problem | StoreUnavailable | KeyringError:
        try:
            async with connected(way) as client:
                return await work(client)
        except (Problem, StoreUnavailable, KeyringError) as exc:
            return exc

    result = run(attempt())
    if isinstance(result, Problem | StoreUnavailable | KeyringError):
        raise SystemExit(explain(result))
    return result


def explain(error: Problem | StoreUnavailable | KeyringError) -> int:
    """Say on stderr what went wrong; answers the exit status."""
    warn(str(error))
    if isinstance(error, Problem):
        for one in error.errors:
            warn(f"  {one.field or 'the body'} {one.detail}")
    return status_of(error)


def status_of(error: Problem | StoreUnavailable | KeyringError) -> int:
    """The exit status that an error ends a command with."""
    if isinstance(error, KeyringError):
        return 2
    if isinstance(error, StoreUnavailable) or error.slug in {"unavailable", "rate-limited"}:
        return UNAVAILABLE
    return 2 if error.slug == "unauthorized" else REFUSED
