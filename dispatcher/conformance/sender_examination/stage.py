"""Where a sender is watched: paths of a receiver of the kit's, what each answers, and what came there."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import secrets
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from dispatcher.conformance.faults import Script
from dispatcher.conformance.sender_examination import handshakes
from dispatcher.conformance.sender_examination.handshakes import Consent, Handshake
from dispatcher.conformance.sender_examination.neighbourhood import Neighbourhood
from dispatcher.conformance.sender_examination.senders import Names, Sender, Subscribed, Wish
from dispatcher.conformance.signatures.schemes import ANYBODYS, Key, Profile, Verdict, parse_public_key, verify
from dispatcher.conformance.wire.exchange import Exchange
from dispatcher.conformance.wire.requests import Received, Reply
from dispatcher.conformance.wire.server import WireServer

#: what a CloudEvent in structured mode is called
STRUCTURED = "application/cloudevents+json"
#: a deadline for one request, seconds, where it is not the point: a busy machine has to be able to answer in time
PATIENT = 15.0
#: seconds: a silence is made of these
_MOMENT = 0.1
#: what a subject gets that a scenario says nothing else about
PAYLOAD = b'{"n": 1}'


class Unplayable(Exception):
    """The kit itself lacks what a scenario takes; its text says what."""


@dataclass(kw_only=True, slots=True)
class Seen:
    """One request to a subject, and what became of it."""

    request: Received
    #: what it was answered, as the script says it
    answer: str
    #: the address of the neighbourhood where it came; empty on the stage
    at: str = ""
    #: what the sender calls its headers
    names: Names
    #: seconds until the exchange was over; None while it is not
    lasted: float | None = None
    #: bytes of an unusual answer that were taken
    taken: int = 0

    @property
    def id(self) -> str | None:
        """The id of its message."""
        in_headers = next((value for name in self.names.id if (value := self.request.header(name))), None)
        return in_headers or _structured_id(self.request)

    @property
    def timestamp(self) -> str | None:
        """The time that it claims to be of, as it stands there."""
        return next((value for name in self.names.timestamp if (value := self.request.header(name))), None)


def _structured_id(request: Received) -> str | None:
    """The id within a CloudEvent in structured mode, which needs none in a header."""
    if (request.header("Content-Type") or "").partition(";")[0].strip().lower() != STRUCTURED:
        return None
    try:
        event = json.loads(request.body)
    except (ValueError, RecursionError):
        return None
    id_ = event.get("id") if isinstance(event, dict) else None
    return id_ if isinstance(id_, str) else None


@dataclass(kw_only=True, slots=True)
class Subject:
    """An endpoint in a scenario, and all that came there."""

    name: str
    url: str = field(repr=False)
    path: str = field(repr=False)
    event: str
    secret: str = field(repr=False)
    #: what the requests of a message are answered, one after the other; the last for ever
    script: tuple[str, ...]
    #: what the sender calls its headers
    names: Names = field(default_factory=Names)
    schemes: tuple[str, ...] = ()
    subscribed: Subscribed | None = None
    #: why the sender did not take the subscription
    refused: str | None = None
    #: what it answers to a sender that asks whether it may send, and each time that one did
    consent: Consent = field(default_factory=Consent, repr=False)
    handshakes: list[Handshake] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    published: list[bytes] = field(default_factory=list, repr=False)
    _changed: asyncio.Event = field(default_factory=asyncio.Event, repr=False)
    _counts: dict[str, int] = field(default_factory=dict, repr=False)

    @property
    def messages(self) -> dict[str, list[Seen]]:
        """The requests of each message, in the order in which the messages first came."""
        found: dict[str, list[Seen]] = {}
        for one in self.seen:
            found.setdefault(one.id or f"request {one.request.number}", []).append(one)
        return found

    @property
    def gaps(self) -> list[list[float]]:
        """Of each message the seconds between one request and the next."""
        return [
            [after.request.clock - before.request.clock for before, after in itertools.pairwise(seen)]
            for seen in self.messages.values()
        ]

    def verify(
        self, scheme: str, request: Received, *, secret: str | None = None, profile: Profile = ANYBODYS
    ) -> Verdict:
        """Whether a request is signed by this scheme with the subject's secret, or with another."""
        public = None
        if secret is None and self.subscribed is not None and self.subscribed.public_key:
            public = parse_public_key(self.subscribed.public_key)
        key = Key(secret=secret or self.secret, public_key=public)
        # WebSub leaves the hash to the sender, but SHA-1 is no good any more.
        label = (request.header("X-Hub-Signature") or "").partition("=")[0]
        method = label if label in {"sha384", "sha512"} else "sha256"
        return verify(scheme, [key], request, now=request.at, tolerance=60.0, hub_method=method, profile=profile)

    def missing(self, since: int = 0) -> list[bytes]:
        """The payloads that are in no request from this one on."""
        bodies = [one.request.body for one in self.seen[since:]]
        return [payload for payload in self.published if not any(payload in body for body in bodies)]

    async def wait(self, count: int, *, within: float) -> bool:
        """Wait until so many requests have come; whether they have."""
        return await self.until(lambda: len(self.seen) >= count, within=within)

    async def until(self, is_so: Callable[[], bool], *, within: float) -> bool:
        """Wait until something is so that requests change; whether it is."""
        deadline = time.monotonic() + within
        while not is_so():
            self._changed.clear()
            try:
                async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                    await self._changed.wait()
            except TimeoutError:
                return False
        return True

    async def rest(self, seconds: float, *, most: float = 20.0) -> None:
        """Wait until nothing has come for so long, or until the end of patience with what does not end.

        A silence is so many moments in which we were there to listen: a machine that keeps us from it has a longer one.
        """
        end = time.monotonic() + most
        moments = 0
        while moments * _MOMENT < seconds and time.monotonic() < end:
            has_come = await self.wait(len(self.seen) + 1, within=_MOMENT)
            moments = 0 if has_come else moments + 1

    async def over(self, *, within: float) -> bool:
        """Wait until every exchange is over; whether it is."""
        deadline = time.monotonic() + within
        while any(one.lasted is None for one in self.seen):
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(0.02)
        return True

    def begin(self, request: Received, *, at: str = "") -> Seen:
        """Note a request, and what it is to be answered."""
        seen = Seen(request=request, answer="", at=at, names=self.names)
        key = seen.id or ""
        count = self._counts.get(key, 0)
        self._counts[key] = count + 1
        seen.answer = self.script[min(count, len(self.script) - 1)]
        self.seen.append(seen)
        self._changed.set()
        return seen


class Stage:
    """The receiver that a scenario plays at. An async context manager."""

    def __init__(self, sender: Sender, neighbourhood: Neighbourhood | None = None) -> None:
        self.sender = sender
        self._neighbourhood = neighbourhood
        #: requests to paths that nobody was told of
        self.strays: list[Received] = []
        #: why requests were refused that are no HTTP, or not whole
        self.refusals: list[str] = []
        self._server = self._listener()
        self._servers = [self._server]
        self._subjects: dict[str, Subject] = {}
        self._is_over = False

    async def __aenter__(self) -> Self:
        await self._server.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over = True
        for server in self._servers:
            await server.close()

    async def listen(self, tls: ssl.SSLContext) -> str:
        """Listen with TLS, too; the origin."""
        server = self._listener(tls)
        await server.start()
        self._servers.append(server)
        return f"https://localhost:{server.port}"

    async def dialled(self, subject: Subject, *, within: float) -> bool:
        """Wait until somebody tried to reach a subject, whose origin is its own; whether he did."""
        server = next(one for one in self._servers if f":{one.port}/" in subject.url)
        end = time.monotonic() + within
        while not subject.seen and not server.failed_handshakes:
            if time.monotonic() > end:
                return False
            await asyncio.sleep(_MOMENT)
        return True

    def _listener(self, tls: ssl.SSLContext | None = None) -> WireServer:
        return WireServer(self._handle, tls=tls, on_refused=lambda _reply, reason: self.refusals.append(reason))

    @property
    def neighbourhood(self) -> Neighbourhood:
        """What a sender as in production meets. Raises Unplayable."""
        if self._neighbourhood is None:
            raise Unplayable("the kit has no addresses beside 127.0.0.1 here")
        return self._neighbourhood

    @property
    def origin(self) -> str:
        """Where the stage listens in plain HTTP."""
        return f"http://127.0.0.1:{self._server.port}"

    def place(
        self,
        name: str,
        script: str = "200",
        *,
        origin: str | None = None,
        rest: str = "",
        secret: str | None = None,
        schemes: Sequence[str] = (),
    ) -> Subject:
        """An endpoint that nobody is subscribed to yet. `rest` is put behind its path as it is."""
        nonce = secrets.token_hex(8)
        path = f"/{name}/{nonce}"
        subject = Subject(
            name=name,
            url=f"{origin or self.origin}{path}{rest}",
            path=path,
            event=f"{name.replace('-', '_')}.t{nonce}",
            secret=secret or "whsec_" + base64.b64encode(secrets.token_bytes(24)).decode(),
            script=tuple(script.split(",")),
            names=self.sender.names,
            schemes=tuple(schemes),
        )
        self._subjects[path] = subject
        return subject

    def place_next_door(self, name: str, script: str = "200", *, origin: str) -> Subject:
        """An endpoint in the neighbourhood, wherever that name or address leads. Raises Unplayable."""
        subject = self.place(name, script, origin=origin)
        self.neighbourhood.expect(subject.path, self._handle_next_door)
        return subject

    async def subscribe(
        self,
        subject: Subject,
        *,
        schedule: Sequence[float] = (),
        deadline: float = PATIENT,
        handshake: bool = False,
        body: str = "",
    ) -> Subject:
        """Subscribe a subject. Raises Refused."""
        subject.subscribed = await self.sender.subscribe(
            Wish(
                url=subject.url,
                event=subject.event,
                secret=subject.secret,
                schemes=subject.schemes,
                schedule=tuple(schedule),
                timeout=deadline,
                handshake=handshake,
                body=body,
            )
        )
        return subject

    async def publish(self, subject: Subject, payload: bytes = PAYLOAD, *, times: int = 1) -> None:
        """Publish what the subject is subscribed to."""
        for _ in range(times):
            subject.published.append(payload)
            await self.sender.publish(subject.event, payload)

    async def _handle_next_door(self, address: str, exchange: Exchange) -> None:
        await self._handle(exchange, at=address)

    async def _handle(self, exchange: Exchange, *, at: str = "") -> None:
        request = exchange.request
        # the target as it should be, or the path in it where it is in absolute form: that is a check's matter
        found = [
            one
            for path, one in self._subjects.items()
            if path in (request.target[: len(path)], request.path[: len(path)])
        ]
        if not found:
            self.strays.append(request)
            await exchange.reply(Reply(status=404))
            return
        if handshakes.is_handshake(request):
            asked = Handshake(request=request)
            found[0].handshakes.append(asked)
            await handshakes.answer(exchange, found[0].consent, asked, time.monotonic)
            return
        seen = found[0].begin(request, at=at)
        behaviour = Script.parse(seen.answer).next(request)
        try:
            if behaviour is None:
                await exchange.reply(Reply())
            else:
                await behaviour(exchange)
        finally:
            # what ends with us says nothing of the sender
            if not self._is_over:
                seen.lasted = time.monotonic() - request.clock
                seen.taken = exchange.sent
