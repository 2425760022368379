"""Senders that try again wrongly: too often, too seldom, too soon, too late."""

from __future__ import annotations

import asyncio
import random
import re
import time
from email.utils import parsedate_to_datetime

from examples.other_sender.sender import Answer, Message, Sender, Subscription
from tests.conformance.good_senders import Headers
from tests.conformance.mutants.bases import PlainWire
from tests.conformance.mutants.registry import mutant


@mutant("RETRY-01")
class NeverRetries(Sender):
    """What is answered with 5xx is given up."""

    def is_refusal(self, answer: Answer) -> bool:
        return answer.status is not None and answer.status >= 400


@mutant("RETRY-01")
class RetriesOnce(Sender):
    """There is one more try, whatever the schedule says."""

    def wait(self, subscription: Subscription, message: Message, answer: Answer) -> float | None:
        return super().wait(subscription, message, answer) if message.attempt < 2 else None


@mutant("RETRY-02")
class RetriesSuccess(Sender):
    """What was taken is sent once more."""

    async def deliver(self, subscription: Subscription, message: Message) -> None:
        await super().deliver(subscription, message)
        if not subscription.held:
            body = self.body(message)
            await self.post(subscription, self.headers(subscription, message, body), body)


@mutant("RETRY-02")
class ForgetsRetried(Sender):
    """Only a first attempt can succeed: what is taken later is sent again."""

    async def post(self, subscription: Subscription, headers: Headers, body: bytes) -> Answer:
        answer = await super().post(subscription, headers, body)
        is_first = ("X-Webhook-Attempt", "1") in headers
        return answer if is_first or answer.status != 200 else Answer(status=None)

    def wait(self, subscription: Subscription, message: Message, answer: Answer) -> float | None:
        return (
            super().wait(subscription, message, answer) if message.attempt < 4 else 0.1 if message.attempt < 6 else None
        )


@mutant("RETRY-03")
class ShrinkingDistance(Sender):
    """The schedule is gone through from its end."""

    def wait(self, subscription: Subscription, message: Message, answer: Answer) -> float | None:
        if message.attempt > len(subscription.schedule):
            return None
        return subscription.schedule[-message.attempt] * random.uniform(0.85, 1.25)


@mutant("RETRY-03")
class FixedDistance(Sender):
    """The distance is always about the first of the schedule."""

    def wait(self, subscription: Subscription, message: Message, answer: Answer) -> float | None:
        if message.attempt > len(subscription.schedule):
            return None
        return subscription.schedule[0] * random.uniform(0.85, 1.25)


@mutant("RETRY-04")
class NoChance(Sender):
    """The distances are exactly those of the schedule."""

    def wait(self, subscription: Subscription, message: Message, answer: Answer) -> float | None:
        return None if message.attempt > len(subscription.schedule) else subscription.schedule[message.attempt - 1]


@mutant("RETRY-04")
class OneChanceForAll(Sender):
    """The distances are spread by chance, but by the same for all: there are waves as before."""

    chance = random.uniform(0.85, 1.25)

    def wait(self, subscription: Subscription, message: Message, answer: Answer) -> float | None:
        if message.attempt > len(subscription.schedule):
            return None
        return subscription.schedule[message.attempt - 1] * self.chance


@mutant("RETRY-05")
class NeverGivesUp(Sender):
    """The schedule's end is not the end: it goes on, ever more slowly."""

    def wait(self, subscription: Subscription, message: Message, answer: Answer) -> float | None:
        return subscription.schedule[0] * float(1.6 ** (message.attempt - 1))


@mutant("RETRY-05")
class OneTooFew(Sender):
    """The last distance of the schedule is left out."""

    def wait(self, subscription: Subscription, message: Message, answer: Answer) -> float | None:
        wait = super().wait(subscription, message, answer)
        return None if message.attempt == len(subscription.schedule) else wait


@mutant("RETRY-05")
class NeverGivesUpQuickly(Sender):
    """The schedule's last distance is kept for ever."""

    def wait(self, subscription: Subscription, message: Message, answer: Answer) -> float | None:
        return subscription.schedule[-1]


@mutant("RETRY-06")
class DropsBusy(Sender):
    """All of 4xx is given up, 408 and 429 with it."""

    def is_refusal(self, answer: Answer) -> bool:
        return answer.status is not None and 400 <= answer.status < 500


@mutant("RETRY-06")
class DropsGatewayTimeouts(Sender):
    """504 is given up."""

    def is_refusal(self, answer: Answer) -> bool:
        return answer.status == 504


@mutant("RETRY-07")
class DropsBroken(Sender):
    """A connection that breaks ends the message."""

    def is_refusal(self, answer: Answer) -> bool:
        return answer.status is None


@mutant("RETRY-07")
class BelievesBroken(PlainWire):
    """Bytes of any kind are an answer, and no error: only resets and ends are retried."""

    async def read(self, reader: asyncio.StreamReader) -> tuple[Answer, bool]:
        said = await reader.read(4_096)
        if not said:
            raise EOFError
        return Answer(status=int(said[9:12]) if said.startswith(b"HTTP/1.1 ") else 200), False


@mutant("RETRY-08")
class OnlyOk(Sender):
    """Only 200 is a success."""

    def is_success(self, answer: Answer) -> bool:
        return answer.status == 200


@mutant("RETRY-08")
class KnownSuccesses(Sender):
    """Only those 2xx that have a name are a success."""

    def is_success(self, answer: Answer) -> bool:
        return answer.status in {200, 201, 202, 203, 204, 205, 206}


@mutant("RETRY-09")
class RetriesRefusals(Sender):
    """What is refused for good is tried again."""

    def is_refusal(self, answer: Answer) -> bool:
        return False


@mutant("RETRY-09")
class RetriesUnprocessable(Sender):
    """422 is tried again."""

    def is_refusal(self, answer: Answer) -> bool:
        return super().is_refusal(answer) and answer.status != 422


@mutant("RETRY-10")
class NotModifiedIsFine(Sender):
    """304 is a success."""

    def is_success(self, answer: Answer) -> bool:
        return super().is_success(answer) or answer.status == 304


@mutant("RETRY-10", "REDIR-02")
class BelowErrorIsFine(Sender):
    """All below 400 is a success."""

    def is_success(self, answer: Answer) -> bool:
        return answer.status is not None and answer.status < 400


@mutant("RETRY-10")
class InterimIsFine(PlainWire):
    """A 199 is an answer, and a success: it is no error."""

    async def read(self, reader: asyncio.StreamReader) -> tuple[Answer, bool]:
        status = int((await reader.readuntil(b"\r\n\r\n"))[9:12])
        return Answer(status=max(status, 200)), False


@mutant("RETRY-11")
class RetriesGone(Sender):
    """410 is tried again, as any other failure."""

    def turns_away(self, answer: Answer) -> bool:
        return answer.status in {401, 403}


@mutant("RETRY-12", "RETRY-13")
class IgnoresRetryAfter(Sender):
    """Retry-After means nothing."""

    def retry_after(self, answer: Answer) -> float:
        return 0.0


@mutant("RETRY-12")
class RetryAfterOfBusyOnly(Sender):
    """Retry-After is kept with 429 only."""

    def retry_after(self, answer: Answer) -> float:
        return super().retry_after(answer) if answer.status == 429 else 0.0


@mutant("RETRY-13")
class RetryAfterInSecondsOnly(Sender):
    """Retry-After is kept in seconds only."""

    def retry_after(self, answer: Answer) -> float:
        text = answer.headers.get("Retry-After", "")
        return float(text) if text.isdigit() else 0.0


@mutant("RETRY-14", says="after 0.")
class PastHastens(Sender):
    """A Retry-After of the past, or of zero, has the next try at once."""

    def wait(self, subscription: Subscription, message: Message, answer: Answer) -> float | None:
        wait = super().wait(subscription, message, answer)
        is_said = "Retry-After" in answer.headers and answer.headers["Retry-After"] != "soon"
        return max(self.retry_after(answer), 0.0) if is_said and wait is not None else wait


@mutant("RETRY-14", says="after 0.")
class ZeroHastens(Sender):
    """A Retry-After of zero has the next try at once."""

    def wait(self, subscription: Subscription, message: Message, answer: Answer) -> float | None:
        return 0.0 if answer.headers.get("Retry-After") == "0" else super().wait(subscription, message, answer)


@mutant("RETRY-14", says="it was not sent again")
class GarbageKills(Sender):
    """A Retry-After that cannot be read ends the delivery with an exception."""

    def wait(self, subscription: Subscription, message: Message, answer: Answer) -> float | None:
        if answer.headers.get("Retry-After") == "soon":
            raise asyncio.CancelledError
        return super().wait(subscription, message, answer)


@mutant("RETRY-15")
class SlowStart(Sender):
    """Messages are looked for every few seconds."""

    async def deliver(self, subscription: Subscription, message: Message) -> None:
        await asyncio.sleep(2.2)
        await super().deliver(subscription, message)


@mutant("RETRY-04")
class ChanceAtFirstOnly(Sender):
    """Only the first distance is spread by chance."""

    def wait(self, subscription: Subscription, message: Message, answer: Answer) -> float | None:
        if message.attempt > len(subscription.schedule):
            return None
        chance = random.uniform(0.8, 1.2) if message.attempt == 1 else 1.0
        return subscription.schedule[message.attempt - 1] * chance


@mutant("RETRY-12", says="it was sent again after")
class RetryAfterInMilliseconds(Sender):
    """Retry-After is taken for milliseconds."""

    def retry_after(self, answer: Answer) -> float:
        text = answer.headers.get("Retry-After", "")
        return float(text) / 1000 if text.isdigit() else super().retry_after(answer)


@mutant("RETRY-12", says="it was sent again after")
class CutsRetryAfter(Sender):
    """Nobody has it wait for more than one and a half seconds."""

    def retry_after(self, answer: Answer) -> float:
        return min(super().retry_after(answer), 1.5)


class _LocalDates(Sender):
    """A date is read in the time zone of the machine."""

    #: of the machine, against GMT, seconds
    east = 0

    def retry_after(self, answer: Answer) -> float:
        text = answer.headers.get("Retry-After", "")
        if not re.search("GMT$", text):
            return super().retry_after(answer)
        return parsedate_to_datetime(text).timestamp() - self.east - time.time()


@mutant("RETRY-13", says="it was sent again after")
class DatesOfTheEast(_LocalDates):
    """A date of GMT is read as one of Berlin: it has passed already."""

    east = 3600


@mutant("RETRY-13", says="it was not sent again")
class DatesOfTheWest(_LocalDates):
    """A date of GMT is read as one of New York: it is hours away."""

    east = -18_000


@mutant("RETRY-16")
class TornIsBroken(PlainWire):
    """An answer is read to the end of its connection, and a reset there makes it a failure."""

    async def read(self, reader: asyncio.StreamReader) -> tuple[Answer, bool]:
        found = await super().read(reader)
        async with asyncio.timeout(1.0):
            await reader.read()
        return found


@mutant("RETRY-17")
class ImpatientWorker(Sender):
    """A worker that hears nothing for a second is taken for dead, and another sends the message, too."""

    async def post(self, subscription: Subscription, headers: Headers, body: bytes) -> Answer:
        first = asyncio.create_task(super().post(subscription, headers, body))
        await asyncio.wait([first], timeout=1.0)
        if not first.done():
            await super().post(subscription, headers, body)
        return await first


@mutant("RETRY-18")
class PausesForAll(Sender):
    """Retry-After of one endpoint has all others wait, too."""

    until = 0.0

    def wait(self, subscription: Subscription, message: Message, answer: Answer) -> float | None:
        self.until = time.monotonic() + self.retry_after(answer)
        return super().wait(subscription, message, answer)

    async def post(self, subscription: Subscription, headers: Headers, body: bytes) -> Answer:
        await asyncio.sleep(max(0.0, self.until - time.monotonic()))
        return await super().post(subscription, headers, body)
