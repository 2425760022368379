"""A way to a server that can lose everything that is sent on it, as when a machine is gone without a word.

Nothing is closed, and nobody is told: whoever waits for an answer waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from pathlib import Path
from typing import Self


class LostNetwork:
    """Listens on a free port of 127.0.0.1 and passes bytes on to a Unix socket, until it is to lose them."""

    def __init__(self, to: Path) -> None:
        self._to = to
        self.port = 0
        #: connections so far, each with what is passed on: from the client, from the server
        self._passed: list[dict[str, bool]] = []
        self._takes = True
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._tasks: set[asyncio.Task[None]] = set()

    def lose(self, *, requests: bool = True, answers: bool = True, new: bool = True) -> None:
        """From now on lose what goes over connections that there are, and over new ones unless `new` is false."""
        for passed in self._passed:
            passed["requests"] = passed["requests"] and not requests
            passed["answers"] = passed["answers"] and not answers
        self._takes = not new

    def restore(self) -> None:
        """Let new connections through again; those that were lost stay so."""
        self._takes = True

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)
        return self

    def __exit__(self, *_error: object) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        self._server.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = self._loop.create_task(self._pass_on(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        passed = {"requests": self._takes, "answers": self._takes}
        self._passed.append(passed)
        there, back = await asyncio.open_unix_connection(str(self._to))
        try:
            await asyncio.gather(
                _pump(reader, back, passed, "requests"),
                _pump(there, writer, passed, "answers"),
            )
        finally:
            writer.close()
            back.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, passed: dict[str, bool], way: str) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65_536):
            if passed[way]:
                writer.write(data)
                await writer.drain()
    if not passed[way]:
        # the end of a connection is lost, too
        await asyncio.Event().wait()
    writer.close()
