"""`dispatcher subscriptions …`: standing endpoints and their secrets, by a server's API or on the database itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import typer
from msgspec import UNSET, Raw

from dispatcher.api import shapes
from dispatcher.cli import inputs, showing
from dispatcher.cli.clients import Client
from dispatcher.cli.connecting import EXITS, REFUSED, Account, Dev, TokenFile, Url, carry_out, find_way
from dispatcher.cli.moving import export_subscriptions, import_subscriptions
from dispatcher.cli.running import DataDir
from dispatcher.cli.speaking import Json, Yes, confirm, fail, warn
from dispatcher.cli.verifying import EXITS_OF_VERIFY, verify_request
from dispatcher.errors import Problem, StoreUnavailable
from dispatcher.models import DeliveryState
from subscriptions.models import Ordering, Verification
from subscriptions.signatures import Scheme

SubscriptionId = Annotated[str, typer.Argument(metavar="ID", help="The subscription's id.", show_default=False)]
SecretFile = Annotated[
    Path | None,
    typer.Option(
        help="File with the secret, on one line; - is stdin, or a question on the terminal. Without it, one is made.",
        show_default=False,
    ),
]

app = typer.Typer(
    help="Subscriptions and their secrets: create, list, rotate, revoke, verify, export and import."
    " By a server's API (--url), or directly on the database (--account), while the server runs.",
    epilog=EXITS,
    no_args_is_help=True,
)


# --- create, list, show, delete ---------------------------------------------------------------------------


@app.command("create", epilog=EXITS)
def create_subscription(
    *,
    name: Annotated[str | None, typer.Option(help="What it is called.", show_default=False)] = None,
    event: Annotated[
        list[str] | None,
        typer.Option(help="Event types: order.paid, order.*, or ** for all. Can be repeated.", show_default=False),
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(
            help="URL that deliveries go to. If it is secret: --endpoint-file. Others here can see this line.",
            show_default=False,
        ),
    ] = None,
    endpoint_file: Annotated[Path | None, typer.Option(help="File with that URL; - is stdin.")] = None,
    secret_file: SecretFile = None,
    settings: Annotated[
        Path | None,
        typer.Option(help="JSON with any fields of POST /webhooks/subscriptions; - is stdin. Options come first."),
    ] = None,
    description: Annotated[str | None, typer.Option(help="For people.", show_default=False)] = None,
    scheme: Annotated[
        list[Scheme] | None, typer.Option(help="Signature scheme. Can be repeated.", show_default=False)
    ] = None,
    filter_: Annotated[
        str | None, typer.Option("--filter", help="JMESPath expression on the payload.", show_default=False)
    ] = None,
    ordering: Annotated[Ordering | None, typer.Option(show_default=False)] = None,
    verification: Annotated[
        Verification | None,
        typer.Option(help="How its endpoint proves itself; else as the account has it.", show_default=False),
    ] = None,
    inactive: Annotated[bool, typer.Option("--inactive", help="Hold deliveries until it is enabled.")] = False,
    as_json: Json = False,
    url: Url = None,
    token_file: TokenFile = None,
    account: Account = None,
    data_dir: DataDir = None,
    dev: Dev = None,
) -> None:
    """Create a subscription, and print it. Its secret is printed this once, if it was made here.

    `--json` prints the subscription as the API shows it; `config.secret` is the new secret.
    """
    inputs.check_stdin(endpoint_file, secret_file, settings, token_file)
    if endpoint is not None and endpoint_file is not None:
        fail("give --endpoint or --endpoint-file")
    way = find_way(url=url, token_file=token_file, account=account, data_dir=data_dir, dev=dev)
    if endpoint_file is not None:
        endpoint = inputs.read_secret(endpoint_file, "the endpoint's URL")
    given = None if secret_file is None else inputs.read_secret(secret_file, "the secret")
    options = {
        "name": name,
        "events": event,
        "description": description,
        "schemes": scheme,
        "filter": filter_,
        "ordering": ordering,
        "verification": verification,
        "is_active": False if inactive else None,
    }
    fields, config = _from_file(settings)
    fields |= _written({name: value for name, value in options.items() if value not in (None, [])})
    config |= _written({name: value for name, value in (("url", endpoint), ("secret", given)) if value is not None})
    body = msgspec.json.encode(fields | {"config": config})
    is_given = bytes(config.get("secret", b"null")).strip() != b"null"

    async def create(client: Client) -> tuple[shapes.Subscription, str]:
        return await client.create(body), client.later

    made, later = carry_out(way, create)
    if is_given:
        made.config.secret = UNSET
    if as_json:
        showing.as_json(made)
    else:
        showing.subscription(made)
    if made.config.secret is not UNSET:
        warn(showing.ONCE)
    showing.told_of(made, later=later)


@app.command("list", epilog=EXITS)
def list_subscriptions(
    *,
    state: Annotated[Literal["active", "disabled"] | None, typer.Option(help="Only those.", show_default=False)] = None,
    as_json: Json = False,
    url: Url = None,
    token_file: TokenFile = None,
    account: Account = None,
    data_dir: DataDir = None,
) -> None:
    """List subscriptions, newest first. Never their secrets, nor their URLs beyond the host.

    `--json` prints an array of subscriptions as the API shows them.
    """
    way = find_way(url=url, token_file=token_file, account=account, data_dir=data_dir)
    is_active = None if state is None else state == "active"

    async def read(client: Client) -> list[shapes.Subscription]:
        return await client.list_all(is_active=is_active)

    found = carry_out(way, read)
    if as_json:
        showing.as_json(found)
    else:
        showing.subscriptions(found)


@app.command("show", epilog=EXITS)
def show_subscription(
    id_: SubscriptionId,
    *,
    as_json: Json = False,
    url: Url = None,
    token_file: TokenFile = None,
    account: Account = None,
    data_dir: DataDir = None,
) -> None:
    """Show a subscription, its secrets without their text, and its latest deliveries.

    `--json` prints {subscription, secrets}, both as the API shows them.
    """
    way = find_way(url=url, token_file=token_file, account=account, data_dir=data_dir)

    async def read(client: Client) -> tuple[shapes.Subscription, list[shapes.SecretView]]:
        return await client.read(id_), await client.secrets(id_)

    one, secrets = carry_out(way, read)
    if as_json:
        showing.as_json({"subscription": one, "secrets": secrets})
    else:
        showing.subscription(one, secrets)


@app.command("delete", epilog=EXITS)
def delete_subscription(
    id_: SubscriptionId,
    *,
    yes: Yes = False,
    url: Url = None,
    token_file: TokenFile = None,
    account: Account = None,
    data_dir: DataDir = None,
) -> None:
    """Delete a subscription with its secrets. Deliveries that wait for it are cancelled."""
    way = find_way(url=url, token_file=token_file, account=account, data_dir=data_dir)
    confirm(f"Delete {id_} with its secrets, and cancel what waits for it?", yes=yes)

    async def delete(client: Client) -> None:
        await client.delete(id_)

    carry_out(way, delete)
    warn(f"deleted {id_}")


# --- secrets ----------------------------------------------------------------------------------------------


@app.command("rotate", epilog=EXITS)
def rotate_secret(
    id_: SubscriptionId,
    *,
    overlap: Annotated[
        str | None,
        typer.Option(
            help="How long the older secrets stay valid beside the new one: 90s, 30m, 24h, 7d.", show_default="24h"
        ),
    ] = None,
    revoke_now: Annotated[bool, typer.Option("--revoke-now", help="End the older secrets at once.")] = False,
    secret_file: SecretFile = None,
    valid_from: Annotated[
        str | None, typer.Option(help="When the new secret begins to sign (RFC 3339).", show_default="now")
    ] = None,
    valid_until: Annotated[
        str | None, typer.Option(help="When it ends (RFC 3339).", show_default="when it is rotated or revoked")
    ] = None,
    yes: Yes = False,
    as_json: Json = False,
    url: Url = None,
    token_file: TokenFile = None,
    account: Account = None,
    data_dir: DataDir = None,
) -> None:
    """Give a subscription a new secret, and print it this once, if it was made here.

    `--json` prints {subscription_id, secret_id, secret, public_key, valid_from, valid_until, previous_valid_until}:
    `secret` is null if it was given, `previous_valid_until` if no older secret is left.
    """
    inputs.check_stdin(secret_file, token_file)
    request = _rotation(overlap=overlap, revoke_now=revoke_now, valid_from=valid_from, valid_until=valid_until)
    way = find_way(url=url, token_file=token_file, account=account, data_dir=data_dir)
    if secret_file is not None:
        request["secret"] = inputs.read_secret(secret_file, "the secret")
    if revoke_now or request.get("overlap") == 0:
        confirm(f"End the present secrets of {id_} at once? Receivers that do not have the new one refuse.", yes=yes)

    async def rotate(client: Client) -> tuple[shapes.SecretView, list[shapes.SecretView]]:
        made = await client.rotate(id_, msgspec.json.encode(request))
        try:
            return made, await client.secrets(id_)
        except (Problem, StoreUnavailable):
            # It is done, and the new secret must be shown, whatever comes now.
            warn("until when the older secrets are valid is not known; `show` tells")
            return made, []

    made, secrets = carry_out(way, rotate)
    ends = [one.valid_until for one in secrets if one.id != made.id and one.valid_until is not None]
    secret = None if made.secret is UNSET or "secret" in request else made.secret
    result = {
        "subscription_id": id_,
        "secret_id": made.id,
        "secret": secret,
        "public_key": made.public_key,
        "valid_from": made.valid_from,
        "valid_until": made.valid_until,
        "previous_valid_until": max(ends, default=None),
    }
    if as_json:
        showing.as_json(result)
    else:
        showing.pairs({name.replace("_", " "): value for name, value in result.items()})
    if secret is not None:
        warn(showing.ONCE)


@app.command("revoke", epilog=EXITS)
def revoke_secret(
    id_: SubscriptionId,
    secret_id: Annotated[str, typer.Argument(help="The secret's id, as `show` has it.", show_default=False)],
    *,
    yes: Yes = False,
    url: Url = None,
    token_file: TokenFile = None,
    account: Account = None,
    data_dir: DataDir = None,
) -> None:
    """End a secret at once. The only one that is valid is not revoked: rotate it, with --revoke-now."""
    way = find_way(url=url, token_file=token_file, account=account, data_dir=data_dir)
    confirm(f"Revoke {secret_id}? It can never be used again.", yes=yes)

    async def revoke(client: Client) -> None:
        await client.revoke(id_, secret_id)

    carry_out(way, revoke)
    warn(f"revoked {secret_id}")


# --- enable, disable, ping --------------------------------------------------------------------------------


@app.command("enable", epilog=EXITS)
def enable_subscription(
    id_: SubscriptionId,
    *,
    discard: Annotated[bool, typer.Option("--discard", help="Cancel what is held, in place of sending it.")] = False,
    yes: Yes = False,
    as_json: Json = False,
    url: Url = None,
    token_file: TokenFile = None,
    account: Account = None,
    data_dir: DataDir = None,
) -> None:
    """Enable a subscription: its endpoint is sent a ping, and once it answers, what was held.

    `--json` prints the subscription as the API shows it; `ping` tells what the endpoint answered.
    """
    way = find_way(url=url, token_file=token_file, account=account, data_dir=data_dir)
    if discard:
        confirm(f"Cancel every delivery that is held for {id_}?", yes=yes)
    body = msgspec.json.encode({"held": "discard" if discard else "release"})

    async def enable(client: Client) -> tuple[shapes.Subscription, str]:
        return await client.enable(id_, body), client.later

    changed, later = carry_out(way, enable)
    _show_changed(changed, as_json=as_json)
    showing.told_of(changed, later=later)


@app.command("disable", epilog=EXITS)
def disable_subscription(
    id_: SubscriptionId,
    *,
    as_json: Json = False,
    url: Url = None,
    token_file: TokenFile = None,
    account: Account = None,
    data_dir: DataDir = None,
) -> None:
    """Disable a subscription: what is for it is held until it is enabled.

    `--json` prints the subscription as the API shows it.
    """
    way = find_way(url=url, token_file=token_file, account=account, data_dir=data_dir)

    async def disable(client: Client) -> shapes.Subscription:
        return await client.disable(id_)

    _show_changed(carry_out(way, disable), as_json=as_json)


@app.command("ping", epilog=EXITS)
def ping_subscription(
    id_: SubscriptionId,
    *,
    as_json: Json = False,
    url: Url = None,
    token_file: TokenFile = None,
    account: Account = None,
    data_dir: DataDir = None,
) -> None:
    """Send a signed ping, whatever the subscription's state. Ends with 1 if the endpoint does not take it.

    `--json` prints {delivery_id, kind, state, outcome, status, error, duration_ms}.
    """
    way = find_way(url=url, token_file=token_file, account=account, data_dir=data_dir)

    async def send(client: Client) -> tuple[shapes.Ping, str]:
        return await client.ping(id_), client.later

    sent, later = carry_out(way, send)
    if as_json:
        showing.as_json(sent)
    else:
        showing.ping(sent)
    if sent.state in {DeliveryState.PENDING, DeliveryState.LEASED}:
        warn(later)
    elif sent.state is not DeliveryState.DELIVERED:
        raise SystemExit(REFUSED)


# --- what moves, and what is looked at elsewhere ----------------------------------------------------------

app.command("verify", epilog=EXITS_OF_VERIFY)(verify_request)
app.command("export", epilog=EXITS)(export_subscriptions)
app.command("import", epilog=EXITS)(import_subscriptions)


def _rotation(
    *, overlap: str | None, revoke_now: bool, valid_from: str | None, valid_until: str | None
) -> dict[str, Any]:
    """A rotation as the API takes it. Ends the command for options that cannot be."""
    if revoke_now and overlap is not None:
        fail("give --overlap or --revoke-now")
    request: dict[str, Any] = {"revoke_now": True} if revoke_now else {}
    if overlap is not None:
        request["overlap"] = inputs.read_span(overlap, "--overlap")
    if valid_from is not None:
        request["valid_from"] = inputs.read_moment(valid_from, "--valid-from")
    if valid_until is not None:
        request["valid_until"] = inputs.read_moment(valid_until, "--valid-until")
    return request


def _show_changed(one: shapes.Subscription, *, as_json: bool) -> None:
    if as_json:
        showing.as_json(one)
    else:
        showing.subscription(one)


def _from_file(file: Path | None) -> tuple[dict[str, Raw], dict[str, Raw]]:
    """The fields of a JSON object in a file, and those of its `config`, as they are written there."""
    if file is None:
        return {}, {}
    try:
        fields = msgspec.json.decode(inputs.read_file(file, "the settings"), type=dict[str, Raw])
        config = msgspec.json.decode(fields.pop("config", Raw(b"{}")), type=dict[str, Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        fail("the settings are not a JSON object, with `config` as another")
    return fields, config


def _written(values: dict[str, Any]) -> dict[str, Raw]:
    return {name: Raw(msgspec.json.encode(value)) for name, value in values.items()}
