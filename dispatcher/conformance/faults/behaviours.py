"""The ways to misbehave that faults are made of."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from dispatcher.conformance.faults.fault import MEBIBYTE, Settings, seconds_of
from dispatcher.conformance.wire.exchange import Behaviour, Exchange
from dispatcher.conformance.wire.requests import Reply

OK_HEAD = b"HTTP/1.1 200 OK\r\n"


def within(settings: Settings, act: Callable[[Exchange], Awaitable[None]]) -> Behaviour:
    """The same behaviour, and an orderly close when `for` is over."""
    seconds = seconds_of(settings, "for", 60.0)

    async def behave(exchange: Exchange) -> None:
        try:
            async with asyncio.timeout(seconds):
                await act(exchange)
        except TimeoutError:
            await exchange.close()

    return behave


def sends(data: bytes) -> Behaviour:
    async def behave(exchange: Exchange) -> None:
        await exchange.send(data)
        await exchange.close()

    return behave


def sends_and_stays(settings: Settings, data: bytes) -> Behaviour:
    """Send, and leave it to the peer to end what makes no sense: a close of ours might be all that it notices."""
    seconds = seconds_of(settings, "for", 60.0)

    async def behave(exchange: Exchange) -> None:
        await exchange.send(data)
        await exchange.until_gone(seconds)
        await exchange.close()

    return behave


def replies(reply: Reply) -> Behaviour:
    async def behave(exchange: Exchange) -> None:
        await exchange.reply(reply)

    return behave


def status_line(status: int) -> bytes:
    """A status line; a reason is not needed."""
    return OK_HEAD if status == 200 else b"HTTP/1.1 %d \r\n" % status


async def one_by_one(exchange: Exchange, data: bytes, every: float) -> bool:
    """Send byte by byte; whether the peer stayed to the end."""
    for at in range(len(data)):
        if at and await exchange.until_gone(every):
            return False
        await exchange.send(data[at : at + 1])
    return True


def size_of(settings: Settings) -> int:
    """How many bytes a flood has."""
    return settings.whole("size", 100 * MEBIBYTE, low=0, high=10**10)


def floods(settings: Settings, head: bytes, piece: bytes) -> Behaviour:
    """The head, and then the piece again and again, `size` bytes of it in all."""
    size, pause = size_of(settings), seconds_of(settings, "pause", 0.0)

    async def act(exchange: Exchange) -> None:
        await exchange.send(head)
        for at in range(0, size, len(piece)):
            await exchange.send(piece[: size - at])
            if pause:
                await asyncio.sleep(pause)
        await exchange.close()

    return within(settings, act)
