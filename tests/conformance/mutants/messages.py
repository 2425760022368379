"""Senders that spoil a message: its body, whom it goes to, its id, its time."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import time
import uuid
from typing import Any

from examples.other_sender.sender import Answer, Message, Sender, Subscription
from tests.conformance.good_senders import Headers, OddNames
from tests.conformance.mutants.bases import OtherHeader, PlainWire, rewritten, with_header
from tests.conformance.mutants.registry import mutant

# --- the body -------------------------------------------------------------------------------------------


@mutant("BODY-01")
class Latin(Sender):
    """The body is in Latin-1."""

    def body(self, message: Message) -> bytes:
        return message.body.decode().encode("latin-1", "replace")


@mutant("BODY-01")
class ByteOrderMark(Sender):
    """The body begins with a byte order mark."""

    def body(self, message: Message) -> bytes:
        return b"\xef\xbb\xbf" + message.body


@mutant("BODY-02")
class Rewrites(Sender):
    """The payload is parsed and written anew."""

    def body(self, message: Message) -> bytes:
        return rewritten(message.body)


@mutant("BODY-02")
class Quotes(Sender):
    """The payload is a string of JSON within an envelope."""

    def body(self, message: Message) -> bytes:
        return json.dumps({"data": message.body.decode()}).encode()


@mutant("BODY-03")
class CountsInBody(Sender):
    """The number of the attempt stands in the body."""

    def body(self, message: Message) -> bytes:
        return b'{"attempt":%d,"data":%s}' % (message.attempt, message.body)


@mutant("BODY-03")
class TrimsOnRetry(Sender):
    """Retries come from a database, which has the payload without its spaces."""

    def body(self, message: Message) -> bytes:
        return message.body if message.attempt < 3 else message.body.replace(b" ", b"")


@mutant("BODY-04")
class RewritesCallbacks(Sender):
    """A callback's payload is parsed and written anew."""

    def body(self, message: Message) -> bytes:
        return rewritten(message.body) if message.event == "answer" else message.body


@mutant("BODY-01", "BODY-02")
class LengthInCharacters(PlainWire):
    """Content-Length counts characters, and the body has bytes."""

    def request(self, subscription: Subscription, headers: Headers, body: bytes) -> bytes:
        made = super().request(subscription, headers, body)
        length = len(body.decode())
        return made.replace(b"Content-Length: %d" % len(body), b"Content-Length: %d" % length, 1)

    async def read(self, reader: asyncio.StreamReader) -> tuple[Answer, bool]:
        return (await super().read(reader))[0], False


# --- who gets it ----------------------------------------------------------------------------------------


@mutant("ROUTE-01", says="another type")
class MatchesBeginnings(Sender):
    """Who wants `order.paid` gets `order.paid_back` and `order.paid.late`, too."""

    async def publish(self, event: str, payload: str) -> dict[str, Any]:
        for subscription in list(self.subscriptions.values()):
            if subscription.event and event.startswith(subscription.event):
                self.start(subscription, Message(event=event, body=base64.b64decode(payload)))
        return {}


# --- its id ---------------------------------------------------------------------------------------------


@mutant("ID-01")
class NoId(OtherHeader):
    """There is no id."""

    header = "webhook-id"


@mutant("ID-02")
class IdPerAttempt(Sender):
    """A retry has another id."""

    def headers(self, subscription: Subscription, message: Message, body: bytes) -> Headers:
        if message.attempt > 1:
            message.id = f"{message.id.partition('-')[0]}-{message.attempt}"
        return super().headers(subscription, message, body)


@mutant("ID-02")
class IdOnLastRetry(Sender):
    """Messages that wait for long are written anew, and get another id."""

    def headers(self, subscription: Subscription, message: Message, body: bytes) -> Headers:
        if message.attempt == 4:
            message.id += "-requeued"
        return super().headers(subscription, message, body)


@mutant("ID-03")
class IdOfBody(Sender):
    """The id is the body's digest: the same payload, the same id."""

    def headers(self, subscription: Subscription, message: Message, body: bytes) -> Headers:
        message.id = hashlib.sha256(message.body).hexdigest()
        return super().headers(subscription, message, body)


@mutant("ID-03")
class IdOfSecond(Sender):
    """The id is the second in which the message was made."""

    def start(self, subscription: Subscription, message: Message) -> None:
        message.id = f"msg_{int(time.time())}"
        super().start(subscription, message)


@mutant("ID-04")
class IdWithStop(Sender):
    """There is a full stop in the id."""

    def start(self, subscription: Subscription, message: Message) -> None:
        message.id = message.id.replace("_", ".")
        super().start(subscription, message)


@mutant("ID-04")
class LongId(Sender):
    """The id is longer than what a column of a database usually holds."""

    def start(self, subscription: Subscription, message: Message) -> None:
        message.id = message.id.ljust(256, "0")
        super().start(subscription, message)


@mutant("ID-05")
class CountsFromZero(Sender):
    """Attempts are numbered from 0."""

    def headers(self, subscription: Subscription, message: Message, body: bytes) -> Headers:
        return with_header(super().headers(subscription, message, body), "X-Webhook-Attempt", str(message.attempt - 1))


@mutant("ID-02", says="came with several")
class OddIdPerAttempt(OddNames):
    """The id stands in a header of its own, and a retry has another."""

    def headers(self, subscription: Subscription, message: Message, body: bytes) -> Headers:
        if message.attempt > 1:
            message.id = f"{message.id.partition('-')[0]}-{message.attempt}"
        return super().headers(subscription, message, body)


@mutant("ID-01", says="none of Odd-Message")
class OddNameOnly(OddNames):
    """It says what its id's header is called, and sends none."""

    def headers(self, subscription: Subscription, message: Message, body: bytes) -> Headers:
        return with_header(super().headers(subscription, message, body), "Odd-Message", None)


@mutant("ID-06", says="another id")
class NewIdWhenEnabled(Sender):
    """What was held back is published anew when the subscription is enabled."""

    async def enable(self, subscription: str) -> dict[str, Any]:
        for message in self.subscriptions[subscription].held:
            message.id = f"msg_{uuid.uuid4().hex}"
        return await super().enable(subscription)


# --- its time -------------------------------------------------------------------------------------------


@mutant("TIME-01", says="s off")
class Milliseconds(Sender):
    """The timestamp is in milliseconds."""

    def timestamp(self) -> str:
        return str(int(time.time() * 1000))


@mutant("TIME-01")
class Fractions(Sender):
    """The timestamp has a fraction."""

    def timestamp(self) -> str:
        return f"{time.time():.3f}"


@mutant("TIME-01", says="s off")
class LocalTime(Sender):
    """The timestamp is of another time zone."""

    def timestamp(self) -> str:
        return str(int(time.time()) + 3600)


@mutant("TIME-01")
class IsoTime(Sender):
    """The timestamp is a date."""

    def timestamp(self) -> str:
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


@mutant("TIME-02", "TIME-04")
class FrozenTime(Sender):
    """The timestamp is that of the first attempt, for ever."""

    def __init__(self) -> None:
        super().__init__()
        self.times: dict[str, str] = {}
        self.now = ""

    def headers(self, subscription: Subscription, message: Message, body: bytes) -> Headers:
        self.now = self.times.setdefault(message.id, super().timestamp())
        return super().headers(subscription, message, body)

    def timestamp(self) -> str:
        return self.now


@mutant("TIME-04", says="have the same")
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
