"""Senders that rotate a secret wrongly."""

from __future__ import annotations

from typing import Any

from examples.other_sender.sender import Message, Sender, Subscription
from tests.conformance.good_senders import Headers
from tests.conformance.mutants.registry import mutant


@mutant("ROT-01", "ROT-05")
class NoSecondSignature(Sender):
    """In the overlap only the new secret signs, but where a receiver refuses it."""

    def signature(self, scheme: str, secrets: list[str], message: Message, timestamp: str, body: bytes) -> Headers:
        return super().signature(scheme, secrets[:1], message, timestamp, body)


@mutant("ROT-01", "ROT-04", "ROT-06", "ROT-08")
class OldOnly(Sender):
    """In the overlap only the old secret signs."""

    def secrets(self, subscription: Subscription) -> list[str]:
        return super().secrets(subscription)[-1:]


@mutant("ROT-02", says="no second attempt came")
class NoSecondChance(Sender):
    """A receiver that knows only the old secret is turned away from at once."""

    async def deliver(self, subscription: Subscription, message: Message) -> None:
        message.by_old_secret = True
        await super().deliver(subscription, message)

    def headers(self, subscription: Subscription, message: Message, body: bytes) -> Headers:
        message.by_old_secret = False
        made = super().headers(subscription, message, body)
        message.by_old_secret = True
        return made


@mutant("ROT-02", says="no signature matches")
class SecondChanceByNew(Sender):
    """The second attempt is signed with the new secret again."""

    def headers(self, subscription: Subscription, message: Message, body: bytes) -> Headers:
        was, message.by_old_secret = message.by_old_secret, False
        made = super().headers(subscription, message, body)
        message.by_old_secret = was
        return made


@mutant("ROT-03")
class OldSecretForEver(Sender):
    """The old secret signs beside the new one, although no overlap was asked for."""

    def secrets(self, subscription: Subscription) -> list[str]:
        return [one for one in (subscription.secret, subscription.old_secret) if one]


@mutant("ROT-03")
class RotatesNever(Sender):
    """A new secret is taken, and the old one goes on signing."""

    async def rotate(self, subscription: str, secret: str, overlap: float) -> dict[str, Any]:
        return {}


@mutant("ROT-05", "ROT-07", "ROT-08")
class OverlapInNameOnly(Sender):
    """An overlap is taken and not kept: the old secret ends at once."""

    async def rotate(self, subscription: str, secret: str, overlap: float) -> dict[str, Any]:
        return await super().rotate(subscription, secret, 0.0)


@mutant("ROT-04", "ROT-06")
class RotatesAtTheEnd(Sender):
    """The new secret signs once the overlap is over."""

    async def rotate(self, subscription: str, secret: str, overlap: float) -> dict[str, Any]:
        return {}


@mutant("ROT-08", says="old-websub")
class DisablesWhoRefusesOnce(Sender):
    """A receiver of the old secret gets the second attempt, and is disabled for the first all the same."""

    async def deliver(self, subscription: Subscription, message: Message) -> None:
        await super().deliver(subscription, message)
        if message.by_old_secret:
            subscription.active = False
