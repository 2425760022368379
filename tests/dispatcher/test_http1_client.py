"""Our transport under an httpx client: for whoever has one already. Real servers on loopback."""

from __future__ import annotations

import asyncio
import gzip
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import respx
import trustme

from dispatcher.delivery.http1_transport import Http1Transport
from dispatcher.delivery.resolver import Resolver
from dispatcher.delivery.tls import client_context
from dispatcher.delivery.transport import MAX_BODY_BYTES
from dispatcher.egress import EgressPolicy
from tests.support import listening
from tests.support.dns import NXDOMAIN, NameServerThread
from tests.support.patience import PATIENCE
from tests.support.receiver import Received, Receiver, Reply

AUTHORITY = trustme.CA()


@asynccontextmanager
async def client(*, policy: EgressPolicy | None = None, names: str = "127.0.0.1:1") -> AsyncIterator[httpx.AsyncClient]:
    resolver = Resolver(nameservers=[names], timeout=5)
    context = client_context()
    AUTHORITY.configure_trust(context)
    transport = Http1Transport(resolver=resolver, policy=policy or EgressPolicy.dev(), context=context)
    try:
        async with httpx.AsyncClient(transport=transport, timeout=PATIENCE) as opened:
            yield opened
    finally:
        await resolver.aclose()


def secured() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    AUTHORITY.issue_cert("127.0.0.1").configure_cert(context)
    return context


@pytest.mark.parametrize("secure", [False, True])
async def test_requests_and_answers_are_those_of_httpx(*, secure: bool) -> None:
    def answer(request: Received) -> Reply:
        headers = (("X-Method", request.method), ("Set-Cookie", "a=b; Path=/"))
        return Reply(status=201, headers=headers, body=request.target.encode() + b" " + request.body)

    with Receiver(answer, tls=secured() if secure else None) as receiver:
        async with client() as http:
            first = await http.get(f"{receiver.url}/a%2Fb/c", params={"q": "ü"})
            second = await http.post(f"{receiver.url}/p", json={"n": 1}, headers={b"X-A": "ü".encode()})
            third = await http.request("DELETE", f"{receiver.url}/d")
        assert (first.status_code, first.headers["x-method"], first.text) == (201, "GET", "/a%2Fb/c?q=%C3%BC ")
        assert (second.headers["x-method"], second.text) == ("POST", '/p {"n":1}')
        assert (third.headers["x-method"], third.cookies["a"]) == ("DELETE", "b")
        assert first.http_version == "HTTP/1.1"
        posted = receiver.received[1]
        assert posted.header("Content-Type") == "application/json"
        assert (posted.header("X-A") or "").encode("latin-1") == "ü".encode()
        assert posted.header("Cookie") == "a=b"
        assert posted.header("Host") == receiver.url.partition("//")[2]
        assert posted.header("Transfer-Encoding") is None
        assert receiver.connections == 1


async def test_a_body_that_is_made_as_it_goes_is_sent_whole() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for piece in (b"one ", b"two ", b"three"):
            yield piece

    with Receiver() as receiver:
        async with client() as http:
            assert (await http.put(f"{receiver.url}/", content=pieces())).status_code == 200
        assert receiver.received[0].body == b"one two three"


async def test_an_answer_can_be_streamed_and_its_coding_is_undone() -> None:
    packed = gzip.compress(b"x" * 10_000)

    def answer(_request: Received) -> Reply:
        return Reply(headers=(("Content-Encoding", "gzip"),), body=packed)

    with Receiver(answer) as receiver:
        async with client() as http:
            async with http.stream("GET", f"{receiver.url}/") as response:
                assert [piece async for piece in response.aiter_raw()] == [packed]
            async with http.stream("GET", f"{receiver.url}/") as response:
                unpacked = b"".join([piece async for piece in response.aiter_bytes()])
            assert unpacked == (await http.get(f"{receiver.url}/")).content == b"x" * 10_000


@pytest.mark.parametrize(
    ("method", "raw", "status"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n", 200),
        ("HEAD", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", 200),
        ("HEAD", b"HTTP/1.1 103 Hints\r\n\r\nHTTP/1.1 404 No\r\n\r\n", 404),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n", 204),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5000\r\n\r\n", 304),
    ],
)
async def test_answers_without_a_body(method: str, raw: bytes, status: int) -> None:
    async def stay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(raw)
        # it does not close: what waits for a body waits until the deadline
        await reader.read()
        writer.close()

    server = await asyncio.start_server(stay, "127.0.0.1", 0)
    async with client() as http:
        response = await http.request(method, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
    await listening.close(server)
    assert (response.status_code, response.content) == (status, b"")
    assert response.headers.get("content-length") in {None, "5000"}


async def test_after_head_comes_the_next_answer() -> None:
    with Receiver(lambda request: Reply(body=b"" if request.method == "HEAD" else b"ok")) as receiver:
        async with client() as http:
            for _ in range(2):
                assert (await http.head(f"{receiver.url}/")).content == b""
                assert (await http.get(f"{receiver.url}/")).content == b"ok"


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (Reply(raw=b""), httpx.ReadError),
        (Reply(raw=b"HTTP/1.1 2"), httpx.ReadError),
        (Reply(raw=b"SSH-2.0-x\r\n\r\n"), httpx.RemoteProtocolError),
        (Reply(raw=b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"), httpx.RemoteProtocolError),
        (Reply(body=b"x" * (MAX_BODY_BYTES + 1)), httpx.RemoteProtocolError),
        (Reply(hang=True), httpx.ReadTimeout),
    ],
    ids=["closed", "closed in the head", "not HTTP", "a broken body", "too large", "too late"],
)
async def test_what_goes_wrong_after_sending(reply: Reply, error: type[httpx.TransportError]) -> None:
    with Receiver(lambda _: reply) as receiver:
        async with client() as http:
            with pytest.raises(error) as caught:
                await http.get(f"{receiver.url}/", timeout=0.3 if reply.hang else PATIENCE)
        assert type(caught.value) is error
        assert caught.value.request.url == f"{receiver.url}/"
        assert len(receiver.received) == 1


async def test_what_goes_wrong_before_anything_was_sent() -> None:
    zone: dict[str, Any] = {"none.test": NXDOMAIN, "inside.test": ["10.0.0.1"], "other.test": ["127.0.0.1"]}
    with (
        NameServerThread(zone) as names,
        Receiver() as receiver,
        Receiver(tls=secured()) as secure,
    ):
        port = receiver.port
        cases: dict[str, type[httpx.TransportError]] = {
            "http://127.0.0.1:1/": httpx.ConnectError,
            f"http://none.test:{port}/": httpx.ConnectError,
            f"http://inside.test:{port}/": httpx.ConnectError,
            f"http://hang.test:{port}/": httpx.ConnectTimeout,
            # its certificate is for 127.0.0.1
            f"https://other.test:{secure.port}/": httpx.ConnectError,
            "ftp://127.0.0.1/": httpx.UnsupportedProtocol,
        }
        async with client(names=names.address) as http:
            for url, error in cases.items():
                with pytest.raises(httpx.TransportError) as caught:
                    await http.get(url, timeout=0.3 if error is httpx.ConnectTimeout else PATIENCE)
                assert type(caught.value) is error, url
            with pytest.raises(httpx.LocalProtocolError):
                await http.get(f"{receiver.url}/", headers={b"X-A": b"\xff\xfe"})
            with pytest.raises(httpx.LocalProtocolError):
                await http.get(f"{receiver.url}/", headers={"X-A": "a\r\nX-B: b"})
        assert receiver.received == secure.received == []


async def test_the_egress_guard_holds_for_it_too() -> None:
    with Receiver() as receiver:
        async with client(policy=EgressPolicy()) as http:
            for url in (receiver.url, f"https://127.0.0.1:{receiver.port}/", "https://[::1]/"):
                with pytest.raises(httpx.ConnectError):
                    await http.get(url)
        assert receiver.connections == 0


async def test_redirects_are_those_of_the_client_and_each_is_guarded() -> None:
    def answer(request: Received) -> Reply:
        to = {"/a": "/b", "/b": "https://10.0.0.1/secret"}[request.target]
        return Reply(status=302, headers=(("Location", to),))

    with Receiver(answer) as receiver:
        async with client() as http:
            assert (await http.get(f"{receiver.url}/a")).status_code == 302
            with pytest.raises(httpx.ConnectError):
                await http.get(f"{receiver.url}/a", follow_redirects=True)
        assert [request.target for request in receiver.received] == ["/a", "/a", "/b"]


async def test_many_at_once_and_one_that_is_cancelled() -> None:
    async def echo(request: Received) -> Reply:
        return Reply(hang=True) if request.target == "/hang" else Reply(body=request.target.encode())

    with Receiver(echo) as receiver:
        async with client() as http:
            hanging = asyncio.create_task(http.get(f"{receiver.url}/hang"))
            answers = await asyncio.gather(*(http.get(f"{receiver.url}/{n}") for n in range(50)))
            assert [answer.text for answer in answers] == [f"/{n}" for n in range(50)]
            hanging.cancel()
            with pytest.raises(asyncio.CancelledError):
                await hanging
            assert (await http.get(f"{receiver.url}/after")).text == "/after"


async def test_respx_mocks_a_client_of_it() -> None:
    """respx stands before any transport when it is told to take httpx's place, not httpcore's."""
    with Receiver() as receiver:
        async with client() as http:
            with respx.mock(using="httpx", assert_all_called=True) as router:
                route = router.post("https://hook.example/x").mock(return_value=httpx.Response(202, json={"ok": True}))
                router.get("https://down.example/").mock(side_effect=httpx.ConnectError)
                answer = await http.post("https://hook.example/x", content=b"{}")
                with pytest.raises(httpx.ConnectError):
                    await http.get("https://down.example/")
                assert (answer.status_code, answer.json()) == (202, {"ok": True})
                assert route.calls.last.request.content == b"{}"
            assert (await http.get(f"{receiver.url}/real")).status_code == 200
        assert [request.target for request in receiver.received] == ["/real"]
