"""The resolver against a name server of our own: names that it answers, and names that it never does."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import IPv4Address
from typing import cast

import pytest

from dispatcher.delivery.resolver import Resolver
from dispatcher.errors import ConfigError, SendError
from dispatcher.models import Outcome
from tests.support.dns import AAAA, NXDOMAIN, SERVFAIL, A, NameServer


@asynccontextmanager
async def name_server(**zone: list[str] | int) -> AsyncIterator[NameServer]:
    """A running name server; `hook_example=…` fills its zone for hook.example."""
    loop = asyncio.get_running_loop()
    transport, server = await loop.create_datagram_endpoint(NameServer, local_addr=("127.0.0.1", 0))
    server.zone.update({name.replace("_", "."): found for name, found in zone.items()})
    try:
        yield server
    finally:
        transport.close()


@asynccontextmanager
async def resolving(
    server: NameServer,
    *,
    timeout: float = 5.0,  # noqa: ASYNC109 - the resolver's argument
    min_ttl: float = 1.0,
    max_ttl: float = 300.0,
    error_ttl: float = 2.0,
) -> AsyncIterator[Resolver]:
    resolver = Resolver(
        nameservers=[server.address], timeout=timeout, min_ttl=min_ttl, max_ttl=max_ttl, error_ttl=error_ttl
    )
    try:
        yield resolver
    finally:
        await resolver.aclose()


async def test_both_families_in_turn_each_address_once() -> None:
    found = ["127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.2", "::1", "2001:db8::1"]
    async with name_server(hook_example=found) as server, resolving(server) as resolver:
        addresses = await resolver.resolve("hook.example")
    assert {address.version for address in addresses[::2]} >= {4}
    assert [address.version for address in addresses] == [4, 6, 4, 6, 4]
    assert {str(address) for address in addresses} == set(found)


@pytest.mark.parametrize("family", [["127.0.0.2"], ["::1"]])
async def test_one_family_is_enough(family: list[str]) -> None:
    async with name_server(hook_example=family) as server, resolving(server) as resolver:
        assert [str(address) for address in await resolver.resolve("hook.example")] == family


async def test_hosts_file_and_localhost_need_no_name_server() -> None:
    async with name_server() as server, resolving(server) as resolver:
        addresses = await resolver.resolve("localhost")
    assert IPv4Address("127.0.0.1") in addresses
    assert all(address.is_loopback for address in addresses)
    assert not server.asked


async def test_the_search_list_is_not_used() -> None:
    async with name_server() as server, resolving(server) as resolver:
        with pytest.raises(SendError):
            await resolver.resolve("intranet")
    assert {name for name, _ in server.asked} == {"intranet"}


@pytest.mark.parametrize(
    ("zone", "detail"),
    [
        ({"no_example": NXDOMAIN}, "no address"),
        ({"no_example": []}, "no address"),
        ({"no_example": SERVFAIL}, "resolve"),
    ],
)
async def test_failures_are_dns_errors_and_kept_for_a_moment(zone: dict[str, list[str] | int], detail: str) -> None:
    async with name_server(**zone) as server, resolving(server, error_ttl=0.2) as resolver:
        for _ in range(3):
            with pytest.raises(SendError, match=detail) as caught:
                await resolver.resolve("no.example")
            assert caught.value.outcome is Outcome.DNS_ERROR
            assert "no.example" not in caught.value.detail
        server.zone["no.example"] = ["127.0.0.2"]
        first = server.asked["no.example", A]
        await asyncio.sleep(0.25)
        if zone["no_example"] == SERVFAIL:
            assert await resolver.resolve("no.example") == (IPv4Address("127.0.0.2"),)
            assert server.asked["no.example", A] > first


async def test_answers_are_kept_for_their_ttl_within_bounds() -> None:
    async with name_server(hook_example=["127.0.0.2"]) as server:
        server.ttl = 0
        async with resolving(server, min_ttl=0.3) as resolver:
            for _ in range(3):
                await resolver.resolve("hook.example")
            assert server.asked["hook.example", A] == 1
            server.zone["hook.example"] = ["127.0.0.3"]
            await asyncio.sleep(0.35)
            assert await resolver.resolve("hook.example") == (IPv4Address("127.0.0.3"),)


async def test_a_long_ttl_is_cut_even_in_the_cache_of_c_ares() -> None:
    async with name_server(hook_example=["127.0.0.2"]) as server:
        server.ttl = 86_400
        async with resolving(server, timeout=0.1, min_ttl=0.1, max_ttl=0.2) as resolver:
            await resolver.resolve("hook.example")
            server.zone["hook.example"] = ["127.0.0.3"]
            deadline = time.monotonic() + 5
            while await resolver.resolve("hook.example") != (IPv4Address("127.0.0.3"),):
                assert time.monotonic() < deadline
                await asyncio.sleep(0.05)


async def test_many_waiters_share_one_query_and_a_cancelled_one_leaves_it() -> None:
    async with name_server(hook_example=["127.0.0.2"]) as server, resolving(server) as resolver:
        server.delay_s = 0.1
        waiters = [asyncio.create_task(resolver.resolve("hook.example")) for _ in range(50)]
        await asyncio.sleep(0.02)
        waiters[0].cancel()
        waiters[7].cancel()
        results = await asyncio.gather(*waiters, return_exceptions=True)
    assert [n for n, result in enumerate(results) if isinstance(result, asyncio.CancelledError)] == [0, 7]
    assert results[1] == (IPv4Address("127.0.0.2"),)
    assert server.asked == {("hook.example", A): 1, ("hook.example", AAAA): 1}


async def test_when_every_waiter_left_the_answer_is_still_kept() -> None:
    async with name_server(hook_example=["127.0.0.2"]) as server, resolving(server) as resolver:
        server.delay_s = 0.05
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(resolver.resolve("hook.example"), 0.01)
        await asyncio.sleep(0.1)
        await resolver.resolve("hook.example")
    assert server.asked["hook.example", A] == 1


async def test_a_name_that_hangs_ends_in_time() -> None:
    async with name_server() as server, resolving(server, timeout=0.5) as resolver:
        with pytest.raises(SendError, match="in time") as caught:
            # c-ares by itself would go on asking for longer than this
            await asyncio.wait_for(resolver.resolve("hang.example"), 5)
    assert caught.value.outcome is Outcome.DNS_ERROR


async def test_five_hundred_names_that_hang_delay_no_other() -> None:
    async with name_server() as server, resolving(server, timeout=30) as resolver:
        server.zone = {f"good{n}.example": ["127.0.0.2"] for n in range(50)}
        hanging = [asyncio.create_task(resolver.resolve(f"hang{n}.example")) for n in range(500)]
        await asyncio.sleep(0.1)
        async with asyncio.timeout(20):
            for n in range(50):
                await resolver.resolve(f"good{n}.example")
        assert not any(task.done() for task in hanging)
        for task in hanging:
            task.cancel()
        await asyncio.gather(*hanging, return_exceptions=True)


async def test_one_family_that_hangs_does_not_lose_the_other() -> None:
    class HalfDead(NameServer):
        def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
            if struct.pack("!HH", AAAA, 1) not in data[12:]:
                super().datagram_received(data, addr)

    loop = asyncio.get_running_loop()
    transport, server = await loop.create_datagram_endpoint(HalfDead, local_addr=("127.0.0.1", 0))
    server.zone = {"hook.example": ["127.0.0.2"]}
    async with resolving(server, timeout=3) as resolver:
        assert await resolver.resolve("hook.example") == (IPv4Address("127.0.0.2"),)
    transport.close()


async def test_the_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dispatcher.delivery.resolver._MAX_ENTRIES", 2)
    async with name_server(a_example=["127.0.0.2"], b_example=["127.0.0.2"], c_example=["127.0.0.2"]) as server:
        async with resolving(server) as resolver:
            for host in ("a.example", "b.example", "c.example", "b.example"):
                await resolver.resolve(host)
            assert len(resolver._cache) == 2
        assert server.asked["b.example", A] == 1


async def test_closing_ends_the_queries_of_those_who_wait() -> None:
    async with name_server() as server:
        resolver = Resolver(nameservers=[server.address])
        waiting = asyncio.create_task(resolver.resolve("hang.example"))
        await asyncio.sleep(0.05)
        await resolver.aclose()
        with pytest.raises(SendError):
            await waiting
        with pytest.raises(SendError, match="closed"):
            await resolver.resolve("hook.example")


async def test_an_ipv6_name_server_with_a_port() -> None:
    loop = asyncio.get_running_loop()
    sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    sock.bind(("::1", 0))

    class OnIPv6(NameServer):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = cast("asyncio.DatagramTransport", transport)
            self.address = f"[::1]:{transport.get_extra_info('sockname')[1]}"

    transport, server = await loop.create_datagram_endpoint(OnIPv6, sock=sock)
    server.zone = {"hook.example": ["127.0.0.2"]}
    async with resolving(server) as resolver:
        assert await resolver.resolve("hook.example") == (IPv4Address("127.0.0.2"),)
    transport.close()


@pytest.mark.parametrize(
    "text", ["", "dns.example", "127.0.0.1:", "127.0.0.1:0", "127.0.0.1:65536", "127.0.0.1:x", "::1:53:"]
)
def test_a_name_server_that_is_no_address_is_a_config_error(text: str) -> None:
    with pytest.raises(ConfigError):
        Resolver(nameservers=["127.0.0.1", text])


@pytest.mark.parametrize("text", ["127.0.0.1", "127.0.0.1:5353", "::1", "[::1]", "[::1]:5353"])
def test_name_servers(text: str) -> None:
    Resolver(nameservers=[text])
