"""Further senders with one fault each, of kinds that are met in the wild; mutant_senders has the rest.

`python -m tests.conformance.more_mutants NAME` runs one of either.
"""

from __future__ import annotations

import asyncio
import base64
import json
import random
import re
import sys
import time
import uuid
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from examples.other_sender.sender import Answer, Message, Sender, Subscription, serve
from tests.conformance.good_senders import Complete, Headers
from tests.conformance.mutant_senders import MUTANTS, Mutant, _mutant, _PlainWire, _Signing, _with

__all__ = ["MUTANTS", "Mutant"]

# --- HTTP -------------------------------------------------------------------------------------------------


@_mutant("HTTP-01", says="it is a GET")
class ProbesFirst(_PlainWire):
    """Before each message it looks with GET whether somebody is there."""

    is_probe = False

    async def post(self, subscription: Subscription, headers: Headers, body: bytes) -> Answer:
        self.is_probe = True
        await super().post(subscription, [one for one in headers if one[0].startswith("webhook-")], b"")
        self.is_probe = False
        return await super().post(subscription, headers, body)

    def request(self, subscription: Subscription, headers: Headers, body: bytes) -> bytes:
        made = super().request(subscription, headers, body)
        return made.replace(b"POST", b"GET", 1) if not body else made


@_mutant("HTTP-06", says="other bytes")
class AbsoluteTargets(_PlainWire):
    """The request line has the whole URL, as if the endpoint were a proxy."""

    def request(self, subscription: Subscription, headers: Headers, body: bytes) -> bytes:
        origin = "http://" + urlsplit(subscription.url).netloc
        return super().request(subscription, headers, body).replace(b"POST /", f"POST {origin}/".encode(), 1)


@_mutant("HTTP-14", says="refused")
class FoldsLines(_PlainWire):
    """A long header goes on in the next line, as in mail."""

    def request(self, subscription: Subscription, headers: Headers, body: bytes) -> bytes:
        return super().request(subscription, headers, body).replace(b"webhook-signature: ", b"webhook-signature:\r\n ")


@_mutant("HTTP-14", says="refused")
class LineFeedInSignature(_PlainWire):
    """The base64 is that of mail, with a line feed at its end."""

    def signature(self, scheme: str, secrets: list[str], message: Message, timestamp: str, body: bytes) -> Headers:
        return [(name, value + "\n") for name, value in super().signature(scheme, secrets, message, timestamp, body)]


@_mutant("HTTP-14", says="refused")
class TwoFramings(_PlainWire):
    """The body comes in chunks, and its length is stated, too."""

    is_chunked = True

    def request(self, subscription: Subscription, headers: Headers, body: bytes) -> bytes:
        made = super().request(subscription, headers, body)
        return made.replace(b"Transfer-Encoding:", b"Content-Length: %d\r\nTransfer-Encoding:" % len(body), 1)


@_mutant("HTTP-15", says="the target of")
class RetriesWithoutQuery(Sender):
    """What waits for another try has its URL in two columns, and the query was forgotten."""

    async def post(self, subscription: Subscription, headers: Headers, body: bytes) -> Answer:
        if ("X-Webhook-Attempt", "1") not in headers:
            subscription.url = subscription.url.partition("?")[0]
        return await super().post(subscription, headers, body)


@_mutant("HTTP-15", says="Content-Type")
class RetriesWithoutType(Sender):
    """What waits for another try is bytes, and nobody knows any more of what type."""

    def headers(self, subscription: Subscription, message: Message, body: bytes) -> Headers:
        kind = "application/json" if message.attempt == 1 else "application/octet-stream"
        return _with(super().headers(subscription, message, body), "Content-Type", kind)


# --- bodies, and who gets them ----------------------------------------------------------------------------


@_mutant("BODY-01", "BODY-02")
class LengthInCharacters(_PlainWire):
    """Content-Length counts characters, and the body has bytes."""

    def request(self, subscription: Subscription, headers: Headers, body: bytes) -> bytes:
        made = super().request(subscription, headers, body)
        length = len(body.decode())
        return made.replace(b"Content-Length: %d" % len(body), b"Content-Length: %d" % length, 1)

    async def read(self, reader: asyncio.StreamReader) -> tuple[Answer, bool]:
        return (await super().read(reader))[0], False


@_mutant("ROUTE-01", says="another type")
class MatchesBeginnings(Sender):
    """Who wants `order.paid` gets `order.paid_back` and `order.paid.late`, too."""

    async def publish(self, event: str, payload: str) -> dict[str, Any]:
        for subscription in list(self.subscriptions.values()):
            if subscription.event and event.startswith(subscription.event):
                self.start(subscription, Message(event=event, body=base64.b64decode(payload)))
        return {}


# --- id and time ------------------------------------------------------------------------------------------


@_mutant("ID-06", says="another id")
class NewIdWhenEnabled(Sender):
    """What was held back is published anew when the subscription is enabled."""

    async def enable(self, subscription: str) -> dict[str, Any]:
        for message in self.subscriptions[subscription].held:
            message.id = f"msg_{uuid.uuid4().hex}"
        return await super().enable(subscription)


@_mutant("TIME-04", says="have the same")
class LastTimeTwice(Sender):
    """The last try has the time of the one before, and is well signed with it."""

    def __init__(self) -> None:
        super().__init__()
        self.times: dict[str, str] = {}
        self.now = ""

    def headers(self, subscription: Subscription, message: Message, body: bytes) -> Headers:
        if message.attempt < 4:
            self.times[message.id] = super().timestamp()
        self.now = self.times[message.id]
        return super().headers(subscription, message, body)

    def timestamp(self) -> str:
        return self.now


# --- signatures -------------------------------------------------------------------------------------------


@_mutant("SIGN-01", "SIGN-02", "SIGN-06", says="does not begin with")
class LabelInCapitals(_Signing):
    """The label of a signature is in capitals: SHA256=."""

    def signed(self, name: str, value: str, secrets: list[str], message: Message, timestamp: str, body: bytes) -> str:
        label, equals, digits = value.rpartition("=")
        return label.upper() + equals + digits


@_mutant("SIGN-03")
class UrlSafeBase64(_Signing):
    """The signature is in the base64 of URLs."""

    def signed(self, name: str, value: str, secrets: list[str], message: Message, timestamp: str, body: bytes) -> str:
        return value.replace("+", "-").replace("/", "_")


@_mutant("SIGN-03")
class Unpadded(_Signing):
    """The signature lacks the padding of base64."""

    def signed(self, name: str, value: str, secrets: list[str], message: Message, timestamp: str, body: bytes) -> str:
        return value.rstrip("=")


@_mutant("SIGN-01", "SIGN-02", "SIGN-03", "SIGN-05", "SIGN-06")
class SignsIndented(Sender):
    """What is signed is the payload as it is printed for people."""

    def signature(self, scheme: str, secrets: list[str], message: Message, timestamp: str, body: bytes) -> Headers:
        printed = json.dumps(json.loads(body), indent=2).encode()
        return super().signature(scheme, secrets, message, timestamp, printed)


@_mutant("SIGN-01", "SIGN-02", "SIGN-03", "SIGN-05", "SIGN-06", says="no signature matches")
class LatestSecretOnRetry(Sender):
    """A retry is signed with the secret of whoever subscribed last."""

    def headers(self, subscription: Subscription, message: Message, body: bytes) -> Headers:
        if message.attempt == 1:
            return super().headers(subscription, message, body)
        latest = list(self.subscriptions.values())[-1]
        borrowed = Subscription(url=subscription.url, secret=latest.secret, schemes=subscription.schemes)
        return super().headers(borrowed, message, body)


@_mutant("SIGN-29", says="at the same time")
class CreatedOnce(Complete):
    """By RFC 9421 a message is signed once, for all attempts to come."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[str, Headers] = {}

    def message_signature(self, scheme: str, subscription: Subscription, message: Message, body: bytes) -> Headers:
        return self.made.setdefault(message.id, super().message_signature(scheme, subscription, message, body))


# --- retries ----------------------------------------------------------------------------------------------


@_mutant("RETRY-04")
class ChanceAtFirstOnly(Sender):
    """Only the first distance is spread by chance."""

    def wait(self, subscription: Subscription, message: Message, answer: Answer) -> float | None:
        if message.attempt > len(subscription.schedule):
            return None
        chance = random.uniform(0.8, 1.2) if message.attempt == 1 else 1.0
        return subscription.schedule[message.attempt - 1] * chance


@_mutant("RETRY-12", says="it was sent again after")
class RetryAfterInMilliseconds(Sender):
    """Retry-After is taken for milliseconds."""

    def retry_after(self, answer: Answer) -> float:
        text = answer.headers.get("Retry-After", "")
        return float(text) / 1000 if text.isdigit() else super().retry_after(answer)


@_mutant("RETRY-12", says="it was sent again after")
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


@_mutant("RETRY-13", says="it was sent again after")
class DatesOfTheEast(_LocalDates):
    """A date of GMT is read as one of Berlin: it has passed already."""

    east = 3600


@_mutant("RETRY-13", says="it was not sent again")
class DatesOfTheWest(_LocalDates):
    """A date of GMT is read as one of New York: it is hours away."""

    east = -18_000


@_mutant("RETRY-16")
class TornIsBroken(_PlainWire):
    """An answer is read to the end of its connection, and a reset there makes it a failure."""

    async def read(self, reader: asyncio.StreamReader) -> tuple[Answer, bool]:
        found = await super().read(reader)
        async with asyncio.timeout(1.0):
            await reader.read()
        return found


@_mutant("RETRY-17")
class ImpatientWorker(Sender):
    """A worker that hears nothing for a second is taken for dead, and another sends the message, too."""

    async def post(self, subscription: Subscription, headers: Headers, body: bytes) -> Answer:
        first = asyncio.create_task(super().post(subscription, headers, body))
        await asyncio.wait([first], timeout=1.0)
        if not first.done():
            await super().post(subscription, headers, body)
        return await first


@_mutant("RETRY-18")
class PausesForAll(Sender):
    """Retry-After of one endpoint has all others wait, too."""

    until = 0.0

    def wait(self, subscription: Subscription, message: Message, answer: Answer) -> float | None:
        self.until = time.monotonic() + self.retry_after(answer)
        return super().wait(subscription, message, answer)

    async def post(self, subscription: Subscription, headers: Headers, body: bytes) -> Answer:
        await asyncio.sleep(max(0.0, self.until - time.monotonic()))
        return await super().post(subscription, headers, body)


@_mutant("LIMIT-11", says="drip")
class ForgetsLateTries(Sender):
    """A try that runs into its deadline is not counted, so that there is always one more."""

    def wait(self, subscription: Subscription, message: Message, answer: Answer) -> float | None:
        wait = super().wait(subscription, message, answer)
        if answer.status is None:
            message.attempt -= 1
        return wait


if __name__ == "__main__":
    asyncio.run(serve(MUTANTS[sys.argv[1]].make()))
