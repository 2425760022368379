"""Runs each broken receiver in a process of its own, so that nothing is known of it but what comes over the wire.

What it did with a message cannot be told from outside where repeats are answered alike: that, a receiver's owner may
tell the probe, and this asks the process for it. Run as a module with a name, this is such a receiver: it prints its
port, and then for each line of stdin, a message's id, how often that was processed.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from tests.conformance.broken_receivers import BROKEN, Good
from tests.support.forking import ForkServer


@dataclass(frozen=True, kw_only=True)
class Lone:
    """A receiver elsewhere."""

    url: str
    scheme: str
    #: how often it processed a message
    count: Callable[[str], Awaitable[int]]


@contextlib.asynccontextmanager
async def lone(receiver: type[Good], server: ForkServer) -> AsyncIterator[Lone]:
    """A receiver that runs within the block."""
    pipe = asyncio.subprocess.PIPE
    command = server.command("tests.conformance.lone_receivers", receiver.__name__)
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
    assert process.stdin is not None
    assert process.stdout is not None
    asking = asyncio.Lock()
    told, asked = process.stdout, process.stdin

    async def count(message_id: str) -> int:
        async with asking:
            asked.write(f"{message_id}\n".encode())
            return int(await told.readline())

    try:
        port = int(await told.readline())
        yield Lone(url=receiver.url_at(port), scheme=receiver.scheme, count=count)
    finally:
        asked.close()
        await process.wait()


async def _be(name: str) -> None:
    [receiver] = [one for one in BROKEN if one.__name__ == name]
    async with receiver() as running:
        print(running.port, flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            print(await running.count(line.rstrip("\n")), flush=True)


if __name__ == "__main__":
    asyncio.run(_be(sys.argv[1]))
