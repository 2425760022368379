"""A receiver of webhooks: keeps what comes, judges it as a careful handler would, misbehaves where it is told to."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import re
import secrets
import ssl
import time
from collections import Counter as Tally
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self

import structlog

from dispatcher.conformance.faults import Script
from dispatcher.conformance.receiver.control import Board, Control, is_loopback, origin
from dispatcher.conformance.receiver.defences import DEFENCES, Defences, Judgement, Policy
from dispatcher.conformance.receiver.inbox import Inbox, delivery_of, name_shown
from dispatcher.conformance.wire.exchange import Exchange
from dispatcher.conformance.wire.name_server import NameServer
from dispatcher.conformance.wire.requests import Received, Reply
from dispatcher.conformance.wire.server import Counter, WireServer
from dispatcher.errors import ConfigError

#: what is done with a request after it was answered: a function, or one that is awaited
Process = Callable[[Received], Awaitable[None] | None]

#: stands for every path that has no script of its own
ANY_PATH = "*"
#: requests that wait for being processed; one more is answered 503
BACKLOG = 1_000
#: seconds that what waits has to be processed when the receiver ends
GRACE = 5.0
#: names of headers in a log line at most
_SHOWN_HEADERS = 50

#: what the report counts
_COUNTED = ("accepted", "handshakes", "repeats", "scripted", "processed", "failed", "busy")

_STATUS_LINE_BYTES = 12
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([1-9][0-9]{2})")


class Receiver:
    """One receiver. An async context manager: it listens within.

    What happens to a request: it is logged and put into the inbox; a script for its path answers it, if there is one;
    else the defences judge it, and it is answered what they say, or `answer` once it is queued for `process`.
    """

    def __init__(
        self,
        policy: Policy | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        tls: ssl.SSLContext | None = None,
        authority: str | None = None,
        control_host: str = "127.0.0.1",
        control_port: int | None = None,
        answer: int = 202,
        scripts: Mapping[str, str] | None = None,
        name_server: NameServer | None = None,
        process: Process | None = None,
        inbox: Inbox | None = None,
        max_head: int = 65_536,
        max_body: int = 1_048_576,
        clock: Callable[[], float] = time.time,
        log: structlog.typing.FilteringBoundLogger | None = None,
    ) -> None:
        """`authority` (PEM) is shown at the control port, which is there unless `control_port` is None; 0 picks a port.

        `name_server` listens as long as the receiver does, for names that lead here, or first here and then elsewhere.
        `answer` is a 2xx status: to answer otherwise is what scripts are for. `log` takes its lines, which go where
        structlog is configured to write, otherwise. Raises ConfigError.
        """
        if not 200 <= answer <= 299:
            raise ConfigError("the answer to what is accepted is a 2xx status; a script gives others")
        self.inbox = inbox or Inbox()
        self.defences = Defences(policy or Policy(), clock=clock)
        #: what the control port asks for; None on loopback, where it asks for nothing
        self.control_token = None if is_loopback(control_host) else secrets.token_urlsafe(24)
        self.control_url: str | None = None
        self._host, self._tls, self._answer = host, tls, answer
        self._limits = {"max_head": max_head, "max_body": max_body}
        self._control_at = None if control_port is None else (control_host, control_port)
        self._authority = authority
        self.name_server = name_server
        self._process = process
        self._log: structlog.typing.FilteringBoundLogger = log or structlog.get_logger(__name__)
        self._scripts: dict[str, Script] = {}
        for path, text in (scripts or {}).items():
            self.script(path, text)
        self._counter = Counter()
        self._server = self._new_server(port=port, host=host, tls=tls)
        self._queue: asyncio.Queue[tuple[Received, Judgement]] = asyncio.Queue(BACKLOG)
        self._passed: Tally[str] = Tally()
        self._refused: Tally[str] = Tally()
        self._counts: Tally[str] = Tally()
        self._refused_on_the_wire: Tally[str] = Tally()
        #: the request that broke off this moment, whose answer is told next
        self._broken: int | None = None
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._finish, asyncio.create_task(self._work()))
            await self._server.start()
            stack.push_async_callback(self._server.close)
            if self.name_server is not None:
                await stack.enter_async_context(self.name_server)
            if self._control_at is not None:
                host, port = self._control_at
                control = Control(self._board(), host=host, port=port, token=self.control_token)
                await stack.enter_async_context(control)
                self.control_url = control.url
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    @property
    def url(self) -> str:
        """Where it listens: scheme, host and port."""
        return origin("https" if self._tls else "http", self._host, self._server.port)

    async def listen(self, *, host: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None) -> str:
        """Listen in another place, too, until the receiver ends; its URL. Raises ConfigError."""
        server = self._new_server(host=host, port=port, tls=tls)
        await server.start()
        self._stack.push_async_callback(server.close)
        return origin("https" if tls else "http", host, server.port)

    def script(self, path: str, text: str) -> None:
        """What a path answers from now on; `*` is every path without one. No text: what the defences say.

        Raises ConfigError, which says what is wrong with the script.
        """
        if path != ANY_PATH and not path.startswith("/"):
            raise ConfigError("the path of a script begins with /, or is *")
        if text:
            self._scripts[path] = Script.parse(text)
        else:
            self._scripts.pop(path, None)

    def callback_url(
        self,
        *,
        path: str = "/results",
        res_id: str | None = None,
        ttl: float,
        id: str | None = None,  # noqa: A002 - the claim's name
    ) -> str:
        """A URL that carries the permission to send one result here, for `ttl` seconds. Raises ConfigError."""
        issuer = self.defences.policy.callback
        if issuer is None:
            raise ConfigError("callback URLs need a secret to sign them with: a policy that has a `callback`")
        return issuer.url(
            self.url, id=id or secrets.token_hex(8), path=path, res_id=res_id or secrets.token_hex(8), ttl=ttl
        )

    def report(self) -> dict[str, Any]:
        """What came of all requests, and what each defence did."""
        on = self.defences.policy.on
        return {
            "requests": self.inbox.total,
            "kept": len(self.inbox),
            "dropped": self.inbox.dropped,
            "refused_on_the_wire": dict(sorted(self._refused_on_the_wire.items())),
            **{name: self._counts[name] for name in _COUNTED},
            "waiting": self._queue.qsize(),
            "defences": [
                {"name": name, "is_on": name in on, "passed": self._passed[name], "refused": self._refused[name]}
                for name in DEFENCES
            ],
            "name_server": self.name_server.report() if self.name_server else None,
        }

    # --- one request ----------------------------------------------------------------------------------------

    async def _handle(self, exchange: Exchange) -> None:
        request = exchange.request
        self._keep(request)
        watched = _Watched(exchange, self._on_status)
        script = self._scripts.get(request.path) or self._scripts.get(ANY_PATH)
        step = script.next(request) if script else None
        if step is None:
            await watched.reply(self._decide(request))
            return
        self._counts["scripted"] += 1
        self.inbox.note(request.number, fault=step.name)
        await step(watched)

    def _keep(self, request: Received) -> None:
        """Log it and put it into the inbox: whatever comes of it, it was seen."""
        names = [name_shown(name) for name, _ in request.headers[:_SHOWN_HEADERS]]
        self._log.info(
            "request",
            number=request.number,
            method=name_shown(request.method),
            length=len(request.body),
            headers=names,
            delivery=name_shown(delivery_of(request)),
        )
        self.inbox.add(request)

    def _decide(self, request: Received) -> Reply:
        """The answer to a request that no script answers. Without a pause: what is accepted is queued."""
        if self._queue.full():
            # before it is judged: what is answered 503 must not count as seen
            self._counts["busy"] += 1
            return Reply(status=503, headers=(("Retry-After", "1"),))
        judgement = self.defences.judge(request)
        self._passed.update(judgement.passed)
        self.inbox.note(request.number, judgement=judgement)
        if (refusal := judgement.refusal) is not None:
            self._refused[refusal.defence] += 1
            self._log.warning(
                "refused",
                number=request.number,
                status=refusal.reply.status,
                defence=refusal.defence,
                reason=refusal.reason,
            )
            return refusal.reply
        if judgement.handshake is not None:
            self._counts["handshakes"] += 1
            return judgement.handshake
        self._counts["accepted"] += 1
        if judgement.is_repeat:
            self._counts["repeats"] += 1
        else:
            self._queue.put_nowait((request, judgement))
        return Reply(status=self._answer)

    def _on_status(self, request: Received, status: int) -> None:
        self.inbox.note(request.number, status=status)

    # --- behind the answer ----------------------------------------------------------------------------------

    async def _work(self) -> None:
        while True:
            request, judgement = await self._queue.get()
            try:
                await self._process_one(request)
                self._counts["processed"] += 1
                self.inbox.note(request.number, is_processed=True)
            except Exception as exc:  # noqa: BLE001 - whatever a user's function raises, the next request has its turn
                # The next attempt of this delivery is no repeat: nothing came of this one.
                self.defences.forget(judgement)
                self._counts["failed"] += 1
                self.inbox.note(request.number, failure=type(exc).__name__)
                # without its text, which may show what the request held
                self._log.error("processing_failed", number=request.number, error=type(exc).__name__)
            finally:
                self._queue.task_done()

    async def _process_one(self, request: Received) -> None:
        if self._process is None:
            return
        if inspect.iscoroutinefunction(self._process):
            await self._process(request)
            return
        # A function may take its time, and others are to be answered meanwhile.
        outcome = await asyncio.to_thread(self._process, request)
        if outcome is not None:
            await outcome

    async def _finish(self, working: asyncio.Task[None]) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GRACE):
                await self._queue.join()
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
        if self._queue.qsize():
            self._log.warning("not_processed", requests=self._queue.qsize())

    # --- parts ----------------------------------------------------------------------------------------------

    def _new_server(self, *, host: str, port: int, tls: ssl.SSLContext | None) -> WireServer:
        return WireServer(
            self._handle,
            host=host,
            port=port,
            tls=tls,
            counter=self._counter,
            on_refused=self._on_refused,
            on_incomplete=self._on_incomplete,
            **self._limits,
        )

    def _on_incomplete(self, request: Received) -> None:
        self._keep(request)
        self._broken = request.number

    def _on_refused(self, reply: Reply, reason: str) -> None:
        number, self._broken = self._broken, None
        self._refused_on_the_wire[str(reply.status)] += 1
        self._log.warning("refused", number=number, status=reply.status, defence="wire", reason=reason)
        if number is not None:
            self.inbox.note(number, status=reply.status)

    def _board(self) -> Board:
        policy = self.defences.policy
        return Board(
            inbox=self.inbox,
            report=self.report,
            script=self.script,
            issue=self.callback_url if policy.callback else None,
            authority=self._authority,
            name=self.name_server.script if self.name_server else None,
            secrets=(*(key.secret for key in policy.keys if key.secret), *(policy.shared_secrets or ())),
        )


class _Watched(Exchange):
    """An exchange that tells what status it is answered, as soon as that is decided."""

    def __init__(self, exchange: Exchange, on_status: Callable[[Received, int], None]) -> None:
        self.request = exchange.request
        self._exchange = exchange
        # A fault may call a method of the class itself, which wants this.
        self._connection = exchange._connection
        self._begun = b""
        self._on_status: Callable[[Received, int], None] | None = on_status

    @property
    def goes_on(self) -> bool:
        return self._exchange.goes_on

    @property
    def has_begun(self) -> bool:
        return self._exchange.has_begun

    async def reply(self, reply: Reply) -> None:
        self._tell(reply.status)
        await self._exchange.reply(reply)

    async def send(self, data: bytes) -> None:
        # It may come byte by byte.
        self._begun += data[: _STATUS_LINE_BYTES - len(self._begun)]
        if match := _STATUS_LINE.match(self._begun):
            self._tell(int(match[1]))
        await self._exchange.send(data)

    async def close(self) -> None:
        await self._exchange.close()

    def reset(self) -> None:
        self._exchange.reset()

    async def until_gone(self, within: float) -> bool:
        return await self._exchange.until_gone(within)

    def _tell(self, status: int) -> None:
        # a status below 200 is no answer yet
        if self._on_status is not None and status >= 200:
            self._on_status(self.request, status)
            self._on_status = None
