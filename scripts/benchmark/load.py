"""The load generator: a process of its own, an asyncio protocol on uvloop, and as little as it takes.

Closed loop: each of N connections posts as soon as it was answered. Open loop (`rate`): posts are due at fixed
moments, whether or not the earlier ones were answered, and time counts from the moment at which a post was due.

    python -m scripts.benchmark.load   reads a Job as JSON from stdin, and writes an Outcome to stdout
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import sys
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, cast

import msgspec
import uvloop

from scripts.benchmark.failures import BenchmarkFailed
from scripts.benchmark.processes import finished

#: what is posted and delivered besides its number: with it, a payload of about 250 bytes
FILLING = {"type": "order.paid", "currency": "EUR", "amount": "129.00", "note": "the quick brown fox " * 8}
#: event type that the fan-out publishes
EVENT_TYPE = "order.paid"
#: seconds between two looks at what is due, in an open loop
TICK_S = 0.001
#: seconds beyond its own time that a job may take
PATIENCE_S = 120.0

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_DELIVERIES = re.compile(rb'"deliveries": *(\d+)')


class Job(msgspec.Struct, kw_only=True, frozen=True):
    """What to post, where, and for how long: `seconds`, or a number of `items`."""

    host: str
    port: int
    token: str
    kind: Literal["task", "batch", "event"] = "task"
    #: callback URLs, taken in turn
    urls: list[str] = []
    #: number of the first item; each payload carries its own
    first: int = 0
    per_request: int = 1
    connections: int = 64
    seconds: float | None = None
    items: int | None = None
    #: posts per second, for an open loop
    rate: float | None = None
    #: file for the moments at which each item was (due to be) posted, by number: doubles, monotonic seconds
    moments: str | None = None


class Outcome(msgspec.Struct, kw_only=True, frozen=True):
    """What came of it. Moments are monotonic seconds, which all processes of a machine share."""

    #: items that were posted
    items: int
    #: deliveries that the answers promised
    accepted: int
    #: answers that were not 202, and connections that broke
    refused: int
    began: float
    ended: float
    #: seconds from post to answer, of each request
    answers: list[float]

    @property
    def per_s(self) -> float:
        """Deliveries accepted in a second."""
        return self.accepted / (self.ended - self.began)


def generate(job: Job, *, log: Path) -> Outcome:
    """Run a job in a process of its own. Raises BenchmarkFailed when anything was not accepted."""
    command = [sys.executable, "-m", "scripts.benchmark.load"]
    within = (job.seconds or 0) + (job.items or 0) / 50 + PATIENCE_S
    outcome = msgspec.json.decode(
        finished(command, log=log, within=within, given=msgspec.json.encode(job)), type=Outcome
    )
    if outcome.refused or not outcome.accepted:
        raise BenchmarkFailed(f"{outcome.refused} of {outcome.items} items were not accepted")
    return outcome


def payload(number: int) -> bytes:
    """The payload of one item. A receiver of ours reads its number from the start."""
    return b'{"n":%d,%s' % (number, _FILLING)


_FILLING = json.dumps(FILLING).encode()[1:]


class _Requests:
    """The requests of a job, one after the other, until it is over."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self.number = job.first
        self._end = None if job.items is None else job.first + job.items
        self._deadline = None if job.seconds is None else time.monotonic() + job.seconds
        path = {"task": "/tasks", "batch": "/tasks/batch", "event": "/events"}[job.kind]
        self._head = (
            f"POST {path} HTTP/1.1\r\nHost: {job.host}:{job.port}\r\nAuthorization: Bearer {job.token}\r\n"
            "Content-Type: application/json\r\nContent-Length: "
        ).encode()
        self._urls = itertools.cycle([url.encode() for url in job.urls])

    def next(self) -> bytes | None:
        """The next request; None when the job is over."""
        if self._deadline is not None and time.monotonic() >= self._deadline:
            return None
        if self._end is not None and self.number >= self._end:
            return None
        body = self._body()
        return b"%s%d\r\n\r\n%s" % (self._head, len(body), body)

    def _body(self) -> bytes:
        if self._job.kind == "event":
            self.number += 1
            return b'{"type":"%s","payload":%s}' % (EVENT_TYPE.encode(), payload(self.number - 1))
        if self._job.kind == "task":
            return self._task()
        count = self._job.per_request
        if self._end is not None:
            count = min(count, self._end - self.number)
        return b'{"tasks":[%s]}' % b",".join(self._task() for _ in range(count))

    def _task(self) -> bytes:
        self.number += 1
        return b'{"callback_url":"%s","payload":%s}' % (next(self._urls), payload(self.number - 1))


class _Connection(asyncio.Protocol):
    """One request at a time."""

    def __init__(self, on_answer: Callable[[_Connection, int, bytes], None]) -> None:
        self._on_answer = on_answer
        self._buffer = b""
        self._transport: asyncio.WriteTransport | None = None
        #: moment from which the request under way counts; 0 when there is none
        self.since = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)  # uvloop's is none by type

    def post(self, request: bytes, since: float) -> None:
        """Send a request."""
        self.since = since
        if self._transport is None or self._transport.is_closing():
            self._on_answer(self, 0, b"")
        else:
            self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        found = _LENGTH.search(self._buffer, 0, end)
        whole = end + 4 + (int(found[1]) if found else 0)
        if len(self._buffer) >= whole:
            status, body = int(self._buffer[9:12]), self._buffer[end + 4 : whole]
            self._buffer = self._buffer[whole:]
            self._on_answer(self, status, body)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the signature is asyncio's
        if self.since:
            self._on_answer(self, 0, b"")


class _Run:
    """A job under way."""

    def __init__(self, job: Job) -> None:
        self._job = job
        #: made again once all are connected: the clock of a job with a time begins then
        self._requests = _Requests(job)
        #: connections without a request, the longest idle first: used in turn, none idles until the server closes it
        self._free: deque[_Connection] = deque()
        #: requests that were due and found no free connection
        self._late: deque[tuple[bytes, float]] = deque()
        self._under_way = 0
        self._over = asyncio.Event()
        self._accepted = 0
        self._refused = 0
        self._answers = array("d")
        self._moments = array("d")

    async def run(self) -> Outcome:
        loop = asyncio.get_running_loop()
        for _ in range(self._job.connections):
            _, connection = await loop.create_connection(
                lambda: _Connection(self._answered), self._job.host, self._job.port
            )
            self._free.append(connection)
        self._requests = _Requests(self._job)
        began = time.monotonic()
        if self._job.rate is None:
            for connection in [self._free.popleft() for _ in range(len(self._free))]:
                self._go_on(connection)
        else:
            await self._keep_rate(self._job.rate, began)
        while self._under_way or self._late:
            self._over.clear()
            await self._over.wait()
        ended = time.monotonic()
        if self._job.moments is not None:
            Path(self._job.moments).write_bytes(self._moments.tobytes())
        return Outcome(
            items=self._requests.number - self._job.first,
            accepted=self._accepted,
            refused=self._refused,
            began=began,
            ended=ended,
            answers=self._answers.tolist(),
        )

    async def _keep_rate(self, rate: float, began: float) -> None:
        for index in itertools.count():
            due = began + index / rate
            while (wait := due - time.monotonic()) > 0:  # noqa: ASYNC110 - it waits for a moment, not for an event
                await asyncio.sleep(min(wait, TICK_S))
            request = self._requests.next()
            if request is None:
                return
            if self._free:
                self._post(self._free.popleft(), request, due)
            else:
                self._late.append((request, due))
            if index % 16 == 0:
                # A generator that runs behind must still hear the answers.
                await asyncio.sleep(0)

    def _go_on(self, connection: _Connection) -> None:
        if self._late:
            self._post(connection, *self._late.popleft())
            return
        request = self._requests.next() if self._job.rate is None else None
        if request is None:
            self._free.append(connection)
            return
        self._post(connection, request, time.monotonic())

    def _post(self, connection: _Connection, request: bytes, since: float) -> None:
        self._under_way += 1
        if self._job.moments is not None:
            self._moments.append(since)
        connection.post(request, since)

    def _answered(self, connection: _Connection, status: int, body: bytes) -> None:
        self._answers.append(time.monotonic() - connection.since)
        connection.since = 0.0
        self._under_way -= 1
        accepted = self._count(status, body)
        self._accepted += accepted
        self._refused += accepted == 0
        if status:
            self._go_on(connection)
        if not self._under_way and not self._late:
            self._over.set()

    def _count(self, status: int, body: bytes) -> int:
        if status != 202:
            return 0
        if self._job.kind == "batch":
            return body.count(b'"status":202')
        if self._job.kind == "event":
            found = _DELIVERIES.search(body)
            return int(found[1]) if found else 0
        return 1


def read_moments(path: Path) -> Iterator[float]:
    """What a job wrote to its `moments`."""
    moments = array("d")
    moments.frombytes(path.read_bytes())
    return iter(moments)


def main() -> None:
    """Do the job that is given on stdin."""
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=Job)
    sys.stdout.buffer.write(msgspec.json.encode(uvloop.run(_Run(job).run())))


if __name__ == "__main__":
    main()
