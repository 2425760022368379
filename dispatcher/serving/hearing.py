"""Hearing what other processes' commits leave to be done, on PostgreSQL: `store.news` says what is told, and how.

It takes a connection of its own that leads to the server itself: what is told comes to the connection that asked for
it, and a pooler that hands out connections by transaction keeps none. Where it breaks, another is made, less often the
longer none can be; meanwhile, and once when it is there again, this process looks around for what it did not hear.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any

import structlog
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random_exponential

from dispatcher.config import Settings
from dispatcher.errors import DispatcherError
from dispatcher.loops import repeat
from dispatcher.parcels import CHANNEL
from dispatcher.store import postgresql
from dispatcher.store.news import News, decoded

log = structlog.get_logger(__name__)

#: under which name the server shows the connection
NAME = f"{postgresql.APPLICATION} hearing"
#: seconds between two looks whether the connection is alive, and for which an answer is waited for
KEEPALIVE = 10.0
ANSWER_WITHIN = 5.0
#: seconds after which another connection is made at most
LONGEST_REST = 10.0
#: seconds by which what is heard is put off at most, by chance: who told of it goes first, and not all others at once
SPREAD = 0.02


class Ear:
    """Listens. `hear` is called with what others tell; `session` says by which name we tell it ourselves."""

    def __init__(self, url: str, *, session: Callable[[], str], hear: Callable[[News], None]) -> None:
        """Raises ConfigError when the URL cannot be used."""
        self._connect = postgresql.connector(url, name=NAME)
        self._session = session
        self._hear = hear
        self._gathered = News()
        self._is_deaf = False

    async def listen(self) -> None:
        """Listen on one connection until it breaks; it is tried for as long as it takes to get it."""
        async for attempt in AsyncRetrying(
            retry=retry_if_exception_type(DispatcherError),
            wait=wait_random_exponential(multiplier=0.1, max=LONGEST_REST),
            before_sleep=self._on_failure,
        ):
            with attempt:
                connection = await self._connect()
        try:
            reason = await self._listen_on(connection)
        finally:
            connection.terminate()
        self._note_deaf(reason)
        # Many lose theirs at the same moment.
        await asyncio.sleep(random.uniform(0, 0.5))  # noqa: S311 - nothing secret hangs on it

    async def _listen_on(self, connection: Any) -> str:
        """Listen on a connection until it breaks; answers why it did."""
        closed = asyncio.Event()
        connection.add_termination_listener(lambda _connection: closed.set())
        try:
            await connection.add_listener(CHANNEL, self._on_told)
            if self._is_deaf:
                self._is_deaf = False
                log.info("hearing_again")
            self._hear(News.of_anything())
            while not closed.is_set():
                await connection.fetchval("SELECT 1", timeout=ANSWER_WITHIN)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(KEEPALIVE):
                        await closed.wait()
        except Exception as exc:
            if not (isinstance(exc, (OSError, TimeoutError)) or postgresql.is_error(exc)):
                raise
            return type(exc).__name__
        return "closed"

    def _on_told(self, _connection: Any, _pid: int, _channel: str, text: str) -> None:
        teller, news = decoded(text)
        if teller == self._session():
            return
        if not self._gathered:
            loop = asyncio.get_running_loop()
            loop.call_later(random.uniform(0, SPREAD), self._pass_on)  # noqa: S311 - nothing secret hangs on it
        self._gathered.add(news)

    def _pass_on(self) -> None:
        news, self._gathered = self._gathered, News()
        self._hear(news)

    def _on_failure(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome is not None else None
        self._note_deaf(str(error))
        self._hear(News.of_anything())

    def _note_deaf(self, reason: str) -> None:
        """Said once, however long it takes."""
        if not self._is_deaf:
            self._is_deaf = True
            log.warning("hearing_lost", reason=reason, meanwhile="looks around for work instead")


@contextlib.asynccontextmanager
async def hearing(
    settings: Settings, *, session: Callable[[], str], hear: Callable[[News], None]
) -> AsyncIterator[None]:
    """Hear what other processes leave to be done, as long as the block runs, where there can be others.

    Raises ConfigError when the URL cannot be used.
    """
    if settings.database_url is None:
        yield
        return
    step: Callable[[], Awaitable[None]]
    if settings.pgbouncer and settings.listen_url is None:
        log.warning("hearing_nothing", advice="set listen_url to a URL that does not lead through PgBouncer")
        step = partial(_look_around, hear)
    else:
        step = Ear(settings.listen_url or settings.database_url, session=session, hear=hear).listen
    task = asyncio.create_task(repeat(step), name="hearing")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _look_around(hear: Callable[[News], None]) -> None:
    """Where nothing can be heard: look around, then rest."""
    hear(News.of_anything())
    await asyncio.sleep(LONGEST_REST)
