"""A small name server of our own, over UDP on loopback: names that it answers, names that it never does."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from ipaddress import ip_address
from types import TracebackType
from typing import Self, cast

A, AAAA = 1, 28
NXDOMAIN, SERVFAIL = 3, 2

#: what a name stands for: addresses, an error code, or silence (None)
Found = Sequence[str] | int | None
#: a zone may also ask anew at each query: by name and record type
Lookup = Callable[[str, int], Found]
Zone = Mapping[str, Found | Lookup]


class NameServer(asyncio.DatagramProtocol):
    """Answers A and AAAA from `zone`, by name or by `*.` wildcard. "hang…" and `*.hang.test` get no answer."""

    def __init__(self, zone: Zone | None = None) -> None:
        self.zone: dict[str, Found | Lookup] = {"*.hang.test": None} | dict(zone or {})
        self.ttl = 60
        self.delay_s = 0.0
        #: (name, record type) -> queries seen
        self.asked: Counter[tuple[str, int]] = Counter()
        self.address = "127.0.0.1:1"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.DatagramTransport", transport)
        host, port = transport.get_extra_info("sockname")[:2]
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        labels, at = [], 12
        while size := data[at]:
            labels.append(data[at + 1 : at + 1 + size].decode())
            at += 1 + size
        name = ".".join(labels).lower()
        kind = int.from_bytes(data[at + 1 : at + 3])
        self.asked[name, kind] += 1
        found = None if name.startswith("hang") else self._find(name, kind)
        if found is None:
            return
        code, addresses = (found, ()) if isinstance(found, int) else (0, tuple(found))
        records = [
            struct.pack("!HHHIH", 0xC00C, kind, 1, self.ttl, len(packed)) + packed
            for packed in (ip_address(address).packed for address in addresses)
            if len(packed) == (4 if kind == A else 16)
        ]
        head = data[:2] + struct.pack("!HHHHH", 0x8180 | code, 1, len(records), 0, 0)
        answer = head + data[12 : at + 5] + b"".join(records)
        asyncio.get_running_loop().call_later(self.delay_s, self.transport.sendto, answer, addr)

    def _find(self, name: str, kind: int) -> Found:
        found = self.zone.get(name, self.zone.get(f"*.{name.partition('.')[2]}", NXDOMAIN))
        return found(name, kind) if callable(found) else found


class NameServerThread:
    """A name server in a thread of its own, for tests that are not asynchronous."""

    def __init__(self, zone: Zone) -> None:
        self.server = NameServer(zone)
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def address(self) -> str:
        """Where it answers, as the setting `nameservers` wants it."""
        return self.server.address

    def asked(self, suffix: str) -> Counter[str]:
        """How often each name that ends so was asked for, all record types together."""
        counts: Counter[str] = Counter()
        for (name, _), count in list(self.server.asked.items()):
            if name.endswith(suffix):
                counts[name] += count
        return counts

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        sock.bind(("127.0.0.1", 0))
        transport, _ = await self._loop.create_datagram_endpoint(lambda: self.server, sock=sock)
        self._ready.set()
        await self._stop.wait()
        transport.close()
        await asyncio.sleep(0)
