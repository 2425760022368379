"""The command line: `dispatcher serve`, `dispatcher token …`."""

from __future__ import annotations

import asyncio
import getpass
import json
import sys
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import typer
import uvloop
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from dispatcher import logs, tokens
from dispatcher.config import Settings, load, unknown_variables
from dispatcher.errors import ConfigError, DispatcherError
from dispatcher.installation import Installation, is_made, open_installation
from dispatcher.server import serve as run_server
from dispatcher.store import accounts

T = TypeVar("T")

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
token_app = typer.Typer(
    help="API tokens: make, list and revoke them. Works while the server runs.", no_args_is_help=True
)
app.add_typer(token_app, name="token")

DataDir = Annotated[
    Path | None,
    typer.Option(help="Where database and keyring are. [env: DISPATCHER_DATA_DIR]", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


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
        typer.Option("--dev", help="Admit http, loopback and any port for callbacks; print a token."),
    ] = None,
    processors: Annotated[
        list[str] | None, typer.Option(help="Module that registers processors. Can be repeated.")
    ] = None,
) -> None:
    """Run the whole service: API, task engine, delivery engine and maintenance."""
    settings = _settings(
        host=host, port=port, data_dir=data_dir, dev=dev, processors=",".join(processors or ()) or None
    )
    logs.configure(level=settings.log_level, style=settings.log_format)
    for name in unknown_variables():
        _warn(f"{name} is not a setting; docs/settings.md lists them")
    _run(run_server(settings))


@token_app.command("create")
def create_token(
    account: Annotated[str, typer.Option(help="The account that the token speaks for.")],
    scope: Annotated[list[str], typer.Option(help=f"What it allows; repeat it. One of: {', '.join(tokens.SCOPES)}.")],
    expires_in: Annotated[
        float | None, typer.Option(help="Days until it ends; without it, it ends only by revocation.")
    ] = None,
    note: Annotated[str | None, typer.Option(help="What it is for; shown in lists.")] = None,
    data_dir: DataDir = None,
) -> None:
    """Make a token, and print it alone on stdout. It is kept nowhere."""
    if expires_in is not None and not 0 < expires_in <= 36_500:
        _fail("--expires-in must be more than 0 and at most 36500 days")
    if note is not None and len(note) > 200:
        _fail("--note must have at most 200 characters")

    settings = _settings(data_dir=data_dir)
    if not is_made(settings):
        _warn(f"there was no installation in {settings.data_dir}; this makes a new one")

    async def make() -> str:
        async with _opened(settings) as installation:
            return await tokens.issue(
                installation,
                account=account,
                scopes=scope,
                actor=_actor(),
                ttl=None if expires_in is None else expires_in * 86_400,
                note=note,
            )

    typer.echo(_run(make()))


@token_app.command("list")
def list_tokens(
    account: Annotated[str | None, typer.Option(help="Only this account's tokens.")] = None,
    as_json: Json = False,
    data_dir: DataDir = None,
) -> None:
    """List tokens: who they speak for, what they allow, and whether they are still good. Never the tokens."""

    async def read(settings: Settings) -> list[accounts.Token]:
        async with _opened(settings) as installation:
            return await accounts.list_tokens(installation.database, account)

    found = _run(read(_settings(data_dir=data_dir)))
    if as_json:
        typer.echo(json.dumps([_shown(token) for token in found], indent=2))
        return
    # An id that is folded cannot be copied, and a note is text, whatever is in it.
    table = Table(Column("id", no_wrap=True, min_width=32), "account", "scopes", "state", "made", "note")
    for token in found:
        shown = _shown(token)
        table.add_row(
            token.jti,
            token.account,
            " ".join(token.scopes),
            shown["state"],
            shown["created_at"],
            Text(token.note or ""),
        )
    Console().print(table)


@token_app.command("revoke")
def revoke_token(
    jti: Annotated[str, typer.Argument(help="The token's id, as `token list` shows it.")],
    data_dir: DataDir = None,
) -> None:
    """Revoke a token. Servers refuse it within two seconds."""

    async def revoke(settings: Settings) -> accounts.Token | None:
        async with _opened(settings) as installation:
            return await accounts.revoke_token(installation.database, jti, actor=_actor())

    if _run(revoke(_settings(data_dir=data_dir))) is None:
        _fail("there is no token with this id; `dispatcher token list` shows them")
    typer.echo(f"revoked {jti}", err=True)


def main() -> None:
    """Run the command line."""
    app()


def _settings(**options: Any) -> Settings:
    try:
        return load(**options)
    except ConfigError as exc:
        _fail(str(exc))


@asynccontextmanager
async def _opened(settings: Settings) -> AsyncIterator[Installation]:
    installation = await open_installation(settings)
    try:
        yield installation
    finally:
        await installation.database.close()


def _run(work: Coroutine[Any, Any, T]) -> T:
    try:
        return uvloop.run(work)
    except DispatcherError as exc:
        _fail(str(exc))
    except asyncio.CancelledError:
        raise SystemExit(130) from None


def _warn(message: str) -> None:
    print(f"dispatcher: {message}", file=sys.stderr)  # noqa: T201 - a command line speaks to its user


def _fail(message: str) -> NoReturn:
    _warn(message)
    raise SystemExit(2)


def _actor() -> str:
    try:
        return f"command line, {getpass.getuser()}"[:100]
    except (KeyError, OSError):
        return "command line"


def _shown(token: accounts.Token) -> dict[str, Any]:
    now = datetime.now(UTC).timestamp() * 1000
    expired = token.expires_at is not None and token.expires_at <= now
    return {
        "id": token.jti,
        "account": token.account,
        "scopes": list(token.scopes),
        "state": "revoked" if token.revoked_at is not None else "expired" if expired else "live",
        "note": token.note,
        "created_at": _iso(token.created_at),
        "expires_at": _iso(token.expires_at),
        "revoked_at": _iso(token.revoked_at),
    }


def _iso(ms: int | None) -> str | None:
    return None if ms is None else datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="seconds")


if __name__ == "__main__":
    main()
