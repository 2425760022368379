"""`dispatcher keyring …`: the keys that encrypt what is sealed in the database, and sign API tokens."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from dispatcher.cli.running import DataDir, actor, opened, read_settings, run
from dispatcher.cli.speaking import Json, Yes, confirm, fail, warn
from dispatcher.config import Settings
from dispatcher.installation import Installation, is_made
from dispatcher.store import rekeying
from dispatcher.store.database import Database
from dispatcher.store.rekeying import Batch, Summary
from subscriptions.keyring import Keyring, KeyringError

T = TypeVar("T")

#: exit status: some values could not be re-encrypted
INCOMPLETE = 1
#: values that are named on stderr; `--json` has more
SHOWN = 20

app = typer.Typer(
    help="Keys that encrypt secrets and callback URLs: rotate, list and retire them. Works while the server runs.",
    no_args_is_help=True,
)


@app.command("rotate")
def rotate_keyring(yes: Yes = False, as_json: Json = False, data_dir: DataDir = None) -> None:
    """Put a new key in front, and re-encrypt everything with it. The older keys stay until they are retired."""
    settings = _settings(data_dir)
    confirm("Make a new key, and re-encrypt everything with it?", yes=yes)

    async def rotate() -> Summary:
        async with opened(settings) as installation:
            file = _file(installation)
            keyring = await rekeying.rotate(installation.database, file, actor=actor())
            warn(f"{keyring.kids[0]} encrypts from now on; back up {file}")
            return await _re_encrypted(installation.database, keyring)

    _show(_run(rotate()), as_json=as_json)


@app.command("re-encrypt")
def re_encrypt(as_json: Json = False, data_dir: DataDir = None) -> None:
    """Re-encrypt what older keys sealed, without a new key: to finish a rotation that was interrupted."""
    settings = _settings(data_dir)

    async def finish() -> Summary:
        async with opened(settings) as installation:
            return await _re_encrypted(installation.database, installation.keyring)

    _show(_run(finish()), as_json=as_json)


@app.command("list")
def list_keys(as_json: Json = False, data_dir: DataDir = None) -> None:
    """List the keys, and what still hangs on each one. Never the keys themselves."""
    found = _run(_overview(_settings(data_dir)))
    if as_json:
        typer.echo(json.dumps(found.shown(), indent=2))
    else:
        Console().print(_table(found))
    if unknown := found.values(None):
        warn(f"{unknown.total()} values are sealed with a key that is not in the keyring: {_listed(unknown)}")


@app.command("retire")
def retire_key(
    kid: Annotated[str, typer.Argument(help="The key's id, as `keyring list` shows it.")],
    force: Annotated[bool, typer.Option("--force", help="Even if API tokens or fingerprints hang on it.")] = False,
    yes: Yes = False,
    data_dir: DataDir = None,
) -> None:
    """Take a key out of the keyring, for good. Refused while anything is sealed with it."""
    settings = _settings(data_dir)
    found = _run(_overview(settings, settled=True))
    if refusal := _refusal(found, kid, force=force):
        fail(refusal)
    confirm(f"Destroy {kid}? Backups of the database that need it can never be read again.", yes=yes)

    async def retire() -> None:
        async with opened(settings) as installation:
            await rekeying.retire(
                installation.database, _file(installation), kid, change_fingerprints=force, actor=actor()
            )

    _run(retire())
    warn(f"retired {kid}")


def _settings(data_dir: Path | None) -> Settings:
    """Settings of an installation that is there: a keyring is not made by asking for it."""
    settings = read_settings(data_dir=data_dir)
    if not is_made(settings):
        fail(f"there is no installation in {settings.data_dir}")
    return settings


def _run(work: Coroutine[Any, Any, T]) -> T:
    try:
        return run(work)
    except KeyringError as exc:
        fail(str(exc))


def _file(installation: Installation) -> Path:
    if installation.keyring.path is None:
        raise KeyringError("The keyring is in no file.")
    return installation.keyring.path


# --- re-encrypting ----------------------------------------------------------------------------------------


async def _re_encrypted(database: Database, keyring: Keyring) -> Summary:
    try:
        console = Console(stderr=True)
        if not console.is_terminal:
            return await rekeying.reseal_all(database, keyring)
        counted = await rekeying.count_values(database, keyring.kids)
        with _progress(console, counted, keyring.kids[0]) as report:
            return await rekeying.reseal_all(database, keyring, report=report)
    except BaseException:
        warn("this is not finished; `dispatcher keyring re-encrypt` goes on with it")
        raise


@contextmanager
def _progress(console: Console, counted: Mapping[str, Counter[str | None]], first: str) -> Iterator[rekeying.Reporter]:
    """A bar for each table that has values of older keys."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        bars = {
            table: progress.add_task(table, total=older)
            for table, keys in counted.items()
            if (older := keys.total() - keys[first])
        }

        def report(table: str, batch: Batch) -> None:
            if table in bars:
                progress.advance(bars[table], batch.resealed + len(batch.unopened))

        yield report


def _show(summary: Summary, *, as_json: bool) -> None:
    """Print what a run came to, and end the command with its exit status."""
    if as_json:
        shown = {
            "key": summary.kid,
            "complete": summary.complete,
            "resealed": dict(summary.resealed),
            "unopened": dict(summary.unopened),
            "unopened_values": [asdict(value) for value in summary.named],
        }
        typer.echo(json.dumps(shown, indent=2))
    else:
        typer.echo(f"re-encrypted {summary.resealed.total()} values with {summary.kid}{_detail(summary.resealed)}")
    if summary.unopened:
        warn(f"no key opens {summary.unopened.total()} values, which stay as they are{_detail(summary.unopened)}")
        for value in summary.named[:SHOWN]:
            warn(f"  {value.table} {value.id} {value.column}")
    if not summary.finished:
        warn("values of older keys keep coming: is there a server that uses another keyring file?")
    if not summary.complete:
        raise SystemExit(INCOMPLETE)


def _detail(counts: Mapping[Any, int]) -> str:
    return f": {_listed(counts)}" if any(counts.values()) else ""


def _listed(counts: Mapping[Any, int]) -> str:
    return ", ".join(f"{table} {count}" for table, count in counts.items() if count)


# --- what hangs on the keys -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Overview:
    """The keys, and what hangs on each one."""

    #: in the order of the keyring
    created: dict[str, datetime]
    fingerprint_kid: str
    #: values by table and key; under None those of unknown keys
    counted: dict[str, Counter[str | None]]
    #: live API tokens by key
    tokens: dict[str, int]

    @property
    def first(self) -> str:
        """The key that encrypts."""
        return next(iter(self.created))

    def values(self, kid: str | None) -> Counter[str]:
        """The values that a key seals, by table; only tables that have some."""
        return Counter({table: keys[kid] for table, keys in self.counted.items() if keys[kid]})

    def shown(self) -> dict[str, Any]:
        """As JSON shows it."""
        keys = [
            {
                "kid": kid,
                "created": created.isoformat(timespec="seconds"),
                "first": kid == self.first,
                "fingerprints": kid == self.fingerprint_kid,
                "tokens": self.tokens[kid],
                "total": self.values(kid).total(),
                "values": {table: counts[kid] for table, counts in self.counted.items()},
            }
            for kid, created in self.created.items()
        ]
        return {"keys": keys, "unknown": {table: counts[None] for table, counts in self.counted.items()}}


async def _overview(settings: Settings, *, settled: bool = False) -> Overview:
    """What there is; `settled`: once no server seals with an older key any more."""
    async with opened(settings) as installation:
        database, keyring = installation.database, installation.keyring
        if settled:
            await asyncio.sleep(rekeying.settles_in(keyring))
        created = keyring.created
        return Overview(
            created=created,
            fingerprint_kid=keyring.fingerprint_kid,
            counted=await rekeying.count_values(database, list(created)),
            tokens=await rekeying.count_tokens(database, created),
        )


def _refusal(found: Overview, kid: str, *, force: bool) -> str | None:
    """Why a key cannot be retired; None if it can."""
    if kid not in found.created:
        return "there is no key with this id; `dispatcher keyring list` shows them"
    if kid == found.first:
        return f"{kid} is the key that encrypts; rotate first"
    if needed := found.values(kid):
        return f"{kid} still seals {_listed(needed)}; run `dispatcher keyring re-encrypt` first"
    lost = []
    if kid == found.fingerprint_kid:
        lost.append(
            "it makes the fingerprints, so without it those stored no longer match: a subscription that is there"
            " already is not recognised as a duplicate, a request repeated under its Idempotency-Key is answered 422"
        )
    if count := found.tokens[kid]:
        lost.append(f"up to {count} live API tokens are signed with it and would be refused")
    if lost and not force:
        return f"{kid} is not retired without --force: {'; '.join(lost)}"
    return None


def _table(found: Overview) -> Table:
    table = Table(
        Column("key", no_wrap=True),
        Column("made (UTC)", no_wrap=True),
        "does",
        Column("tokens", justify="right"),
        Column("seals", overflow="fold"),
    )
    for kid, created in found.created.items():
        does = ["encrypts"] if kid == found.first else []
        does += ["fingerprints"] if kid == found.fingerprint_kid else []
        table.add_row(
            kid,
            created.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S"),
            ", ".join(does),
            str(found.tokens[kid]),
            _listed(found.values(kid)) or "nothing",
        )
    return table
