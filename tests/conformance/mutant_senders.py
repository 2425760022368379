"""Senders with one fault each, and the checks that are there to find it.

Each is a good sender but for what its docstring says. tests.conformance.more_mutants adds to them, and runs them.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import ipaddress
import json
import random
import re
import socket
import ssl
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from examples.other_sender.sender import Answer, Message, Sender, Subscription, hexadecimal, standard
from tests.conformance.good_senders import Background, Complete, Headers, OddNames, OtherLabel, Shaking, Strict, Wire


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """A bad sender."""

    name: str
    #: a sentence: what it does wrong
    fault: str
    #: each of them has to fail
    checks: tuple[str, ...]
    make: type[Sender]
    #: what the checks say then; where it is empty, anything but that nothing came
    says: str = ""

    @property
    def turn(self) -> int:
        """When it is best examined: floods first, then what the kit waits for."""
        groups = {check.partition("-")[0] for check in self.checks}
        if "LIMIT" in groups or "RETRY-05" in self.checks:
            return 0
        return 1 if groups & {"RETRY", "HEALTH", "REDIR", "ROT", "TLS", "EGRESS"} else 2

    @property
    def is_known_by_distances(self) -> bool:
        """Whether nothing tells it from a good one but how long it waits."""
        return bool({"RETRY-03", "RETRY-04"} & set(self.checks))


MUTANTS: dict[str, Mutant] = {}

_Made = TypeVar("_Made", bound=Sender)


def _mutant(*checks: str, says: str = "") -> Callable[[type[_Made]], type[_Made]]:
    def register(made: type[_Made]) -> type[_Made]:
        name = re.sub(r"(?<!^)(?=[A-Z])", "-", made.__name__).lower()
        assert name not in MUTANTS
        fault = (made.__doc__ or "").strip()
        MUTANTS[name] = Mutant(name=name, fault=fault, checks=checks, make=made, says=says)
        return made

    return register


def _with(headers: Headers, name: str, value: str | None) -> Headers:
    """Headers with another value for one name, or without it."""
    kept = [one for one in headers if one[0].lower() != name.lower()]
    return kept if value is None else [*kept, (name, value)]


class _OtherHeader(Sender):
    """One header is another."""

    header = ""
    value: str | None = None

    def headers(self, subscription: Subscription, message: Message, body: bytes) -> Headers:
        return _with(super().headers(subscription, message, body), self.header, self.value)


class _PlainWire(Wire):
    """Writes HTTP itself, without chunks and with the names as they are."""

    is_chunked = False

    def spelt(self, name: str) -> str:
        return name


def _key(secret: str) -> bytes:
    """What Standard Webhooks signs with, and nobody else."""
    return base64.b64decode(secret.removeprefix("whsec_"))


def _hex(key: bytes, content: bytes, method: str = "sha256") -> str:
    return hmac.new(key, content, method).hexdigest()


def _rewritten(body: bytes) -> bytes:
    return json.dumps(json.loads(body)).encode()


# --- HTTP -------------------------------------------------------------------------------------------------


@_mutant("HTTP-01")
class Gets(_PlainWire):
    """It sends GET instead of POST."""

    def request(self, subscription: Subscription, headers: Headers, body: bytes) -> bytes:
        return super().request(subscription, headers, body).replace(b"POST", b"GET", 1)


@_mutant("HTTP-01")
class Puts(_PlainWire):
    """It sends PUT instead of POST."""

    def request(self, subscription: Subscription, headers: Headers, body: bytes) -> bytes:
        return super().request(subscription, headers, body).replace(b"POST", b"PUT", 1)


@_mutant("HTTP-02")
class HostWithoutPort(_PlainWire):
    """The Host header lacks the port."""

    def request(self, subscription: Subscription, headers: Headers, body: bytes) -> bytes:
        return re.sub(rb"(Host: [^:\r]+):[0-9]+", rb"\1", super().request(subscription, headers, body), count=1)


@_mutant("HTTP-03")
class LengthTooLarge(_PlainWire):
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


@_mutant("HTTP-04")
class NoContentType(_OtherHeader):
    """There is no Content-Type."""

    header = "Content-Type"


@_mutant("HTTP-04")
class PlainText(_OtherHeader):
    """The Content-Type is text/plain."""

    header, value = "Content-Type", "text/plain; charset=utf-8"


@_mutant("HTTP-05")
class LibraryAgent(_OtherHeader):
    """The User-Agent is the library's."""

    header, value = "User-Agent", "python-httpx/0.28.1"


@_mutant("HTTP-05")
class NoAgent(_PlainWire, _OtherHeader):
    """There is no User-Agent."""

    header = "User-Agent"


@_mutant("HTTP-06")
class DropsQuery(_PlainWire):
    """The query is left out."""

    def request(self, subscription: Subscription, headers: Headers, body: bytes) -> bytes:
        return re.sub(rb"\?[^ ]*", b"", super().request(subscription, headers, body), count=1)


@_mutant("HTTP-06")
class DecodesEscapes(_PlainWire):
    """%2F in the path becomes a slash."""

    def request(self, subscription: Subscription, headers: Headers, body: bytes) -> bytes:
        return super().request(subscription, headers, body).replace(b"%2F", b"/", 1)


@_mutant("HTTP-06")
class LowersEscapes(_PlainWire):
    """The escapes are written anew, in lower case."""

    def request(self, subscription: Subscription, headers: Headers, body: bytes) -> bytes:
        return super().request(subscription, headers, body).replace(b"%C3%A9", b"%c3%a9", 1)


@_mutant("HTTP-06")
class SortsQuery(_PlainWire):
    """The parameters of the query become a dictionary: those that are named twice are lost."""

    def request(self, subscription: Subscription, headers: Headers, body: bytes) -> bytes:
        return super().request(subscription, headers, body).replace(b"?x=1&", b"?", 1)


@_mutant("HTTP-07")
class Refers(Sender):
    """The URL stands in a Referer header."""

    def headers(self, subscription: Subscription, message: Message, body: bytes) -> Headers:
        return [*super().headers(subscription, message, body), ("Referer", subscription.url)]


@_mutant("HTTP-07")
class TokenInAgent(Sender):
    """The User-Agent names the URL."""

    def headers(self, subscription: Subscription, message: Message, body: bytes) -> Headers:
        return _with(super().headers(subscription, message, body), "User-Agent", f"other/1 ({subscription.url})")


@_mutant("HTTP-07", says="X-Original-Url")
class TokenInHeader(Sender):
    """A header of its own names the URL."""

    def headers(self, subscription: Subscription, message: Message, body: bytes) -> Headers:
        return [*super().headers(subscription, message, body), ("X-Original-Url", subscription.url)]


@_mutant("HTTP-08")
class KeepsCookies(Sender):
    """Cookies are kept and sent back."""

    async def hello(self, authority: str | None, **others: Any) -> dict[str, Any]:
        said = await super().hello(authority, **others)
        self.client.cookies = httpx.Cookies()
        return said


@_mutant("HTTP-09")
class TypeTwice(Sender):
    """Content-Type is there twice."""

    def headers(self, subscription: Subscription, message: Message, body: bytes) -> Headers:
        return [*super().headers(subscription, message, body), ("Content-Type", "application/json")]


@_mutant("HTTP-09")
class IdTwice(Sender):
    """webhook-id is there twice."""

    def headers(self, subscription: Subscription, message: Message, body: bytes) -> Headers:
        return [*super().headers(subscription, message, body), ("webhook-id", message.id)]


class _TakesAnyEvent(_PlainWire):
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


@_mutant("HTTP-10")
class InjectsLines(_TakesAnyEvent):
    """An event type with CR and LF becomes two headers."""

    def named(self, event: str) -> str:
        return event if "\r\n" in event else event.split(maxsplit=1)[0].rstrip("\0")


@_mutant("HTTP-10")
class InjectsBareLines(_TakesAnyEvent):
    """CR LF is taken out of an event type, a bare LF is not."""

    def named(self, event: str) -> str:
        return event.replace("\r\n", "").replace("\r", "").replace("\0", "")


@_mutant("HTTP-10")
class InjectsIfSubscribed(_TakesAnyEvent):
    """An event type with line breaks becomes two headers, for whoever subscribed to exactly that type."""

    async def publish(self, event: str, payload: str) -> dict[str, Any]:
        for subscription in list(self.subscriptions.values()):
            if event == subscription.event:
                self.start(subscription, Message(event=event, body=base64.b64decode(payload)))
        return {}


@_mutant("HTTP-11")
class InvitesGzip(_OtherHeader):
    """Answers are asked for in compressed form."""

    header, value = "Accept-Encoding", "gzip, deflate"


@_mutant("HTTP-12")
class ConnectionEach(Sender):
    """Each message has a connection of its own (the example itself, which means it)."""


@_mutant("HTTP-13")
class Authorizes(_OtherHeader):
    """A token of the sender's own goes to every endpoint."""

    header, value = "Authorization", "Bearer of-the-sender"


@_mutant("HTTP-13")
class ProxyAuthorizes(_OtherHeader):
    """What is for the proxy goes to the endpoint."""

    header, value = "Proxy-Authorization", "Basic c2VuZGVyOnByb3h5"


# --- the body ---------------------------------------------------------------------------------------------


@_mutant("BODY-01")
class Latin(Sender):
    """The body is in Latin-1."""

    def body(self, message: Message) -> bytes:
        return message.body.decode().encode("latin-1", "replace")


@_mutant("BODY-01")
class ByteOrderMark(Sender):
    """The body begins with a byte order mark."""

    def body(self, message: Message) -> bytes:
        return b"\xef\xbb\xbf" + message.body


@_mutant("BODY-02")
class Rewrites(Sender):
    """The payload is parsed and written anew."""

    def body(self, message: Message) -> bytes:
        return _rewritten(message.body)


@_mutant("BODY-02")
class Quotes(Sender):
    """The payload is a string of JSON within an envelope."""

    def body(self, message: Message) -> bytes:
        return json.dumps({"data": message.body.decode()}).encode()


@_mutant("BODY-03")
class CountsInBody(Sender):
    """The number of the attempt stands in the body."""

    def body(self, message: Message) -> bytes:
        return b'{"attempt":%d,"data":%s}' % (message.attempt, message.body)


@_mutant("BODY-03")
class TrimsOnRetry(Sender):
    """Retries come from a database, which has the payload without its spaces."""

    def body(self, message: Message) -> bytes:
        return message.body if message.attempt < 3 else message.body.replace(b" ", b"")


@_mutant("BODY-04")
class RewritesCallbacks(Sender):
    """A callback's payload is parsed and written anew."""

    def body(self, message: Message) -> bytes:
        return _rewritten(message.body) if message.event == "answer" else message.body


# --- identity ---------------------------------------------------------------------------------------------


@_mutant("ID-01")
class NoId(_OtherHeader):
    """There is no id."""

    header = "webhook-id"


@_mutant("ID-02")
class IdPerAttempt(Sender):
    """A retry has another id."""

    def headers(self, subscription: Subscription, message: Message, body: bytes) -> Headers:
        if message.attempt > 1:
            message.id = f"{message.id.partition('-')[0]}-{message.attempt}"
        return super().headers(subscription, message, body)


@_mutant("ID-02")
class IdOnLastRetry(Sender):
    """Messages that wait for long are written anew, and get another id."""

    def headers(self, subscription: Subscription, message: Message, body: bytes) -> Headers:
        if message.attempt == 4:
            message.id += "-requeued"
        return super().headers(subscription, message, body)


@_mutant("ID-03")
class IdOfBody(Sender):
    """The id is the body's digest: the same payload, the same id."""

    def headers(self, subscription: Subscription, message: Message, body: bytes) -> Headers:
        message.id = hashlib.sha256(message.body).hexdigest()
        return super().headers(subscription, message, body)


@_mutant("ID-03")
class IdOfSecond(Sender):
    """The id is the second in which the message was made."""

    def start(self, subscription: Subscription, message: Message) -> None:
        message.id = f"msg_{int(time.time())}"
        super().start(subscription, message)


@_mutant("ID-04")
class IdWithStop(Sender):
    """There is a full stop in the id."""

    def start(self, subscription: Subscription, message: Message) -> None:
        message.id = message.id.replace("_", ".")
        super().start(subscription, message)


@_mutant("ID-04")
class LongId(Sender):
    """The id is longer than what a column of a database usually holds."""

    def start(self, subscription: Subscription, message: Message) -> None:
        message.id = message.id.ljust(256, "0")
        super().start(subscription, message)


@_mutant("ID-05")
class CountsFromZero(Sender):
    """Attempts are numbered from 0."""

    def headers(self, subscription: Subscription, message: Message, body: bytes) -> Headers:
        return _with(super().headers(subscription, message, body), "X-Webhook-Attempt", str(message.attempt - 1))


@_mutant("ID-02", says="came with several")
class OddIdPerAttempt(OddNames):
    """The id stands in a header of its own, and a retry has another."""

    def headers(self, subscription: Subscription, message: Message, body: bytes) -> Headers:
        if message.attempt > 1:
            message.id = f"{message.id.partition('-')[0]}-{message.attempt}"
        return super().headers(subscription, message, body)


@_mutant("ID-01", says="none of Odd-Message")
class OddNameOnly(OddNames):
    """It says what its id's header is called, and sends none."""

    def headers(self, subscription: Subscription, message: Message, body: bytes) -> Headers:
        return _with(super().headers(subscription, message, body), "Odd-Message", None)


# --- time -------------------------------------------------------------------------------------------------


@_mutant("TIME-01", says="s off")
class Milliseconds(Sender):
    """The timestamp is in milliseconds."""

    def timestamp(self) -> str:
        return str(int(time.time() * 1000))


@_mutant("TIME-01")
class Fractions(Sender):
    """The timestamp has a fraction."""

    def timestamp(self) -> str:
        return f"{time.time():.3f}"


@_mutant("TIME-01", says="s off")
class LocalTime(Sender):
    """The timestamp is of another time zone."""

    def timestamp(self) -> str:
        return str(int(time.time()) + 3600)


@_mutant("TIME-01")
class IsoTime(Sender):
    """The timestamp is a date."""

    def timestamp(self) -> str:
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


@_mutant("TIME-02", "TIME-04")
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


@_mutant("TIME-03", "SIGN-03")
class TimeNotSigned(Sender):
    """The timestamp is not part of what is signed."""

    def signature(self, scheme: str, secrets: list[str], message: Message, timestamp: str, body: bytes) -> Headers:
        return [("webhook-signature", standard(secrets[0], f"{message.id}.".encode() + body))]


# --- signatures -------------------------------------------------------------------------------------------


class _Signing(Sender):
    """Each scheme's signature is another."""

    def signature(self, scheme: str, secrets: list[str], message: Message, timestamp: str, body: bytes) -> Headers:
        return [
            (name, self.signed(name, value, secrets, message, timestamp, body))
            for name, value in super().signature(scheme, secrets, message, timestamp, body)
        ]

    def signed(self, name: str, value: str, secrets: list[str], message: Message, timestamp: str, body: bytes) -> str:
        """The value of a header instead of the good one."""
        return value


@_mutant("SIGN-01", "SIGN-02", "SIGN-05", "SIGN-06")
class DecodedKey(_Signing):
    """The schemes whose key is the secret's text are signed with the decoded secret."""

    def signed(self, name: str, value: str, secrets: list[str], message: Message, timestamp: str, body: bytes) -> str:
        return value.replace(hexadecimal(secrets[0], body), _hex(_key(secrets[0]), body))


@_mutant("SIGN-01", "SIGN-02", "SIGN-05", "SIGN-06")
class KeyWithoutPrefix(Sender):
    """The secret's prefix is no part of the key."""

    def secrets(self, subscription: Subscription) -> list[str]:
        return [secret.removeprefix("whsec_") for secret in super().secrets(subscription)]


@_mutant("SIGN-01", "SIGN-02", "SIGN-03", "SIGN-05", "SIGN-06")
class SignsRewritten(Sender):
    """What is signed is the payload parsed and written anew; what is sent is not."""

    def signature(self, scheme: str, secrets: list[str], message: Message, timestamp: str, body: bytes) -> Headers:
        return super().signature(scheme, secrets, message, timestamp, _rewritten(body))


@_mutant("SIGN-01", "SIGN-02", "SIGN-03", "SIGN-05", "SIGN-06")
class SignsFirstAttempt(Sender):
    """Only the first attempt is signed."""

    def signature(self, scheme: str, secrets: list[str], message: Message, timestamp: str, body: bytes) -> Headers:
        return [] if message.attempt > 1 else super().signature(scheme, secrets, message, timestamp, body)


@_mutant("SIGN-01", "SIGN-02", "SIGN-03", "SIGN-05", "SIGN-06")
class ConstantSecret(Sender):
    """All is signed with one secret of the sender's own."""

    def secrets(self, subscription: Subscription) -> list[str]:
        return ["whsec_" + base64.b64encode(b"of the sender, for everybody").decode()]


@_mutant("SIGN-01")
class Sha1ForWebsub(_Signing):
    """A scheme by SHA-256 is signed by SHA-1, under the name of SHA-256."""

    def signed(self, name: str, value: str, secrets: list[str], message: Message, timestamp: str, body: bytes) -> str:
        return "sha256=" + hexadecimal(secrets[0], body, "sha1")


@_mutant("SIGN-02")
class GithubSha1IsSha256(_Signing):
    """GitHub's older header says sha1, and is an HMAC-SHA256."""

    def signed(self, name: str, value: str, secrets: list[str], message: Message, timestamp: str, body: bytes) -> str:
        return "sha1=" + hexadecimal(secrets[0], body) if name == "X-Hub-Signature" else value


@_mutant("SIGN-02")
class GithubOldOnly(Sender):
    """GitHub's newer header is not there."""

    def signature(self, scheme: str, secrets: list[str], message: Message, timestamp: str, body: bytes) -> Headers:
        return super().signature(scheme, secrets, message, timestamp, body)[1:]


@_mutant("SIGN-02")
class GithubWithoutLabel(_Signing):
    """GitHub's headers lack `sha256=` and `sha1=`."""

    def signed(self, name: str, value: str, secrets: list[str], message: Message, timestamp: str, body: bytes) -> str:
        return value.partition("=")[2]


@_mutant("SIGN-03", "TIME-03")
class StandardTextKey(_Signing):
    """Standard Webhooks is signed by the secret's text."""

    def signed(self, name: str, value: str, secrets: list[str], message: Message, timestamp: str, body: bytes) -> str:
        return standard(base64.b64encode(secrets[0].encode()).decode(), f"{message.id}.{timestamp}.".encode() + body)


@_mutant("SIGN-03")
class StandardInHex(_Signing):
    """Standard Webhooks' signature is in hexadecimal instead of base64."""

    def signed(self, name: str, value: str, secrets: list[str], message: Message, timestamp: str, body: bytes) -> str:
        return "v1," + base64.b64decode(value.removeprefix("v1,")).hex()


@_mutant("SIGN-03")
class StandardWithoutVersion(_Signing):
    """Standard Webhooks' signature lacks `v1,`."""

    def signed(self, name: str, value: str, secrets: list[str], message: Message, timestamp: str, body: bytes) -> str:
        return value.removeprefix("v1,")


@_mutant("SIGN-03")
class StandardWithCommas(_Signing):
    """Standard Webhooks' signatures have a comma between them instead of a space, and there are always two."""

    def signed(self, name: str, value: str, secrets: list[str], message: Message, timestamp: str, body: bytes) -> str:
        return f"{value},{value}"


@_mutant("SIGN-03")
class IdNotSigned(_Signing):
    """The id is not part of what is signed."""

    def signed(self, name: str, value: str, secrets: list[str], message: Message, timestamp: str, body: bytes) -> str:
        return standard(secrets[0], f"{timestamp}.".encode() + body)


@_mutant("SIGN-03")
class BodyNotSigned(_Signing):
    """The body is not part of what is signed."""

    def signed(self, name: str, value: str, secrets: list[str], message: Message, timestamp: str, body: bytes) -> str:
        return standard(secrets[0], f"{message.id}.{timestamp}".encode())


@_mutant("SIGN-05")
class TimestampedWithTime(_Signing):
    """`timestamped` signs the time, too."""

    def signed(self, name: str, value: str, secrets: list[str], message: Message, timestamp: str, body: bytes) -> str:
        return value if value == timestamp else hexadecimal(secrets[0], f"{timestamp}.".encode() + body)


@_mutant("SIGN-05")
class TimestampedWithoutTime(Sender):
    """`timestamped` has no time."""

    def signature(self, scheme: str, secrets: list[str], message: Message, timestamp: str, body: bytes) -> Headers:
        return super().signature(scheme, secrets, message, timestamp, body)[1:]


@_mutant("SIGN-06")
class ServiceStackSha1(_Signing):
    """`servicestack` is an HMAC-SHA1, as its label says."""

    def signed(self, name: str, value: str, secrets: list[str], message: Message, timestamp: str, body: bytes) -> str:
        return "sha1=" + hexadecimal(secrets[0], body, "sha1")


@_mutant("SIGN-06")
class ServiceStackHonest(_Signing):
    """`servicestack` says sha256, as it is."""

    def signed(self, name: str, value: str, secrets: list[str], message: Message, timestamp: str, body: bytes) -> str:
        return value.replace("sha1=", "sha256=")


@_mutant("SIGN-01", "SIGN-02", "SIGN-05", "SIGN-06", "SIGN-23")
class UpperCase(_Signing):
    """Hexadecimal digits are in upper case."""

    def signed(self, name: str, value: str, secrets: list[str], message: Message, timestamp: str, body: bytes) -> str:
        label, equals, digits = value.rpartition("=")
        return label + equals + digits.upper()


@_mutant(*(f"SIGN-{number}" for number in range(11, 19)))
class FirstSecret(Complete):
    """Whoever comes first with a scheme, his secret signs for all others with it."""

    def __init__(self) -> None:
        super().__init__()
        self.first: dict[tuple[str, ...], str] = {}

    async def subscribe(self, **wish: Any) -> dict[str, Any]:
        secret = self.first.setdefault(tuple(wish["schemes"]), wish["secret"])
        return await super().subscribe(**(wish | {"secret": secret}))


@_mutant("SIGN-04", "SIGN-08")
class ForeignKey(Complete):
    """It tells of one key pair, and signs with another."""

    async def subscribe(self, **wish: Any) -> dict[str, Any]:
        made = await super().subscribe(**wish)
        self.keys[wish["secret"]] = Ed25519PrivateKey.generate()
        return made


@_mutant("SIGN-04")
class Ed25519AsV1(Complete):
    """The Ed25519 signature is labelled v1, as if it were an HMAC."""

    def signature(self, scheme: str, secrets: list[str], message: Message, timestamp: str, body: bytes) -> Headers:
        found = super().signature(scheme, secrets, message, timestamp, body)
        return [(name, value.replace("v1a,", "v1,")) for name, value in found]


@_mutant("SIGN-07")
class Rfc9421DecodedKey(Complete):
    """RFC 9421 is signed with the decoded secret."""

    def mac(self, secret: str, base: bytes) -> bytes:
        return hmac.digest(_key(secret), base, "sha256")


@_mutant("SIGN-07", "SIGN-24", "SIGN-08")
class DigestOfSomethingElse(Complete):
    """Content-Digest is that of the payload parsed and written anew, and genuinely signed."""

    def digest(self, body: bytes) -> str:
        return super().digest(_rewritten(body))


@_mutant("SIGN-07", "SIGN-08")
class DigestNotSigned(Complete):
    """The digest is not covered: whoever changes the body changes the digest, too."""

    def message_signature(self, scheme: str, subscription: Subscription, message: Message, body: bytes) -> Headers:
        secret = subscription.secret
        params = '("@method" "content-type")' + self.params(scheme)
        lines = ['"@method": POST', '"content-type": application/json', f'"@signature-params": {params}']
        base = "\n".join(lines).encode()
        signed = self.key(secret).sign(base) if scheme.endswith("ed25519") else self.mac(secret, base)
        return [
            ("Content-Digest", self.digest(body)),
            ("Signature-Input", f"webhook={params}"),
            ("Signature", f"webhook=:{base64.b64encode(signed).decode()}:"),
        ]


@_mutant("SIGN-07", "SIGN-08", says="does not cover content-digest")
class DigestLeftOut(OtherLabel):
    """By a label of its own it signs where the message goes, and nothing of what is in it."""

    abilities = Complete.abilities

    def message_signature(self, scheme: str, subscription: Subscription, message: Message, body: bytes) -> Headers:
        url = urlsplit(subscription.url)
        params = '("@method" "@authority" "@path")' + self.params(scheme)
        lines = ['"@method": POST', f'"@authority": {url.netloc}', f'"@path": {url.path}']
        base = "\n".join([*lines, f'"@signature-params": {params}']).encode()
        secret = subscription.secret
        signed = self.key(secret).sign(base) if scheme.endswith("ed25519") else self.mac(secret, base)
        return [
            ("Signature-Input", f"sig1={params}"),
            ("Signature", f"sig1=:{base64.b64encode(signed).decode()}:"),
        ]


@_mutant("SIGN-27", "SIGN-28", says="does not cover @method")
class SignsForAnyPlace(Complete):
    """The digest is signed, and not where it goes: the signature is good at every other endpoint of that secret."""

    def message_signature(self, scheme: str, subscription: Subscription, message: Message, body: bytes) -> Headers:
        digest = self.digest(body)
        params = '("content-digest")' + self.params(scheme)
        base = f'"content-digest": {digest}\n"@signature-params": {params}'.encode()
        secret = subscription.secret
        signed = self.key(secret).sign(base) if scheme.endswith("ed25519") else self.mac(secret, base)
        return [
            ("Content-Digest", digest),
            ("Signature-Input", f"body={params}"),
            ("Signature", f"body=:{base64.b64encode(signed).decode()}:"),
        ]


@_mutant("SIGN-25")
class NotCreated(Complete):
    """A signature by RFC 9421 does not tell when it was made."""

    def params(self, scheme: str) -> str:
        return re.sub(";created=[0-9]+", "", super().params(scheme))


@_mutant("SIGN-21")
class SecretInHeader(Sender):
    """The secret stands in a header."""

    def headers(self, subscription: Subscription, message: Message, body: bytes) -> Headers:
        return [*super().headers(subscription, message, body), ("X-Webhook-Secret", subscription.secret)]


@_mutant("SIGN-21")
class SecretInBody(Sender):
    """The secret stands in the body."""

    def start(self, subscription: Subscription, message: Message) -> None:
        message.body = b'{"key":%s,"data":%s}' % (json.dumps(subscription.secret).encode(), message.body)
        super().start(subscription, message)


@_mutant("SIGN-21")
class SecretInBase64(Sender):
    """The secret stands in a header, in base64 once more."""

    def headers(self, subscription: Subscription, message: Message, body: bytes) -> Headers:
        coded = base64.b64encode(subscription.secret.encode()).decode()
        return [*super().headers(subscription, message, body), ("X-Webhook-Key", coded)]


@_mutant("SIGN-22")
class UnsignedByDefault(Sender):
    """Who asks for no scheme gets no signature."""

    def signature(self, scheme: str, secrets: list[str], message: Message, timestamp: str, body: bytes) -> Headers:
        return []


@_mutant("SIGN-22")
class Sha1ByDefault(Sender):
    """Who asks for no scheme gets SHA-1."""

    def signature(self, scheme: str, secrets: list[str], message: Message, timestamp: str, body: bytes) -> Headers:
        return [("X-Hub-Signature", f"sha1={hexadecimal(secrets[0], body, 'sha1')}")]


@_mutant("SIGN-26")
class OwnSecretForCallbacks(Sender):
    """Callbacks are signed with the sender's secret instead of the task's."""

    async def call_back(self, url: str, payload: str, secret: str) -> dict[str, Any]:
        return await super().call_back(url, payload, "whsec_" + base64.b64encode(b"the sender's own").decode())


# --- retries ----------------------------------------------------------------------------------------------


@_mutant("RETRY-01")
class NeverRetries(Sender):
    """What is answered with 5xx is given up."""

    def is_refusal(self, answer: Answer) -> bool:
        return answer.status is not None and answer.status >= 400


@_mutant("RETRY-01")
class RetriesOnce(Sender):
    """There is one more try, whatever the schedule says."""

    def wait(self, subscription: Subscription, message: Message, answer: Answer) -> float | None:
        return super().wait(subscription, message, answer) if message.attempt < 2 else None


@_mutant("RETRY-02")
class RetriesSuccess(Sender):
    """What was taken is sent once more."""

    async def deliver(self, subscription: Subscription, message: Message) -> None:
        await super().deliver(subscription, message)
        if not subscription.held:
            body = self.body(message)
            await self.post(subscription, self.headers(subscription, message, body), body)


@_mutant("RETRY-02")
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


@_mutant("RETRY-03")
class ShrinkingDistance(Sender):
    """The schedule is gone through from its end."""

    def wait(self, subscription: Subscription, message: Message, answer: Answer) -> float | None:
        if message.attempt > len(subscription.schedule):
            return None
        return subscription.schedule[-message.attempt] * random.uniform(0.85, 1.25)


@_mutant("RETRY-03")
class FixedDistance(Sender):
    """The distance is always about the first of the schedule."""

    def wait(self, subscription: Subscription, message: Message, answer: Answer) -> float | None:
        if message.attempt > len(subscription.schedule):
            return None
        return subscription.schedule[0] * random.uniform(0.85, 1.25)


@_mutant("RETRY-04")
class NoChance(Sender):
    """The distances are exactly those of the schedule."""

    def wait(self, subscription: Subscription, message: Message, answer: Answer) -> float | None:
        return None if message.attempt > len(subscription.schedule) else subscription.schedule[message.attempt - 1]


@_mutant("RETRY-04")
class OneChanceForAll(Sender):
    """The distances are spread by chance, but by the same for all: there are waves as before."""

    chance = random.uniform(0.85, 1.25)

    def wait(self, subscription: Subscription, message: Message, answer: Answer) -> float | None:
        if message.attempt > len(subscription.schedule):
            return None
        return subscription.schedule[message.attempt - 1] * self.chance


@_mutant("RETRY-05")
class NeverGivesUp(Sender):
    """The schedule's end is not the end: it goes on, ever more slowly."""

    def wait(self, subscription: Subscription, message: Message, answer: Answer) -> float | None:
        return subscription.schedule[0] * float(1.6 ** (message.attempt - 1))


@_mutant("RETRY-05")
class OneTooFew(Sender):
    """The last distance of the schedule is left out."""

    def wait(self, subscription: Subscription, message: Message, answer: Answer) -> float | None:
        wait = super().wait(subscription, message, answer)
        return None if message.attempt == len(subscription.schedule) else wait


@_mutant("RETRY-05")
class NeverGivesUpQuickly(Sender):
    """The schedule's last distance is kept for ever."""

    def wait(self, subscription: Subscription, message: Message, answer: Answer) -> float | None:
        return subscription.schedule[-1]


@_mutant("RETRY-06")
class DropsBusy(Sender):
    """All of 4xx is given up, 408 and 429 with it."""

    def is_refusal(self, answer: Answer) -> bool:
        return answer.status is not None and 400 <= answer.status < 500


@_mutant("RETRY-06")
class DropsGatewayTimeouts(Sender):
    """504 is given up."""

    def is_refusal(self, answer: Answer) -> bool:
        return answer.status == 504


@_mutant("RETRY-07")
class DropsBroken(Sender):
    """A connection that breaks ends the message."""

    def is_refusal(self, answer: Answer) -> bool:
        return answer.status is None


@_mutant("RETRY-07")
class BelievesBroken(_PlainWire):
    """Bytes of any kind are an answer, and no error: only resets and ends are retried."""

    async def read(self, reader: asyncio.StreamReader) -> tuple[Answer, bool]:
        said = await reader.read(4_096)
        if not said:
            raise EOFError
        return Answer(status=int(said[9:12]) if said.startswith(b"HTTP/1.1 ") else 200), False


@_mutant("RETRY-08")
class OnlyOk(Sender):
    """Only 200 is a success."""

    def is_success(self, answer: Answer) -> bool:
        return answer.status == 200


@_mutant("RETRY-08")
class KnownSuccesses(Sender):
    """Only those 2xx that have a name are a success."""

    def is_success(self, answer: Answer) -> bool:
        return answer.status in {200, 201, 202, 203, 204, 205, 206}


@_mutant("RETRY-09")
class RetriesRefusals(Sender):
    """What is refused for good is tried again."""

    def is_refusal(self, answer: Answer) -> bool:
        return False


@_mutant("RETRY-09")
class RetriesUnprocessable(Sender):
    """422 is tried again."""

    def is_refusal(self, answer: Answer) -> bool:
        return super().is_refusal(answer) and answer.status != 422


@_mutant("RETRY-10")
class NotModifiedIsFine(Sender):
    """304 is a success."""

    def is_success(self, answer: Answer) -> bool:
        return super().is_success(answer) or answer.status == 304


@_mutant("RETRY-10", "REDIR-02")
class BelowErrorIsFine(Sender):
    """All below 400 is a success."""

    def is_success(self, answer: Answer) -> bool:
        return answer.status is not None and answer.status < 400


@_mutant("RETRY-10")
class InterimIsFine(_PlainWire):
    """A 199 is an answer, and a success: it is no error."""

    async def read(self, reader: asyncio.StreamReader) -> tuple[Answer, bool]:
        status = int((await reader.readuntil(b"\r\n\r\n"))[9:12])
        return Answer(status=max(status, 200)), False


@_mutant("RETRY-11")
class RetriesGone(Sender):
    """410 is tried again, as any other failure."""

    def turns_away(self, answer: Answer) -> bool:
        return answer.status in {401, 403}


@_mutant("RETRY-12", "RETRY-13")
class IgnoresRetryAfter(Sender):
    """Retry-After means nothing."""

    def retry_after(self, answer: Answer) -> float:
        return 0.0


@_mutant("RETRY-12")
class RetryAfterOfBusyOnly(Sender):
    """Retry-After is kept with 429 only."""

    def retry_after(self, answer: Answer) -> float:
        return super().retry_after(answer) if answer.status == 429 else 0.0


@_mutant("RETRY-13")
class RetryAfterInSecondsOnly(Sender):
    """Retry-After is kept in seconds only."""

    def retry_after(self, answer: Answer) -> float:
        text = answer.headers.get("Retry-After", "")
        return float(text) if text.isdigit() else 0.0


@_mutant("RETRY-14", says="after 0.")
class PastHastens(Sender):
    """A Retry-After of the past, or of zero, has the next try at once."""

    def wait(self, subscription: Subscription, message: Message, answer: Answer) -> float | None:
        wait = super().wait(subscription, message, answer)
        is_said = "Retry-After" in answer.headers and answer.headers["Retry-After"] != "soon"
        return max(self.retry_after(answer), 0.0) if is_said and wait is not None else wait


@_mutant("RETRY-14", says="after 0.")
class ZeroHastens(Sender):
    """A Retry-After of zero has the next try at once."""

    def wait(self, subscription: Subscription, message: Message, answer: Answer) -> float | None:
        return 0.0 if answer.headers.get("Retry-After") == "0" else super().wait(subscription, message, answer)


@_mutant("RETRY-14", says="it was not sent again")
class GarbageKills(Sender):
    """A Retry-After that cannot be read ends the delivery with an exception."""

    def wait(self, subscription: Subscription, message: Message, answer: Answer) -> float | None:
        if answer.headers.get("Retry-After") == "soon":
            raise asyncio.CancelledError
        return super().wait(subscription, message, answer)


@_mutant("RETRY-15")
class SlowStart(Sender):
    """Messages are looked for every few seconds."""

    async def deliver(self, subscription: Subscription, message: Message) -> None:
        await asyncio.sleep(2.2)
        await super().deliver(subscription, message)


# --- redirects --------------------------------------------------------------------------------------------


class _FollowsSome(Sender):
    """Redirects with one of these statuses are followed."""

    followed: frozenset[int] = frozenset()

    async def post(self, subscription: Subscription, headers: Headers, body: bytes) -> Answer:
        answer = await super().post(subscription, headers, body)
        if answer.status not in self.followed:
            return answer
        moved = Subscription(url=answer.headers["Location"], secret=subscription.secret)
        return await super().post(moved, headers, body)


@_mutant("REDIR-01", "REDIR-02")
class FollowsRedirects(_FollowsSome):
    """Redirects are followed."""

    followed = frozenset({301, 302, 303, 307, 308})


@_mutant("REDIR-01", "REDIR-02")
class FollowsPermanent(_FollowsSome):
    """308 is followed, and only that."""

    followed = frozenset({308})


@_mutant("REDIR-02")
class DropsRedirected(Sender):
    """A redirect ends the message."""

    def is_refusal(self, answer: Answer) -> bool:
        return super().is_refusal(answer) or (answer.status is not None and 300 <= answer.status < 400)


@_mutant("REDIR-03", says="it has a Referer")
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


@_mutant("REDIR-03", says="the URL stands in X-Redirected-From")
class TellsWhereItCameFrom(Sender):
    """A redirect by 307 is followed, and the place that it points to is told of the first URL."""

    async def post(self, subscription: Subscription, headers: Headers, body: bytes) -> Answer:
        answer = await super().post(subscription, headers, body)
        if answer.status != 307:
            return answer
        moved = Subscription(url=answer.headers["Location"], secret=subscription.secret)
        return await super().post(moved, [*headers, ("X-Redirected-From", subscription.url)], body)


#: seconds after which the endless ends all the same, so that no test waits for it
_MUCH_LATER = 8.0
#: seconds from one byte to the next; an endpoint that drips takes one, and more where the machine is busy
_PER_READ = 3.0


# --- limits -----------------------------------------------------------------------------------------------


@_mutant("LIMIT-01", "LIMIT-02", "LIMIT-03")
class NoDeadline(Sender):
    """The deadline that a subscription has is not kept, only one for all, which is much longer."""

    async def post(self, subscription: Subscription, headers: Headers, body: bytes) -> Answer:
        subscription.timeout = _MUCH_LATER
        return await super().post(subscription, headers, body)


@_mutant("LIMIT-02", "LIMIT-03")
class DeadlinePerRead(_PlainWire):
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


@_mutant("LIMIT-03")
class DeadlineForHeadOnly(_PlainWire):
    """The deadline is for the head; the body may take as long as it likes."""

    def deadline(self, subscription: Subscription) -> float | None:
        return _MUCH_LATER

    async def read(self, reader: asyncio.StreamReader) -> tuple[Answer, bool]:
        async with asyncio.timeout(2.0):
            head = await reader.readuntil(b"\r\n\r\n")
        return Answer(status=int(head[9:12])), await self.read_body(reader, Answer(status=200))


class _ReadsAll(_PlainWire):
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


@_mutant("LIMIT-04", "LIMIT-05", "LIMIT-06")
class ReadsAll(_ReadsAll):
    """Headers, interim answers and bodies are read to their end, however long that takes."""


@_mutant("LIMIT-04", "LIMIT-05", "LIMIT-06")
class ReadsAllFast(_ReadsAll):
    """The same, and it is quick about it: a hundred mebibytes take less than a second."""

    pause = 0.0


@_mutant("LIMIT-08")
class DropsLate(Sender):
    """What runs into its deadline is given up."""

    async def post(self, subscription: Subscription, headers: Headers, body: bytes) -> Answer:
        began = time.monotonic()
        answer = await super().post(subscription, headers, body)
        is_late = answer.status is None and time.monotonic() - began >= subscription.timeout - 0.01
        return Answer(status=400) if is_late else answer


@_mutant("LIMIT-09")
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


class _Reuses(_PlainWire):
    """Takes a connection again without a look at what came over it meanwhile."""

    async def is_silent(self, reader: asyncio.StreamReader) -> bool:
        return True


@_mutant("LIMIT-10", says="did not come")
class TakesSecondAnswer(_Reuses):
    """An answer that nobody asked for is taken for that of the next request."""

    def deadline(self, subscription: Subscription) -> float | None:
        return 0.5

    def wait(self, subscription: Subscription, message: Message, answer: Answer) -> float | None:
        return 0.2


# --- the health of a subscription -------------------------------------------------------------------------


@_mutant("HEALTH-01", "HEALTH-02")
class GoneIsARefusal(Sender):
    """410 ends the message and nothing else."""

    def turns_away(self, answer: Answer) -> bool:
        return answer.status in {401, 403}

    def is_refusal(self, answer: Answer) -> bool:
        return super().is_refusal(answer) or answer.status == 410


@_mutant("HEALTH-03", "HEALTH-04")
class UnauthorizedIsARefusal(Sender):
    """401 ends the message and nothing else."""

    def turns_away(self, answer: Answer) -> bool:
        return answer.status in {403, 410}

    def is_refusal(self, answer: Answer) -> bool:
        return super().is_refusal(answer) or answer.status == 401


@_mutant("HEALTH-02", "HEALTH-04")
class DisabledInNameOnly(GoneIsARefusal, UnauthorizedIsARefusal):
    """A disabled subscription is called disabled, and is sent to."""

    def turns_away(self, answer: Answer) -> bool:
        return False

    async def is_active(self, subscription: str) -> dict[str, Any]:
        return {"active": False}


@_mutant("HEALTH-01", "HEALTH-03")
class SaysActive(Sender):
    """A disabled subscription is sent nothing, and nobody can tell."""

    async def is_active(self, subscription: str) -> dict[str, Any]:
        return {"active": True}


@_mutant("HEALTH-05")
class LosesHeld(Sender):
    """What is published while a subscription is disabled is lost."""

    async def deliver(self, subscription: Subscription, message: Message) -> None:
        await super().deliver(subscription, message)
        subscription.held = [one for one in subscription.held if one.attempt]


@_mutant("HEALTH-05")
class LosesRefused(Sender):
    """The message that an endpoint refused is lost; what came later is kept."""

    async def deliver(self, subscription: Subscription, message: Message) -> None:
        await super().deliver(subscription, message)
        subscription.held = [one for one in subscription.held if not one.attempt]


@_mutant("HEALTH-05")
class HoldsOne(Sender):
    """Of what is held back only the newest is kept."""

    async def deliver(self, subscription: Subscription, message: Message) -> None:
        await super().deliver(subscription, message)
        subscription.held = subscription.held[-1:]


@_mutant("HEALTH-06")
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


# --- rotation, TLS, its own machine ------------------------------------------------------------------------


@_mutant("ROT-01", "ROT-05")
class NoSecondSignature(Sender):
    """In the overlap only the new secret signs, but where a receiver refuses it."""

    def signature(self, scheme: str, secrets: list[str], message: Message, timestamp: str, body: bytes) -> Headers:
        return super().signature(scheme, secrets[:1], message, timestamp, body)


@_mutant("ROT-01", "ROT-04", "ROT-06", "ROT-08")
class OldOnly(Sender):
    """In the overlap only the old secret signs."""

    def secrets(self, subscription: Subscription) -> list[str]:
        return super().secrets(subscription)[-1:]


@_mutant("ROT-02", says="no second attempt came")
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


@_mutant("ROT-02", says="no signature matches")
class SecondChanceByNew(Sender):
    """The second attempt is signed with the new secret again."""

    def headers(self, subscription: Subscription, message: Message, body: bytes) -> Headers:
        was, message.by_old_secret = message.by_old_secret, False
        made = super().headers(subscription, message, body)
        message.by_old_secret = was
        return made


@_mutant("ROT-03")
class OldSecretForEver(Sender):
    """The old secret signs beside the new one, although no overlap was asked for."""

    def secrets(self, subscription: Subscription) -> list[str]:
        return [one for one in (subscription.secret, subscription.old_secret) if one]


@_mutant("ROT-03")
class RotatesNever(Sender):
    """A new secret is taken, and the old one goes on signing."""

    async def rotate(self, subscription: str, secret: str, overlap: float) -> dict[str, Any]:
        return {}


@_mutant("ROT-05", "ROT-07", "ROT-08")
class OverlapInNameOnly(Sender):
    """An overlap is taken and not kept: the old secret ends at once."""

    async def rotate(self, subscription: str, secret: str, overlap: float) -> dict[str, Any]:
        return await super().rotate(subscription, secret, 0.0)


@_mutant("ROT-04", "ROT-06")
class RotatesAtTheEnd(Sender):
    """The new secret signs once the overlap is over."""

    async def rotate(self, subscription: str, secret: str, overlap: float) -> dict[str, Any]:
        return {}


@_mutant("ROT-08", says="old-websub")
class DisablesWhoRefusesOnce(Sender):
    """A receiver of the old secret gets the second attempt, and is disabled for the first all the same."""

    async def deliver(self, subscription: Subscription, message: Message) -> None:
        await super().deliver(subscription, message)
        if message.by_old_secret:
            subscription.active = False


# --- CloudEvents ------------------------------------------------------------------------------------------


@_mutant("CE-01", says="no OPTIONS")
class AsksByGet(Shaking):
    """A handshake is a GET."""

    def method(self) -> str:
        return "GET"


@_mutant("CE-01", says="the target is not")
class AsksWithoutQuery(Shaking):
    """A handshake goes to the URL without its query."""

    async def ask(self, subscription: Subscription) -> Answer:
        asked = Subscription(url=subscription.url.partition("?")[0], secret="")
        return await super().ask(asked)


@_mutant("CE-02", says="it is no DNS name")
class OriginIsUrl(Shaking):
    """The origin is a URL, as an Origin header has it."""

    origin = "https://sender.test"


@_mutant("CE-02", says="it is no DNS name")
class OriginWithPort(Shaking):
    """The origin has a port."""

    origin = "sender.test:443"


@_mutant("CE-02", says="is there 2 times")
class TwoOrigins(Shaking):
    """Two origins are named."""

    def asking(self) -> Headers:
        return [*super().asking(), ("WebHook-Request-Origin", "other.test")]


@_mutant("CE-03", says="it is not")
class AsksForNothing(Shaking):
    """The rate that is asked for is zero."""

    def asking(self) -> Headers:
        return [("WebHook-Request-Origin", self.origin), ("WebHook-Request-Rate", "0")]


@_mutant("CE-03", says="it is not")
class AsksForFraction(Shaking):
    """The rate that is asked for has a fraction."""

    def asking(self) -> Headers:
        return [("WebHook-Request-Origin", self.origin), ("WebHook-Request-Rate", "0.5")]


@_mutant("CE-04", says="200 without a name: 2 requests")
class StatusIsConsent(Shaking):
    """Any 2xx is consent."""

    def is_granted(self, answer: Answer) -> bool:
        return answer.status is not None and answer.status < 300


@_mutant("CE-04", says="200 with another name: 2 requests")
class HeaderIsConsent(Shaking):
    """Any name is consent."""

    def is_granted(self, answer: Answer) -> bool:
        return "WebHook-Allowed-Origin" in answer.headers


@_mutant("CE-04", says="200 with a longer name: 2 requests")
class PrefixIsConsent(Shaking):
    """A name that begins like ours is consent."""

    def is_granted(self, answer: Answer) -> bool:
        return str(answer.headers.get("WebHook-Allowed-Origin", "")).startswith((self.origin, "*"))


@_mutant("CE-04", says="200 with a subdomain: 2 requests")
class SuffixIsConsent(Shaking):
    """A name that ends like ours is consent."""

    def is_granted(self, answer: Answer) -> bool:
        return str(answer.headers.get("WebHook-Allowed-Origin", "")).endswith((self.origin, "*"))


@_mutant("CE-04", says="405: 2 requests")
class NoHandshakeIsConsent(Shaking):
    """Who does not know OPTIONS is taken to agree."""

    def is_granted(self, answer: Answer) -> bool:
        return answer.status == 405 or super().is_granted(answer)


@_mutant("CE-05", says="requests came before")
class SendsMeanwhile(Background):
    """Events are sent while the endpoint has not answered yet."""

    async def shake(self, subscription: Subscription) -> None:
        subscription.active = True
        await super().shake(subscription)


@_mutant("CE-06", says="own name: 0 of 2")
class WantsAsterisk(Shaking):
    """Only an asterisk is consent."""

    def is_granted(self, answer: Answer) -> bool:
        return "*" in answer.headers.get_list("WebHook-Allowed-Origin")


@_mutant("CE-06", says="any name: 0 of 2")
class WantsOwnName(Shaking):
    """An asterisk is not understood."""

    def is_granted(self, answer: Answer) -> bool:
        return self.origin in answer.headers.get_list("WebHook-Allowed-Origin")


@_mutant("CE-07", says="is not that of the handshake")
class NamesNobody(Shaking):
    """Deliveries do not name the origin."""

    def headers(self, subscription: Subscription, message: Message, body: bytes) -> Headers:
        return _with(super().headers(subscription, message, body), "WebHook-Request-Origin", None)


@_mutant("CE-07", says="is not that of the handshake")
class NamesItsHost(Shaking):
    """Deliveries name the host that they come from instead of the origin."""

    def headers(self, subscription: Subscription, message: Message, body: bytes) -> Headers:
        return _with(super().headers(subscription, message, body), "WebHook-Request-Origin", "node-7.sender.test")


@_mutant("CE-08", says="came within")
class IgnoresGrantedRate(Shaking):
    """A granted rate means nothing."""

    def rate(self, answer: Answer) -> float:
        return float("inf")


@_mutant("CE-08", says="came within")
class RateBySecond(Shaking):
    """A granted rate is taken for one of requests a second."""

    def rate(self, answer: Answer) -> float:
        return super().rate(answer) * 60


class _OtherAttributes(Shaking):
    """What is said of an event is something else."""

    changes: tuple[tuple[str, Any], ...] = ()

    def attributes(self, message: Message) -> dict[str, Any]:
        said = super().attributes(message) | dict(self.changes)
        return {name: value for name, value in said.items() if value is not None}


@_mutant("CE-11", "CE-22", says="source is missing")
class NoSource(_OtherAttributes):
    """An event has no source."""

    changes = (("source", None),)


@_mutant("CE-11", "CE-22", says="type is missing, empty")
class EmptyType(_OtherAttributes):
    """The type of an event is empty."""

    changes = (("type", ""),)


@_mutant("CE-12", "CE-23", says="the version is another")
class OldVersion(_OtherAttributes):
    """The version is that of a draft."""

    changes = (("specversion", "0.3"),)


@_mutant("CE-12", "CE-23", says="the source is none")
class SourceInWords(_OtherAttributes):
    """The source is no reference to a URI."""

    changes = (("source", "the shop <1>"),)


@_mutant("CE-15", says="is not percent-encoded")
class SpacesInHeaders(_OtherAttributes):
    """A subject with spaces goes into its header as it is."""

    changes = (("subject", "order 7"),)


@_mutant("CE-15", says="other characters")
class Underscores(_OtherAttributes):
    """An extension has an underscore in its name."""

    changes = (("tenant_id", "7"),)


@_mutant("CE-26", says="other characters")
class CamelCase(_OtherAttributes):
    """An extension has upper case in its name."""

    changes = (("tenantId", "7"),)


@_mutant("CE-22", says="specversion is missing, empty, or no text")
class NumberForVersion(_OtherAttributes):
    """The version is a number."""

    changes = (("specversion", 1.0),)


@_mutant("CE-28", says="two events have the same")
class OneIdForAll(_OtherAttributes):
    """All events have one id."""

    changes = (("id", "1"),)


@_mutant("CE-13", says="Content-Type is application/cloudevents+json")
class StructuredTypeInBinary(Shaking):
    """In binary mode the Content-Type says that the event is in structured mode."""

    def headers(self, subscription: Subscription, message: Message, body: bytes) -> Headers:
        return _with(super().headers(subscription, message, body), *self.structured_type())


@_mutant("CE-13", says="the data is not what was published")
class EnvelopeInBinary(Shaking):
    """In binary mode the body is an envelope around the data."""

    def body(self, message: Message) -> bytes:
        return b'{"data": ' + message.body + b"}"


@_mutant("CE-14", says="it changed")
class EventIdPerAttempt(Shaking):
    """In binary mode each attempt is an event of its own."""

    def attributes(self, message: Message) -> dict[str, Any]:
        return super().attributes(message) | {"id": f"{message.id}-{message.attempt}"}


@_mutant("CE-25", says="it changed")
class EventMadeAnew(Shaking):
    """In structured mode each attempt is an event of its own."""

    def body(self, message: Message) -> bytes:
        return message.body.replace(message.id.encode(), f"{message.id}-{message.attempt}".encode())


@_mutant("CE-21", says="it is application/json")
class StructuredAsJson(Shaking):
    """In structured mode the body is called JSON."""

    def structured_type(self) -> tuple[str, str]:
        return "Content-Type", "application/json"


@_mutant("CE-24", says="the data is not what was published")
class DataAsText(Shaking):
    """In structured mode the data is a text of its JSON."""

    def structured(self, message: Message) -> bytes:
        return json.dumps(self.attributes(message) | {"data": message.body.decode()}).encode()


@_mutant("CE-24", "CE-29", says="there is no data")
class OnlyTells(Shaking):
    """In structured mode the data is left out."""

    def structured(self, message: Message) -> bytes:
        return json.dumps(self.attributes(message)).encode()


@_mutant("CE-24", says="the data is not what was published")
class OtherDataInBase64(Shaking):
    """In structured mode the data is in base64, and not whole."""

    def structured(self, message: Message) -> bytes:
        data = base64.b64encode(b'{"n":null}').decode()
        return json.dumps(self.attributes(message) | {"data_base64": data}).encode()


@_mutant("CE-29", says="it is in base64")
class DataInBase64(Shaking):
    """In structured mode the data is in base64."""

    def structured(self, message: Message) -> bytes:
        return json.dumps(self.attributes(message) | {"data_base64": base64.b64encode(message.body).decode()}).encode()


@_mutant("CE-27", says="it is another")
class TextForJson(Shaking):
    """In structured mode the data is called a plain text."""

    def structured(self, message: Message) -> bytes:
        return super().structured(message).replace(b'"application/json"', b'"text/plain"')


@_mutant("TLS-01", "TLS-02", "TLS-03")
class TrustsAll(Sender):
    """No certificate is looked at."""

    async def hello(self, authority: str | None, **others: Any) -> dict[str, Any]:
        self.context.check_hostname = False
        self.context.verify_mode = ssl.CERT_NONE
        return await super().hello(authority, **others)


@_mutant("TLS-02")
class AnyHost(Sender):
    """A certificate may be for any host."""

    async def hello(self, authority: str | None, **others: Any) -> dict[str, Any]:
        self.context.check_hostname = False
        return await super().hello(authority, **others)


@_mutant("TLS-04", says="no request came")
class TrustsNobody(Sender):
    """The authority that it was told of is not trusted."""

    async def hello(self, authority: str | None, **others: Any) -> dict[str, Any]:
        return await super().hello(None, **others)


@_mutant("TLS-05")
class OldTls(Sender):
    """TLS 1.0 and 1.1 are spoken, too."""

    async def hello(self, authority: str | None, **others: Any) -> dict[str, Any]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            self.context.minimum_version = ssl.TLSVersion.TLSv1
        # OpenSSL 3 has no signature for them at its usual level.
        self.context.set_ciphers("DEFAULT:@SECLEVEL=0")
        return await super().hello(authority, **others)


@_mutant("TLS-05", says="TLS 1.1")
class LastTlsButOne(OldTls):
    """TLS 1.1 is spoken, but not 1.0."""

    async def hello(self, authority: str | None, **others: Any) -> dict[str, Any]:
        made = await super().hello(authority, **others)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            self.context.minimum_version = ssl.TLSVersion.TLSv1_1
        return made


@_mutant("EGRESS-01", "EGRESS-02")
class AsksFirst(Complete):
    """A URL is tried before it is taken or refused."""

    async def takes(self, url: str) -> bool:
        host = urlsplit(url).hostname or ""
        if host in {"127.0.0.1", "localhost"}:
            tried = Subscription(url=url, secret="", timeout=1.0)
            await self.post(tried, [("User-Agent", "other/1")], b"{}")
        return True


@_mutant("EGRESS-01", "EGRESS-02")
class VetsWhatIsGiven(Complete):
    """Loopback is refused by its usual spellings when it is given; addresses are not looked at again."""

    async def takes(self, url: str) -> bool:
        return urlsplit(url).hostname not in {"127.0.0.1", "localhost", "::1"}

    async def found(self, subscription: Strict, host: str) -> list[str]:
        self.is_literal = bool(self.literal(host))
        return await super().found(subscription, host)

    def vetted(self, found: list[str]) -> list[str]:
        return found if self.is_literal else super().vetted(found)


@_mutant("EGRESS-01", says="connections came")
class ConnectsFirst(Complete):
    """Before a URL is refused, it is looked whether anybody is there."""

    async def takes(self, url: str) -> bool:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", urlsplit(url).port or 443), 1.0).close()
        return await super().takes(url)


@_mutant("EGRESS-02")
class ListOfHosts(Complete):
    """Loopback is known by its usual spellings only, until it is connected to."""

    async def takes(self, url: str) -> bool:
        return urlsplit(url).hostname not in {"127.0.0.1", "localhost", "::1"}


@_mutant("EGRESS-02")
class ParsesAddresses(Complete):
    """Loopback is known in any spelling that is an address by RFC, and 127.1 is none."""

    async def takes(self, url: str) -> bool:
        return "127.1:" in url or await super().takes(url)


@_mutant("EGRESS-02", says="taken: localhost")
class TakesLocalhost(Complete):
    """That localhost is loopback is seen only when it is connected to."""

    async def takes(self, url: str) -> bool:
        return "://localhost:" in url or await super().takes(url)


@_mutant("EGRESS-03", says="no request came")
class AdmitsNobody(Complete):
    """What the operator admits is refused like anything that is not public."""

    def admits(self, text: str) -> bool:
        return ipaddress.ip_address(text).is_global


@_mutant("EGRESS-03", says="was not taken")
class AsksWhenGiven(Complete):
    """A name is taken if it can be resolved at once, by a name server that knows nothing of it."""

    async def takes(self, url: str) -> bool:
        return bool(self.literal(urlsplit(url).hostname or "")) and await super().takes(url)


@_mutant("EGRESS-04", "EGRESS-05", "EGRESS-06", "EGRESS-07")
class VetsNames(Complete):
    """Names are looked at, and their addresses are not."""

    def vetted(self, found: list[str]) -> list[str]:
        return found


@_mutant("EGRESS-04", says="::1")
class VetsIpv4(Complete):
    """Addresses are looked at if they are IPv4."""

    def admits(self, text: str) -> bool:
        return (":" in text and "ffff" not in text) or super().admits(text)


@_mutant("EGRESS-04", says="127.0.0.78")
class TakesMappedForIpv6(Complete):
    """IPv4 inside IPv6 is taken for an address of IPv6 that nothing speaks against."""

    def admits(self, text: str) -> bool:
        return "ffff" in text or super().admits(text)


@_mutant("EGRESS-04", says="connections came")
class LooksWhoIsThere(Complete):
    """It connects to all addresses of a name, to see which are there, before it vets them."""

    async def found(self, subscription: Strict, host: str) -> list[str]:
        found = await super().found(subscription, host)
        for address in found:
            with contextlib.suppress(OSError):
                socket.create_connection((address, urlsplit(subscription.url).port or 443), 1.0).close()
        return found


class _AsksTwice(Complete):
    """It has vetted a name, and asks for its address again."""

    async def found(self, subscription: Strict, host: str) -> list[str]:
        if not self.vetted(await super().found(subscription, host)):
            return []
        return [_Unvetted(address) for address in await super().found(subscription, host)]

    def admits(self, text: str) -> bool:
        return isinstance(text, _Unvetted) or super().admits(text)


class _Unvetted(str):
    """An address that nobody looks at any more."""

    __slots__ = ()


@_mutant("EGRESS-05")
class AsksTwice(_AsksTwice):
    """A name is vetted, and asked for again to connect."""


@_mutant("EGRESS-05")
class AsksThrice(_AsksTwice):
    """A name is asked for when its URL is given, vetted later, and asked for again to connect."""

    async def takes(self, url: str) -> bool:
        await self.asked_for(urlsplit(url).hostname or "")
        return await super().takes(url)


@_mutant("EGRESS-05")
class VetsWhenGiven(Complete):
    """A name is vetted when its URL is given, and asked for again to connect."""

    async def takes(self, url: str) -> bool:
        if not await super().takes(url):
            return False
        host = urlsplit(url).hostname or ""
        return bool(self.vetted(self.literal(host) or await self.asked_for(host)))

    async def found(self, subscription: Strict, host: str) -> list[str]:
        return [_Unvetted(address) for address in await super().found(subscription, host)]

    def admits(self, text: str) -> bool:
        return isinstance(text, _Unvetted) or super().admits(text)


@_mutant("EGRESS-05")
class VetsOnce(_AsksTwice):
    """A name that was vetted is good for every other try."""

    async def found(self, subscription: Strict, host: str) -> list[str]:
        found = await Complete.found(self, subscription, host)
        if host in self.good:
            return [_Unvetted(address) for address in found]
        if self.vetted(found):
            self.good.add(host)
        return found

    def __init__(self) -> None:
        super().__init__()
        self.good: set[str] = set()


@_mutant("EGRESS-06", "EGRESS-07")
class VetsFirst(Complete):
    """Only the first of a name's addresses is looked at."""

    def vetted(self, found: list[str]) -> list[str]:
        return found if all(map(self.admits, found[:1])) else []


@_mutant("EGRESS-06", "EGRESS-07")
class OneIsEnough(Complete):
    """A name is good if one of its addresses is."""

    def vetted(self, found: list[str]) -> list[str]:
        return found if any(map(self.admits, found)) else []


@_mutant("EGRESS-07")
class PicksTheGood(Complete):
    """Of a name's addresses those are left out that it must not send to."""

    def vetted(self, found: list[str]) -> list[str]:
        return list(filter(self.admits, found))
