"""`dispatcher outbox …`: the key that publishers seal with, and what of theirs could not be taken (PostgreSQL only)."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import sqlalchemy as sa
import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from dispatcher.bodies import rfc3339
from dispatcher.cli.running import DataDir, actor, opened, read_settings, run
from dispatcher.cli.showing import plain
from dispatcher.cli.speaking import Json, Yes, confirm, fail, warn
from dispatcher.installation import Installation
from dispatcher.store import outbox, outbox_keys

T = TypeVar("T")

#: rows that are listed at most
LISTED = 1_000

Ids = Annotated[list[str], typer.Argument(help="Ids of rows, as `outbox refused` shows them.")]

app = typer.Typer(
    help="What other services publish by their own transactions: its key, and what was refused. PostgreSQL only.",
    no_args_is_help=True,
)


@app.command("key")
def show_key(as_json: Json = False, data_dir: DataDir = None) -> None:
    """Print the public key, alone on stdout: `Outbox(public_key=…)` takes it."""

    async def read(installation: Installation) -> list[outbox_keys.StoredKey]:
        async with installation.database.read() as connection:
            return await outbox_keys.stored(connection)

    found = _carry_out(read, data_dir)
    if as_json:
        shown = [{"public_key": str(key.public), "created_at": rfc3339(key.created_at)} for key in found]
        typer.echo(json.dumps(shown, indent=2))
        return
    typer.echo(str(found[0].public))


@app.command("rotate-key")
def rotate_key(
    drop: Annotated[bool, typer.Option("--drop-older", help="Delete the older keys, too.")] = False,
    yes: Yes = False,
    data_dir: DataDir = None,
) -> None:
    """Make a new key pair, and print its public key. What was sealed with an older one is still taken."""
    if drop:
        confirm("What is sealed with an older key, now or later, is refused from now on. Go on?", yes=yes)

    async def rotate(installation: Installation) -> str:
        async with installation.database.write() as connection:
            made = await outbox_keys.add(connection, installation.keyring, actor=actor())
            if drop:
                warn(f"deleted {await outbox_keys.remove_older(connection, actor=actor())} older keys")
        return str(made)

    typer.echo(_carry_out(rotate, data_dir))


@app.command("refused")
def list_refused(as_json: Json = False, data_dir: DataDir = None) -> None:
    """List rows that could not be taken, and why, the oldest first. Never what is sealed in them."""

    async def read(installation: Installation) -> list[sa.RowMapping]:
        return await outbox.list_refused(installation.database, limit=LISTED + 1)

    found = [_shown(row) for row in _carry_out(read, data_dir)]
    if len(found) > LISTED:
        warn(f"there are more; these are the first {LISTED}")
        found = found[:LISTED]
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    table = Table(Column("id", no_wrap=True, min_width=32), "account", "kind", "refused", "problem")
    for row in found:
        cells = (row["id"], row["account"], row["kind"], row["refused_at"], _said(row["problem"]))
        # Whoever writes rows by hand shall not draw on this terminal.
        table.add_row(*(Text(plain(cell)) for cell in cells))
    Console().print(table)


@app.command("retry")
def retry(ids: Ids, data_dir: DataDir = None) -> None:
    """Let refused rows be tried again: they are the first of their accounts."""
    _decide(outbox.retry, ids, data_dir, done="tried again")


@app.command("discard")
def discard(ids: Ids, yes: Yes = False, data_dir: DataDir = None) -> None:
    """Delete refused rows, for good."""
    confirm(f"Delete {len(ids)} rows that were never delivered?", yes=yes)
    _decide(outbox.discard, ids, data_dir, done="deleted")


def _decide(
    decide: Callable[..., Awaitable[list[str]]], ids: Sequence[str], data_dir: Path | None, *, done: str
) -> None:
    async def work(installation: Installation) -> list[str]:
        return await decide(installation.database, ids, actor=actor())

    found = _carry_out(work, data_dir)
    warn(f"{len(found)} rows are {done}")
    if unknown := sorted(set(ids) - set(found)):
        fail(f"these are not among the refused ones: {', '.join(unknown)}")


def _carry_out(work: Callable[[Installation], Awaitable[T]], data_dir: Path | None) -> T:
    settings = read_settings(data_dir=data_dir)
    if settings.database_url is None:
        fail("the outbox is a table of PostgreSQL: DATABASE_URL does not name one")

    async def carried_out() -> T:
        async with opened(settings) as installation:
            return await work(installation)

    return run(carried_out())


def _shown(row: sa.RowMapping) -> dict[str, Any]:
    return {
        **{name: row[name] for name in ("id", "account", "kind")},
        "created_at": _moment(row["created_at"]),
        "refused_at": rfc3339(row["refused_at"]),
        "problem": row["problem"],
    }


def _moment(unix_ms: int) -> str | None:
    """As text, where there is such a moment: whoever writes rows by hand may say what they like."""
    try:
        return rfc3339(unix_ms)
    except OverflowError:
        return None


def _said(problem: dict[str, Any]) -> str:
    errors = "; ".join(f"{error['field']} {error['detail']}" for error in problem.get("errors", []))
    return errors or problem.get("detail") or problem["title"]
