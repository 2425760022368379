"""The transport over real sockets: servers, a name server and an egress proxy of our own, all on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import logging
import socket
import ssl
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from ipaddress import IPv4Network

import pytest
import trustme

from dispatcher.delivery.http1_transport import Http1Transport
from dispatcher.delivery.httpx_transport import HttpxTransport
from dispatcher.delivery.network import Stream
from dispatcher.delivery.resolver import Resolver
from dispatcher.delivery.tls import client_context
from dispatcher.delivery.transport import MAX_BODY_BYTES, MAX_PIECES, Request, Response, Timing
from dispatcher.egress import EgressPolicy, parse
from dispatcher.errors import ConfigError, SendError
from dispatcher.models import Outcome
from tests.support import listening
from tests.support.dns import NameServer, Zone

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
SECRET = "/s3cret"

#: which transport `sending` makes: every test here holds for both
KIND: ContextVar[str] = ContextVar("KIND")


@pytest.fixture(autouse=True, params=["http1", "httpx"])
def kind(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each test runs with either transport."""
    token = KIND.set(request.param)
    yield request.param
    KIND.reset(token)


Reply = Callable[["Endpoint", asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Endpoint:
    """A server that keeps the exact bytes of each request and answers with `reply`."""

    def __init__(self, reply: bytes | Reply) -> None:
        self.reply = reply
        self.requests: list[bytes] = []
        self.connections = 0
        self.open = 0
        self.names: list[str | None] = []
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        try:
            while not writer.is_closing():
                self.requests.append(await read_message(reader))
                if isinstance(self.reply, bytes):
                    writer.write(self.reply)
                    await writer.drain()
                else:
                    await self.reply(self, reader, writer)
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            self.open -= 1
            writer.close()


async def read_message(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = next((int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0)
    return head + await reader.readexactly(length)


@asynccontextmanager
async def endpoint(
    reply: bytes | Reply = OK, *, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None
) -> AsyncIterator[Endpoint]:
    served = Endpoint(reply)
    if tls is not None:
        # None, which append returns, lets the handshake go on
        tls.sni_callback = lambda _object, name, _context: served.names.append(name)
    server = await asyncio.start_server(served.serve, host, 0, ssl=tls, backlog=1000)
    served.port = server.sockets[0].getsockname()[1]
    try:
        yield served
    finally:
        await listening.close(server)


class Sending:
    """A transport with what is around it."""

    def __init__(self, transport: Http1Transport | HttpxTransport, names: NameServer) -> None:
        self.transport = transport
        self.names = names

    async def post(
        self,
        url: str,
        *,
        headers: Sequence[tuple[str, str]] = (),
        body: bytes = b"{}",
        deadline: float = 5.0,
        timing: Timing | None = None,
    ) -> Response:
        request = Request(target=parse(url), headers=headers, body=body, deadline=deadline)
        return await self.transport.send(request, timing or Timing())

    async def fails(self, url: str, outcome: Outcome, *, deadline: float = 5.0, timing: Timing | None = None) -> str:
        """Post, expect this outcome within the deadline, and a detail that shows nothing of the URL."""
        started = time.monotonic()
        with pytest.raises(SendError) as caught:
            await self.post(url, deadline=deadline, timing=timing)
        assert caught.value.outcome is outcome, caught.value.detail
        assert time.monotonic() - started < deadline + 10
        assert "s3cret" not in caught.value.detail
        assert len(caught.value.detail) < 80
        return caught.value.detail


@asynccontextmanager
async def sending(
    *,
    policy: EgressPolicy | None = None,
    zone: Zone | None = None,
    ca: trustme.CA | None = None,
    proxy: str | None = None,
    max_idle: int = 512,
    idle_s: float = 30.0,
) -> AsyncIterator[Sending]:
    loop = asyncio.get_running_loop()
    udp, names = await loop.create_datagram_endpoint(lambda: NameServer(zone), local_addr=("127.0.0.1", 0))
    resolver = Resolver(nameservers=[f"127.0.0.1:{udp.get_extra_info('sockname')[1]}"], timeout=2)
    context = client_context()
    if ca is not None:
        ca.configure_trust(context)
    policy = policy or EgressPolicy.dev()
    transport: Http1Transport | HttpxTransport
    if KIND.get() == "http1" and proxy is None:
        transport = Http1Transport(resolver=resolver, policy=policy, context=context, max_idle=max_idle, idle_s=idle_s)
    else:
        transport = HttpxTransport(
            resolver=resolver, policy=policy, ssl_context=context, proxy=proxy, max_idle=max_idle, idle_s=idle_s
        )
    try:
        yield Sending(transport, names)
    finally:
        await transport.aclose()
        await resolver.aclose()
        udp.close()
        await asyncio.sleep(0.01)


async def until(condition: Callable[[], bool], *, seconds: float = 3.0) -> None:
    for _ in range(int(seconds / 0.01)):
        if condition():
            return
        await asyncio.sleep(0.01)
    pytest.fail("it did not happen in time")


def server_context(ca: trustme.CA, *names: str, days: int = 1) -> ssl.SSLContext:
    now = datetime.datetime.now(datetime.UTC)
    cert = ca.issue_cert(
        *names, not_before=now - datetime.timedelta(days=9), not_after=now + datetime.timedelta(days=days)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    cert.configure_cert(context)
    return context


# what goes out


async def test_exactly_what_was_passed_goes_out_and_nothing_else() -> None:
    async with endpoint() as server, sending() as client:
        response = await client.post(
            f"http://127.0.0.1:{server.port}/a%2Fb/..%2f?x=%7E&&y='[|]",
            headers=[("X-One", "1"), ("X-one", "2"), ("Content-Type", "application/json")],
            body=b'{"a": 1}',
        )
    assert (response.status, response.body, response.complete) == (200, b"ok", True)
    assert response.headers == (("Content-Length", "2"),)
    assert server.requests == [
        b"POST /a%2Fb/..%2f?x=%7E&&y='[|] HTTP/1.1\r\n"
        + f"Host: 127.0.0.1:{server.port}\r\n".encode()
        + b"X-One: 1\r\nX-one: 2\r\nContent-Type: application/json\r\nContent-Length: 8\r\n\r\n"
        + b'{"a": 1}'
    ]


@pytest.mark.parametrize(
    "path", ["/../../etc", "/a/./b//c", "/%", "/%zz", "/a;b=c?d?e", "/~%7e", "//host/x", "/?", "/@:"]
)
async def test_the_path_is_never_normalised(path: str) -> None:
    async with endpoint() as server, sending() as client:
        await client.post(f"http://127.0.0.1:{server.port}{path}")
    assert server.requests[0].startswith(b"POST " + path.encode() + b" HTTP/1.1\r\n")


async def test_the_framing_is_ours() -> None:
    async with endpoint() as server, sending() as client:
        framing = [
            ("Host", "evil"),
            ("content-length", "999"),
            ("Transfer-Encoding", "chunked"),
            ("Upgrade", "h2c"),
        ]
        await client.post(f"http://127.0.0.1:{server.port}/", headers=[*framing, ("X-A", "ä")], body=b"")
    head = server.requests[0].lower()
    assert head.count(b"host:") == head.count(b"content-length:") == 1
    assert b"content-length: 0" in head
    for word in (b"evil", b"chunked", b"h2c", b"accept", b"user-agent", b"connection"):
        assert word not in head
    assert "x-a: ä".encode() in head


async def test_a_header_that_cannot_be_sent_is_our_own_fault() -> None:
    async with endpoint() as server, sending() as client:
        with pytest.raises(SendError) as caught:
            await client.post(f"http://127.0.0.1:{server.port}/", headers=[("X-A", "a\r\nX-B: b")])
    assert caught.value.outcome is Outcome.INTERNAL_ERROR
    assert not server.requests


async def test_environment_proxies_and_cookies_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with (
        endpoint(OK.replace(b"\r\n\r\n", b"\r\nSet-Cookie: a=b\r\n\r\n")) as server,
        sending() as client,
    ):
        for _ in range(2):
            await client.post(f"http://127.0.0.1:{server.port}/")
    assert b"cookie" not in server.requests[1].lower()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_an_answer(status: int) -> None:
    async with endpoint() as other, sending() as client:
        reply = f"HTTP/1.1 {status} Go\r\nLocation: http://127.0.0.1:{other.port}/\r\nContent-Length: 0\r\n\r\n"
        async with endpoint(reply.encode()) as server:
            response = await client.post(f"http://127.0.0.1:{server.port}/")
    assert response.status == status
    assert not other.connections


def test_records_do_not_show_secrets() -> None:
    target = parse("https://example.com/s3cret")
    request = Request(target=target, headers=[("X-Key", "s3cret")], body=b"s3cret", deadline=1)
    response = Response(status=200, headers=(("x", "s3cret"),), body=b"s3cret", complete=True)
    assert "s3cret" not in repr(request) + repr(response)


async def test_nothing_of_the_url_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with endpoint() as server, sending() as client:
        await client.post(f"http://127.0.0.1:{server.port}{SECRET}")
        await client.fails(f"http://127.0.0.1:1{SECRET}", Outcome.CONNECTION_ERROR)
    assert "s3cret" not in caplog.text


# where it goes


async def test_the_vetted_address_is_dialled_and_the_name_kept() -> None:
    ca = trustme.CA()
    tls = server_context(ca, "hook.example")
    async with (
        endpoint(host="127.0.0.2", tls=tls) as server,
        sending(zone={"hook.example": ["127.0.0.2"]}, ca=ca) as client,
    ):
        timing = Timing()
        response = await client.post(f"https://HOOK.example.:{server.port}{SECRET}", timing=timing)
    assert response.status == 200
    assert server.names == ["hook.example"]
    assert f"\r\nHost: hook.example:{server.port}\r\n".encode() in server.requests[0]
    for stage in (timing.dns, timing.connect, timing.tls, timing.wait):
        assert stage is not None
        assert 0 < stage < 5000


async def test_an_ipv6_literal_over_tls() -> None:
    ca = trustme.CA()
    async with endpoint(host="::1", tls=server_context(ca, "::1")) as server, sending(ca=ca) as client:
        response = await client.post(f"https://[::1]:{server.port}/")
    assert response.status == 200
    assert f"Host: [::1]:{server.port}\r\n".encode() in server.requests[0]


@pytest.mark.parametrize(
    "answers", [["127.0.0.1", "8.8.8.8"], ["8.8.8.8", "127.0.0.1"], ["8.8.8.8", "::1"], ["127.0.0.1"]]
)
async def test_one_bad_address_refuses_the_name(answers: list[str]) -> None:
    policy = EgressPolicy(ports=None, allow_http=True)
    async with endpoint() as server, sending(policy=policy, zone={"hook.example": answers}) as client:
        timing = Timing()
        detail = await client.fails(f"http://hook.example:{server.port}{SECRET}", Outcome.EGRESS_REFUSED, timing=timing)
        await client.fails(f"http://127.0.0.1:{server.port}{SECRET}", Outcome.EGRESS_REFUSED)
    assert detail == "this address is not one we send to"
    assert timing.dns is not None
    assert timing.connect is None
    assert not server.connections


async def test_the_policy_is_asked_again_for_every_request() -> None:
    async with sending(policy=EgressPolicy(allow_loopback=True)) as client:
        await client.fails(f"http://127.0.0.1{SECRET}", Outcome.EGRESS_REFUSED)
        await client.fails(f"https://127.0.0.1:8444{SECRET}", Outcome.EGRESS_REFUSED)


async def test_the_next_address_is_tried_when_one_refuses() -> None:
    zone = {"hook.example": ["127.0.0.3", "127.0.0.2"]}
    async with endpoint(host="127.0.0.2") as server, sending(zone=zone) as client:
        assert (await client.post(f"http://hook.example:{server.port}/")).status == 200
        await client.fails(f"http://hook.example:1{SECRET}", Outcome.CONNECTION_ERROR)


@asynccontextmanager
async def deaf(host: str) -> AsyncIterator[int]:
    """A port whose connections are never accepted: its backlog is full."""
    listener = socket.socket()
    listener.bind((host, 0))
    listener.listen(0)
    port = listener.getsockname()[1]
    fillers = []
    for _ in range(3):
        filler = socket.socket()
        filler.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            filler.connect((host, port))
        fillers.append(filler)
    try:
        yield port
    finally:
        for sock in (*fillers, listener):
            sock.close()


async def test_an_address_that_hangs_leaves_time_for_the_next() -> None:
    async with deaf("127.0.0.3") as port:
        served = Endpoint(OK)
        server = await asyncio.start_server(served.serve, "127.0.0.2", port)
        async with sending(zone={"hook.example": ["127.0.0.3", "127.0.0.2"]}) as client:
            started = time.monotonic()
            assert (await client.post(f"http://hook.example:{port}/", deadline=6.0)).status == 200
            # half of the time went to the first address, the rest was left
            assert 2.0 < time.monotonic() - started < 6.0
        await listening.close(server)


async def test_a_hanging_connect_ends_at_the_deadline() -> None:
    async with deaf("127.0.0.3") as port, sending() as client:
        timing = Timing()
        await client.fails(f"http://127.0.0.3:{port}{SECRET}", Outcome.TIMEOUT, deadline=0.3, timing=timing)
    assert timing.connect is not None
    assert timing.wait is None


async def test_dns_failures() -> None:
    async with sending() as client:
        timing = Timing()
        await client.fails(f"http://gone.example{SECRET}", Outcome.DNS_ERROR, timing=timing)
        assert timing.dns is not None
        await client.fails(f"http://hang.example{SECRET}", Outcome.TIMEOUT, deadline=0.2)


async def test_a_refused_connection() -> None:
    async with sending() as client:
        assert (
            await client.fails(f"http://127.0.0.1:1{SECRET}", Outcome.CONNECTION_ERROR) == "the connection was refused"
        )


# TLS


@pytest.mark.parametrize("case", ["expired", "wrong host", "self-signed", "not yet valid host"])
async def test_a_bad_certificate_is_a_tls_error_and_nothing_is_sent(case: str) -> None:
    ca, other = trustme.CA(), trustme.CA()
    tls = {
        "expired": lambda: server_context(ca, "hook.example", days=-1),
        "wrong host": lambda: server_context(ca, "other.example", "127.0.0.1"),
        "self-signed": lambda: server_context(other, "hook.example"),
        "not yet valid host": lambda: server_context(ca, "*.hook.example"),
    }[case]()
    async with endpoint(tls=tls) as server, sending(zone={"hook.example": ["127.0.0.1"]}, ca=ca) as client:
        timing = Timing()
        await client.fails(f"https://hook.example:{server.port}{SECRET}", Outcome.TLS_ERROR, timing=timing)
        await until(lambda: server.open == 0)
    assert not server.requests
    assert timing.tls is not None
    assert timing.wait is None


async def test_plain_http_behind_https_is_a_tls_error() -> None:
    async def blurt(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(blurt, "127.0.0.1", 0)
    async with sending() as client:
        await client.fails(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}{SECRET}", Outcome.TLS_ERROR)
    await listening.close(server)


async def test_a_handshake_that_breaks_off_or_hangs() -> None:
    async def shut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.transport.abort()

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(-1)
        writer.close()

    async with sending() as client:
        for how, outcome in ((shut, Outcome.TLS_ERROR), (hang, Outcome.TIMEOUT)):
            server = await asyncio.start_server(how, "127.0.0.1", 0)
            port = server.sockets[0].getsockname()[1]
            await client.fails(f"https://127.0.0.1:{port}{SECRET}", outcome, deadline=0.5)
            await listening.close(server)


async def test_a_server_that_wants_our_certificate() -> None:
    ca = trustme.CA()
    tls = server_context(ca, "127.0.0.1")
    tls.verify_mode = ssl.CERT_REQUIRED
    ca.configure_trust(tls)
    async with endpoint(tls=tls) as server, sending(ca=ca) as client:
        with pytest.raises(SendError) as caught:
            await client.post(f"https://127.0.0.1:{server.port}/")
    assert caught.value.outcome in {Outcome.TLS_ERROR, Outcome.CONNECTION_ERROR}


async def test_http_2_is_not_offered() -> None:
    ca = trustme.CA()
    tls = server_context(ca, "127.0.0.1")
    tls.set_alpn_protocols(["h2", "http/1.1"])
    async with endpoint(tls=tls) as server, sending(ca=ca) as client:
        assert (await client.post(f"https://127.0.0.1:{server.port}/")).status == 200
    assert b"HTTP/1.1\r\n" in server.requests[0]


# what comes back


def chunks(*parts: bytes, end: bool = True) -> bytes:
    body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body + (b"0\r\n\r\n" if end else b"")


def sized(size: int) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size


def closing(data: bytes) -> Reply:
    async def reply(server: Endpoint, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()
        writer.close()

    return reply


def dripping(data: bytes, then: bytes = b"x", times: int = 200) -> Reply:
    async def reply(server: Endpoint, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        for _ in range(times):
            writer.write(then)
            await writer.drain()
            await asyncio.sleep(0.02)

    return reply


@pytest.mark.parametrize(
    ("reply", "size", "complete"),
    [
        (OK, 2, True),
        (chunks(b"ab", b"cde"), 5, True),
        (chunks(), 0, True),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 0, True),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\n\r\n" + OK, 2, True),
        (closing(b"HTTP/1.1 200 OK\r\n\r\nto the end"), 10, True),
        (closing(b"HTTP/1.0 200 OK\r\n\r\nold"), 3, True),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nnope", 4, True),
        (sized(MAX_BODY_BYTES - 1), MAX_BODY_BYTES - 1, True),
        (sized(MAX_BODY_BYTES), MAX_BODY_BYTES, True),
        (sized(MAX_BODY_BYTES + 1), MAX_BODY_BYTES, False),
        (sized(8 * MAX_BODY_BYTES), MAX_BODY_BYTES, False),
        (chunks(*[b"y" * 1000] * 66), MAX_BODY_BYTES, False),
        (closing(chunks(b"abc", end=False)), 3, False),
        (closing(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"), 3, False),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 0, False),
    ],
)
async def test_status_and_headers_decide_whatever_becomes_of_the_body(
    reply: bytes | Reply, size: int, *, complete: bool
) -> None:
    async with endpoint(reply) as server, sending() as client:
        response = await client.post(f"http://127.0.0.1:{server.port}/")
        assert (len(response.body), response.complete) == (size, complete)
        if not complete:
            await until(lambda: server.open == 0)


def endless(data: bytes, then: bytes) -> Reply:
    """Data, then the same again and again, as fast as it is read."""

    async def reply(server: Endpoint, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        for _ in range(1_000):
            writer.write(then * 1_000)
            await writer.drain()

    return reply


async def test_a_body_in_endless_small_pieces_is_cut() -> None:
    reply = endless(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n")
    async with endpoint(reply) as server, sending() as client:
        response = await client.post(f"http://127.0.0.1:{server.port}/")
        assert (response.status, response.complete) == (200, False)
        # those that were read together with the last one may be among them
        assert len(response.body) < 2 * MAX_PIECES
        await until(lambda: server.open == 0)


async def test_interim_answers_without_end_are_cut() -> None:
    reply = endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n")
    async with endpoint(reply) as server, sending() as client:
        await client.fails(f"http://127.0.0.1:{server.port}/", Outcome.PROTOCOL_ERROR, deadline=60)
        await until(lambda: server.open == 0)


async def test_what_one_answer_took_does_not_count_against_the_next() -> None:
    reply = b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n" + b"x" * 60_000
    async with endpoint(reply) as server, sending() as client:
        for _ in range(5):
            response = await client.post(f"http://127.0.0.1:{server.port}/")
            assert (len(response.body), response.complete) == (60_000, True)


async def test_a_body_that_outlasts_the_deadline() -> None:
    reply = dripping(b"HTTP/1.1 202 Accepted\r\nContent-Length: 999\r\n\r\n")
    async with endpoint(reply) as server, sending() as client:
        # dripping goes on for much longer than this
        async with asyncio.timeout(5):
            response = await client.post(f"http://127.0.0.1:{server.port}/", deadline=0.3)
        assert (response.status, response.complete) == (202, False)
        assert response.body.startswith(b"xxx")
        await until(lambda: server.open == 0)


async def test_a_reset_in_the_middle_of_the_body() -> None:
    async def reply(server: Endpoint, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")
        await asyncio.sleep(0.05)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    async with endpoint(reply) as server, sending() as client:
        response = await client.post(f"http://127.0.0.1:{server.port}/")
    assert (response.status, response.body, response.complete) == (200, b"abc", False)


@pytest.mark.parametrize(
    ("reply", "outcome"),
    [
        (closing(b""), Outcome.CONNECTION_ERROR),
        (closing(b"HTTP/1.1 200"), Outcome.CONNECTION_ERROR),
        (closing(b"HTTP/1.1 200 OK\r\nX: y\r\n"), Outcome.CONNECTION_ERROR),
        (b"SSH-2.0-OpenSSH_9.7\r\n\r\n", Outcome.PROTOCOL_ERROR),
        (b"\x15\x03\x01\x00\x02\x02\x16" * 9 + b"\r\n\r\n", Outcome.PROTOCOL_ERROR),
        (b"HTTP/1.1 999999 OK\r\n\r\n", Outcome.PROTOCOL_ERROR),
        (b"HTTP/1.1 200 OK\r\nbad header\r\n\r\n", Outcome.PROTOCOL_ERROR),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", Outcome.PROTOCOL_ERROR),
        (b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n", Outcome.PROTOCOL_ERROR),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20_000, Outcome.PROTOCOL_ERROR),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 200_000, Outcome.PROTOCOL_ERROR),
        (dripping(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n"), Outcome.TIMEOUT),
        (dripping(b"", b"H", times=1), Outcome.TIMEOUT),
        (dripping(b"", b"HTTP/1.1 100 Continue\r\n\r\n"), Outcome.TIMEOUT),
    ],
)
async def test_no_usable_answer(reply: bytes | Reply, outcome: Outcome) -> None:
    async with endpoint(reply) as server, sending() as client:
        await client.fails(f"http://127.0.0.1:{server.port}{SECRET}", outcome, deadline=0.4)
        await until(lambda: server.open == 0)
    assert len(server.requests) == 1


async def test_headers_are_capped() -> None:
    many = b"".join(b"X-%d: y\r\n" % n for n in range(150))
    large = b"".join(b"X-%d: %s\r\n" % (n, b"y" * 1000) for n in range(50))
    for extra, kept in ((many, 100), (large, 16)):
        reply = b"HTTP/1.1 200 OK\r\n" + extra + b"Content-Length: 0\r\n\r\n"
        async with endpoint(reply) as server, sending() as client:
            assert len((await client.post(f"http://127.0.0.1:{server.port}/")).headers) == kept


async def test_an_early_answer_to_a_large_body_is_read() -> None:
    done = asyncio.Event()

    async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
        await done.wait()
        writer.transport.abort()

    server = await asyncio.start_server(reply, "127.0.0.1", 0)
    async with sending() as client:
        port = server.sockets[0].getsockname()[1]
        response = await client.post(f"http://127.0.0.1:{port}/", body=b"x" * 64_000_000)
        assert response.status == 413
        # the rest of the body is still on its way: no place for another request
        assert not client.transport._idle._by_age
    done.set()
    await listening.close(server)


# connections


@pytest.mark.parametrize("secure", [False, True])
async def test_a_second_answer_is_not_taken_for_that_of_the_next_request(*, secure: bool) -> None:
    ca = trustme.CA()
    tls = server_context(ca, "hook.example") if secure else None
    both = OK + b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n"
    async with endpoint(both, tls=tls) as server, sending(zone={"hook.example": ["127.0.0.1"]}, ca=ca) as client:
        url = f"{'https' if secure else 'http'}://hook.example:{server.port}/"
        for n in range(3):
            assert (await client.post(f"{url}{n}")).status == 200
        assert [request.split(b" ")[1] for request in server.requests] == [b"/0", b"/1", b"/2"]
        assert server.connections == 3


@pytest.mark.parametrize("secure", [False, True])
async def test_a_connection_is_used_again_the_last_one_first(*, secure: bool) -> None:
    ca = trustme.CA()
    tls = server_context(ca, "hook.example") if secure else None
    async with endpoint(tls=tls) as server, sending(zone={"hook.example": ["127.0.0.1"]}, ca=ca) as client:
        url = f"{'https' if secure else 'http'}://hook.example:{server.port}/"
        for n in range(5):
            timing = Timing()
            await client.post(f"{url}{n}", timing=timing)
        assert server.connections == 1
        assert (timing.dns, timing.connect, timing.tls) == (None, None, None)
        assert timing.wait is not None
        await asyncio.gather(*(client.post(url) for _ in range(3)))
        assert server.connections == 3


async def test_origins_do_not_share_connections() -> None:
    zone = {"a.example": ["127.0.0.1"], "b.example": ["127.0.0.1"]}
    async with endpoint() as server, sending(zone=zone) as client:
        for host in ("a.example", "b.example", "a.example", "b.example"):
            await client.post(f"http://{host}:{server.port}/")
        assert server.connections == 2


async def test_idle_connections_are_bounded_over_all_origins() -> None:
    async with endpoint() as server, endpoint() as other, sending(max_idle=3) as client:
        urls = [f"http://127.0.0.1:{port}/" for port in (server.port, other.port)] * 4
        await asyncio.gather(*(client.post(url) for url in urls))
        await until(lambda: server.open + other.open == 3)
        assert server.connections + other.connections == 8


async def test_idle_connections_expire_by_themselves() -> None:
    async with endpoint() as server, sending(idle_s=0.1) as client:
        await client.post(f"http://127.0.0.1:{server.port}/")
        assert server.open == 1
        await until(lambda: server.open == 0)


async def test_a_connection_grows_no_older_than_the_answer_of_its_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        f"dispatcher.delivery.{'connection' if KIND.get() == 'http1' else 'httpx_transport'}.MAX_AGE_S", 0.1
    )
    async with endpoint() as server, sending() as client:
        for _ in range(2):
            await client.post(f"http://127.0.0.1:{server.port}/")
        assert server.connections == 1
        await asyncio.sleep(0.12)
        await client.post(f"http://127.0.0.1:{server.port}/")
        assert server.connections == 2


async def test_closing_the_transport_closes_what_is_idle_and_keeps_nothing_after() -> None:
    async with endpoint() as server, sending() as client:
        await client.post(f"http://127.0.0.1:{server.port}/")
        await client.transport.aclose()
        await until(lambda: server.open == 0)
        await client.post(f"http://127.0.0.1:{server.port}/")
        await until(lambda: server.open == 0)


async def test_connection_close_is_honoured() -> None:
    async with (
        endpoint(OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")) as server,
        sending() as client,
    ):
        for _ in range(2):
            await client.post(f"http://127.0.0.1:{server.port}/")
        assert server.connections == 2


@pytest.mark.parametrize("pause_s", [0.0, 0.05])
async def test_an_idle_connection_that_the_peer_closed_is_not_used(pause_s: float) -> None:
    async with endpoint(closing(OK)) as server, sending() as client:
        for _ in range(3):
            assert (await client.post(f"http://127.0.0.1:{server.port}/")).status == 200
            await asyncio.sleep(pause_s + 0.01)
        assert server.connections == len(server.requests) == 3


async def test_bytes_that_nobody_asked_for_end_the_connection() -> None:
    async def reply(server: Endpoint, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK)
        await asyncio.sleep(0.02)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison")

    async with endpoint(reply) as server, sending() as client:
        for _ in range(2):
            assert (await client.post(f"http://127.0.0.1:{server.port}/")).body == b"ok"
            await asyncio.sleep(0.05)
        assert server.connections == 2


async def test_a_kept_connection_that_dies_is_replaced_once_and_the_attempt_says_so(kind: str) -> None:
    async def reply(server: Endpoint, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(server.requests) == 2:
            writer.close()
        else:
            writer.write(OK)

    async with endpoint(reply) as server, sending() as client:
        url = f"http://127.0.0.1:{server.port}{SECRET}"
        first, second = Timing(), Timing()
        await client.post(url, timing=first)
        assert not first.reconnected
        if kind == "http1":
            assert (await client.post(url, timing=second)).status == 200
            assert second.reconnected
            assert len(server.requests) == 3
        else:
            await client.fails(url, Outcome.CONNECTION_ERROR)
            assert len(server.requests) == 2


@pytest.mark.parametrize("kind", ["http1"], indirect=True)
async def test_a_request_is_not_sent_a_third_time_nor_again_once_an_answer_has_begun() -> None:
    async def reply(server: Endpoint, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path = server.requests[-1].split(b" ")[1]
        writer.write({b"/good": OK, b"/begins": b"HTTP/1.1 2", b"/dies": b""}[path])
        if path != b"/good":
            writer.close()

    async with endpoint(reply) as server, sending() as client:
        url = f"http://127.0.0.1:{server.port}"
        for path, times in (("/begins", 1), ("/dies", 2)):
            await client.post(url + "/good")
            seen = len(server.requests)
            await client.fails(url + path, Outcome.CONNECTION_ERROR)
            assert len(server.requests) - seen == times
        # a new connection that dies is no stale one
        seen = len(server.requests)
        await client.fails(url + "/dies", Outcome.CONNECTION_ERROR)
        assert len(server.requests) - seen == 1


async def silence(server: Endpoint, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1)


@pytest.mark.parametrize("secure", [False, True])
async def test_a_cancelled_send_closes_its_connection(*, secure: bool) -> None:
    ca = trustme.CA()
    tls = server_context(ca, "127.0.0.1") if secure else None
    async with endpoint(silence, tls=tls) as server, sending(ca=ca) as client:
        url = f"{'https' if secure else 'http'}://127.0.0.1:{server.port}/"
        tasks = [asyncio.create_task(client.post(url, deadline=30)) for _ in range(20)]
        await until(lambda: len(server.requests) == 20)
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in results)
        await until(lambda: server.open == 0)
        server.reply = OK
        assert (await client.post(url)).status == 200


async def test_a_send_cancelled_at_any_moment_leaves_nothing_open() -> None:
    ca = trustme.CA()
    reply = dripping(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", b"x", times=3)
    async with (
        endpoint(reply, tls=server_context(ca, "hook.example")) as server,
        sending(zone={"hook.example": ["127.0.0.1"]}, ca=ca, max_idle=0) as client,
    ):
        url = f"https://hook.example:{server.port}/"
        for n in range(60):
            task = asyncio.create_task(client.post(url, deadline=5))
            await asyncio.sleep(n * 0.0012)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await until(lambda: server.open == 0)


async def test_a_hanging_endpoint_does_not_hold_up_others() -> None:
    async with endpoint(silence) as hung, endpoint() as server, sending() as client:
        url = f"http://127.0.0.1:{hung.port}{SECRET}"
        waiting = [asyncio.create_task(client.post(url, deadline=60)) for _ in range(200)]
        await until(lambda: len(hung.requests) == 200)
        async with asyncio.timeout(30):
            for _ in range(50):
                await client.post(f"http://127.0.0.1:{server.port}/")
        assert not any(task.done() for task in waiting)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def test_a_stream_pauses_what_it_cannot_hold() -> None:
    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            for _ in range(100):
                writer.write(b"z" * 100_000)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(flood, "127.0.0.1", 0)
    loop = asyncio.get_running_loop()
    _, stream = await loop.create_connection(lambda: Stream(Timing()), *server.sockets[0].getsockname())
    await asyncio.sleep(0.2)
    assert len(stream._buffer) < 1_000_000
    total = 0
    while data := await stream.read(65_536):
        total += len(data)
        stream.taken = 0
    assert total == 10_000_000
    await listening.close(server)


# the egress proxy


@asynccontextmanager
async def egress_proxy(to_port: int, *, refuse: bool = False) -> AsyncIterator[tuple[int, list[bytes]]]:
    """A proxy that keeps the heads it saw, and tunnels every CONNECT to one loopback port."""
    heads: list[bytes] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        if refuse:
            writer.write(b"HTTP/1.1 403 s3cret\r\nContent-Length: 0\r\n\r\n")
            writer.close()
        elif heads[-1].startswith(b"CONNECT"):
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", to_port)
            writer.write(b"HTTP/1.1 200 Connected\r\n\r\n")
            await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))
        else:
            writer.write(OK)
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], heads
    finally:
        await listening.close(server)


async def test_an_egress_proxy_sees_the_name_but_no_path() -> None:
    ca = trustme.CA()
    async with (
        endpoint(tls=server_context(ca, "hook.example")) as server,
        egress_proxy(server.port) as (port, heads),
        sending(ca=ca, proxy=f"http://user:pass@127.0.0.1:{port}", policy=EgressPolicy()) as client,
    ):
        for _ in range(2):
            assert (await client.post(f"https://hook.example/a%2F..{SECRET}")).status == 200
        assert not client.names.asked
        await client.fails(f"https://10.0.0.1{SECRET}", Outcome.EGRESS_REFUSED)
        await client.fails(f"http://hook.example{SECRET}", Outcome.EGRESS_REFUSED)
    assert len(heads) == server.connections == 1
    assert heads[0].startswith(b"CONNECT hook.example:443 HTTP/1.1\r\n")
    assert b"Proxy-Authorization: Basic dXNlcjpwYXNz\r\n" in heads[0]
    assert b"s3cret" not in heads[0]
    assert server.requests[1].startswith(b"POST /a%2F../s3cret HTTP/1.1\r\nHost: hook.example\r\n")
    assert server.names == ["hook.example"]


async def test_plain_http_over_an_egress_proxy_keeps_the_path_as_given() -> None:
    async with egress_proxy(0) as (port, heads), sending(proxy=f"http://127.0.0.1:{port}") as client:
        assert (await client.post("http://hook.example/a%2F../b?c")).status == 200
        assert not client.names.asked
    assert heads[0].startswith(b"POST http://hook.example/a%2F../b?c HTTP/1.1\r\n")


async def test_an_egress_proxy_that_refuses_or_is_away() -> None:
    async with egress_proxy(0, refuse=True) as (port, _), sending(proxy=f"http://127.0.0.1:{port}") as client:
        await client.fails(f"https://hook.example{SECRET}", Outcome.CONNECTION_ERROR)
    async with sending(proxy="http://127.0.0.1:1") as client:
        await client.fails(f"https://hook.example{SECRET}", Outcome.CONNECTION_ERROR)


@pytest.mark.parametrize("url", ["", "127.0.0.1:3128", "socks5://127.0.0.1:1", "http://", "http://\x00"])
async def test_a_proxy_that_cannot_be_used_is_a_config_error(url: str) -> None:
    with pytest.raises(ConfigError):
        HttpxTransport(
            resolver=Resolver(), policy=EgressPolicy(allow_networks=(IPv4Network("127.0.0.0/8"),)), proxy=url
        )
