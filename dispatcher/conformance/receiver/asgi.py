"""The defences in front of a handler, as an ASGI application: for users' own tests, and small services.

    app = protected(process, Policy(signature_schemes=("standard",), keys=(Key(secret=…),), tolerance=300))

`process` gets each accepted request once. Before that, the sender gets 202: a webhook is taken in at once, and worked
on later.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from typing import Any
from urllib.parse import quote

from dispatcher.conformance.receiver.defences import Defences, Judgement, refuse
from dispatcher.conformance.receiver.policy import Policy
from dispatcher.conformance.wire.requests import Headers, Received, Reply
from dispatcher.errors import ConfigError

log = logging.getLogger(__name__)

#: bytes of a body that are read when the policy sets no limit
MAX_BODY = 1_048_576
#: seconds that the end of the application waits for what is being processed
GRACE = 10.0

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Process = Callable[[Received], Awaitable[None]]


def protected(
    process: Process,
    policy: Policy,
    *,
    clock: Callable[[], float] = time.time,
    on_judgement: Callable[[Received, Judgement], None] | None = None,
    max_pending: int = 1000,
    grace: float = GRACE,
) -> Protected:
    """An ASGI application that judges each request, answers it, and has accepted ones processed afterwards.

    `on_judgement` is told what was decided, and why. Requests beyond `max_pending` in progress get 503. Raises
    ConfigError.
    """
    return Protected(
        process, Defences(policy, clock=clock), on_judgement=on_judgement, max_pending=max_pending, grace=grace
    )


class Protected:
    """What `protected` makes. It counts what it did; the counts are for tests and metrics.

    Under a server that runs the lifespan (uvicorn, `with TestClient(app)`), processing goes on beside, and the end of
    the lifespan waits `grace` seconds for it. Without one (`httpx.ASGITransport`), nothing would ever wait for it:
    there it takes place within the call, after the answer has been sent.
    """

    def __init__(
        self,
        process: Process,
        defences: Defences,
        *,
        on_judgement: Callable[[Received, Judgement], None] | None = None,
        max_pending: int = 1000,
        grace: float = GRACE,
    ) -> None:
        if max_pending < 1 or grace < 0:
            raise ConfigError("max_pending is at least 1, and grace is not negative")
        self.defences = defences
        #: accepted, repeats among them
        self.accepted = 0
        #: accepted again, and not processed
        self.repeats = 0
        self.refused = 0
        self.processed = 0
        #: accepted, and then `process` raised or was cut off; their next attempt counts as the first
        self.failures = 0
        #: accepted, and not yet through
        self.pending = 0
        self._process = process
        self._on_judgement = on_judgement
        self._max_pending = max_pending
        self._grace = grace
        limit = defences.policy.max_body_bytes
        self._max_body = MAX_BODY if limit is None else limit
        self._numbers = itertools.count(1)
        self._has_lifespan = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """ASGI 3."""
        match scope["type"]:
            case "http":
                await self._serve(scope, receive, send)
            case "lifespan":
                await self._live(receive, send)
            case "websocket":
                await send({"type": "websocket.close", "code": 1008})

    async def drain(self, within: float) -> None:
        """Wait for what is being processed beside; what is not through in so many seconds is cut off, as a failure."""
        if not self._tasks:
            return
        _, late = await asyncio.wait(self._tasks, timeout=within)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)

    async def _live(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                self._has_lifespan = True
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                self._has_lifespan = False
                await self.drain(self._grace)
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _serve(self, scope: Message, receive: Receive, send: Send) -> None:
        """Read, judge, answer, process."""
        request = await self._read(scope, receive)
        if request is None:
            return
        judgement, reply = self._judge(request)
        if not request.is_complete and not str(scope.get("http_version", "1.1")).startswith("2"):
            # the rest of the body is still on its way; it is not read
            reply = Reply(status=reply.status, headers=(*reply.headers, ("Connection", "close")), body=reply.body)
        if judgement is None or not judgement.is_to_be_processed:
            await _answer(reply, send)
            return
        self.pending += 1
        if self._has_lifespan:
            # begun before the answer is sent: a sender that hangs up now has still handed it over
            task = asyncio.create_task(self._run(request, judgement))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            await _answer(reply, send)
            return
        try:
            await _answer(reply, send)
        finally:
            await self._run(request, judgement)

    def _judge(self, request: Received) -> tuple[Judgement | None, Reply]:
        """What was decided, and what is answered; no judgement where our own bounds decide."""
        if not request.is_complete and self.defences.policy.max_body_bytes is None:
            self.refused += 1
            return None, refuse("limits", 413, "too large").reply
        judgement = self.defences.judge(request)
        if self._on_judgement is not None:
            self._on_judgement(request, judgement)
        if judgement.refusal is not None:
            self.refused += 1
            return judgement, judgement.refusal.reply
        if judgement.handshake is not None:
            return judgement, judgement.handshake
        if not judgement.is_repeat and self.pending >= self._max_pending:
            # it is not taken, so its next attempt is no repeat
            self.defences.forget(judgement)
            self.refused += 1
            return None, Reply(status=503, headers=(("Retry-After", "1"),))
        self.accepted += 1
        self.repeats += judgement.is_repeat
        return judgement, Reply(status=202)

    async def _run(self, request: Received, judgement: Judgement) -> None:
        try:
            await self._process(request)
        except BaseException as exc:
            self.failures += 1
            self.defences.forget(judgement)
            # its text may repeat what was sent
            log.error("processing of request %d failed: %s", request.number, type(exc).__name__)
            if not isinstance(exc, Exception):
                raise
        else:
            self.processed += 1
        finally:
            self.pending -= 1

    async def _read(self, scope: Message, receive: Receive) -> Received | None:
        """The request with its raw body, up to the bound; None if the client left before it was through."""
        at, clock = time.time(), time.monotonic()
        headers = _headers(scope)
        announced = next((value for name, value in headers if name.lower() == "content-length"), "")
        body = bytearray()
        is_complete = not (announced.isdecimal() and (len(announced) > 15 or int(announced) > self._max_body))
        more = is_complete
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return None
            body += message.get("body", b"")
            if len(body) > self._max_body:
                is_complete = False
                break
            more = message.get("more_body", False)
        number = next(self._numbers)
        target = _target(scope)
        line = f"{scope['method']} {target} HTTP/{scope.get('http_version', '1.1')}"
        head = "".join(f"{text}\r\n" for text in (line, *(f"{name}: {value}" for name, value in headers), ""))
        return Received(
            number=number,
            at=at,
            clock=clock,
            # ASGI does not tell connections apart
            connection=number,
            remote=(scope.get("client") or ("",))[0],
            is_tls=scope.get("scheme") == "https",
            method=scope["method"],
            target=target,
            headers=headers,
            body=bytes(body),
            # as a server of HTTP/1.1 would have got it, but for the case of the names and chunks
            raw=head.encode("latin-1", "replace") + body,
            is_complete=is_complete,
        )


def _headers(scope: Message) -> Headers:
    def decoded() -> Iterator[tuple[str, str]]:
        for name, value in scope["headers"]:
            yield name.decode("latin-1"), value.decode("latin-1").strip(" \t")

    return tuple(decoded())


def _target(scope: Message) -> str:
    """The path and query as they were sent; servers that do not keep the path get it quoted anew."""
    raw = scope.get("raw_path")
    path = raw.decode("latin-1") if raw else quote(scope["path"])
    query = scope.get("query_string", b"").decode("latin-1")
    return f"{path}?{query}" if query else path


async def _answer(reply: Reply, send: Send) -> None:
    headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in reply.headers]
    headers.append((b"content-length", str(len(reply.body)).encode()))
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": reply.body})
