"""Hot routes go past ASGI. A slow reader, a caller that leaves and a stop mean to them what they mean to all routes."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from dispatcher.api.app import Front
from dispatcher.api.reading import read_body
from dispatcher.serving.http_server import HttpServer
from tests.support.patience import PROMPTLY

LARGE = b"x" * 200_000
#: more of them than the buffers of two sockets take
MANY = 100


class Desk:
    """A server with hot routes of its own."""

    def __init__(self) -> None:
        self.answered = 0
        self.arrived = asyncio.Event()
        self.go_on = asyncio.Event()
        self.left = asyncio.Event()

    async def large(self, _request: Request) -> Response:
        self.answered += 1
        return Response(LARGE)

    async def slow(self, _request: Request) -> Response:
        self.arrived.set()
        await self.go_on.wait()
        return Response(b"done", status_code=202)

    async def reading(self, request: Request) -> Response:
        self.arrived.set()
        try:
            return Response(await read_body(request, limit=10))
        finally:
            self.left.set()

    @asynccontextmanager
    async def open(self, *, grace: float = PROMPTLY) -> AsyncIterator[tuple[HttpServer, int]]:
        app = FastAPI()
        app.add_route("/plain", self.slow, methods=["POST"])
        front = Front(app, {"/large": self.large, "/slow": self.slow, "/reading": self.reading})
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


async def test_a_caller_that_does_not_read_is_answered_no_further() -> None:
    """Its answers would else gather in memory."""
    desk = Desk()
    async with desk.open() as (_, port):
        idle, idle_writer = await asyncio.open_connection("127.0.0.1", port, limit=1_000)
        idle_writer.write(post("/large") * MANY)
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


async def test_a_stop_waits_for_what_is_under_way_and_closes_its_line() -> None:
    desk = Desk()
    async with desk.open() as (server, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(post("/slow"))
        await desk.arrived.wait()
        server.stop()
        while server.server_state.connections and not _refused(port):  # noqa: ASYNC110 - it is what callers see
            await asyncio.sleep(0.01)
        desk.go_on.set()
        head, body = await answer(reader)
        assert (head.partition(b"\r\n")[0], body) == (b"HTTP/1.1 202 Accepted", b"done")
        assert b"\r\nconnection: close\r\n" in head
        assert await reader.read() == b""
        writer.close()


@pytest.mark.parametrize("path", ["/slow", "/plain"])
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
        writer.close()


async def test_a_caller_that_leaves_ends_the_wait_for_its_body() -> None:
    desk = Desk()
    async with desk.open() as (_, port):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(post("/reading", b"half", length=8))
        await desk.arrived.wait()
        writer.close()
        await desk.left.wait()


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
