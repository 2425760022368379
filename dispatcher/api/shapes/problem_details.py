"""Errors."""

from __future__ import annotations

from msgspec import UNSET, Struct, UnsetType

from dispatcher.api.shapes.fields import Time
from dispatcher.api.shapes.subscriptions import Ping


class ProblemField(Struct, kw_only=True):
    """A field that was wrong: a JSON pointer, and what would be right."""

    field: str
    detail: str


class ProblemDetails(Struct, kw_only=True, omit_defaults=True):
    """An error (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str | UnsetType = UNSET
    errors: list[ProblemField] | UnsetType = UNSET
    earliest_exp: Time | UnsetType = UNSET
    subscription_id: str | UnsetType = UNSET
    ping: Ping | UnsetType = UNSET
