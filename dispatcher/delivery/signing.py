"""With what an attempt is signed, and how: the endpoint's own secrets, else its account's default."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence

import msgspec

from dispatcher.egress import Target
from dispatcher.store.accounts import Account
from dispatcher.store.records import LeasedDelivery
from subscriptions import signatures
from subscriptions.secrets import SecretError, SigningKey
from subscriptions.signatures import Scheme, Signable, SignatureError


class Signing(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What signs one attempt. Without keys there are no signature headers."""

    #: the first is the one that a scheme with a single signature uses
    keys: tuple[SigningKey, ...]
    schemes: tuple[Scheme, ...]
    hub_method: str
    key_id: str
    #: there is an older secret that this attempt does not use alone, and a receiver may know only that one
    other_secret: bool

    def headers(self, delivery: LeasedDelivery, target: Target, timestamp: int) -> list[tuple[str, str]]:
        """The signature headers of one attempt. Raises SignatureError or SecretError."""
        if not self.keys:
            return []
        signable = Signable(
            keys=self.keys,
            delivery_id=delivery.wire_id,
            timestamp=timestamp,
            body=delivery.body.body,
            content_type=delivery.body.content_type,
            target_uri=target.origin + target.path,
            key_id=self.key_id,
            method="POST",
            hub_method=self.hub_method,
        )
        return signatures.headers_of(self.schemes, signable)


def choose(delivery: LeasedDelivery, account: Account, *, now: int) -> Signing:
    """What signs this attempt at a moment (milliseconds since the epoch).

    While two secrets are valid, a scheme that carries a single signature uses the newer one; refused with it, the
    delivery comes back to be signed with the older one. Raises SecretError when a subscription has no secret that
    is valid: it is never sent to unsigned.
    """
    endpoint = delivery.endpoint
    keys = endpoint.keys_at(now)
    if not keys:
        if endpoint.subscription_id is not None:
            raise SecretError("the subscription has no secret that is valid now")
        if account.default_secret is not None:
            keys = (SigningKey(secret=account.default_secret),)
    schemes = _schemes(endpoint.schemes, account.schemes, keys[0]) if keys else ()
    has_other = len(keys) > 1 and signatures.has_single_valued(schemes)
    if has_other and delivery.other_secret:
        keys = (keys[1], keys[0], *keys[2:])
    return Signing(
        keys=keys,
        schemes=schemes,
        hub_method=endpoint.hub_method,
        key_id=endpoint.key_id,
        other_secret=has_other and not delivery.other_secret,
    )


def _schemes(own: Sequence[str] | None, accounts: Sequence[str] | None, key: SigningKey) -> tuple[Scheme, ...]:
    """The endpoint's schemes; else the account's, if this key can serve them; else those that it can."""
    if own:
        return _known(tuple(own))
    if accounts:
        schemes = _known(tuple(accounts))
        with contextlib.suppress(SignatureError):
            signatures.check_schemes(schemes, key.secret, has_key_pair=key.seed is not None)
            return schemes
    return signatures.default_schemes(key.secret)


@functools.lru_cache(256)
def _known(names: tuple[str, ...]) -> tuple[Scheme, ...]:
    return tuple(map(Scheme, names))
