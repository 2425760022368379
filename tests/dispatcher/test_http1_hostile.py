"""Our transport against a server that answers anything: real sockets, bytes made by hypothesis, any end.

Whatever a server sends, a send ends in time with an answer or a SendError, and what was left of one answer is never
taken for the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import struct
import time
import tracemalloc
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dispatcher.delivery.http1_transport import Http1Transport
from dispatcher.delivery.resolver import Resolver
from dispatcher.delivery.transport import (
    MAX_BODY_BYTES,
    Request,
    Response,
    Timing,
)
from dispatcher.egress import EgressPolicy, parse
from dispatcher.errors import SendError
from dispatcher.models import Outcome
from tests.support import listening
from tests.support.answers import CHANGES, SEEDS, cut, mutated
from tests.support.patience import PROMPTLY

#: seconds
DEADLINE = 0.2
MAX_IDLE = 4
#: what a server may do to one of our requests; it may also pause between two pieces
End = Literal["stays", "closes", "resets", "half-closes"]
#: what `send` may say of a request
KNOWN = {Outcome.TIMEOUT, Outcome.CONNECTION_ERROR, Outcome.PROTOCOL_ERROR}


@dataclass(frozen=True, kw_only=True)
class Script:
    """What comes for one request: bytes in pieces, and then an end."""

    pieces: tuple[bytes, ...]
    pause: bool
    end: End


SCRIPTS = st.builds(
    lambda seed, changes, tail, places, pause, end: Script(
        pieces=tuple(cut(mutated(seed, changes) + tail, places)), pause=pause, end=end
    ),
    seed=st.sampled_from((*SEEDS, b"")),
    changes=CHANGES,
    tail=st.one_of(
        st.just(b""),
        st.binary(max_size=40),
        st.sampled_from((*SEEDS[:3], b"HTTP/1.1 103 Early\r\n\r\n" * 50, b"\r\n", b"0\r\n\r\n")),
    ),
    places=st.lists(st.integers(0, 400), max_size=6),
    pause=st.booleans(),
    # Who stays is often waited for until the deadline.
    end=st.sampled_from(("closes", "resets", "half-closes", "closes", "resets", "stays")),
)


class Hostile:
    """Follows the script that a path names; a path without one is answered honestly, with itself."""

    def __init__(self) -> None:
        self.scripts: dict[str, Script] = {}
        #: how often each path was asked for
        self.asked: Counter[str] = Counter()
        #: set while no script is under way
        self.is_quiet = asyncio.Event()
        self.is_quiet.set()
        self._playing = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(2)
                path = head.split(b" ")[1].decode()
                self.asked[path] += 1
                if path in self.scripts:
                    await self._play(self.scripts[path], writer)
                else:
                    body = path.encode()
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            writer.close()

    async def _play(self, script: Script, writer: asyncio.StreamWriter) -> None:
        self._playing += 1
        self.is_quiet.clear()
        try:
            for piece in script.pieces:
                writer.write(piece)
                if script.pause:
                    await asyncio.sleep(0.001)
            if script.end == "resets":
                linger = struct.pack("ii", 1, 0)
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                writer.transport.abort()
            elif script.end == "closes":
                writer.close()
            elif script.end == "half-closes" and not writer.is_closing():
                writer.write_eof()
        finally:
            self._playing -= 1
            if not self._playing:
                self.is_quiet.set()


@dataclass(frozen=True, kw_only=True)
class Place:
    """The loop that all examples share, a server and a transport on it."""

    runner: asyncio.Runner
    server: Hostile
    transport: Http1Transport
    url: str

    async def send(self, path: str, *, deadline: float) -> Response:
        request = Request(target=parse(self.url + path), headers=(), body=b"{}", deadline=deadline)
        return await self.transport.send(request, Timing())


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    server = Hostile()

    async def start() -> tuple[asyncio.Server, Resolver, Http1Transport]:
        resolver = Resolver(nameservers=["127.0.0.1:1"])
        listener = await asyncio.start_server(server.serve, "127.0.0.1", 0, backlog=1000)
        transport = Http1Transport(resolver=resolver, policy=EgressPolicy.dev(), max_idle=MAX_IDLE)
        return listener, resolver, transport

    async def stop() -> None:
        await transport.aclose()
        await resolver.aclose()
        await listening.close(listener)

    with asyncio.Runner() as runner:
        listener, resolver, transport = runner.run(start())
        url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        yield Place(runner=runner, server=server, transport=transport, url=url)
        runner.run(stop())


_numbers = itertools.count()

OK = SEEDS[0]


@given(scripts=st.lists(SCRIPTS, min_size=1, max_size=6))
@example(
    scripts=[Script(pieces=(OK + b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison",), pause=False, end="stays")]
)
@example(scripts=[Script(pieces=(OK, b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"), pause=True, end="stays")])
@example(scripts=[Script(pieces=(OK, b"\r\n"), pause=True, end="stays")] * 3)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_answer_hangs_breaks_or_outlives_its_request(place: Place, scripts: list[Script]) -> None:
    place.runner.run(_suffer(place, scripts))


async def _suffer(place: Place, scripts: Sequence[Script]) -> None:
    paths = [f"/hostile/{next(_numbers)}" for _ in scripts]
    place.server.scripts = dict(zip(paths, scripts, strict=True))
    started = time.monotonic()
    answers = await asyncio.gather(*(place.send(path, deadline=DEADLINE) for path in paths), return_exceptions=True)
    assert time.monotonic() - started < DEADLINE + PROMPTLY
    for path, answer in zip(paths, answers, strict=True):
        if isinstance(answer, SendError):
            assert answer.outcome in KNOWN
        else:
            assert isinstance(answer, Response), answer
            assert 200 <= answer.status <= 999
            assert len(answer.body) <= MAX_BODY_BYTES
        # once, and once more where a kept connection broke
        assert place.server.asked[path] <= 2
    # What comes after an answer and behind the next request is that one's answer for anybody. So all is sent before.
    await place.server.is_quiet.wait()
    assert not any(place.transport._deadlines._due.values())
    assert len(place.transport._idle._by_age) <= MAX_IDLE
    honest = [f"/honest/{next(_numbers)}" for _ in scripts]
    own = await asyncio.gather(*(place.send(path, deadline=PROMPTLY) for path in honest))
    assert [(answer.status, answer.body) for answer in own] == [(200, path.encode()) for path in honest]


POISON = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"


@pytest.mark.parametrize("before", [OK, SEEDS[1], SEEDS[2]], ids=["a length", "no body", "chunks"])
def test_an_answer_too_many_is_never_that_of_the_next_request(place: Place, before: bytes) -> None:
    """Cut at every byte: what comes with the answer gives it away, the rest waits for the next request."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pending = [before + POISON[:at], POISON[at:]]
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while pending:
                await reader.readuntil(b"{}")
                writer.write(pending.pop(0))
        writer.close()

    async def suffer() -> list[bytes]:
        listener = await asyncio.start_server(serve, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/"
        request = Request(target=parse(url), headers=(), body=b"{}", deadline=PROMPTLY)
        bodies = [(await place.transport.send(request, Timing())).body for _ in range(2)]
        await listening.close(listener)
        return bodies

    for at in range(1, len(POISON) + 1):
        first, second = place.runner.run(suffer())
        assert first == second != b"poison", at


def test_bytes_that_the_event_loop_has_not_seen_yet_end_the_connection_too(place: Place) -> None:
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while await reader.readuntil(b"{}"):
                writer.write(OK)
        writer.close()

    async def suffer() -> list[bytes]:
        listener = await asyncio.start_server(serve, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/"
        request = Request(target=parse(url), headers=(), body=b"{}", deadline=PROMPTLY)
        first = await place.transport.send(request, Timing())
        # it is sent at once, and nobody gives way before the next request
        writers[0].write(POISON)
        second = await place.transport.send(request, Timing())
        await listening.close(listener)
        return [first.body, second.body]

    assert place.runner.run(suffer()) == [b"ok", b"ok"]
    assert len(writers) == 2


HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("head", "flood"),
    [
        (b"", b"x" * 1_000),
        (b"", b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" * 25),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 40),
        (HEAD + b"X: ", b"y" * 1_000),
        (HEAD, b"X-Header: y\r\n" * 80),
        (HEAD + b"Content-Length: 999999999\r\n\r\n", b"z" * 1_000),
        (HEAD + b"\r\n", b"z" * 1_000),
        (CHUNKED, b"1\r\nx\r\n" * 160),
        (CHUNKED + b"1;", b"e" * 1_000),
        (CHUNKED + b"0\r\n", b"T: t\r\n" * 160),
        (OK, OK * 25),
    ],
    ids=[
        *("no HTTP", "hints", "continue", "one header", "headers", "a body", "a body to the end", "small chunks"),
        *("an extension", "trailers", "answers"),
    ],
)
def test_a_flood_fills_no_memory(place: Place, head: bytes, flood: bytes) -> None:
    """Ten at a time send 20 MB each, if they may: as fast as it is read."""

    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await reader.readuntil(b"{}")
            writer.write(head)
            for _ in range(400):
                writer.write(flood * 50)
                await writer.drain()
        writer.close()

    async def suffer() -> tuple[float, list[Response | BaseException]]:
        listener = await asyncio.start_server(pour, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/"
        started = time.monotonic()
        request = Request(target=parse(url), headers=(), body=b"{}", deadline=PROMPTLY)
        sends = [place.transport.send(request, Timing()) for _ in range(10)]
        found = await asyncio.gather(*sends, return_exceptions=True)
        took = time.monotonic() - started
        await listening.close(listener)
        return took, found

    tracemalloc.start()
    try:
        took, found = place.runner.run(suffer())
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # what is read is bounded, so none of them had to wait for its deadline
    assert took < PROMPTLY
    assert most < 10_000_000
    for answer in found:
        if isinstance(answer, Response):
            assert len(answer.body) <= MAX_BODY_BYTES
        else:
            assert isinstance(answer, SendError)
            assert answer.outcome is Outcome.PROTOCOL_ERROR
