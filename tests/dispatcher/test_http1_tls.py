"""TLS of our transport, as servers see it: sessions that are resumed, and the certificate that we show."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trustme
from cryptography import x509

from dispatcher.delivery import tls
from dispatcher.delivery.http1_transport import Http1Transport
from dispatcher.delivery.resolver import Resolver
from dispatcher.delivery.tls import client_context
from dispatcher.delivery.transport import Request, Response, Timing
from dispatcher.egress import EgressPolicy, parse
from dispatcher.errors import ConfigError, SendError
from dispatcher.models import Outcome
from tests.support import listening
from tests.support.dns import NameServerThread
from tests.support.memory import measured, resident
from tests.support.patience import PATIENCE

VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]
OURS = trustme.CA()


@dataclass
class Seen:
    """What a server saw of its connections, one entry for each."""

    port: int = 0
    resumed: list[bool] = field(default_factory=list)
    versions: list[str | None] = field(default_factory=list)
    #: names in the certificates that were shown
    shown: list[str | None] = field(default_factory=list)


@asynccontextmanager
async def secured(context: ssl.SSLContext, *, port: int = 0, requests: int = 1) -> AsyncIterator[Seen]:
    """A server that answers one request on each connection, or so many, and then closes it."""
    seen = Seen()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = writer.get_extra_info("ssl_object")
        seen.resumed.append(connection.session_reused)
        seen.versions.append(connection.version())
        der = connection.getpeercert(binary_form=True)
        seen.shown.append(None if der is None else _name(der))
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            for _ in range(requests):
                await reader.readuntil(b"{}")
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", port, ssl=context)
    seen.port = server.sockets[0].getsockname()[1]
    try:
        yield seen
    finally:
        await listening.close(server)


def _name(der: bytes) -> str:
    names = x509.load_der_x509_certificate(der).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return str(names.value.get_values_for_type(x509.RFC822Name)[0])


def server_context(authority: trustme.CA, *names: str, version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    if version is not None:
        context.minimum_version = context.maximum_version = version
    return context


class Client:
    """A transport whose requests all say the same."""

    def __init__(self, transport: Http1Transport) -> None:
        self._transport = transport

    async def post(self, url: str) -> Response:
        return await self._transport.send(
            Request(target=parse(url), headers=(), body=b"{}", deadline=PATIENCE), Timing()
        )


@asynccontextmanager
async def client(*authorities: trustme.CA, certificate: Path | None = None, max_idle: int = 0) -> AsyncIterator[Client]:
    """Where it keeps no connection, each request makes one."""
    context = client_context(certificate=certificate)
    for authority in authorities:
        authority.configure_trust(context)
    with NameServerThread({"a.test": ["127.0.0.1"], "b.test": ["127.0.0.1"]}) as names:
        resolver = Resolver(nameservers=[names.address])
        transport = Http1Transport(resolver=resolver, policy=EgressPolicy.dev(), context=context, max_idle=max_idle)
        try:
            yield Client(transport)
        finally:
            await transport.aclose()
            await resolver.aclose()


# sessions


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
async def test_a_session_spares_the_next_handshake(version: ssl.TLSVersion) -> None:
    async with secured(server_context(OURS, "a.test", version=version)) as seen, client(OURS) as http:
        for _ in range(4):
            assert (await http.post(f"https://a.test:{seen.port}/")).body == b"ok"
    assert seen.resumed == [False, True, True, True]
    assert set(seen.versions) == {version.name.replace("_", ".")}


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
async def test_a_session_is_not_offered_under_another_name(version: ssl.TLSVersion) -> None:
    """A resumed session shows no certificate, so it must not vouch for a name that nobody checked."""
    async with secured(server_context(OURS, "a.test", "b.test", version=version)) as seen, client(OURS) as http:
        for name in ("a.test", "b.test", "a.test", "b.test"):
            await http.post(f"https://{name}:{seen.port}/")
        assert seen.resumed == [False, False, True, True]
    async with secured(server_context(OURS, "a.test", version=version)) as seen, client(OURS) as http:
        await http.post(f"https://a.test:{seen.port}/")
        with pytest.raises(SendError) as caught:
            await http.post(f"https://b.test:{seen.port}/")
        assert caught.value.outcome is Outcome.TLS_ERROR


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
async def test_a_server_that_forgot_the_session_begins_anew(version: ssl.TLSVersion) -> None:
    """Another process behind the same name, with keys of its own for tickets."""
    async with client(OURS) as http:
        async with secured(server_context(OURS, "a.test", version=version)) as first:
            await http.post(f"https://a.test:{first.port}/")
        async with secured(server_context(OURS, "a.test", version=version)) as other:
            for _ in range(2):
                assert (await http.post(f"https://a.test:{other.port}/")).status == 200
    assert first.resumed + other.resumed == [False, False, True]


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
async def test_a_server_that_is_no_longer_trusted_is_not_helped_by_a_session(version: ssl.TLSVersion) -> None:
    async with client(OURS) as http:
        async with secured(server_context(OURS, "a.test", version=version)) as good:
            await http.post(f"https://a.test:{good.port}/")
        async with secured(server_context(trustme.CA(), "a.test", version=version)) as bad:
            with pytest.raises(SendError) as caught:
                await http.post(f"https://a.test:{bad.port}/")
            assert caught.value.detail == "the certificate is not valid for this host"
            assert bad.resumed == []
        async with secured(server_context(OURS, "a.test", version=version)) as good:
            assert (await http.post(f"https://a.test:{good.port}/")).status == 200
            assert good.resumed == [False]


async def test_a_server_without_sessions_works_too() -> None:
    context = server_context(OURS, "a.test", version=ssl.TLSVersion.TLSv1_2)
    context.options |= ssl.OP_NO_TICKET
    async with secured(context) as seen, client(OURS) as http:
        for _ in range(3):
            assert (await http.post(f"https://a.test:{seen.port}/")).status == 200
    assert seen.resumed == [False] * 3


async def test_sessions_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "MAX_SESSIONS", 1)
    async with secured(server_context(OURS, "a.test", "b.test")) as seen, client(OURS) as http:
        for name in ("a.test", "a.test", "b.test", "b.test", "a.test"):
            await http.post(f"https://{name}:{seen.port}/")
    assert seen.resumed == [False, True, False, True, False]


async def test_where_python_loses_their_memory_few_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is known by then stays in use."""
    monkeypatch.setattr(tls, "LOSES", True)
    monkeypatch.setattr(tls, "MOST_LOST", 1)
    async with secured(server_context(OURS, "a.test", "b.test")) as seen, client(OURS) as http:
        for name in ("a.test", "a.test", "b.test", "b.test", "a.test"):
            assert (await http.post(f"https://{name}:{seen.port}/")).status == 200
    assert seen.resumed == [False, True, False, False, True]


@measured
@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
async def test_requests_over_one_connection_leave_nothing_in_memory(version: ssl.TLSVersion) -> None:
    count, context = 2_000, server_context(OURS, "a.test", version=version)
    async with secured(context, requests=count + 100) as seen, client(OURS, max_idle=1) as http:
        for _ in range(100):
            await http.post(f"https://a.test:{seen.port}/")
        before = resident(os.getpid())
        for _ in range(count):
            await http.post(f"https://a.test:{seen.port}/")
        grown = resident(os.getpid()) - before
    assert seen.resumed == [False]
    assert grown < count * 1024


# the certificate that we show


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    path = tmp_path / "ours.pem"
    issued = OURS.issue_cert("hooks@dispatcher.test", common_name="dispatcher")
    path.write_bytes(issued.private_key_and_cert_chain_pem.bytes())
    return path


def asking(*, must: bool, version: ssl.TLSVersion) -> ssl.SSLContext:
    context = server_context(OURS, "a.test", version=version)
    context.verify_mode = ssl.CERT_REQUIRED if must else ssl.CERT_OPTIONAL
    OURS.configure_trust(context)
    return context


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
@pytest.mark.parametrize("must", [True, False])
async def test_our_certificate_is_shown_to_who_asks(certificate: Path, version: ssl.TLSVersion, *, must: bool) -> None:
    async with client(OURS, certificate=certificate) as http:
        async with secured(asking(must=must, version=version)) as seen:
            for _ in range(2):
                assert (await http.post(f"https://a.test:{seen.port}/")).status == 200
        async with secured(server_context(OURS, "a.test", version=version)) as indifferent:
            assert (await http.post(f"https://a.test:{indifferent.port}/")).status == 200
    assert seen.shown == ["hooks@dispatcher.test"] * 2
    assert indifferent.shown == [None]


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
async def test_without_a_certificate_only_who_insists_refuses(version: ssl.TLSVersion) -> None:
    async with client(OURS) as http:
        async with secured(asking(must=False, version=version)) as seen:
            assert (await http.post(f"https://a.test:{seen.port}/")).status == 200
        assert seen.shown == [None]
        async with secured(asking(must=True, version=version)) as seen:
            with pytest.raises(SendError) as caught:
                await http.post(f"https://a.test:{seen.port}/")
        assert caught.value.outcome in {Outcome.TLS_ERROR, Outcome.CONNECTION_ERROR}


@pytest.mark.parametrize("content", [None, b"", b"no PEM", trustme.CA().cert_pem.bytes()])
def test_a_certificate_that_cannot_be_used_is_a_config_error(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "client.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError):
        client_context(certificate=path)
