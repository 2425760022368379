"""Subscriptions as a person reads them, and as JSON. Only what was just made shows a secret."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import typer
from msgspec import UNSET
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from dispatcher.api import shapes
from dispatcher.cli.speaking import warn

ONCE = "the secret is shown this once; keep it, and give it to the receiver"
#: width of the names in a list of values
NAME_WIDTH = 20


def as_json(value: Any) -> None:
    """Print JSON. Numbers within raw JSON stay as they are."""
    typer.echo(msgspec.json.format(msgspec.json.encode(value), indent=2))


def subscription(one: shapes.Subscription, secrets: Sequence[shapes.SecretView] | None = None) -> None:
    """Print a subscription; with its secrets, if they are given."""
    pairs(_settings_of(one))
    if secrets is not None:
        typer.echo()
        _secrets(secrets)
    if one.recent is not UNSET and one.recent:
        typer.echo()
        _recent(one.recent)


def subscriptions(found: Iterable[shapes.Subscription]) -> None:
    """Print a list of subscriptions."""
    # An id that is folded cannot be copied, and what somebody wrote is text, whatever is in it.
    table = Table(Column("id", no_wrap=True, min_width=32), "name", "endpoint", "events", "state", "held")
    for one in found:
        table.add_row(
            one.id, Text(one.name), Text(one.config.url), Text(", ".join(one.events)), _state(one), str(one.held)
        )
    Console().print(table)


def ping(one: shapes.Ping) -> None:
    """Print what became of a ping."""
    pairs(
        {
            one.kind: one.state,
            "delivery": one.delivery_id,
            "outcome": one.outcome,
            "status": one.status,
            "error": one.error,
            "took": None if one.duration_ms is None else f"{one.duration_ms:.0f} ms",
        }
    )


def pairs(values: dict[str, Any]) -> None:
    """Print names and values, a line each; those that are None are left out."""
    for name, value in values.items():
        if value is not None:
            typer.echo(f"{name:<{NAME_WIDTH}}{plain(str(value))}")


def plain(text: str) -> str:
    """A text on one line that does nothing to a terminal."""
    return "".join(character if character.isprintable() else "�" for character in text)


def told_of(one: shapes.Subscription, *, later: str) -> None:
    """Say on stderr how far a subscription is from being active, if it is being asked for that."""
    if one.verifying is not None:
        warn(f"its endpoint has to answer before it is active: {later}")


def _settings_of(one: shapes.Subscription) -> dict[str, Any]:
    return {
        "id": one.id,
        "name": one.name,
        "description": one.description,
        "endpoint": one.config.url,
        "events": ", ".join(one.events),
        "state": _state(one),
        "schemes": "the account's, or those that fit" if one.schemes is None else ", ".join(one.schemes),
        "public key": one.config.public_key,
        "body": one.body,
        "filter": one.filter,
        "headers": ", ".join(one.headers) or None,
        "ordering": None if one.ordering == "none" else f"{one.ordering}, {one.on_exhausted}",
        "rate limit": None if one.rate_limit is None else f"{one.rate_limit:g} per second",
        "verification": one.verification,
        "held": one.held or None,
        "failures": one.failures or None,
        "created": one.created_at,
        "secret": None if one.config.secret is UNSET else one.config.secret,
    }


def _when(moment: str | None) -> str:
    """A moment to the second, in two words, so that a narrow table can fold it."""
    return "" if moment is None else moment[:19].replace("T", " ")


def _state(one: shapes.Subscription) -> str:
    if one.disabled is None:
        return "active"
    asked = "" if one.verifying is None else ", and being verified"
    return f"disabled: {one.disabled.reason}{asked}"


def _secrets(secrets: Sequence[shapes.SecretView]) -> None:
    table = Table(Column("secret's id", no_wrap=True, min_width=32), "state", "valid from (UTC)", "until (UTC)")
    for secret in secrets:
        table.add_row(secret.id, secret.state, _when(secret.valid_from), _when(secret.valid_until))
    Console().print(table)


def _recent(deliveries: Sequence[shapes.RecentDelivery]) -> None:
    table = Table(Column("delivery", no_wrap=True, min_width=32), "event", "state", "tries", "status")
    for one in deliveries:
        status = one.status if one.status is not None else one.outcome
        table.add_row(one.id, Text(one.event), one.state, str(one.attempts), "" if status is None else str(status))
    Console().print(table)
