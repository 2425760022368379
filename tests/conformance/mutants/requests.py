"""Senders whose requests are not what HTTP or their receivers ask for."""

from __future__ import annotations

import asyncio
import base64
import re
from typing import Any
from urllib.parse import urlsplit

import httpx

from examples.other_sender.sender import Answer, Message, Sender, Subscription
from tests.conformance.good_senders import Headers
from tests.conformance.mutants.bases import OtherHeader, PlainWire, with_header
from tests.conformance.mutants.registry import mutant


@mutant("HTTP-01")
class Gets(PlainWire):
    """It sends GET instead of POST."""

    def request(self, subscription: Subscription, headers: Headers, body: bytes) -> bytes:
        return super().request(subscription, headers, body).replace(b"POST", b"GET", 1)


@mutant("HTTP-01")
class Puts(PlainWire):
    """It sends PUT instead of POST."""

    def request(self, subscription: Subscription, headers: Headers, body: bytes) -> bytes:
        return super().request(subscription, headers, body).replace(b"POST", b"PUT", 1)


@mutant("HTTP-02")
class HostWithoutPort(PlainWire):
    """The Host header lacks the port."""

    def request(self, subscription: Subscription, headers: Headers, body: bytes) -> bytes:
        return re.sub(rb"(Host: [^:\r]+):[0-9]+", rb"\1", super().request(subscription, headers, body), count=1)


@mutant("HTTP-03")
class LengthTooLarge(PlainWire):
    """Each second Content-Length is ten more than the body has, and then the connection ends."""

    count = 0

    async def post(self, subscription: Subscription, headers: Headers, body: bytes) -> Answer:
        self.count += 1
        return await super().post(subscription, headers, body)

    def request(self, subscription: Subscription, headers: Headers, body: bytes) -> bytes:
        made = super().request(subscription, headers, body)
        if self.count % 2:
            return made
        length = b"Content-Length: %d" % len(body)
        return made.replace(length, b"Content-Length: %d" % (len(body) + 10))

    async def read(self, reader: asyncio.StreamReader) -> tuple[Answer, bool]:
        if self.count % 2:
            return await super().read(reader)
        await asyncio.sleep(0.05)
        raise EOFError

    def wait(self, subscription: Subscription, message: Message, answer: Answer) -> float | None:
        return 0.2


@mutant("HTTP-04")
class NoContentType(OtherHeader):
    """There is no Content-Type."""

    header = "Content-Type"


@mutant("HTTP-04")
class PlainText(OtherHeader):
    """The Content-Type is text/plain."""

    header, value = "Content-Type", "text/plain; charset=utf-8"


@mutant("HTTP-05")
class LibraryAgent(OtherHeader):
    """The User-Agent is the library's."""

    header, value = "User-Agent", "python-httpx/0.28.1"


@mutant("HTTP-05")
class NoAgent(PlainWire, OtherHeader):
    """There is no User-Agent."""

    header = "User-Agent"


@mutant("HTTP-06")
class DropsQuery(PlainWire):
    """The query is left out."""

    def request(self, subscription: Subscription, headers: Headers, body: bytes) -> bytes:
        return re.sub(rb"\?[^ ]*", b"", super().request(subscription, headers, body), count=1)


@mutant("HTTP-06")
class DecodesEscapes(PlainWire):
    """%2F in the path becomes a slash."""

    def request(self, subscription: Subscription, headers: Headers, body: bytes) -> bytes:
        return super().request(subscription, headers, body).replace(b"%2F", b"/", 1)


@mutant("HTTP-06")
class LowersEscapes(PlainWire):
    """The escapes are written anew, in lower case."""

    def request(self, subscription: Subscription, headers: Headers, body: bytes) -> bytes:
        return super().request(subscription, headers, body).replace(b"%C3%A9", b"%c3%a9", 1)


@mutant("HTTP-06")
class SortsQuery(PlainWire):
    """The parameters of the query become a dictionary: those that are named twice are lost."""

    def request(self, subscription: Subscription, headers: Headers, body: bytes) -> bytes:
        return super().request(subscription, headers, body).replace(b"?x=1&", b"?", 1)


@mutant("HTTP-07")
class Refers(Sender):
    """The URL stands in a Referer header."""

    def headers(self, subscription: Subscription, message: Message, body: bytes) -> Headers:
        return [*super().headers(subscription, message, body), ("Referer", subscription.url)]


@mutant("HTTP-07")
class TokenInAgent(Sender):
    """The User-Agent names the URL."""

    def headers(self, subscription: Subscription, message: Message, body: bytes) -> Headers:
        return with_header(super().headers(subscription, message, body), "User-Agent", f"other/1 ({subscription.url})")


@mutant("HTTP-07", says="X-Original-Url")
class TokenInHeader(Sender):
    """A header of its own names the URL."""

    def headers(self, subscription: Subscription, message: Message, body: bytes) -> Headers:
        return [*super().headers(subscription, message, body), ("X-Original-Url", subscription.url)]


@mutant("HTTP-08")
class KeepsCookies(Sender):
    """Cookies are kept and sent back."""

    async def hello(self, authority: str | None, **others: Any) -> dict[str, Any]:
        said = await super().hello(authority, **others)
        self.client.cookies = httpx.Cookies()
        return said


@mutant("HTTP-09")
class TypeTwice(Sender):
    """Content-Type is there twice."""

    def headers(self, subscription: Subscription, message: Message, body: bytes) -> Headers:
        return [*super().headers(subscription, message, body), ("Content-Type", "application/json")]


@mutant("HTTP-09")
class IdTwice(Sender):
    """webhook-id is there twice."""

    def headers(self, subscription: Subscription, message: Message, body: bytes) -> Headers:
        return [*super().headers(subscription, message, body), ("webhook-id", message.id)]


class _TakesAnyEvent(PlainWire):
    """Takes any text for an event type, sends to whoever wants its first line, and names it in a header."""

    async def publish(self, event: str, payload: str) -> dict[str, Any]:
        for subscription in list(self.subscriptions.values()):
            if event.startswith(subscription.event):
                self.start(subscription, Message(event=event, body=base64.b64decode(payload)))
        return {}

    def headers(self, subscription: Subscription, message: Message, body: bytes) -> Headers:
        return [*super().headers(subscription, message, body), ("X-Event", self.named(message.event))]

    def named(self, event: str) -> str:
        """The event type as it stands in the header."""
        return event


@mutant("HTTP-10")
class InjectsLines(_TakesAnyEvent):
    """An event type with CR and LF becomes two headers."""

    def named(self, event: str) -> str:
        return event if "\r\n" in event else event.split(maxsplit=1)[0].rstrip("\0")


@mutant("HTTP-10")
class InjectsBareLines(_TakesAnyEvent):
    """CR LF is taken out of an event type, a bare LF is not."""

    def named(self, event: str) -> str:
        return event.replace("\r\n", "").replace("\r", "").replace("\0", "")


@mutant("HTTP-10")
class InjectsIfSubscribed(_TakesAnyEvent):
    """An event type with line breaks becomes two headers, for whoever subscribed to exactly that type."""

    async def publish(self, event: str, payload: str) -> dict[str, Any]:
        for subscription in list(self.subscriptions.values()):
            if event == subscription.event:
                self.start(subscription, Message(event=event, body=base64.b64decode(payload)))
        return {}


@mutant("HTTP-11")
class InvitesGzip(OtherHeader):
    """Answers are asked for in compressed form."""

    header, value = "Accept-Encoding", "gzip, deflate"


@mutant("HTTP-12")
class ConnectionEach(Sender):
    """Each message has a connection of its own (the example itself, which means it)."""


@mutant("HTTP-13")
class Authorizes(OtherHeader):
    """A token of the sender's own goes to every endpoint."""

    header, value = "Authorization", "Bearer of-the-sender"


@mutant("HTTP-13")
class ProxyAuthorizes(OtherHeader):
    """What is for the proxy goes to the endpoint."""

    header, value = "Proxy-Authorization", "Basic c2VuZGVyOnByb3h5"


@mutant("HTTP-01", says="it is a GET")
class ProbesFirst(PlainWire):
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


@mutant("HTTP-06", says="other bytes")
class AbsoluteTargets(PlainWire):
    """The request line has the whole URL, as if the endpoint were a proxy."""

    def request(self, subscription: Subscription, headers: Headers, body: bytes) -> bytes:
        origin = "http://" + urlsplit(subscription.url).netloc
        return super().request(subscription, headers, body).replace(b"POST /", f"POST {origin}/".encode(), 1)


@mutant("HTTP-14", says="refused")
class FoldsLines(PlainWire):
    """A long header goes on in the next line, as in mail."""

    def request(self, subscription: Subscription, headers: Headers, body: bytes) -> bytes:
        return super().request(subscription, headers, body).replace(b"webhook-signature: ", b"webhook-signature:\r\n ")


@mutant("HTTP-14", says="refused")
class LineFeedInSignature(PlainWire):
    """The base64 is that of mail, with a line feed at its end."""

    def signature(self, scheme: str, secrets: list[str], message: Message, timestamp: str, body: bytes) -> Headers:
        return [(name, value + "\n") for name, value in super().signature(scheme, secrets, message, timestamp, body)]


@mutant("HTTP-14", says="refused")
class TwoFramings(PlainWire):
    """The body comes in chunks, and its length is stated, too."""

    is_chunked = True

    def request(self, subscription: Subscription, headers: Headers, body: bytes) -> bytes:
        made = super().request(subscription, headers, body)
        return made.replace(b"Transfer-Encoding:", b"Content-Length: %d\r\nTransfer-Encoding:" % len(body), 1)


@mutant("HTTP-15", says="the target of")
class RetriesWithoutQuery(Sender):
    """What waits for another try has its URL in two columns, and the query was forgotten."""

    async def post(self, subscription: Subscription, headers: Headers, body: bytes) -> Answer:
        if ("X-Webhook-Attempt", "1") not in headers:
            subscription.url = subscription.url.partition("?")[0]
        return await super().post(subscription, headers, body)


@mutant("HTTP-15", says="Content-Type")
class RetriesWithoutType(Sender):
    """What waits for another try is bytes, and nobody knows any more of what type."""

    def headers(self, subscription: Subscription, message: Message, body: bytes) -> Headers:
        kind = "application/json" if message.attempt == 1 else "application/octet-stream"
        return with_header(super().headers(subscription, message, body), "Content-Type", kind)
