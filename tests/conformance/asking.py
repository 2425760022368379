"""A client of name servers that asks the one that it is told, and no other: no file, no cache, no search list."""

from __future__ import annotations

import asyncio
import ipaddress
import secrets
import struct

A, AAAA = 1, 28


class _Once(asyncio.DatagramProtocol):
    """One answer."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def datagram_received(self, data: bytes, _addr: tuple[str | int, ...]) -> None:
        if not self.answer.done():
            self.answer.set_result(data)

    def error_received(self, exc: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(exc)


def query(name: str, kind: int = A, *, number: int = 0x1234, class_: int = 1) -> bytes:
    """The datagram that asks for a name."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack("!HHHHHH", number, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!HH", kind, class_)


async def exchange(name_server: str, datagram: bytes, *, within: float = 5.0) -> bytes:
    """What a datagram is answered. Raises TimeoutError."""
    host, _, port = name_server.rpartition(":")
    transport, protocol = await asyncio.get_running_loop().create_datagram_endpoint(
        _Once, remote_addr=(host.strip("[]"), int(port))
    )
    try:
        transport.sendto(datagram)
        async with asyncio.timeout(within):
            return await protocol.answer
    finally:
        transport.close()
        await asyncio.sleep(0)


async def addresses(name_server: str, name: str, kind: int = A) -> list[str]:
    """The addresses of a name; none where the name server has none, or says nothing."""
    asked = query(name, kind, number=secrets.randbelow(65_536))
    try:
        answer = await exchange(name_server, asked)
    except (OSError, TimeoutError):
        return []
    at, found = len(asked), []
    if answer[:2] != asked[:2] or answer[12:at] != asked[12:]:
        return []
    while at < len(answer):
        length = int.from_bytes(answer[at + 10 : at + 12])
        found.append(str(ipaddress.ip_address(answer[at + 12 : at + 12 + length])))
        at += 12 + length
    return found
