"""The kit's name server, over real sockets, asked by a client of ours and by c-ares, and sent what is no query."""

from __future__ import annotations

import asyncio
import random
import socket
import struct

import aiodns
import pytest

from dispatcher.conformance.wire.name_server import MAX_ASKED, NameScript, NameServer
from dispatcher.errors import ConfigError
from tests.conformance.asking import AAAA, A, addresses, exchange, query

TXT = 16


def code(answer: bytes) -> int:
    """The error of an answer; 0 is none."""
    return answer[3] & 0x0F


async def test_a_script_has_a_step_for_each_query_and_the_last_stays() -> None:
    async with NameServer() as server:
        server.script("Hooks.Test.", "127.0.0.2, 127.0.0.3+127.0.0.4,::1")
        found = [await addresses(server.address, "hooks.test") for _ in range(4)]
        # each type is counted by itself
        others = [await addresses(server.address, "hooks.test", AAAA) for _ in range(4)]
    assert found == [["127.0.0.2"], ["127.0.0.3", "127.0.0.4"], [], []]
    assert others == [[], [], ["::1"], ["::1"]]
    assert [(one.name, one.kind, one.answer) for one in server.asked][:3] == [
        ("hooks.test", "A", "127.0.0.2"),
        ("hooks.test", "A", "127.0.0.3+127.0.0.4"),
        ("hooks.test", "A", "nothing"),
    ]


async def test_a_new_script_begins_at_its_first_step() -> None:
    async with NameServer() as server:
        server.script("hooks.test", "127.0.0.2,127.0.0.3")
        await addresses(server.address, "hooks.test")
        server.script("hooks.test", "127.0.0.4,127.0.0.5")
        assert await addresses(server.address, "hooks.test") == ["127.0.0.4"]
        server.script("hooks.test", "")
        assert code(await exchange(server.address, query("hooks.test"))) == 3


async def test_errors_silence_and_other_names() -> None:
    async with NameServer() as server:
        server.script("broken.test", "servfail,nxdomain,refused,127.0.0.2")
        codes = [code(await exchange(server.address, query("broken.test"))) for _ in range(4)]
        assert codes == [2, 3, 5, 0]
        assert code(await exchange(server.address, query("other.test"))) == 3
        server.script("silent.test", "silence")
        with pytest.raises(TimeoutError):
            await exchange(server.address, query("silent.test"), within=0.2)
        assert [one.answer for one in server.asked][-2:] == ["nxdomain", "silence"]
        server.script("*", "127.0.0.9")
        assert await addresses(server.address, "other.test") == ["127.0.0.9"]
        # a type that it has nothing of, and a class that is not the Internet
        answer = await exchange(server.address, query("other.test", TXT))
        assert (code(answer), answer[6:8]) == (0, b"\0\0")
        assert code(await exchange(server.address, query("other.test", class_=3))) == 5


async def test_the_answer_is_as_rfc_1035_has_it() -> None:
    async with NameServer(ttl=7) as server:
        server.script("hooks.test", "127.0.0.2+::1")
        asked = query("HooKs.tEsT", number=0xBEEF)
        answer = await exchange(server.address, asked)
    # a response, authoritative, recursion was desired and is not offered; the question in its own letters
    assert answer[:12] == struct.pack("!HHHHHH", 0xBEEF, 0x8500, 1, 1, 0, 0)
    assert answer[12 : len(asked)] == asked[12:]
    assert answer[len(asked) :] == struct.pack("!HHHIH", 0xC00C, A, 1, 7, 4) + bytes([127, 0, 0, 2])


async def test_the_longest_answer_fits_a_datagram() -> None:
    name = ".".join(["a" * 63, "b" * 63, "c" * 63, "d" * 61])
    async with NameServer() as server:
        server.script(name, "+".join(f"::{n}" for n in range(8)))
        answer = await exchange(server.address, query(name, AAAA))
        assert len(answer) <= 512
        assert len(await addresses(server.address, name, AAAA)) == 8


async def test_a_client_by_others_understands_it() -> None:
    async with NameServer(ttl=30) as server:
        server.script("both.test", "127.0.0.2+127.0.0.3+::1")
        client = aiodns.DNSResolver(nameservers=[server.address], timeout=2, tries=2)
        found = await client.getaddrinfo("both.test", family=socket.AF_UNSPEC)
        assert {node.addr[0] for node in found.nodes} == {b"127.0.0.2", b"127.0.0.3", b"::1"}
        assert {node.ttl for node in found.nodes} == {30}
        with pytest.raises(aiodns.error.DNSError):
            await client.getaddrinfo("other.test", family=socket.AF_UNSPEC)
        await client.close()


HOSTILE = {
    "empty": b"",
    "short": b"\x12\x34\x01",
    "head only": query("a.test")[:12],
    "an answer": query("a.test")[:2] + b"\x81\x80" + query("a.test")[4:],
    "no question": query("a.test")[:4] + b"\0\0" + query("a.test")[6:],
    "many questions": query("a.test")[:4] + b"\xff\xff" + query("a.test")[6:],
    "a pointer to itself": query("a.test")[:12] + b"\xc0\x0c\0\x01\0\x01",
    "a label beyond the end": query("a.test")[:12] + b"\x3fa",
    "a label that is too long": query("a.test")[:12] + b"\x40" + b"a" * 64 + b"\0\0\x01\0\x01",
    "a name without end": query("a.test")[:12] + b"\x01a" * 200,
    "no type": query("a.test")[:-4],
    "half a class": query("a.test")[:-1],
    "another opcode": query("a.test")[:2] + b"\x28\0" + query("a.test")[4:],
    "large": query("a.test") + b"\xff" * 60_000,
}


@pytest.mark.parametrize("case", HOSTILE)
async def test_what_is_no_query_does_no_harm(case: str) -> None:
    async with NameServer() as server:
        server.script("a.test", "127.0.0.2")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as hostile:
            hostile.connect(("127.0.0.1", int(server.address.rpartition(":")[2])))
            hostile.send(HOSTILE[case])
        assert await addresses(server.address, "a.test") == ["127.0.0.2"]
        # bytes behind a question are none of its business, as EDNS has some there
        assert (server.malformed, server.queries) == ((0, 2) if case == "large" else (1, 1))


async def test_noise_does_no_harm_and_takes_no_memory() -> None:
    chance = random.Random(1035)
    async with NameServer() as server:
        server.script("a.test", "127.0.0.2")
        good = query("a.test")
        for _ in range(2 * MAX_ASKED):
            noise = bytearray(good)
            for _ in range(chance.randrange(1, 8)):
                noise[chance.randrange(len(noise))] = chance.randrange(256)
            answer = server.reply(bytes(noise[: chance.randrange(len(noise) + 1)]))
            assert answer is None or (answer[2] & 0x80 and len(answer) <= 512)
        for n in range(2 * MAX_ASKED):
            server.reply(query(f"n{n}.test"))
        server.reply(query("a.test").replace(b"\x01a", b"\x01\n"))
        assert len(server.asked) == MAX_ASKED
        assert server.asked[-1].name == "\\010.test"
        assert await addresses(server.address, "a.test") == ["127.0.0.2"]


async def test_nobody_who_gives_a_wrong_return_address_stops_it() -> None:
    async with NameServer() as server:
        server.script("a.test", "127.0.0.2")
        for _ in range(20):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as gone:
                gone.sendto(query("a.test"), ("127.0.0.1", int(server.address.rpartition(":")[2])))
        await asyncio.sleep(0.05)
        assert await addresses(server.address, "a.test") == ["127.0.0.2"]


async def test_what_is_reported() -> None:
    async with NameServer() as server:
        server.script("b.test", "127.0.0.2")
        server.script("a.test", "nxdomain")
        await addresses(server.address, "b.test")
        report = server.report()
    assert report["address"] == server.address
    assert (report["queries"], report["malformed"]) == (1, 0)
    assert report["names"] == {"a.test": "nxdomain", "b.test": "127.0.0.2"}
    [asked] = [{**one, "at": 0} for one in report["asked"]]  # type: ignore[attr-defined]  # made for JSON
    assert asked == {"at": 0, "name": "b.test", "type": "A", "answer": "127.0.0.2"}


async def test_ipv6() -> None:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("a system without ::1 has nothing to listen on")
    async with NameServer(host="::1") as server:
        server.script("a.test", "::1")
        assert server.address.startswith("[::1]:")
        assert await addresses(server.address, "a.test", AAAA) == ["::1"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "step 1 is neither"),
        ("127.0.0.1,", "step 2 is neither"),
        ("127.0.0.1+", "step 1 is neither"),
        ("127.0.0.01", "step 1 is neither"),
        ("127.0.0.1/127.0.0.2", "step 1 is neither"),
        ("nowhere", "nxdomain, servfail, refused, silence"),
        ("fe80::1%lo", "zone"),
        ("+".join(["::1"] * 9), "more than 8"),
        (",".join(["::1"] * 1_001), "1000 steps"),
    ],
)
def test_scripts_that_are_none(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        NameScript.parse(text)


@pytest.mark.parametrize("name", ["", ".", "a b", "a..b", "-a.test", "*.test", "a" * 64, "a.b" * 90, "é.test"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(ConfigError, match="a name is a host's"):
        NameServer().script(name, "127.0.0.1")


async def test_a_port_that_is_taken() -> None:
    async with NameServer() as server:
        port = int(server.address.rpartition(":")[2])
        with pytest.raises(ConfigError, match="the name server cannot listen on"):
            async with NameServer(port=port):
                pass
    with pytest.raises(ConfigError, match="seconds"):
        NameServer(ttl=-1)
