"""`dispatcher token …`: API tokens."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from dispatcher import tokens
from dispatcher.cli.running import DataDir, actor, opened, read_settings, run
from dispatcher.cli.speaking import Json, fail, warn
from dispatcher.config import Settings
from dispatcher.installation import is_made
from dispatcher.store import accounts

app = typer.Typer(help="API tokens: make, list and revoke them. Works while the server runs.", no_args_is_help=True)


@app.command("create")
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
        fail("--expires-in must be more than 0 and at most 36500 days")
    if note is not None and len(note) > 200:
        fail("--note must have at most 200 characters")

    settings = read_settings(data_dir=data_dir)
    if not is_made(settings):
        warn(f"there was no installation in {settings.data_dir}; this makes a new one")

    async def make() -> str:
        async with opened(settings) as installation:
            return await tokens.issue(
                installation,
                account=account,
                scopes=scope,
                actor=actor(),
                ttl=None if expires_in is None else expires_in * 86_400,
                note=note,
            )

    typer.echo(run(make()))


@app.command("list")
def list_tokens(
    account: Annotated[str | None, typer.Option(help="Only this account's tokens.")] = None,
    as_json: Json = False,
    data_dir: DataDir = None,
) -> None:
    """List tokens: who they speak for, what they allow, and whether they are still good. Never the tokens."""

    async def read(settings: Settings) -> list[accounts.Token]:
        async with opened(settings) as installation:
            return await accounts.list_tokens(installation.database, account)

    found = run(read(read_settings(data_dir=data_dir)))
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


@app.command("revoke")
def revoke_token(
    jti: Annotated[str, typer.Argument(help="The token's id, as `token list` shows it.")],
    data_dir: DataDir = None,
) -> None:
    """Revoke a token. Servers refuse it within two seconds."""

    async def revoke(settings: Settings) -> accounts.Token | None:
        async with opened(settings) as installation:
            return await accounts.revoke_token(installation.database, jti, actor=actor())

    if run(revoke(read_settings(data_dir=data_dir))) is None:
        fail("there is no token with this id; `dispatcher token list` shows them")
    typer.echo(f"revoked {jti}", err=True)


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
