"""`dispatcher subscriptions export` and `import`: settings out of one account, and into the same or another one.

The file is JSON, `{"format", "version", "exported_at", "with_secrets", "subscriptions": [item, …]}`. An item has `id`,
`origin`, `fingerprint` and `public_key` as they were, and `settings`, which are a body of POST /webhooks/subscriptions:
without secrets, `config.url` and the values of `headers` are null, to be filled in. With secrets they are there, and
`config.secret` is the one that signs now; `private_key` (`whsk_…`) is the private half of `public_key`.
"""

from __future__ import annotations

import base64
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import typer
from msgspec import UNSET, Raw, Struct

from dispatcher.api import shapes
from dispatcher.cli import inputs, showing
from dispatcher.cli.clients import Client, Revealed
from dispatcher.cli.connecting import (
    REFUSED,
    UNAVAILABLE,
    Account,
    Dev,
    OverApi,
    TokenFile,
    Url,
    carry_out,
    find_way,
    status_of,
)
from dispatcher.cli.running import DataDir
from dispatcher.cli.speaking import Json, Yes, confirm, fail, warn
from dispatcher.errors import Problem, StoreUnavailable
from subscriptions.health import DisabledReason
from subscriptions.secrets import ED25519_BYTES
from subscriptions.signatures import ASYMMETRIC

VERSION = 1
#: what marks an Ed25519 private key (Standard Webhooks 1.0.0, "Signature scheme")
PRIVATE_PREFIX = "whsk_"

#: what tells equal subscriptions of one account: the fingerprint of the URL, and the patterns
Identity = tuple[str | None, ...]

#: fields of a subscription that are settings, and called alike in a request
_SETTINGS = (
    "name",
    "description",
    "events",
    "is_active",
    "metadata",
    "schemes",
    "hub_method",
    "body",
    "filter",
    "ordering",
    "on_exhausted",
    "rate_limit",
    "retry_schedule",
    "timeout",
    "disable_after_4xx",
    "disable_on",
    "disable_after",
    "hold_for",
    "verification",
)


class Item(Struct, kw_only=True, omit_defaults=True):
    """One subscription in a file."""

    id: str | None = None
    origin: str | None = None
    fingerprint: str | None = None
    public_key: str | None = None
    private_key: str | None = None
    settings: dict[str, Raw]


class Exported(Struct, kw_only=True):
    """A file of subscriptions."""

    format: Literal["dispatcher-subscriptions"]
    version: int
    exported_at: str = ""
    with_secrets: bool = False
    subscriptions: list[Item]


# --- export -----------------------------------------------------------------------------------------------


def export_subscriptions(
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="[ID]...", help="Which; all if none is named.", show_default=False)
    ] = None,
    *,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="New file to write, with mode 0600; else stdout.")
    ] = None,
    with_secrets: Annotated[
        bool,
        typer.Option("--with-secrets", help="With URLs, header values and secrets; only directly on the database."),
    ] = False,
    yes: Yes = False,
    url: Url = None,
    token_file: TokenFile = None,
    account: Account = None,
    data_dir: DataDir = None,
) -> None:
    """Write the settings of subscriptions as JSON, without secrets, URLs and header values unless they are asked for.

    Only the secret that signs now is written, not older ones. `import` reads the file.
    """
    way = find_way(url=url, token_file=token_file, account=account, data_dir=data_dir)
    if with_secrets:
        if isinstance(way, OverApi):
            fail("the API never shows URLs and secrets; use --with-secrets on the server's machine, with --account")
        if output is None:
            fail("--with-secrets needs --output, with a file to write; - is stdout")
        confirm("Write URLs, header values and secrets in clear?", yes=yes)
    if output is not None and output != inputs.STDIN and output.exists():
        fail(f"{output} is there already; nothing is overwritten")

    async def read(client: Client) -> tuple[list[shapes.Subscription], dict[str, Revealed]]:
        found = await client.list_all(is_active=None) if not ids else [await client.read(id_) for id_ in ids]
        return found, await client.reveal([one.id for one in found]) if with_secrets else {}

    found, revealed = carry_out(way, read)
    file = Exported(
        format="dispatcher-subscriptions",
        version=VERSION,
        exported_at=datetime.now(UTC).isoformat(timespec="seconds"),
        with_secrets=with_secrets,
        # oldest first: imported in this order, they are listed in it again
        subscriptions=[_item(one, revealed.get(one.id)) for one in reversed(found)],
    )
    content = msgspec.json.format(msgspec.json.encode(file), indent=2) + b"\n"
    if output is None or output == inputs.STDIN:
        typer.echo(content, nl=False)
    else:
        _write_new(output, content)
        warn(f"wrote {len(found)} subscriptions to {output}")


def _item(one: shapes.Subscription, revealed: Revealed | None) -> Item:
    values = {name: getattr(one, name) for name in _SETTINGS}
    if one.disabled is not None and one.disabled.reason is DisabledReason.UNVERIFIED:
        values["is_active"] = True  # it is to be, once its endpoint has answered
    config: dict[str, str | None] = {"url": None}
    headers: Mapping[str, str | None] = dict.fromkeys(one.headers)
    private_key = None
    if revealed is not None:
        config = {"url": revealed.url.reveal()}
        headers = dict(revealed.headers)
        if revealed.key is not None:
            config["secret"] = revealed.key.secret.reveal()
            if revealed.key.seed is not None:
                private_key = PRIVATE_PREFIX + base64.b64encode(revealed.key.seed).decode("ascii")
    values |= {"headers": headers or None, "config": config}
    return Item(
        id=one.id,
        origin=one.config.url,
        fingerprint=one.config.fingerprint,
        public_key=one.config.public_key,
        private_key=private_key,
        settings={name: Raw(msgspec.json.encode(value)) for name, value in values.items() if value is not None},
    )


def _write_new(file: Path, content: bytes) -> None:
    """Write a new file that only its owner can read, as a whole or not at all. Ends the command when it cannot be."""
    temporary: Path | None = None
    try:
        descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
        temporary = Path(name)
        with os.fdopen(descriptor, "wb") as opened:
            opened.write(content)
        # A link fails where a file came to be meanwhile; a rename would replace it.
        os.link(temporary, file)
    except OSError as exc:
        fail(f"{file} cannot be written: {exc.strerror}")
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


# --- import -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """What became of one item."""

    index: int
    name: str | None
    status: Literal["created", "would-create", "exists", "failed"]
    id: str | None = None
    state: str | None = None
    #: what was made here, and is shown this once
    secret: str | None = None
    public_key: str | None = None
    detail: str | None = None


def import_subscriptions(
    file: Annotated[Path, typer.Argument(help="A file that `export` wrote; - is stdin.", show_default=False)],
    *,
    endpoints: Annotated[
        Path | None,
        typer.Option(help="JSON object: the URL for each item's id, where the file has none.", show_default=False),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would be done.")] = False,
    as_json: Json = False,
    url: Url = None,
    token_file: TokenFile = None,
    account: Account = None,
    data_dir: DataDir = None,
    dev: Dev = None,
) -> None:
    """Create subscriptions as a file has them. Secrets that it does not have are made, and printed this once.

    `--json` prints {created, exists, failed, items: [{index, name, status, id, state, secret, public_key, detail}]};
    with --dry-run, `would-create` stands in place of `created`, and by the API only the form is checked. Ends with 1 if
    an item failed; the others are created all the same.
    """
    inputs.check_stdin(file, endpoints, token_file)
    items = _read_items(file)
    given = _read_endpoints(endpoints)
    way = find_way(url=url, token_file=token_file, account=account, data_dir=data_dir, dev=dev)
    results: list[Result] = []
    unreached: list[Problem | StoreUnavailable] = []

    async def bring(client: Client) -> None:
        known = {_identity(one.config.fingerprint, one.events): one.id for one in await client.list_all(is_active=None)}
        for index, item in enumerate(items):
            try:
                results.append(await _bring(client, index, item, given, known, dry_run=dry_run))
            except (Problem, StoreUnavailable) as exc:
                results.append(_failed(index, item, exc))
                if status_of(exc) == UNAVAILABLE:
                    unreached.append(exc)
                    return

    try:
        carry_out(way, bring)
    finally:
        # Whatever ends this, what was made is told: its secrets can be told only now.
        if results or not items:
            _show(results, as_json=as_json)
    if unreached:
        warn(f"{len(items) - len(results)} items were not tried")
        raise SystemExit(UNAVAILABLE)
    if any(one.status == "failed" for one in results):
        raise SystemExit(REFUSED)


async def _bring(
    client: Client, index: int, item: Item, given: Mapping[str, str], known: Mapping[Identity, str], *, dry_run: bool
) -> Result:
    """Create one subscription, unless it is there. Raises Problem when it cannot be created."""
    settings = _Settings(item, given)
    result = Result(index=index, name=settings.name, status="failed")
    here = known.get(_identity(item.fingerprint, settings.events))
    if here is not None and settings.is_unlocated:
        return replace(result, status="exists", id=here)
    if settings.is_unlocated:
        return replace(result, detail="it has no URL: put it into settings.config.url, or give --endpoints")
    if settings.open_headers:
        return replace(result, detail=f"these headers have no value: {', '.join(settings.open_headers)}")
    seed = _seed(item)
    try:
        if dry_run:
            await client.check(settings.body)
            return replace(result, status="would-create")
        made = await client.create(settings.body, seed=seed if client.takes_seeds else None)
    except Problem as problem:
        if problem.slug == "conflict" and "subscription_id" in problem.extra:
            return replace(result, status="exists", id=str(problem.extra["subscription_id"]))
        raise
    is_new_pair = made.config.public_key != item.public_key and not ASYMMETRIC.isdisjoint(made.schemes or ())
    return replace(
        result,
        status="created",
        id=made.id,
        state="active" if made.is_active else "disabled",
        secret=None if settings.has_secret or made.config.secret is UNSET else made.config.secret,
        public_key=made.config.public_key,
        detail="it has a new key pair: receivers need its public key" if is_new_pair else None,
    )


class _Settings:
    """An item's settings as a request, and what they lack for that."""

    def __init__(self, item: Item, given: Mapping[str, str]) -> None:
        settings = item.settings
        config = _object(settings.get("config", Raw(b"{}")))
        if item.id in given:
            config["url"] = given[item.id or ""]
        headers = _object(settings.get("headers", Raw(b"{}")))
        self.name = _text(settings.get("name"))
        self.events = _texts(settings.get("events"))
        self.is_unlocated = config.get("url") is None
        self.has_secret = config.get("secret") is not None
        self.open_headers = sorted(showing.plain(name) for name, value in headers.items() if value is None)
        self.body = msgspec.json.encode({**settings, "config": config})


def _failed(index: int, item: Item, error: Problem | StoreUnavailable) -> Result:
    fields = "; ".join(f"{one.field} {one.detail}" for one in getattr(error, "errors", ()))
    return Result(
        index=index,
        name=_text(item.settings.get("name")),
        status="failed",
        detail=f"{error} {fields}".strip(),
    )


def _show(results: Sequence[Result], *, as_json: bool) -> None:
    if as_json:
        counts = {
            status.replace("-", "_"): sum(one.status == status for one in results)
            for status in ("created", "would-create", "exists", "failed")
        }
        showing.as_json({**counts, "items": [asdict(one) for one in results]})
    else:
        for one in results:
            words = [f"{one.status:<14}", one.id or "", one.name or f"item {one.index}", one.secret or ""]
            typer.echo("  ".join(showing.plain(word) for word in words if word))
            if one.detail:
                warn(f"item {one.index}: {one.detail}")
    if any(one.secret for one in results):
        warn("secrets are shown this once; keep them, and give them to the receivers")


def _read_items(file: Path) -> list[Item]:
    try:
        exported = msgspec.json.decode(inputs.read_file(file, "the export"), type=Exported)
    except msgspec.ValidationError as exc:
        fail(f"{file} is not what `export` writes: {str(exc).partition(' - at ')[2] or 'it'} is not as it should be")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        fail(f"{file} is not JSON")
    if exported.version != VERSION:
        fail(f"{file} has version {exported.version}; this reads version {VERSION}")
    return exported.subscriptions


def _read_endpoints(file: Path | None) -> dict[str, str]:
    if file is None:
        return {}
    try:
        return msgspec.json.decode(inputs.read_file(file, "the endpoints"), type=dict[str, str])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        fail(f"{file} is not a JSON object with a URL for each id")


def _seed(item: Item) -> bytes | None:
    """An item's private key. Raises Problem unless it can be one."""
    if item.private_key is None:
        return None
    try:
        seed = base64.b64decode(item.private_key.removeprefix(PRIVATE_PREFIX), validate=True)
    except ValueError:
        seed = b""
    if len(seed) != ED25519_BYTES:
        raise Problem("validation", f"`private_key` is not {PRIVATE_PREFIX} and the base64 of {ED25519_BYTES} bytes.")
    return seed


def _identity(fingerprint: str | None, events: Sequence[str]) -> Identity:
    return (fingerprint, *sorted(set(events)))


def _object(raw: Raw) -> dict[str, Any]:
    value = _value(raw)
    return value if isinstance(value, dict) else {}


def _text(raw: Raw | None) -> str | None:
    value = None if raw is None else _value(raw)
    return value if isinstance(value, str) else None


def _texts(raw: Raw | None) -> list[str]:
    value = None if raw is None else _value(raw)
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []


def _value(raw: Raw) -> Any:
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError):
        return None
