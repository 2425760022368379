"""What the commands on subscriptions need, whichever way they go: by the API of a server, or on the database itself.

Requests are JSON as the API takes it, so that both ways check the same words by the same rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from dispatcher.api import shapes
from subscriptions.models import Headers
from subscriptions.secrets import Secret, SigningKey


@dataclass(frozen=True, kw_only=True, slots=True)
class Revealed:
    """What is secret of a subscription."""

    url: Secret
    headers: Headers = field(repr=False)
    #: what signs now
    key: SigningKey | None


class Client(Protocol):
    """What can be done to subscriptions. Every call may raise Problem, or StoreUnavailable."""

    #: what becomes of a ping that was not waited for
    later: str

    async def create(self, body: bytes, *, seed: bytes | None = None) -> shapes.Subscription:
        """Create a subscription. The answer has its secret.

        `seed` is the Ed25519 private key that it is to have; None makes one. Check `takes_seeds` first.
        """

    #: whether `create` can be given a private key
    takes_seeds: bool

    async def check(self, body: bytes) -> None:
        """Check what `create` would, as far as that goes without creating anything."""

    async def list_all(self, *, is_active: bool | None) -> list[shapes.Subscription]:
        """All subscriptions, newest first; only active or disabled ones, if that is said."""

    async def read(self, id_: str) -> shapes.Subscription:
        """One subscription, with its recent history."""

    async def secrets(self, id_: str) -> list[shapes.SecretView]:
        """A subscription's secrets, newest first, without their text."""

    async def rotate(self, id_: str, body: bytes) -> shapes.SecretView:
        """Give a subscription a new secret. The answer has its text."""

    async def revoke(self, id_: str, secret_id: str) -> None:
        """End a secret at once."""

    async def enable(self, id_: str, body: bytes) -> shapes.Subscription:
        """Enable a subscription, once its endpoint has answered."""

    async def disable(self, id_: str) -> shapes.Subscription:
        """Disable a subscription: what is for it is held."""

    async def ping(self, id_: str) -> shapes.Ping:
        """Send a signed ping."""

    async def delete(self, id_: str) -> None:
        """Delete a subscription, with its secrets and what waits for it."""

    async def reveal(self, ids: Sequence[str]) -> dict[str, Revealed]:
        """What is secret of subscriptions, by id. Raises ConfigError where that is never shown."""
