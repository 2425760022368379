"""A receiver of our own, on uvloop: it knows when each delivery came, and it hangs or fails on request.

    python -m scripts.benchmark.own_receiver PORT HOST[,HOST]...

It takes POSTs at every host: `/hang…` is never answered, `/slow/N` gets 200 after N milliseconds, `/fail…` gets 500,
`/pause/N` gets 503 with `Retry-After: N` at its first attempt; all else gets 200. `GET /count` tells how many came,
`GET /taken` how many of them got 200, `GET /arrivals` the numbers of all (64-bit integers) and then the moments
(doubles, monotonic seconds), as they came.
"""

from __future__ import annotations

import asyncio
import re
import resource
import signal
import ssl
import sys
import time
from array import array
from typing import cast

import uvloop

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_FIRST_ATTEMPT = re.compile(rb"\r\nx-webhook-attempt: *1\r\n", re.IGNORECASE)
_OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
_FAILED = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n"


class Arrivals:
    """What came, and when."""

    def __init__(self) -> None:
        self.count = 0
        #: of these, answered with 200
        self.taken = 0
        self.numbers = array("q")
        self.moments = array("d")

    def note(self, body: bytes) -> None:
        """A delivery came; its number stands at the start of its body."""
        self.count += 1
        if body.startswith(b'{"n":'):
            self.numbers.append(int(body[5 : body.find(b",")]))
            self.moments.append(time.monotonic())


class _Connection(asyncio.Protocol):
    def __init__(self, arrivals: Arrivals) -> None:
        self._arrivals = arrivals
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)  # uvloop's is none by type

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[: end + 2]
            found = _LENGTH.search(head)
            whole = end + 4 + (int(found[1]) if found else 0)
            if len(self._buffer) < whole:
                return
            body, self._buffer = self._buffer[end + 4 : whole], self._buffer[whole:]
            self._answer(head, body)

    def _answer(self, head: bytes, body: bytes) -> None:
        method, target = head.split(b" ", 2)[:2]
        if method == b"GET":
            self._write(_with_body(self._report(target)))
            return
        self._arrivals.note(body)
        if target.startswith(b"/hang"):
            return
        if target.startswith(b"/fail"):
            self._write(_FAILED)
        elif target.startswith(b"/pause/") and _FIRST_ATTEMPT.search(head):
            self._write(_paused(int(target.removeprefix(b"/pause/"))))
        elif target.startswith(b"/slow/"):
            asyncio.get_running_loop().call_later(int(target.removeprefix(b"/slow/")) / 1000, self._take)
        else:
            self._take()

    def _take(self) -> None:
        self._arrivals.taken += 1
        self._write(_OK)

    def _report(self, target: bytes) -> bytes:
        if target == b"/arrivals":
            return self._arrivals.numbers.tobytes() + self._arrivals.moments.tobytes()
        return str(self._arrivals.taken if target == b"/taken" else self._arrivals.count).encode()

    def _write(self, data: bytes) -> None:
        self._transport.write(data)


def _with_body(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


def _paused(seconds: int) -> bytes:
    return b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: %d\r\nContent-Length: 0\r\n\r\n" % seconds


async def serve(port: int, hosts: list[str], certificate: str | None) -> None:
    """Take deliveries until SIGTERM or SIGINT."""
    context = None
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
    loop, arrivals, stop = asyncio.get_running_loop(), Arrivals(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    servers = [
        await loop.create_server(lambda: _Connection(arrivals), host, port, ssl=context, backlog=1024) for host in hosts
    ]
    print("ready", flush=True)  # noqa: T201 - for whoever started it
    await stop.wait()
    for server in servers:
        server.close()


def main() -> None:
    """Run it with the arguments of the command line; a third one is a PEM file with certificate and key."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 16_384)), hard))
    certificate = sys.argv[3] if len(sys.argv) > 3 else None
    uvloop.run(serve(int(sys.argv[1]), sys.argv[2].split(","), certificate))


if __name__ == "__main__":
    main()
