"""Senders that do the same well in different ways: none of them is to fail anything that weighs.

`python -m tests.conformance.nursery good:NAME` runs one.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import ipaddress
import json
import random
import socket
import time
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import SplitResult, urlsplit

import httpx
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from examples.other_sender.sender import MAX_ANSWER, Answer, Message, Refusal, Sender, Subscription, hexadecimal
from tests.conformance.asking import AAAA, A, addresses

Headers = list[tuple[str, str]]


#: what is sent as in production is signed with
STRICT_SECRET = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"


class Shaking(Sender):
    """CloudEvents: it asks by a handshake whom to send to, keeps the rate that is granted, and sends both forms."""

    name = "shaking-sender 1.0"
    abilities = Sender.abilities | {"handshake", "body:cloudevents-binary", "body:cloudevents-structured"}
    origin = "sender.test"

    def __init__(self) -> None:
        super().__init__()
        #: by the id of the subscription: the form of its bodies; requests a minute, if there is a limit
        self.forms: dict[str, str] = {}
        self.rates: dict[str, float] = {}
        #: those that agreed, and when each may be sent to next
        self.agreed: set[str] = set()
        self.turns: dict[str, float] = {}

    async def subscribe(self, **wish: Any) -> dict[str, Any]:
        """Make a subscription; one with a handshake is sent to once its endpoint has agreed."""
        made = await super().subscribe(**wish)
        subscription = self.subscriptions[made["id"]]
        self.forms[subscription.id] = wish.get("body", "")
        if wish.get("handshake"):
            subscription.active = False
            await self.shake(subscription)
        return made

    async def shake(self, subscription: Subscription) -> None:
        """Ask the endpoint."""
        answer = await self.ask(subscription)
        if answer.status is not None and self.is_granted(answer):
            self.rates[subscription.id] = self.rate(answer)
            self.agreed.add(subscription.id)
            await self.enable(subscription.id)

    async def ask(self, subscription: Subscription) -> Answer:
        """One OPTIONS request."""
        target = "/" + subscription.url.partition("://")[2].partition("/")[2]
        headers = [("User-Agent", self.name.replace(" ", "/")), ("Connection", "close"), *self.asking()]
        try:
            response = await self.client.request(
                self.method(), subscription.url, headers=headers, extensions={"target": target.encode()}
            )
        except httpx.HTTPError:
            return Answer(status=None)
        return Answer(status=response.status_code, headers=response.headers)

    def method(self) -> str:
        """By which it is asked."""
        return "OPTIONS"

    def asking(self) -> Headers:
        """What a handshake says."""
        return [("WebHook-Request-Origin", self.origin), ("WebHook-Request-Rate", "120")]

    def is_granted(self, answer: Answer) -> bool:
        """Whether an answer lets us send."""
        return answer.headers.get("WebHook-Allowed-Origin") in {"*", self.origin}

    def rate(self, answer: Answer) -> float:
        """Requests a minute."""
        said = answer.headers.get("WebHook-Allowed-Rate", "*")
        return float(said) if said.isdigit() else float("inf")

    def start(self, subscription: Subscription, message: Message) -> None:
        """Deliver in the background, in the form that was asked for."""
        if self.forms.get(subscription.id) == "cloudevents-structured":
            message.body = self.structured(message)
        super().start(subscription, message)

    def structured(self, message: Message) -> bytes:
        """The body in structured mode."""
        about = json.dumps(self.attributes(message) | {"datacontenttype": "application/json"}).encode()
        return about[:-1] + b', "data": ' + message.body + b"}"

    def attributes(self, message: Message) -> dict[str, Any]:
        """What CloudEvents wants to be said of an event."""
        return {"specversion": "1.0", "id": message.id, "source": "/tests", "type": message.event}

    def headers(self, subscription: Subscription, message: Message, body: bytes) -> Headers:
        """All headers of an attempt."""
        headers = super().headers(subscription, message, body)
        if subscription.id in self.agreed:
            headers.append(("WebHook-Request-Origin", self.origin))
        match self.forms.get(subscription.id):
            case "cloudevents-binary":
                return headers + [(f"ce-{name}", str(value)) for name, value in self.attributes(message).items()]
            case "cloudevents-structured":
                return [one for one in headers if one[0] != "Content-Type"] + [self.structured_type()]
        return headers

    def structured_type(self) -> tuple[str, str]:
        """The Content-Type in structured mode."""
        return "Content-Type", "application/cloudevents+json; charset=utf-8"

    async def post(self, subscription: Subscription, headers: Headers, body: bytes) -> Answer:
        """One request, when it is its turn."""
        rate = self.rates.get(subscription.id, float("inf"))
        now = time.monotonic()
        turn = max(now, self.turns.get(subscription.id, now))
        self.turns[subscription.id] = turn + 60.0 / rate
        await asyncio.sleep(turn - now)
        return await super().post(subscription, headers, body)


class Complete(Shaking):
    """It can all that a check asks for: signatures by key pairs and by RFC 9421, and sending as in production."""

    name = "complete-sender 1.0"
    abilities = Shaking.abilities | {
        "strict",
        "resolver",
        "scheme:standard-ed25519",
        "scheme:rfc9421",
        "scheme:rfc9421-ed25519",
    }

    def __init__(self) -> None:
        super().__init__()
        #: by the secret of the subscription that they belong to
        self.keys: dict[str, Ed25519PrivateKey] = {}
        self.name_server: str | None = None
        self.allowed_network: ipaddress.IPv4Network | ipaddress.IPv6Network | None = None

    async def subscribe(self, **wish: Any) -> dict[str, Any]:
        """Make a subscription, with a key pair of its own."""
        made = await super().subscribe(**wish)
        raw = (
            self.key(wish["secret"])
            .public_key()
            .public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        )
        return made | {"public_key": "whpk_" + base64.b64encode(raw).decode()}

    def key(self, secret: str) -> Ed25519PrivateKey:
        """The key pair of a subscription."""
        return self.keys.setdefault(secret, Ed25519PrivateKey.generate())

    def headers(self, subscription: Subscription, message: Message, body: bytes) -> Headers:
        """All headers of an attempt."""
        headers = super().headers(subscription, message, body)
        for scheme in subscription.schemes:
            if scheme in {"rfc9421", "rfc9421-ed25519"}:
                headers += self.message_signature(scheme, subscription, message, body)
        return headers

    def signature(self, scheme: str, secrets: list[str], message: Message, timestamp: str, body: bytes) -> Headers:
        """The headers of one scheme."""
        if scheme in {"rfc9421", "rfc9421-ed25519"}:
            return []
        if scheme == "standard-ed25519":
            signed = self.key(secrets[0]).sign(f"{message.id}.{timestamp}.".encode() + body)
            return [("webhook-signature", "v1a," + base64.b64encode(signed).decode())]
        return super().signature(scheme, secrets, message, timestamp, body)

    def message_signature(self, scheme: str, subscription: Subscription, message: Message, body: bytes) -> Headers:
        """The signature of RFC 9421 over method, URL, digest, type and id."""
        secret = self.secrets(subscription)[0]
        digest = self.digest(body)
        components = {
            "@method": "POST",
            "@target-uri": subscription.url,
            "content-digest": digest,
            "content-type": "application/json",
            "x-webhook-delivery": message.id,
        }
        params = "(" + " ".join(f'"{name}"' for name in components) + ")" + self.params(scheme)
        lines = [f'"{name}": {value}' for name, value in components.items()]
        base = "\n".join([*lines, f'"@signature-params": {params}']).encode()
        signed = self.key(secret).sign(base) if scheme.endswith("ed25519") else self.mac(secret, base)
        return [
            ("X-Webhook-Delivery", message.id),
            ("Content-Digest", digest),
            ("Signature-Input", f"webhook={params}"),
            ("Signature", f"webhook=:{base64.b64encode(signed).decode()}:"),
        ]

    def digest(self, body: bytes) -> str:
        """Content-Digest."""
        return f"sha-256=:{base64.b64encode(hashlib.sha256(body).digest()).decode()}:"

    def params(self, scheme: str) -> str:
        """What a signature says of itself."""
        return f';created={int(time.time())};alg="{"ed25519" if scheme.endswith("ed25519") else "hmac-sha256"}"'

    def mac(self, secret: str, base: bytes) -> bytes:
        """By the shared secret."""
        return hmac.digest(secret.encode(), base, "sha256")

    # --- as in production -----------------------------------------------------------------------------------

    async def hello(
        self, authority: str | None, name_server: str | None = None, allowed_network: str | None = None, **others: Any
    ) -> dict[str, Any]:
        """Say who we are, and keep whom we may ask, and where we may send to."""
        self.name_server = name_server
        self.allowed_network = ipaddress.ip_network(allowed_network) if allowed_network else None
        return await super().hello(authority, **others)

    async def send_strictly(self, url: str) -> dict[str, Any]:
        """Take a URL as in production, and send a message there."""
        is_taken = await self.takes(url)
        if is_taken:
            self.start(Strict(url=url, secret=STRICT_SECRET), Message(event="strict", body=b"{}"))
        return {"taken": is_taken}

    async def takes(self, url: str) -> bool:
        """Whether nothing speaks against a URL that can be known without asking for a name."""
        parts = urlsplit(url)
        host = (parts.hostname or "").rstrip(".")
        if parts.username is not None or host == "localhost" or host.endswith(".localhost"):
            return False
        literal = self.literal(host)
        return not literal or bool(self.vetted(literal))

    async def post(self, subscription: Subscription, headers: Headers, body: bytes) -> Answer:
        """One request; as in production only to addresses that were vetted."""
        if not isinstance(subscription, Strict):
            return await super().post(subscription, headers, body)
        host = urlsplit(subscription.url).hostname or ""
        for address in self.vetted(await self.found(subscription, host)):
            answer = await super().post(self.pinned(subscription, address), [*headers, self.host(subscription)], body)
            if answer.status is not None:
                return answer
        return Answer(status=None)

    async def found(self, _subscription: Strict, host: str) -> list[str]:
        """All addresses of a host."""
        return self.literal(host) or await self.asked_for(host)

    def literal(self, host: str) -> list[str]:
        """The address, if the host is one in any of the spellings that the C library reads: no name is asked for."""
        try:
            return [str(socket.getaddrinfo(host, None, flags=socket.AI_NUMERICHOST)[0][4][0])]
        except OSError:
            return []

    async def asked_for(self, host: str) -> list[str]:
        """The addresses of a name, from the name server that we were told of and from no other."""
        if self.name_server is None:
            return []
        both = await asyncio.gather(*(addresses(self.name_server, host, kind) for kind in (A, AAAA)))
        return [address for found in both for address in found]

    def vetted(self, found: list[str]) -> list[str]:
        """These addresses, if we may send to all of them; else none."""
        return found if all(map(self.admits, found)) else []

    def admits(self, text: str) -> bool:
        """Whether an address is public, or one that the operator admits."""
        address = ipaddress.ip_address(text)
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
            return address.ipv4_mapped.is_global
        return address.is_global or (self.allowed_network is not None and address in self.allowed_network)

    def pinned(self, subscription: Strict, address: str) -> Strict:
        """The subscription with an address instead of the name, which TLS goes on to name."""
        parts = urlsplit(subscription.url)
        there = f"[{address}]" if ":" in address else address
        return replace(subscription, url=parts._replace(netloc=f"{there}:{parts.port}").geturl(), sni=parts.hostname)

    def host(self, subscription: Strict) -> tuple[str, str]:
        """The header that names where it goes."""
        return "Host", urlsplit(subscription.url).netloc.rpartition("@")[2]

    def extensions(self, subscription: Subscription) -> dict[str, Any]:
        """The name in TLS."""
        name = {"sni_hostname": subscription.sni} if isinstance(subscription, Strict) and subscription.sni else {}
        return super().extensions(subscription) | name


@dataclass(kw_only=True)
class Strict(Subscription):
    """What is sent as in production."""

    schedule: tuple[float, ...] = (0.2, 0.2)
    timeout: float = 15.0
    #: the host that TLS is to name, where the URL has an address instead
    sni: str | None = None


class Wire(Sender):
    """It writes HTTP itself: connections serve many messages, bodies come in chunks, header names are capitalised."""

    name = "wire-sender 1.0"
    is_chunked = True

    def __init__(self) -> None:
        super().__init__()
        self.idle: dict[str, list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]] = {}

    async def post(self, subscription: Subscription, headers: Headers, body: bytes) -> Answer:
        """One request."""
        url = urlsplit(subscription.url)
        try:
            async with asyncio.timeout(self.deadline(subscription)):
                reader, writer = await self.connection(url)
                try:
                    writer.write(self.request(subscription, headers, body))
                    await writer.drain()
                    answer, is_whole = await self.read(reader)
                except BaseException:
                    writer.transport.abort()
                    raise
        except (OSError, EOFError, ValueError, asyncio.LimitOverrunError):
            return Answer(status=None)
        if is_whole:
            self.idle.setdefault(url.netloc, []).append((reader, writer))
        else:
            writer.transport.abort()
        return answer

    def deadline(self, subscription: Subscription) -> float | None:
        """Seconds for all of a request."""
        return subscription.timeout

    async def connection(self, url: SplitResult) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """One that nobody uses, or a new one."""
        while kept := self.idle.get(url.netloc):
            reader, writer = kept.pop()
            if await self.is_silent(reader):
                return reader, writer
            writer.transport.abort()
        context = self.context if url.scheme == "https" else None
        return await asyncio.open_connection(url.hostname, url.port, ssl=context)

    async def is_silent(self, reader: asyncio.StreamReader) -> bool:
        """Whether nothing came that nobody asked for, not even the end."""
        reading = asyncio.ensure_future(reader.read(1))
        await asyncio.wait([reading], timeout=0.005)
        if reading.done():
            return False
        reading.cancel()
        await asyncio.wait([reading])
        return True

    def request(self, subscription: Subscription, headers: Headers, body: bytes) -> bytes:
        """The bytes of a request."""
        _, _, rest = subscription.url.partition("://")
        host, _, target = rest.partition("/")
        named = [("Host", host), *((name, value) for name, value in headers if name != "Connection")]
        if self.is_chunked:
            named.append(("Transfer-Encoding", "chunked"))
            parts = [body[:7], body[7:]] if len(body) > 7 else [body]
            framed = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts if part) + b"0\r\n\r\n"
        else:
            named.append(("Content-Length", str(len(body))))
            framed = body
        lines = [f"POST /{target} HTTP/1.1", *(f"{self.spelt(name)}: {value}" for name, value in named)]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + framed

    def spelt(self, name: str) -> str:
        """A header's name as it goes out."""
        return name.title()

    async def read(self, reader: asyncio.StreamReader) -> tuple[Answer, bool]:
        """The answer, and whether it came as a whole, so that another may come behind it."""
        for _ in range(10):
            head = await reader.readuntil(b"\r\n\r\n")
            first, *lines = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
            version, status = first.split(" ")[:2]
            if not version.startswith("HTTP/1."):
                raise ValueError(version)
            if int(status) >= 200:
                break
        else:
            raise ValueError("too many interim answers")
        pairs = [line.partition(":")[::2] for line in lines]
        headers = httpx.Headers([(name, value.strip()) for name, value in pairs])
        answer = Answer(status=int(status), headers=headers)
        return answer, await self.read_body(reader, answer) and headers.get("Connection") != "close"

    async def read_body(self, reader: asyncio.StreamReader, answer: Answer) -> bool:
        """Read what there is, but not too much; whether that was all."""
        if answer.status in {204, 304}:
            return True
        if answer.headers.get("Transfer-Encoding") == "chunked":
            while size := int(await reader.readuntil(b"\r\n"), 16):
                await reader.readexactly(min(size, MAX_ANSWER) + 2)
            return False
        length = answer.headers.get("Content-Length")
        if length is not None and int(length) <= MAX_ANSWER:
            await reader.readexactly(int(length))
            return True
        size = 0
        while size < MAX_ANSWER and (piece := await reader.read(4_096)):
            size += len(piece)
        return False


class Enveloped(Sender):
    """It puts the payload into an envelope, as Standard Webhooks proposes; the payload's bytes are kept."""

    name = "envelope-sender 1.0"

    def body(self, message: Message) -> bytes:
        """The payload as `data`; the time is the event's, not the attempt's."""
        return b'{"type":%s,"timestamp":"2026-01-01T00:00:00Z","data":%s}' % (
            json.dumps(message.event).encode(),
            message.body,
        )


def _renamed(headers: Headers, names: dict[str, str]) -> Headers:
    return [(names.get(name, name), value) for name, value in headers]


class CloudEvents(Sender):
    """CloudEvents in binary mode, signed by WebSub; nothing optional but a schedule."""

    name = "cloudevents-sender 1.0"
    abilities = frozenset({"subscribe", "schedule", "scheme:websub"})

    def headers(self, subscription: Subscription, message: Message, body: bytes) -> Headers:
        """All headers of an attempt."""
        if subscription.schemes == ("standard",):
            subscription.schemes = ("websub",)
        headers = super().headers(subscription, message, body)
        named = {"webhook-id": "ce-id", "webhook-timestamp": "X-Webhook-Timestamp"}
        about = [("ce-specversion", "1.0"), ("ce-type", message.event), ("ce-source", "/tests")]
        return _renamed(headers, named) + about


class Quiet(Shaking):
    """Structured events with no id but the event's own, signed by WebSub; whoever does not agree is not subscribed."""

    name = "quiet-sender 1.0"
    abilities = frozenset({"subscribe", "schedule", "scheme:websub", "handshake", "body:cloudevents-structured"})

    async def subscribe(self, **wish: Any) -> dict[str, Any]:
        """Make a subscription, all of whose bodies are events in structured mode."""
        made = await super().subscribe(**(wish | {"body": "cloudevents-structured"}))
        if wish.get("handshake") and made["id"] not in self.agreed:
            del self.subscriptions[made["id"]]
            raise Refusal("the endpoint does not agree")
        return made

    def asking(self) -> Headers:
        """What a handshake says; no rate is asked for."""
        return [("WebHook-Request-Origin", self.origin)]

    def headers(self, subscription: Subscription, message: Message, body: bytes) -> Headers:
        """All headers of an attempt."""
        subscription.schemes = ("websub",)
        names = {"webhook-id", "webhook-timestamp"}
        return [one for one in super().headers(subscription, message, body) if one[0] not in names]


class Background(Shaking):
    """It asks behind the answer to whoever subscribes, and holds events until the endpoint has agreed."""

    name = "background-sender 1.0"

    async def shake(self, subscription: Subscription) -> None:
        """Ask the endpoint, and wait for nobody."""
        task = asyncio.create_task(super().shake(subscription))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)


class Modest(Sender):
    """It can subscribe, and that is all: its schedule is its own, and nobody can ask it for anything."""

    name = "modest-sender 1.0"
    abilities = frozenset({"subscribe"})

    async def subscribe(self, **wish: Any) -> dict[str, Any]:
        """Make a subscription; whatever is wanted of it is not heard."""
        return await super().subscribe(**(wish | {"schemes": [], "schedule": [], "timeout": 15.0}))


class Websub(Sender):
    """WebSub only, with an id and a time in headers of its own, in the terms of JSON with a suffix."""

    name = "websub-sender 1.0"
    abilities = frozenset({"subscribe", "schedule", "timeout", "callback", "state", "enable", "scheme:websub"})

    def headers(self, subscription: Subscription, message: Message, body: bytes) -> Headers:
        """All headers of an attempt."""
        subscription.schemes = ("websub",)
        headers = super().headers(subscription, message, body)
        names = {"webhook-id": "X-Delivery-Id", "webhook-timestamp": "X-Webhook-Timestamp"}
        return [
            (name, "application/feed+json; charset=utf-8" if name == "Content-Type" else value)
            for name, value in _renamed(headers, names)
        ]


class Backoff(Sender):
    """Of the schedule it takes the first distance, and doubles it each time, with chance on top only."""

    name = "backoff-sender 1.0"

    def wait(self, subscription: Subscription, message: Message, answer: Answer) -> float | None:
        """Seconds until the next try."""
        if super().wait(subscription, message, answer) is None:
            return None
        doubled = subscription.schedule[0] * float(2 ** (message.attempt - 1))
        return max(doubled * random.uniform(1.0, 1.3), self.retry_after(answer))


class HeadOnly(Sender):
    """The status is the answer: whatever follows the head is not read."""

    name = "head-only-sender 1.0"

    async def post(self, subscription: Subscription, headers: Headers, body: bytes) -> Answer:
        """One request."""
        target = "/" + subscription.url.partition("://")[2].partition("/")[2]
        try:
            async with (
                asyncio.timeout(subscription.timeout),
                self.client.stream(
                    "POST", subscription.url, headers=headers, content=body, extensions={"target": target.encode()}
                ) as response,
            ):
                return Answer(status=response.status_code, headers=response.headers)
        except (httpx.HTTPError, OSError, ValueError):
            return Answer(status=None)


class GithubLike(Sender):
    """As GitHub does it: no time, an id in X-GitHub-Delivery, signed by X-Hub-Signature-256."""

    name = "github-like-sender 1.0"
    abilities = frozenset({"subscribe", "schedule", "scheme:github"})

    def headers(self, subscription: Subscription, message: Message, body: bytes) -> Headers:
        """All headers of an attempt."""
        subscription.schemes = ("github",)
        headers = [one for one in super().headers(subscription, message, body) if one[0] != "webhook-timestamp"]
        return _renamed(headers, {"webhook-id": "X-GitHub-Delivery"})


class Sha512(Sender):
    """WebSub with SHA-512, which WebSub's section 7.1 has as one of four."""

    name = "sha512-sender 1.0"
    abilities = frozenset({"subscribe", "schedule", "callback", "scheme:websub"})

    def signature(self, scheme: str, secrets: list[str], message: Message, timestamp: str, body: bytes) -> Headers:
        """X-Hub-Signature."""
        return [("X-Hub-Signature", f"sha512={hexadecimal(secrets[0], body, 'sha512')}")]


class OtherLabel(Complete):
    """RFC 9421 with a label and a choice of components that are its own, the body's digest among them."""

    name = "label-sender 1.0"
    abilities = frozenset({"subscribe", "schedule", "scheme:rfc9421"})

    def message_signature(self, scheme: str, subscription: Subscription, message: Message, body: bytes) -> Headers:
        """Method, authority, path, digest and id are covered."""
        url = urlsplit(subscription.url)
        digest = self.digest(body)
        components = {
            "@method": "POST",
            "@authority": url.netloc,
            "@path": url.path,
            "content-digest": digest,
            "webhook-id": message.id,
        }
        params = "(" + " ".join(f'"{name}"' for name in components) + f");created={int(time.time())}"
        lines = [f'"{name}": {value}' for name, value in components.items()]
        base = "\n".join([*lines, f'"@signature-params": {params}']).encode()
        signed = base64.b64encode(self.mac(subscription.secret, base)).decode()
        return [("Content-Digest", digest), ("Signature-Input", f"sig1={params}"), ("Signature", f"sig1=:{signed}:")]


class OddNames(Sender):
    """The id and the time stand in headers that nobody else has, and it says so."""

    name = "odd-sender 1.0"
    abilities = Sender.abilities - {"scheme:standard"}

    async def hello(self, authority: str | None, **others: Any) -> dict[str, Any]:
        """Say who we are, and what our headers are called."""
        said = await super().hello(authority, **others)
        return said | {"id_header": "Odd-Message", "timestamp_header": "Odd-Time"}

    def headers(self, subscription: Subscription, message: Message, body: bytes) -> Headers:
        """All headers of an attempt; by default signed by WebSub."""
        if subscription.schemes == ("standard",):
            subscription.schemes = ("websub",)
        headers = super().headers(subscription, message, body)
        return _renamed(headers, {"webhook-id": "Odd-Message", "webhook-timestamp": "Odd-Time"})


class TwoSignatures(Complete):
    """RFC 9421 twice over: one signature for a proxy, which is not ours to verify, and one for the endpoint."""

    name = "two-signatures-sender 1.0"
    abilities = frozenset({"subscribe", "schedule", "scheme:rfc9421", "scheme:rfc9421-ed25519"})

    def message_signature(self, scheme: str, subscription: Subscription, message: Message, body: bytes) -> Headers:
        """What the proxy's signature covers is not there any more, and stands first."""
        made = dict(super().message_signature(scheme, subscription, message, body))
        proxy = '("@authority" "x-forwarded-for");created=1;keyid="proxy"'
        return [
            *((name, made[name]) for name in ("X-Webhook-Delivery", "Content-Digest")),
            ("Signature-Input", f"proxy={proxy}"),
            ("Signature-Input", made["Signature-Input"]),
            ("Signature", f"proxy=:{base64.b64encode(bytes(32)).decode()}:, {made['Signature']}"),
        ]


@dataclass(frozen=True, kw_only=True)
class Good:
    """A good sender."""

    make: type[Sender]
    #: it can all that is asked for: nothing may be skipped
    is_complete: bool = False


GOOD = {
    "other": Good(make=Sender),
    "complete": Good(make=Complete, is_complete=True),
    "wire": Good(make=Wire),
    "enveloped": Good(make=Enveloped),
    "cloudevents": Good(make=CloudEvents),
    "quiet": Good(make=Quiet),
    "background": Good(make=Background),
    "modest": Good(make=Modest),
    "websub": Good(make=Websub),
    "backoff": Good(make=Backoff),
    "head-only": Good(make=HeadOnly),
    "github-like": Good(make=GithubLike),
    "sha512": Good(make=Sha512),
    "other-label": Good(make=OtherLabel),
    "odd-names": Good(make=OddNames),
    "two-signatures": Good(make=TwoSignatures),
}
