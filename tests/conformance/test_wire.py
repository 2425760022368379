"""The server for HTTP/1.1, judged by plain sockets: what came in byte by byte, and what a hostile peer gets."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dispatcher.conformance.certificates import Authority
from dispatcher.conformance.wire.exchange import Behaviour, Exchange
from dispatcher.conformance.wire.requests import Received, Reply
from dispatcher.conformance.wire.server import Counter, WireServer
from dispatcher.errors import ConfigError

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: keep-alive\r\n\r\n"
LAST_OK = OK.replace(b"keep-alive", b"close")
HEAD = b"POST /a HTTP/1.1\r\nHost: x\r\n"


class Kept:
    """What a server handed on and what it refused."""

    def __init__(self) -> None:
        self.requests: list[Received] = []
        self.refused: list[tuple[int, str]] = []
        self.incomplete: list[Received] = []

    async def handle(self, exchange: Exchange) -> None:
        self.requests.append(exchange.request)
        await exchange.reply(Reply())


@asynccontextmanager
async def serving(kept: Kept, handle: Behaviour | None = None, **settings: Any) -> AsyncIterator[WireServer]:
    """A server, and nothing may reach the loop's exception handler."""
    escaped: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: escaped.append(context))
    server = WireServer(
        handle or kept.handle,
        on_refused=lambda reply, reason: kept.refused.append((reply.status, reason)),
        on_incomplete=kept.incomplete.append,
        **settings,
    )
    await server.start()
    try:
        yield server
    finally:
        await server.close()
        assert server.open_connections == 0
        assert escaped == []


@asynccontextmanager
async def connected(
    server: WireServer, **options: Any
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, **options)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        await asyncio.sleep(0)


async def talk(server: WireServer, data: bytes, *, ends: bool = True) -> bytes:
    """Send, and with `ends` nothing more after that; everything that comes back."""
    async with connected(server) as (reader, writer):
        writer.write(data)
        if ends:
            writer.write_eof()
        async with asyncio.timeout(3):
            return await reader.read()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(3):
        while not condition():  # noqa: ASYNC110 - what is looked at tells nobody
            await asyncio.sleep(0.005)


# what comes in

_NAMES = st.text(st.sampled_from("abcXYZ019-_!#$%&'*+.^`|~"), min_size=1, max_size=12).filter(
    lambda name: name.lower() not in {"host", "content-length", "transfer-encoding", "expect", "connection"}
)
_VALUES = st.binary(max_size=20).map(
    lambda raw: bytes(byte for byte in raw if byte == 9 or (byte >= 32 and byte != 127))
)
_TARGETS = st.binary(max_size=20).map(
    lambda raw: b"/" + bytes(byte for byte in raw if byte > 32 and byte not in (91, 93, 127))
)


@settings(max_examples=50, deadline=None)
@given(
    method=st.sampled_from([b"POST", b"GET", b"PURGE", b"M-SEARCH", b"OPTIONS"]),
    target=_TARGETS,
    headers=st.lists(st.tuples(_NAMES, _VALUES, st.sampled_from([b"", b" ", b"\t  "])), max_size=5),
    chunks=st.lists(st.binary(min_size=1, max_size=40), max_size=5),
    is_chunked=st.booleans(),
    extension=st.sampled_from([b"", b";a=b", b' ; q="1"']),
    trailer=st.sampled_from([b"", b"X-Trailer: 1\r\n"]),
    cuts=st.lists(st.integers(0, 300), max_size=4),
)
def test_the_bytes_of_a_request_are_kept(
    *,
    method: bytes,
    target: bytes,
    headers: list[tuple[str, bytes, bytes]],
    chunks: list[bytes],
    is_chunked: bool,
    extension: bytes,
    trailer: bytes,
    cuts: list[int],
) -> None:
    lines = [method + b" " + target + b" HTTP/1.1", b"hOST:x"]
    lines += [name.encode() + b":" + space + value for name, value, space in headers]
    if is_chunked:
        lines.append(b"Transfer-Encoding: Chunked")
        frames = b"".join(b"%X%s\r\n%s\r\n" % (len(chunk), extension, chunk) for chunk in chunks)
        body = frames + b"000\r\n" + trailer + b"\r\n"
    else:
        body = b"".join(chunks)
        lines.append(b"Content-Length: %d" % len(body))
    raw = b"\r\n".join(lines) + b"\r\n\r\n" + body
    kept = Kept()

    async def send() -> bytes:
        async with serving(kept) as server, connected(server) as (reader, writer):
            at = 0
            for cut in [*sorted(cuts), 2 * len(raw)]:
                # the second request comes right behind the first
                writer.write((raw + raw)[at:cut])
                at = max(at, cut)
                await asyncio.sleep(0)
            writer.write_eof()
            async with asyncio.timeout(3):
                return await reader.read()

    assert asyncio.run(send()) == OK + OK
    assert kept.refused == []
    for number, request in enumerate(kept.requests, start=1):
        assert request.raw == raw
        assert request.body == b"".join(chunks)
        assert (request.number, request.connection, request.is_complete) == (number, 1, True)
        assert (request.method.encode(), request.target.encode("latin-1")) == (method, target)
        sent = [("hOST", "x")]
        sent += [(name, value.strip(b" \t").decode("latin-1")) for name, value, _ in headers]
        assert list(request.headers[:-1]) == sent
        assert request.remote == "127.0.0.1"


async def test_requests_in_one_piece_are_answered_in_order() -> None:
    kept = Kept()
    async with serving(kept) as server:
        three = [b"%sContent-Length: 1\r\n\r\n%d" % (HEAD, n) for n in range(3)]
        # RFC 9112, 2.2: an empty line before a request is passed over
        assert await talk(server, b"\r\n".join(three)) == OK * 3
    assert [request.raw for request in kept.requests] == three
    assert [request.body for request in kept.requests] == [b"0", b"1", b"2"]
    assert {request.connection for request in kept.requests} == {1}


async def test_empty_lines_before_a_request_are_passed_over() -> None:
    kept = Kept()
    async with serving(kept) as server:
        assert await talk(server, b"\r\n" * 8 + HEAD + b"\r\n") == OK
    assert kept.requests[0].raw == HEAD + b"\r\n"


async def test_requests_over_one_connection() -> None:
    kept = Kept()
    async with serving(kept) as server:
        async with connected(server) as (reader, writer):
            for _ in range(3):
                writer.write(HEAD + b"\r\n")
                assert await reader.readexactly(len(OK)) == OK
        await talk(server, HEAD + b"\r\n")
    assert [(request.number, request.connection) for request in kept.requests] == [(1, 1), (2, 1), (3, 1), (4, 2)]
    clocks = [request.clock for request in kept.requests]
    assert clocks == sorted(clocks)


@pytest.mark.parametrize(
    ("head", "goes_on"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", False),
        (b"GET / HTTP/1.1\r\nHost: x\r\nConnection: TE, Close\r\n\r\n", False),
        (b"GET / HTTP/1.0\r\n\r\n", False),
        (b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", True),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", True),
    ],
)
async def test_a_connection_goes_on_if_the_request_asks_for_it(head: bytes, *, goes_on: bool) -> None:
    kept = Kept()
    async with serving(kept) as server:
        assert await talk(server, head + head) == (OK * 2 if goes_on else LAST_OK)
    assert len(kept.requests) == 1 + goes_on


async def test_numbers_go_together_over_servers_that_share_a_counter() -> None:
    kept, counter = Kept(), Counter()
    async with serving(kept, counter=counter) as one, serving(kept, counter=counter) as other:
        for server in (one, other, one):
            await talk(server, HEAD + b"\r\n")
    assert [(request.number, request.connection) for request in kept.requests] == [(1, 1), (2, 2), (3, 3)]


# Expect


async def test_a_peer_that_asks_is_told_to_go_on_with_its_body() -> None:
    kept = Kept()
    async with serving(kept) as server, connected(server) as (reader, writer):
        writer.write(HEAD + b"Expect: 100-Continue\r\nContent-Length: 4\r\n\r\n")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"body")
        assert await reader.readexactly(len(OK)) == OK
        # it does not wait: it is not told, either
        writer.write(HEAD + b"Expect: 100-continue\r\nContent-Length: 4\r\n\r\nbody")
        assert await reader.readexactly(len(OK)) == OK
    assert [request.body for request in kept.requests] == [b"body", b"body"]


async def test_a_body_that_is_too_large_is_refused_before_it_comes() -> None:
    kept = Kept()
    async with serving(kept, max_body=3) as server, connected(server) as (reader, writer):
        writer.write(HEAD + b"Expect: 100-continue\r\nContent-Length: 4\r\n\r\n")
        assert (await reader.readline()) == b"HTTP/1.1 413 Request Entity Too Large\r\n"


# what is refused


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET / HTTP/1.1\nHost: x\n\n", 400),
        (b"GET  / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1 \r\nHost: x\r\n\r\n", 400),
        (b"GET /\r\n\r\n", 400),
        (b"\r\n" * 9, 400),
        (b"G(T / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET /\x00 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET http://[ HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\nHost: x\r\n\r\n", 505),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n", 400),
        (HEAD + b"X : y\r\n\r\n", 400),
        (HEAD + b"X\r\n\r\n", 400),
        (HEAD + b": y\r\n\r\n", 400),
        (HEAD + b"X: y\r\n folded\r\n\r\n", 400),
        (HEAD + b"X: y\rz\r\n\r\n", 400),
        (HEAD + b"X: \x00\r\n\r\n", 400),
        (HEAD + b"X:" + b" " * 30_000 + b"\x01\r\n\r\n", 400),
        (HEAD + b"Content-Length: -1\r\n\r\n", 400),
        (HEAD + b"Content-Length: +1\r\n\r\na", 400),
        (HEAD + b"Content-Length: 1, 1\r\n\r\na", 400),
        (HEAD + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\na", 400),
        (HEAD + b"Content-Length: \xb2\r\n\r\naa", 400),
        (HEAD + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
        (HEAD + b"Expect: a miracle\r\n\r\n", 417),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n", 400),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n0x1\r\na\r\n0\r\n\r\n", 400),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n", 400),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\na\r\n0\r\n\r\n", 400),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n1;" + b"e" * 5_000 + b"\r\na\r\n0\r\n\r\n", 400),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\nbad trailer\r\n\r\n", 400),
        (HEAD + b"Content-Length: 5\r\n\r\nabc", 400),
        (HEAD, 400),
    ],
)
async def test_malformed_requests(data: bytes, status: int) -> None:
    kept = Kept()
    async with serving(kept) as server:
        answer = await talk(server, data)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert b"\r\nConnection: close\r\n" in answer
    assert [code for code, _ in kept.refused] == [status]
    assert kept.requests == []


async def test_nothing_is_read_behind_a_refused_request() -> None:
    kept = Kept()
    async with serving(kept) as server:
        answer = await talk(server, b"nonsense\r\n\r\n" + HEAD + b"\r\n")
    assert answer.count(b"HTTP/1.1") == 1
    assert kept.requests == []


@pytest.mark.parametrize("over", [0, 1])
async def test_the_largest_head(over: int) -> None:
    kept = Kept()
    head = HEAD + b"X: " + b"y" * (200 + over - len(HEAD) - 7) + b"\r\n\r\n"
    assert len(head) == 200 + over
    async with serving(kept, max_head=200) as server:
        answer = await talk(server, head)
    assert (answer == OK) == (not over)
    assert kept.refused == [(431, "the head is too large")] * over


async def test_a_head_without_an_end_is_refused_as_soon_as_it_is_too_large() -> None:
    kept = Kept()
    async with serving(kept, max_head=200) as server:
        assert (await talk(server, HEAD + b"X: " + b"y" * 300_000, ends=False)).startswith(b"HTTP/1.1 431 ")
        assert (await talk(server, b"y" * 200, ends=False)).startswith(b"HTTP/1.1 431 ")


@pytest.mark.parametrize("over", [0, 1])
@pytest.mark.parametrize("is_chunked", [False, True])
async def test_the_largest_body(over: int, *, is_chunked: bool) -> None:
    kept = Kept()
    body = b"y" * (1_000 + over)
    if is_chunked:
        data = HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\ny\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(body) - 1, body[1:])
    else:
        data = HEAD + b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
    async with serving(kept, max_body=1_000) as server:
        answer = await talk(server, data)
    assert (answer == OK) == (not over)
    assert kept.refused == [(413, "the body is too large")] * over
    assert [request.is_complete for request in kept.incomplete] == [False] * over


async def test_frames_of_chunks_are_bounded() -> None:
    kept = Kept()
    chunk = b"1;" + b"e" * 100 + b"\r\na\r\n"
    async with serving(kept, max_head=200, max_body=1_000) as server:
        answer = await talk(server, HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 20, ends=False)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert len(kept.incomplete[0].raw) < 2_500


async def test_a_refusal_reaches_a_peer_that_is_still_sending() -> None:
    kept = Kept()
    async with serving(kept) as server:
        answer = await talk(server, HEAD + b"Content-Length: 5000000\r\n\r\n" + b"y" * 5_000_000)
    assert answer.endswith(b"\r\n\r\nthe body is too large\n")


async def test_what_came_of_a_body_that_broke_off() -> None:
    kept = Kept()
    data = HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n3\r\nde"
    async with serving(kept) as server:
        await talk(server, data)
        async with connected(server) as (_, writer):
            writer.write(data)
            await asyncio.sleep(0.01)
        await until(lambda: len(kept.incomplete) == 2)
    for request in kept.incomplete:
        assert (request.raw, request.body, request.is_complete) == (data, b"abcde", False)
    assert {reason for _, reason in kept.refused} == {"the request broke off"}


# time


async def test_a_request_that_does_not_come_in_in_time() -> None:
    kept = Kept()
    async with serving(kept, within=0.1) as server:
        for data in (b"P", HEAD, HEAD + b"Content-Length: 2\r\n\r\na"):
            assert (await talk(server, data, ends=False)).startswith(b"HTTP/1.1 408 ")
        # no request, no answer
        assert await talk(server, b"", ends=False) == b""
        assert await talk(server, b"\r\n\r", ends=False) == b""
        assert await talk(server, HEAD + b"\r\n", ends=False) == OK


async def test_drops_do_not_buy_time() -> None:
    kept = Kept()
    async with serving(kept, within=0.15) as server, connected(server) as (reader, writer):
        writer.write(HEAD)
        for _ in range(30):
            writer.write(b"X: y\r\n")
            await asyncio.sleep(0.01)
            if reader.at_eof():
                break
        assert (await reader.readline()).startswith(b"HTTP/1.1 408 ")


async def test_a_handshake_that_does_not_come() -> None:
    kept = Kept()
    tls = Authority().context(["127.0.0.1"])
    async with serving(kept, tls=tls, within=0.1) as server:
        assert await talk(server, b"", ends=False) == b""
        await talk(server, HEAD + b"\r\n", ends=False)
        await until(lambda: server.failed_handshakes == 2)
    assert kept.requests == []


async def test_a_peer_that_does_not_read_is_cut() -> None:
    kept = Kept()
    done = asyncio.Event()
    raised: list[str] = []

    async def flood(exchange: Exchange) -> None:
        try:
            while True:
                await exchange.send(b"y" * 65_536)
        except ConnectionError as exc:
            raised.append(str(exc))
            raise
        finally:
            done.set()

    async with serving(kept, flood, within=0.1) as server, connected(server, limit=1_024) as (_, writer):
        writer.write(HEAD + b"\r\n")
        async with asyncio.timeout(3):
            await done.wait()
    assert raised == ["the peer does not read"]


# the end


async def test_closing_cuts_every_connection() -> None:
    kept = Kept()
    began, ended = asyncio.Event(), asyncio.Event()

    async def hang(exchange: Exchange) -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    tls = Authority().context(["127.0.0.1"])
    async with serving(kept, hang) as server, serving(kept, tls=tls) as secure:
        async with (
            connected(server) as (hung, writer),
            connected(server) as (idle, _),
            connected(server) as (begun, begins),
            connected(secure) as (shaking, hello),
            connected(secure) as (silent, _),
        ):
            writer.write(HEAD + b"\r\n")
            begins.write(HEAD)
            hello.write(b"\x16\x03\x01\x02")
            await began.wait()
            # accepted this moment
            late = socket.create_connection(("127.0.0.1", secure.port))
            await server.close()
            await secure.close()
            async with asyncio.timeout(1):
                for reader in (hung, idle, begun, shaking, silent):
                    with suppress(ConnectionResetError):
                        assert await reader.read() == b""
            late.settimeout(1)
            with suppress(ConnectionResetError):
                assert late.recv(1) == b""
            late.close()
        assert ended.is_set()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", server.port)


async def test_closing_twice_or_before_the_start() -> None:
    kept = Kept()
    await WireServer(kept.handle).close()
    async with serving(kept) as server:
        await server.close()


async def test_a_close_and_a_reset() -> None:
    kept = Kept()

    async def behave(exchange: Exchange) -> None:
        if exchange.request.path == "/reset":
            exchange.reset()
            with pytest.raises(ConnectionError):
                await exchange.send(b"x")
        else:
            await exchange.send(b"bytes")
            await exchange.close()

    async with serving(kept, behave) as server:
        assert await talk(server, HEAD + b"\r\n", ends=False) == b"bytes"
        with pytest.raises(ConnectionResetError):
            await talk(server, b"GET /reset HTTP/1.1\r\nHost: x\r\n\r\n", ends=False)


async def test_a_peer_that_goes_is_noticed() -> None:
    kept = Kept()
    noticed: list[bool] = []

    async def wait(exchange: Exchange) -> None:
        noticed.append(await exchange.until_gone(0.01))
        noticed.append(await exchange.until_gone(3))

    async with serving(kept, wait) as server:
        async with connected(server) as (_, writer):
            writer.write(HEAD + b"\r\n")
            await until(lambda: noticed == [False])
        await until(lambda: noticed == [False, True])


async def test_a_behaviour_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    kept = Kept()

    async def fail(exchange: Exchange) -> None:
        if exchange.request.path == "/late":
            await exchange.send(b"HTTP/1.1 2")
        raise ValueError("s3cret")

    async with serving(kept, fail) as server:
        with caplog.at_level(logging.ERROR):
            assert (await talk(server, HEAD + b"\r\n")).startswith(b"HTTP/1.1 500 ")
            assert await talk(server, b"GET /late HTTP/1.1\r\nHost: x\r\n\r\n") == b"HTTP/1.1 2"
    assert [record.message for record in caplog.records] == ["what handles a request failed: ValueError"] * 2


async def test_a_behaviour_that_answers_nothing_or_twice_ends_the_connection() -> None:
    kept = Kept()

    async def behave(exchange: Exchange) -> None:
        for _ in range(len(exchange.request.body)):
            await exchange.reply(Reply())

    async with serving(kept, behave) as server:
        for count, answer in ((0, b""), (2, OK * 2), (1, OK)):
            body = b"Content-Length: %d\r\n\r\n%s" % (count, b"y" * count)
            assert await talk(server, HEAD + body, ends=count == 1) == answer


# answers


@pytest.mark.parametrize(
    ("method", "reply", "expected"),
    [
        (
            b"POST",
            Reply(status=201, headers=(("X-A", "1"), ("content-length", "9")), body=b"ab"),
            b"HTTP/1.1 201 Created\r\nX-A: 1\r\nContent-Length: 2\r\nConnection: close\r\n\r\nab",
        ),
        (b"HEAD", Reply(body=b"ab"), b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n"),
        (b"POST", Reply(status=204, body=b"ab"), b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"),
        (b"POST", Reply(status=599), b"HTTP/1.1 599 \r\nContent-Length: 0\r\nConnection: close\r\n\r\n"),
    ],
)
async def test_a_good_answer(method: bytes, reply: Reply, expected: bytes) -> None:
    kept = Kept()

    async def behave(exchange: Exchange) -> None:
        await exchange.reply(reply)

    async with serving(kept, behave) as server:
        assert await talk(server, method + b" / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n") == expected


async def test_a_header_of_a_reply_cannot_carry_another() -> None:
    kept = Kept()
    caught: list[BaseException] = []

    async def behave(exchange: Exchange) -> None:
        with pytest.raises(ValueError, match="malformed") as info:
            await exchange.reply(Reply(headers=(("X-A", "1\r\nX-B: 2"),)))
        caught.append(info.value)
        await exchange.reply(Reply())

    async with serving(kept, behave) as server:
        assert await talk(server, HEAD + b"\r\n") == OK
    assert len(caught) == 1


# where it listens


async def test_a_port_that_is_taken_or_an_address_that_is_not_ours() -> None:
    kept = Kept()
    async with serving(kept) as server:
        with pytest.raises(ConfigError, match=rf"cannot listen on 127\.0\.0\.1, port {server.port}: Address already"):
            await WireServer(kept.handle, port=server.port).start()
    with pytest.raises(ConfigError, match="cannot listen on ::2"):
        await WireServer(kept.handle, host="::2").start()


async def test_ipv6() -> None:
    kept = Kept()
    async with serving(kept, host="::1") as server:
        reader, writer = await asyncio.open_connection("::1", server.port)
        writer.write(HEAD + b"\r\n")
        assert await reader.readexactly(len(OK)) == OK
        writer.transport.abort()
    assert kept.requests[0].remote == "::1"


async def test_connections_are_bounded_and_the_next_one_waits() -> None:
    kept = Kept()
    async with serving(kept, max_connections=2) as server, connected(server), connected(server) as (_, writer):
        await until(lambda: server.open_connections == 2)
        async with connected(server) as (reader, third):
            third.write(HEAD + b"\r\n")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await reader.read(1)
            writer.close()
            async with asyncio.timeout(1):
                assert await reader.readexactly(len(OK)) == OK
    assert len(kept.requests) == 1


# TLS


def trusting(authority: Authority) -> ssl.SSLContext:
    return ssl.create_default_context(cadata=authority.pem)


async def test_tls_with_a_good_certificate() -> None:
    kept, authority = Kept(), Authority()
    client = trusting(authority)
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    async with serving(kept, tls=authority.context(["hook.example", "127.0.0.1"])) as server:
        for name in ("hook.example", "127.0.0.1"):
            async with connected(server, ssl=client, server_hostname=name) as (reader, writer):
                writer.write(HEAD + b"Content-Length: 1\r\n\r\ny")
                assert await reader.readexactly(len(OK)) == OK
    assert [(request.is_tls, request.raw[-1:]) for request in kept.requests] == [(True, b"y")] * 2
    assert server.failed_handshakes == 0


@pytest.mark.parametrize(
    ("case", "why"),
    [
        ("expired", "certificate has expired"),
        ("other-host", "Hostname mismatch"),
        ("self-signed", "self-signed certificate"),
        ("untrusted", "unable to get local issuer|self-signed certificate in"),
        # asyncio's servers break off without an alert when it is they who refuse
        ("old", ""),
        ("minimum", ""),
    ],
)
async def test_tls_that_a_careful_client_refuses(case: str, why: str) -> None:
    kept, authority = Kept(), Authority()
    client = trusting(Authority() if case == "untrusted" else authority)
    if case == "minimum":
        client.maximum_version = ssl.TLSVersion.TLSv1_2
    tls = authority.context(
        ["other.example"] if case == "other-host" else ["hook.example"],
        expired=case == "expired",
        self_signed=case == "self-signed",
        minimum=ssl.TLSVersion.TLSv1_3 if case == "minimum" else ssl.TLSVersion.TLSv1_2,
        maximum=ssl.TLSVersion.TLSv1_1 if case == "old" else ssl.TLSVersion.MAXIMUM_SUPPORTED,
    )
    async with serving(kept, tls=tls) as server:
        with pytest.raises(ssl.SSLError if why else OSError, match=why or None):
            await asyncio.open_connection("127.0.0.1", server.port, ssl=client, server_hostname="hook.example")
        await until(lambda: server.failed_handshakes == 1)
    assert kept.requests == []


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
async def test_old_tls_is_what_a_careless_client_speaks() -> None:
    kept, authority = Kept(), Authority()
    client = trusting(authority)
    client.set_ciphers("DEFAULT:@SECLEVEL=0")
    client.minimum_version = ssl.TLSVersion.TLSv1
    async with (
        serving(kept, tls=authority.context(["hook.example"], maximum=ssl.TLSVersion.TLSv1_1)) as server,
        connected(server, ssl=client, server_hostname="hook.example") as (reader, writer),
    ):
        assert writer.get_extra_info("ssl_object").version() == "TLSv1.1"
        writer.write(HEAD + b"\r\n")
        assert await reader.readexactly(len(OK)) == OK


def test_a_certificate_is_for_hosts() -> None:
    with pytest.raises(ConfigError, match="names and addresses"):
        Authority().context(["a..b"])


async def test_the_repr_of_a_request_shows_no_secret() -> None:
    kept = Kept()
    async with serving(kept) as server:
        await talk(server, b"POST /s3cret?s3cret HTTP/1.1\r\nHost: x\r\nX: s3cret\r\nContent-Length: 6\r\n\r\ns3cret")
    assert "s3cret" not in repr(kept.requests)
