"""The account."""

from __future__ import annotations

from typing import Annotated

from msgspec import UNSET, Meta, Struct, UnsetType

from dispatcher.api.shapes.fields import CustomHeaders, Request, RetrySchedule, Schemes, SecretText, Url
from subscriptions.models import Verification
from subscriptions.signatures import Scheme


class Limits(Struct, kw_only=True):
    """What a request may hold: bytes, characters and counts."""

    max_body: int
    max_batch: int
    max_batch_items: int
    max_nesting: int
    max_url: int
    max_headers: int
    max_header: int


class OperationalView(Struct, kw_only=True, omit_defaults=True):
    """The operational endpoint: a subscription, too. `secret` is shown once, if it was made for it."""

    subscription_id: str
    host: str
    is_active: bool
    secret: str | UnsetType = UNSET


class Account(Struct, kw_only=True):
    """An account's defaults, and the limits that hold for it."""

    id: str
    has_default_secret: bool
    schemes: list[Scheme] | None
    retry_schedule: list[float]
    verification: Verification
    operational_endpoint: OperationalView | None
    limits: Limits


class OperationalRequest(Request):
    """An endpoint that is told what happens to the account's subscriptions. It takes the place of the present one."""

    url: Url
    secret: Annotated[SecretText, Meta(description="Left out, one is made, and shown this once.")] | None = None
    schemes: Schemes | None = None
    headers: CustomHeaders | None = None


class AccountChange(Request):
    """What to change; what is left out stays, and null goes back to the installation's default."""

    default_secret: SecretText | UnsetType | None = UNSET
    schemes: Schemes | UnsetType | None = UNSET
    retry_schedule: RetrySchedule | UnsetType | None = UNSET
    verification: (
        Annotated[Verification, Meta(description="How new subscriptions prove themselves that do not say.")]
        | UnsetType
        | None
    ) = UNSET
    operational_endpoint: OperationalRequest | UnsetType | None = UNSET
