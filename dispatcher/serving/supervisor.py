"""`--workers N`: a small parent of N servers that share one listening socket.

It opens the installation, and the socket, once. A child is the same command again, as an ordinary process; one that
dies is started anew. What the parent is told, to stop, it passes on. What it does not do: touch any request.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import structlog
from prometheus_client import multiprocess

from dispatcher.config import Settings
from dispatcher.errors import ConfigError
from dispatcher.installation import open_installation
from dispatcher.serving.leash import Child
from dispatcher.serving.listening import dev_token, listen, say_ready

log = structlog.get_logger(__name__)

#: seconds before a child is started anew: at first, doubling, and at most
FIRST_REST = 0.5
LAST_REST = 30.0
#: seconds after which a child is healthy: what ends it then has nothing to do with what ended the one before
HEALTHY_AFTER = 60.0
#: seconds that a child has to end beyond the grace that it gives to requests, and to what it sends
SLACK = 10.0
#: exit status: a child could not start, or did not end by itself
FAILED = 1


async def supervise(settings: Settings, command: Sequence[str]) -> int:
    """Run `settings.workers` processes of this command until SIGTERM or SIGINT; answers the exit status.

    Raises ConfigError when they could not start for a reason that can be told before.
    """
    if settings.database_url is None:
        raise ConfigError("several workers need PostgreSQL: set DATABASE_URL, or let one process have the SQLite file")
    installation = await open_installation(settings)
    try:
        token = await dev_token(settings, installation)
    finally:
        await installation.database.close()
    with listen(settings.host, settings.port) as listener, _shared_metrics() as metrics:
        return await Supervisor(
            command,
            listener,
            count=settings.workers,
            # Requests have that time, and then what is being sent.
            patience=2 * settings.grace + SLACK,
            metrics=metrics,
            on_ready=lambda: say_ready(settings, listener, token),
        ).run()


@contextlib.contextmanager
def _shared_metrics() -> Iterator[str]:
    """A folder in which children count together: whichever is asked for metrics tells those of all."""
    try:
        folder = tempfile.TemporaryDirectory(prefix="dispatcher-metrics-")
    except OSError as exc:
        raise ConfigError(f"there is no place for the metrics of several workers: {exc.strerror}") from exc
    with folder as path:
        yield path


class Supervisor:
    """Keeps `count` children running."""

    def __init__(
        self,
        command: Sequence[str],
        listener: socket.socket,
        *,
        count: int,
        patience: float,
        metrics: str,
        on_ready: Callable[[], None],
    ) -> None:
        self._command = command
        self._listener = listener
        self._count = count
        self._patience = patience
        self._metrics = metrics
        self._on_ready = on_ready
        self._children: set[Child] = set()
        #: places whose child has been ready once
        self._filled: set[int] = set()
        self._stopping = asyncio.Event()
        self._failed = False

    async def run(self) -> int:
        """Run until told to stop; answers the exit status."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop, number)
        try:
            return await self._run()
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    def stop(self, number: signal.Signals) -> None:
        """Children stop as they would if they were told themselves. Callers are refused, and not kept waiting."""
        self._stopping.set()
        self._listener.close()
        self._signal(number)

    async def _run(self) -> int:
        places = [asyncio.create_task(self._keep(place), name=f"child {place}") for place in range(self._count)]
        for task in places:
            task.add_done_callback(self._place_ended)
        await self._stopping.wait()
        _, late = await asyncio.wait(places, timeout=self._patience)
        if late:
            self._failed = True
            log.error("children_killed", pids=sorted(child.pid for child in self._children))
            self._signal(signal.SIGKILL)
        await asyncio.gather(*places)
        return FAILED if self._failed else 0

    def _place_ended(self, _place: asyncio.Task[None]) -> None:
        """One ends only when all are to."""
        if not self._stopping.is_set():
            self.stop(signal.SIGTERM)

    def _signal(self, number: signal.Signals) -> None:
        for child in self._children:
            child.signal(number)

    async def _keep(self, place: int) -> None:
        """Have a child at this place."""
        rest, loop = FIRST_REST, asyncio.get_running_loop()
        while not self._stopping.is_set():
            started = loop.time()
            ready, status = await self._have(place)
            if self._stopping.is_set():
                self._failed |= ready and status != 0
            elif not ready and len(self._filled) < self._count:
                log.error("child_cannot_start", status=status)
                self._failed = True
                return
            else:
                if loop.time() - started > HEALTHY_AFTER:
                    rest = FIRST_REST
                log.error("child_ended", status=status, again_in=rest)
                await _within(rest, self._stopping.wait())
                rest = min(LAST_REST, rest * 2)

    async def _have(self, place: int) -> tuple[bool, int]:
        """One child, from its start to its end: whether it was ready, and its status."""
        environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": self._metrics}
        try:
            child = await Child.start(self._command, self._listener, environment)
        except OSError as exc:
            log.error("no_process", reason=exc.strerror)
            return False, FAILED
        self._children.add(child)
        if self._stopping.is_set():
            child.signal(signal.SIGTERM)
        log.info("child_started", pid=child.pid)
        ready = await child.is_ready()
        if ready:
            self._fill(place)
        status = await child.ended()
        self._children.discard(child)
        multiprocess.mark_process_dead(child.pid, self._metrics)  # type: ignore[no-untyped-call]  # it has no types
        return ready, status

    def _fill(self, place: int) -> None:
        is_last = place not in self._filled and len(self._filled) == self._count - 1
        self._filled.add(place)
        if is_last:
            self._on_ready()


async def _within(seconds: float, wait: Awaitable[Any]) -> None:
    """Wait for something, but no longer than that."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await wait
