"""Hot routes go past ASGI. A slow reader, a caller that leaves and a stop mean to them what they mean to all routes."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import product

import pytest
import uvloop
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response
from structlog.testing import capture_logs

from dispatcher.api.app import Front
from dispatcher.api.hot import Visit
from dispatcher.api.reading import read_body
from dispatcher.serving.http_protocol import HttpProtocol
from dispatcher.serving.http_server import HttpServer
from tests.support.patience import PROMPTLY

LARGE = b"x" * 200_000
#: more of them than the buffers of two sockets take
MANY = 100


class Desk:
    """A server with hot routes of its own. Those whose path ends in `-together` are taken in rounds."""

    def __init__(self) -> None:
        self.answered = 0
        self.arrived = asyncio.Event()
        self.go_on = asyncio.Event()
        self.left = asyncio.Event()
        self.visits: list[Visit] = []
        #: the headers of each request that was slow
        self.headers: list[list[tuple[bytes, bytes]]] = []

    async def large(self, _request: Request) -> Response:
        self.answered += 1
        return Response(LARGE)

    async def slow(self, request: Request) -> Response:
        self.headers.append(request.scope["headers"])
        self.arrived.set()
        await self.go_on.wait()
        return Response(b"done", status_code=202)

    async def reading(self, request: Request) -> Response:
        self.arrived.set()
        try:
            return Response(await read_body(request, limit=10))
        finally:
            self.left.set()

    async def echo(self, request: Request) -> Response:
        return Response(await read_body(request, limit=100 * len(LARGE)))

    def take_large(self, visit: Visit) -> None:
        self.answered += 1
        visit.answer(Response(LARGE))

    def take_slow(self, visit: Visit) -> None:
        self.visits.append(visit)
        self.headers.append(visit.scope["headers"])
        self.arrived.set()

    def go_on_together(self) -> None:
        for visit in self.visits:
            visit.answer(Response(b"done", status_code=202))

    def take_whole(self, visit: Visit) -> None:
        asyncio.get_running_loop().call_soon(self._read, visit)

    def _read(self, visit: Visit) -> None:
        body = visit.whole_body()
        if body is None:
            visit.wait()
        else:
            visit.answer(Response(body, headers={"at-hand": "yes"}))

    @asynccontextmanager
    async def open(self, *, grace: float = PROMPTLY) -> AsyncIterator[tuple[HttpServer, int]]:
        app = FastAPI()
        app.add_route("/plain", self.slow, methods=["POST"])
        handlers = {"/large": self.large, "/slow": self.slow, "/reading": self.reading, "/echo": self.echo}
        front = Front(
            app,
            handlers | {f"{path}-together": handler for path, handler in handlers.items()},
            together={
                "/large-together": self.take_large,
                "/slow-together": self.take_slow,
                "/reading-together": self.take_whole,
            },
        )
        ready = asyncio.Event()

        async def on_ready() -> None:
            ready.set()

        server = HttpServer(front, grace=grace, on_ready=on_ready)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            serving = asyncio.create_task(server.serve(sockets=[listener]))
            async with asyncio.timeout(2 * PROMPTLY):
                await ready.wait()
                yield server, listener.getsockname()[1]
                server.stop()
                await serving


def post(path: str, body: bytes = b"", *, length: int | None = None) -> bytes:
    return b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (path.encode(), length or len(body), body)


async def answer(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """The next answer: its head and its body."""
    head = await reader.readuntil(b"\r\n\r\n")
    [length] = [int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return head, await reader.readexactly(length)


@pytest.mark.parametrize("path", ["/large", "/large-together"])
async def test_a_caller_that_does_not_read_is_answered_no_further(path: str) -> None:
    """Its answers would else gather in memory."""
    desk = Desk()
    async with desk.open() as (_, port):
        idle, idle_writer = await asyncio.open_connection("127.0.0.1", port, limit=1_000)
        idle_writer.write(post(path) * MANY)
        other, other_writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(MANY):
            # each has a turn of the loop, as each of the others would
            other_writer.write(post("/reading", b"here"))
            assert (await answer(other))[1] == b"here"
        assert desk.answered < MANY
        for _ in range(MANY):
            assert (await answer(idle))[1] == LARGE
        assert desk.answered == MANY
        for writer in (idle_writer, other_writer):
            writer.close()


@pytest.mark.parametrize("path", ["/slow", "/slow-together"])
async def test_a_stop_waits_for_what_is_under_way_and_closes_its_line(path: str) -> None:
    desk = Desk()
    async with desk.open() as (server, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(post(path))
        await desk.arrived.wait()
        server.stop()
        while server.server_state.connections and not _refused(port):  # noqa: ASYNC110 - it is what callers see
            await asyncio.sleep(0.01)
        desk.go_on.set()
        desk.go_on_together()
        head, body = await answer(reader)
        assert (head.partition(b"\r\n")[0], body) == (b"HTTP/1.1 202 Accepted", b"done")
        assert b"\r\nconnection: close\r\n" in head
        assert await reader.read() == b""
        writer.close()


@pytest.mark.parametrize("path", ["/slow", "/slow-together", "/plain"])
async def test_what_outlasts_a_stop_is_told_to_ask_again(path: str) -> None:
    desk = Desk()
    async with desk.open(grace=1) as (server, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(post(path))
        await desk.arrived.wait()
        server.stop()
        head, body = await answer(reader)
        assert head.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nretry-after: " in head
        assert b"with the same Idempotency-Key" in body
        desk.go_on_together()
        assert await reader.read() == b"", "what comes after the answer comes too late"
        writer.close()


async def test_a_caller_that_leaves_ends_the_wait_for_its_body() -> None:
    desk = Desk()
    async with desk.open() as (_, port):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(post("/reading", b"half", length=8))
        await desk.arrived.wait()
        writer.close()
        await desk.left.wait()


async def test_a_caller_that_leaves_is_answered_nothing() -> None:
    desk = Desk()
    async with desk.open() as (server, port):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(post("/slow-together", b"whole"))
        await desk.arrived.wait()
        [visit] = desk.visits
        assert visit.whole_body() == b"whole"
        writer.close()
        while server.server_state.connections:  # noqa: ASYNC110 - it is what the server sees
            await asyncio.sleep(0.01)
        assert visit.whole_body() is None
        assert server.server_state.tasks, "a stop waits for what is under way, though nobody else does"
        desk.go_on_together()
        while server.server_state.tasks:  # noqa: ASYNC110 - it is what a stop sees
            await asyncio.sleep(0)


def test_a_caller_that_leaves_while_it_is_answered_is_no_fault_of_ours() -> None:
    async def leave() -> None:
        desk = Desk()
        async with desk.open() as (server, port):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(post("/slow-together") * 3)
            await desk.arrived.wait()
            writer.close()
            desk.go_on_together()
            # The second one has its turn, and the connection reads on: nobody is there any more.
            while server.server_state.connections:  # noqa: ASYNC110 - it is what the server sees
                await asyncio.sleep(0.01)
            assert len(desk.visits) == 2
            desk.go_on_together()
            while server.server_state.tasks:  # noqa: ASYNC110 - it is what a stop sees
                await asyncio.sleep(0)

    # as in production: to write to a transport of uvloop that is closed is a fault
    with capture_logs() as logged, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(leave())
    assert logged == []


async def test_a_body_that_is_still_to_come_is_waited_for() -> None:
    desk = Desk()
    async with desk.open() as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(post("/reading-together", b"whole"))
        head, body = await answer(reader)
        assert (b"\r\nat-hand: yes" in head, body) == (True, b"whole")
        writer.write(post("/reading-together", b"ha", length=4))
        await desk.arrived.wait()
        writer.write(b"lf")
        head, body = await answer(reader)
        assert (b"\r\nat-hand: yes" in head, body) == (False, b"half")
        writer.write(post("/reading-together", b"next"))
        assert (await answer(reader))[1] == b"next"
        writer.close()


async def test_a_large_body_is_read_to_its_end() -> None:
    desk = Desk()
    async with desk.open() as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(3):
            writer.write(post("/echo", 20 * LARGE))
            assert (await answer(reader))[1] == 20 * LARGE
        writer.close()


async def test_a_large_piece_does_not_let_in_what_has_to_wait() -> None:
    desk = Desk()
    async with desk.open() as (server, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(post("/slow-together"))
        await desk.arrived.wait()
        [connection] = server.server_state.connections
        assert isinstance(connection, HttpProtocol)
        # both in one round, as two reads of a round bring them
        connection.data_received(post("/echo"))
        connection.data_received(post("/echo", LARGE))
        await asyncio.sleep(0)
        assert connection.flow.read_paused
        assert not connection.transport.is_reading()
        desk.go_on_together()
        assert [(await answer(reader))[1] for _ in range(3)] == [b"done", b"", LARGE]
        assert connection.transport.is_reading()
        writer.close()


async def test_requests_of_all_kinds_are_answered_in_their_order() -> None:
    desk = Desk()
    desk.go_on.set()
    async with desk.open() as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        paths = ["/reading-together", "/reading", "/nowhere", "/reading-together?query", "/plain"]
        writer.write(b"".join(post(path, b"%d" % n) for n, path in enumerate(paths)))
        bodies = [(await answer(reader))[1] for _ in paths]
        assert [body for body in bodies if len(body) == 1] == [b"0", b"1", b"3"]
        assert bodies[4] == b"done"
        writer.close()


async def test_what_is_no_http_harms_only_its_own_line() -> None:
    desk = Desk()
    async with desk.open() as (_, port):
        lines = [await asyncio.open_connection("127.0.0.1", port) for _ in range(6)]
        for number, (_, writer) in enumerate(lines):
            writer.write(b"\x00\r\n\r\n" if number % 2 else post("/reading-together", b"good"))
        for number, (reader, writer) in enumerate(lines):
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 400 " if number % 2 else b"HTTP/1.1 200 ")
            writer.close()


UPGRADE = b"POST %s HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: h2c\r\nContent-Length: %d\r\n\r\n%s"
NO_HTTP = b"\x00\r\n\r\n"
NO_CHUNK = b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\nno length\r\n"


def broken(path: str) -> bytes:
    """A request that is found to be none in the middle of its body."""
    return b"POST %s HTTP/1.1\r\nHost: x\r\n%s" % (path.encode(), NO_CHUNK)


@pytest.mark.parametrize("path", ["/slow", "/slow-together", "/plain"])
async def test_whole_requests_have_their_own_answers_whatever_follows(path: str) -> None:
    """It may be a task, and be on disk: a 400 in the place of its answer would say that it is not."""
    desk = Desk()
    upgrade = UPGRADE % (b"/slow-together", 0, b"")
    rests = [NO_HTTP, upgrade, broken("/slow"), broken("/slow-together"), broken("/plain")]
    async with desk.open() as (server, port):
        for whole, rest in product((1, 2, 3), rests):
            for store in (desk.visits, desk.headers):
                store.clear()
            for event in (desk.arrived, desk.go_on):
                event.clear()
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(post(path) * whole + rest)
            await desk.arrived.wait()
            [connection] = server.server_state.connections
            assert isinstance(connection, HttpProtocol)
            connection.data_received(post("/slow-together"))
            await asyncio.sleep(0)
            assert connection.transport.is_reading(), "what is not read would have the caller's side drop the answers"
            desk.go_on.set()
            for _ in range(whole):
                desk.go_on_together()
                head, body = await answer(reader)
                assert (head[9:12], body) == (b"202", b"done")
            assert await reader.read() == b""
            assert len(desk.headers) == whole, "nothing but whole requests had its turn"
            writer.close()
            while server.server_state.connections:  # noqa: ASYNC110 - it is what the server sees
                await asyncio.sleep(0)


async def test_what_is_no_request_is_answered_when_nothing_else_is_to_be() -> None:
    desk = Desk()
    desk.go_on.set()
    rests = [NO_HTTP, broken("/reading"), broken("/reading-together"), broken("/plain")]
    async with desk.open() as (_, port):
        for before, rest in product((0, 1), rests):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            for _ in range(before):
                writer.write(post("/echo"))
                assert (await answer(reader))[0].startswith(b"HTTP/1.1 200 ")
            writer.write(rest + post("/slow-together"))
            head, _ = await answer(reader)
            assert head.startswith(b"HTTP/1.1 400 ")
            assert b"\r\nconnection: close\r\n" in head
            assert await reader.read() == b""
            writer.close()
        assert desk.visits == []


@pytest.mark.parametrize("path", ["/echo", "/reading-together", "/plain"])
async def test_what_is_to_speak_another_protocol_is_refused(path: str) -> None:
    """The parser would take its body for the next request."""
    desk = Desk()
    async with desk.open() as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        hidden = post("/slow-together")
        writer.write(UPGRADE % (path.encode(), len(hidden), hidden))
        head, body = await answer(reader)
        assert head.startswith(b"HTTP/1.1 400 ")
        assert b"\r\nconnection: close\r\n" in head
        assert body == b"Send the request without Upgrade: this service speaks HTTP/1.1 only."
        assert await reader.read() == b""
        assert (desk.visits, desk.headers) == ([], [])
        writer.close()


@pytest.mark.parametrize("path", ["/slow", "/slow-together", "/plain"])
async def test_what_follows_a_body_is_no_header(path: str) -> None:
    """Whoever stands before us, and looks at the headers, does not see it (RFC 9110 §6.5.1)."""
    desk = Desk()
    desk.go_on.set()
    async with desk.open() as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = b"POST %s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" % path.encode()
        writer.write(head + b"1\r\nx\r\n0\r\nAuthorization: Bearer late\r\n\r\n")
        await desk.arrived.wait()
        desk.go_on_together()
        assert (await answer(reader))[1] == b"done"
        assert desk.headers == [[(b"host", b"x"), (b"transfer-encoding", b"chunked")]]
        writer.close()


@pytest.mark.parametrize("name", ["date", "content-length"])
async def test_an_answer_names_each_of_the_servers_headers_once(name: str) -> None:
    desk = Desk()
    async with desk.open() as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(post("/reading", b"here"))
        head, _ = await answer(reader)
        assert head.lower().count(f"\r\n{name}: ".encode()) == 1
        assert b"\r\nserver:" not in head.lower()
        writer.close()


def _refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return True
    return False
