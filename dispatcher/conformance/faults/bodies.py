"""A good head, and trouble with the body or behind it."""

from __future__ import annotations

import asyncio
import functools
import zlib

from dispatcher.conformance.faults.behaviours import (
    OK_HEAD,
    floods,
    sends,
    sends_and_stays,
    size_of,
    status_line,
    within,
)
from dispatcher.conformance.faults.fault import (
    EVERY,
    FOR,
    MEBIBYTE,
    PAUSE,
    STATUS,
    Settings,
    fault,
    seconds_of,
    status_of,
)
from dispatcher.conformance.wire.exchange import Behaviour, Exchange

#: seconds in which an answer is read
_MOMENT = 0.3
OK = OK_HEAD + b"Content-Length: 2\r\n\r\nok"


@fault(
    "It sends the body one byte at a time, for ever.",
    expects="success",
    every=f"{EVERY} (1)",
    status=STATUS,
    for_=FOR,
)
def _drip(settings: Settings) -> Behaviour:
    every = seconds_of(settings, "every", 1.0)
    head = status_line(status_of(settings, 200)) + b"Content-Type: text/plain\r\nConnection: close\r\n\r\n"

    async def act(exchange: Exchange) -> None:
        await exchange.send(head)
        while not await exchange.until_gone(every):
            await exchange.send(b".")

    return within(settings, act)


@fault("It closes the connection in the middle of the body.", expects="success", status=STATUS)
def _cut(settings: Settings) -> Behaviour:
    return sends(status_line(status_of(settings, 200)) + b"Content-Length: 1000\r\n\r\n" + b"." * 500)


@fault("It answers as a whole, and resets the connection a moment later.", expects="success", status=STATUS)
def _torn(settings: Settings) -> Behaviour:
    whole = status_line(status_of(settings, 200)) + b"Content-Length: 2\r\n\r\nok"

    async def behave(exchange: Exchange) -> None:
        await exchange.send(whole)
        await exchange.until_gone(_MOMENT)
        exchange.reset()

    return behave


@fault(
    "Its body is small, and unpacks to a huge one. A good sender does not unpack it.",
    expects="success",
    size="bytes that it unpacks to (10485760)",
    status=STATUS,
)
def _gzip_bomb(settings: Settings) -> Behaviour:
    size = settings.whole("size", 10 * MEBIBYTE, low=0, high=1_000 * MEBIBYTE)
    status = status_of(settings, 200)

    async def behave(exchange: Exchange) -> None:
        packed = await asyncio.to_thread(_pack_zeros, size)
        head = status_line(status) + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(packed)
        await exchange.send(head + packed)
        await exchange.close()

    return behave


@functools.lru_cache(maxsize=4)
def _pack_zeros(size: int) -> bytes:
    """So many zeros, gzipped; the same bytes each time."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    zeros = bytes(MEBIBYTE)
    parts = [packer.compress(zeros[: size - at]) for at in range(0, size, MEBIBYTE)]
    return b"".join([*parts, packer.flush()])


@fault(
    "Its body is huge. A good sender stops reading.",
    expects="success",
    size="bytes (104857600)",
    status=STATUS,
    pause=PAUSE,
    for_=FOR,
)
def _huge(settings: Settings) -> Behaviour:
    head = status_line(status_of(settings, 200)) + b"Content-Length: %d\r\n\r\n" % size_of(settings)
    return floods(settings, head, b"." * 65_536)


@fault(
    "Its body is shorter than it says, or longer.",
    expects="success",
    by="bytes that are missing; below 0: that are too many (5)",
    status=STATUS,
)
def _wrong_length(settings: Settings) -> Behaviour:
    by = settings.whole("by", 5, low=-1_000_000, high=1_000_000)
    said = max(by, 0) + 10
    return sends(status_line(status_of(settings, 200)) + b"Content-Length: %d\r\n\r\n" % said + b"." * (said - by))


@fault("Its body comes in chunks that are none.", expects="success", status=STATUS)
def _chunked_junk(settings: Settings) -> Behaviour:
    head = status_line(status_of(settings, 200)) + b"Transfer-Encoding: chunked\r\n\r\n"
    return sends(head + b"2\r\nok\r\nZZZ\r\nnot a chunk\r\n0\r\n\r\n")


@fault(
    "It sends a second answer that nobody asked for, and leaves the connection open. A good sender does not use it "
    "again: the second answer would be taken for that to the next request.",
    expects="success",
    status="the status of the second answer (500)",
    for_=FOR,
)
def _second_answer(settings: Settings) -> Behaviour:
    second = status_line(status_of(settings, 500)) + b"Content-Length: 6\r\n\r\nsecond"
    return sends_and_stays(settings, OK + second)
