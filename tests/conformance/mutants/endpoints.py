"""Senders that endpoints lead astray: by redirects, by answers without an end, by refusals."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from examples.other_sender.sender import Answer, Message, Sender, Subscription
from tests.conformance.good_senders import Headers
from tests.conformance.mutants.bases import PlainWire
from tests.conformance.mutants.registry import mutant

# --- redirects ------------------------------------------------------------------------------------------


class _FollowsSome(Sender):
    """Redirects with one of these statuses are followed."""

    followed: frozenset[int] = frozenset()

    async def post(self, subscription: Subscription, headers: Headers, body: bytes) -> Answer:
        answer = await super().post(subscription, headers, body)
        if answer.status not in self.followed:
            return answer
        moved = Subscription(url=answer.headers["Location"], secret=subscription.secret)
        return await super().post(moved, headers, body)


@mutant("REDIR-01", "REDIR-02")
class FollowsRedirects(_FollowsSome):
    """Redirects are followed."""

    followed = frozenset({301, 302, 303, 307, 308})


@mutant("REDIR-01", "REDIR-02")
class FollowsPermanent(_FollowsSome):
    """308 is followed, and only that."""

    followed = frozenset({308})


@mutant("REDIR-02")
class DropsRedirected(Sender):
    """A redirect ends the message."""

    def is_refusal(self, answer: Answer) -> bool:
        return super().is_refusal(answer) or (answer.status is not None and 300 <= answer.status < 400)


@mutant("REDIR-03", says="it has a Referer")
class RefersAfterRedirect(Sender):
    """After a redirect the next attempt says in a Referer where it was sent from."""

    def __init__(self) -> None:
        super().__init__()
        self.redirected: set[str] = set()

    async def post(self, subscription: Subscription, headers: Headers, body: bytes) -> Answer:
        if subscription.id in self.redirected:
            headers = [*headers, ("Referer", subscription.url)]
        answer = await super().post(subscription, headers, body)
        if answer.status is not None and 300 <= answer.status < 400:
            self.redirected.add(subscription.id)
        return answer


@mutant("REDIR-03", says="the URL stands in X-Redirected-From")
class TellsWhereItCameFrom(Sender):
    """A redirect by 307 is followed, and the place that it points to is told of the first URL."""

    async def post(self, subscription: Subscription, headers: Headers, body: bytes) -> Answer:
        answer = await super().post(subscription, headers, body)
        if answer.status != 307:
            return answer
        moved = Subscription(url=answer.headers["Location"], secret=subscription.secret)
        return await super().post(moved, [*headers, ("X-Redirected-From", subscription.url)], body)


# --- limits ---------------------------------------------------------------------------------------------


#: seconds after which the endless ends all the same, so that no test waits for it
_MUCH_LATER = 8.0


#: seconds from one byte to the next; an endpoint that drips takes one, and more where the machine is busy
_PER_READ = 3.0


@mutant("LIMIT-01", "LIMIT-02", "LIMIT-03")
class NoDeadline(Sender):
    """The deadline that a subscription has is not kept, only one for all, which is much longer."""

    async def post(self, subscription: Subscription, headers: Headers, body: bytes) -> Answer:
        subscription.timeout = _MUCH_LATER
        return await super().post(subscription, headers, body)


@mutant("LIMIT-02", "LIMIT-03")
class DeadlinePerRead(PlainWire):
    """The deadline is for each read, and begins anew with each byte."""

    def deadline(self, subscription: Subscription) -> float | None:
        return _MUCH_LATER

    async def read(self, reader: asyncio.StreamReader) -> tuple[Answer, bool]:
        async with asyncio.timeout(_PER_READ):
            head = await reader.readexactly(1)
        while not head.endswith(b"\r\n\r\n") and len(head) < 65_536:
            async with asyncio.timeout(_PER_READ):
                head += await reader.readexactly(1)
        if b"Content-Length" not in head:
            while True:
                async with asyncio.timeout(_PER_READ):
                    if not await reader.read(4_096):
                        break
        return Answer(status=int(head[9:12])), False


@mutant("LIMIT-03")
class DeadlineForHeadOnly(PlainWire):
    """The deadline is for the head; the body may take as long as it likes."""

    def deadline(self, subscription: Subscription) -> float | None:
        return _MUCH_LATER

    async def read(self, reader: asyncio.StreamReader) -> tuple[Answer, bool]:
        async with asyncio.timeout(2.0):
            head = await reader.readuntil(b"\r\n\r\n")
        return Answer(status=int(head[9:12])), await self.read_body(reader, Answer(status=200))


class _ReadsAll(PlainWire):
    """Reads to the end, whatever comes and for how long; slowly, to leave some time to others."""

    pause = 0.05

    def deadline(self, subscription: Subscription) -> float | None:
        return _MUCH_LATER

    async def read(self, reader: asyncio.StreamReader) -> tuple[Answer, bool]:
        said = first = await reader.read(65_536)
        while said:
            await asyncio.sleep(self.pause)
            said = await reader.read(65_536)
        return Answer(status=int(first[9:12]) if first.startswith(b"HTTP/1.1 ") else None), False


@mutant("LIMIT-04", "LIMIT-05", "LIMIT-06")
class ReadsAll(_ReadsAll):
    """Headers, interim answers and bodies are read to their end, however long that takes."""


@mutant("LIMIT-04", "LIMIT-05", "LIMIT-06")
class ReadsAllFast(_ReadsAll):
    """The same, and it is quick about it: a hundred mebibytes take less than a second."""

    pause = 0.0


@mutant("LIMIT-08")
class DropsLate(Sender):
    """What runs into its deadline is given up."""

    async def post(self, subscription: Subscription, headers: Headers, body: bytes) -> Answer:
        began = time.monotonic()
        answer = await super().post(subscription, headers, body)
        is_late = answer.status is None and time.monotonic() - began >= subscription.timeout - 0.01
        return Answer(status=400) if is_late else answer


@mutant("LIMIT-09")
class OneAfterTheOther(Sender):
    """One worker sends everything; only an endpoint that was late once goes to the end of the queue."""

    def __init__(self) -> None:
        super().__init__()
        self.worker = asyncio.Lock()
        self.late: set[str] = set()

    async def post(self, subscription: Subscription, headers: Headers, body: bytes) -> Answer:
        async with self.worker:
            if subscription.id in self.late:
                return Answer(status=None)
            subscription.timeout = min(subscription.timeout, 14.0)
            answer = await super().post(subscription, headers, body)
            if answer.status is None:
                self.late.add(subscription.id)
            return answer


class _Reuses(PlainWire):
    """Takes a connection again without a look at what came over it meanwhile."""

    async def is_silent(self, reader: asyncio.StreamReader) -> bool:
        return True


@mutant("LIMIT-10", says="did not come")
class TakesSecondAnswer(_Reuses):
    """An answer that nobody asked for is taken for that of the next request."""

    def deadline(self, subscription: Subscription) -> float | None:
        # longer than the scenario: a retry on a busy machine would be another fault
        return _MUCH_LATER

    def wait(self, subscription: Subscription, message: Message, answer: Answer) -> float | None:
        return 0.2


@mutant("LIMIT-11", says="drip")
class ForgetsLateTries(Sender):
    """A try that runs into its deadline is not counted, so that there is always one more."""

    def wait(self, subscription: Subscription, message: Message, answer: Answer) -> float | None:
        wait = super().wait(subscription, message, answer)
        if answer.status is None:
            message.attempt -= 1
        return wait


# --- the health of a subscription -----------------------------------------------------------------------


@mutant("HEALTH-01", "HEALTH-02")
class GoneIsARefusal(Sender):
    """410 ends the message and nothing else."""

    def turns_away(self, answer: Answer) -> bool:
        return answer.status in {401, 403}

    def is_refusal(self, answer: Answer) -> bool:
        return super().is_refusal(answer) or answer.status == 410


@mutant("HEALTH-03", "HEALTH-04")
class UnauthorizedIsARefusal(Sender):
    """401 ends the message and nothing else."""

    def turns_away(self, answer: Answer) -> bool:
        return answer.status in {403, 410}

    def is_refusal(self, answer: Answer) -> bool:
        return super().is_refusal(answer) or answer.status == 401


@mutant("HEALTH-02", "HEALTH-04")
class DisabledInNameOnly(GoneIsARefusal, UnauthorizedIsARefusal):
    """A disabled subscription is called disabled, and is sent to."""

    def turns_away(self, answer: Answer) -> bool:
        return False

    async def is_active(self, subscription: str) -> dict[str, Any]:
        return {"active": False}


@mutant("HEALTH-01", "HEALTH-03")
class SaysActive(Sender):
    """A disabled subscription is sent nothing, and nobody can tell."""

    async def is_active(self, subscription: str) -> dict[str, Any]:
        return {"active": True}


@mutant("HEALTH-05")
class LosesHeld(Sender):
    """What is published while a subscription is disabled is lost."""

    async def deliver(self, subscription: Subscription, message: Message) -> None:
        await super().deliver(subscription, message)
        subscription.held = [one for one in subscription.held if one.attempt]


@mutant("HEALTH-05")
class LosesRefused(Sender):
    """The message that an endpoint refused is lost; what came later is kept."""

    async def deliver(self, subscription: Subscription, message: Message) -> None:
        await super().deliver(subscription, message)
        subscription.held = [one for one in subscription.held if not one.attempt]


@mutant("HEALTH-05")
class HoldsOne(Sender):
    """Of what is held back only the newest is kept."""

    async def deliver(self, subscription: Subscription, message: Message) -> None:
        await super().deliver(subscription, message)
        subscription.held = subscription.held[-1:]


@mutant("HEALTH-06")
class StaysDisabled(Sender):
    """Enabling sends what was held back, and no more."""

    def __init__(self) -> None:
        super().__init__()
        self.disabled: set[str] = set()

    async def enable(self, subscription: str) -> dict[str, Any]:
        self.disabled.add(subscription)
        return await super().enable(subscription)

    async def is_active(self, subscription: str) -> dict[str, Any]:
        return {"active": subscription not in self.disabled}
