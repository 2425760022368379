"""Group commit: one committer per process, one transaction for whatever has gathered, one answer for each caller.

While a transaction is in flight the next batch gathers. A caller is answered only after its own commit, so an
answer always means "on disk". A caller that goes away cancels nothing.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, TypeVar

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection
from tenacity import (
    AsyncRetrying,
    retry_if_exception_type,
    stop_after_delay,
    wait_exponential,
)

from dispatcher import metrics
from dispatcher.errors import LeaseChanged, StoreContended, StoreUnavailable
from dispatcher.ids import new_id
from dispatcher.rounds import tell
from dispatcher.store import ledger, sessions
from dispatcher.store.clock import DatabaseClock
from dispatcher.store.database import Database
from dispatcher.store.leases import Leases
from dispatcher.store.news import News, tell_others
from dispatcher.store.sqlite import Check
from dispatcher.store.statements import Step, leave, run

log = structlog.get_logger(__name__)

#: rows that go into one transaction at most, so that no caller waits behind an endless one
MAX_BATCH_WEIGHT = 1_000
#: and of a patient one while urgent writes come in, so that those never wait long
MAX_PATIENT_WEIGHT = 128
#: seconds for which the connection is kept from batch to batch before it is asked whether others wait for it
HELD_FOR = 0.05
#: seconds after an urgent write in which the next one is expected
LATELY = 1.0
#: how many times a batch is written that others were in the way of
MAX_TRIES = 5
#: seconds between two of them, at most
MAX_PAUSE = 0.05
#: waits that are remembered until somebody takes them
MAX_WAITS = 100
#: seconds for which a commit without an answer is looked up
FATE_WITHIN = 60.0
#: rows that may wait for a commit; beyond it writers are told to come back
MAX_WAITING_WEIGHT = 20_000

Item = TypeVar("Item")
Answer = TypeVar("Answer")


@dataclass(frozen=True, kw_only=True)
class Transaction:
    """What a write works with: the open connection, and the moment it happens at."""

    connection: AsyncConnection
    #: the database's clock when the transaction began, milliseconds since the epoch
    now: int
    #: this process's monotonic clock at the same moment, seconds
    clock: float
    #: the session that this process's leases hang on
    session: str
    #: deliveries that it accepts and ends, by account and state; the ledger gets them right before COMMIT
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    #: what it leaves to be done
    news: News = field(default_factory=News)
    #: what this process remembers of its leases
    leases: Leases = field(default_factory=Leases)

    async def run(self, *steps: Step) -> list[list[Any]]:
        """Execute statements of the hot path together, in this order. Answers the rows of each, as tuples."""
        return await run(self.connection, *steps)

    async def leave(self, *steps: Step, check: Check | None = None) -> None:
        """Execute statements whose rows nobody waits for, before whatever is executed next: not within a `part`.

        `check` is told how many rows the last one changed or found, and which it found; what it raises undoes the
        batch. It has been told when the caller is answered, on SQLite no sooner.
        """
        await leave(self.connection, *steps, check=check)

    @asynccontextmanager
    async def part(self) -> AsyncIterator[None]:
        """A part of it that is undone by itself where an exception leaves the block; so are its counts."""
        before = self.counts.copy()
        try:
            async with self.connection.begin_nested():
                yield
        except BaseException:
            self.counts.clear()
            self.counts.update(before)
            raise

    async def write_counts(self) -> None:
        """Add what was counted to the ledger: the last thing that is done in it."""
        if self.counts:
            await self.leave(ledger.counting(self.counts, session=self.session))

    async def tell_others(self) -> None:
        """Tell other processes what it leaves to be done, with its COMMIT."""
        if self.news:
            await tell_others(self.connection, self.news, sender=self.session)


#: A kind of write: takes all items of a batch, and answers each in its place. An answer that is an exception is
#: raised to its caller, and the batch commits all the same. An exception that is raised undoes the batch; then it
#: is split until the item at fault stands alone.
Write = Callable[[Transaction, Sequence[Item]], Awaitable[Sequence[Answer | Exception]]]


class _Entry:
    """A write that waits. There is one for each row of the hot path: it is made by hand."""

    __slots__ = ("answer", "item", "since", "then", "weight", "write")

    def __init__(
        self,
        write: Write[Any, Any],
        item: Any,
        weight: int,
        then: Callable[[Any], None] | None,
        answer: asyncio.Future[Any] | None,
    ) -> None:
        self.write = write
        self.item = item
        self.weight = weight
        #: called with the answer, or the exception, before the caller hears of it
        self.then = then
        #: monotonic time
        self.since = monotonic()
        #: what the caller waits for, where it does
        self.answer = answer

    def resolve(self, answer: Any) -> None:
        if self.then is not None:
            try:
                self.then(answer)
            except Exception:
                # It is the caller's; the other callers must hear of their commit all the same.
                log.exception("commit_callback_failed")
        if self.answer is not None:
            tell(self.answer, answer)


class Committer:
    """The one writer of a process. Start it with `start()`; `stop()` commits what has gathered."""

    def __init__(self, database: Database, *, session: str) -> None:
        self._database = database
        self.session = session
        self.clock = DatabaseClock()
        self.leases = Leases()
        #: told what each commit leaves to be done
        self.on_news: Callable[[News], None] = lambda _news: None
        #: what somebody waits for, and what can wait for them
        self._urgent: deque[_Entry] = deque()
        self._patient: deque[_Entry] = deque()
        self._waiting_weight = 0
        #: the last batch was an urgent one
        self._was_urgent = False
        #: monotonic time of the last urgent write
        self._urgent_at = 0.0
        #: how long urgent writes waited for their commit, seconds, since somebody last took these
        self._waits: list[float] = []
        #: the connection, while batch follows on batch; that it was kept for long enough; what gives it back
        self._held: AsyncConnection | None = None
        self._held_enough = False
        #: there was a batch since somebody last looked whether it is to be kept; when that is next
        self._is_in_use = False
        self._next_look: asyncio.TimerHandle | None = None
        self._holding = AsyncExitStack()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._stopping = False

    def start(self) -> None:
        """Begin to commit."""
        self._task = asyncio.create_task(self._run(), name="committer")

    async def stop(self) -> None:
        """Commit what has gathered, then end."""
        self._stopping = True
        self._wake.set()
        if self._task is not None:
            await self._task

    async def write(
        self,
        write: Write[Item, Answer],
        item: Item,
        *,
        weight: int = 1,
        then: Callable[[Answer | Exception], None] | None = None,
        patient: bool = False,
    ) -> Answer:
        """Put one item into the next batch and wait for its commit.

        `weight` is the item's number of rows. `then` is called exactly once, with the answer or with the
        exception, even when the caller is cancelled meanwhile. A `patient` write shares no batch with those that a
        caller of the API waits for, and takes turns with them.

        Raises StoreUnavailable when nothing was stored, or what the write answered for this item.
        """
        waiting: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._add(_Entry(write, item, weight, then, waiting), patient=patient)
        return await waiting

    def put(
        self, write: Write[Item, Answer], item: Item, *, then: Callable[[Answer | Exception], None], weight: int = 1
    ) -> None:
        """As `write`, for a caller that `then` is enough for: it may be called before this returns."""
        self._add(_Entry(write, item, weight, then, None), patient=False)

    def _add(self, entry: _Entry, *, patient: bool) -> None:
        if self._stopping or self._waiting_weight > MAX_WAITING_WEIGHT:
            entry.resolve(StoreUnavailable("too many writes are waiting"))
            return
        if patient:
            self._patient.append(entry)
        else:
            self._urgent.append(entry)
            self._urgent_at = entry.since
        self._waiting_weight += entry.weight
        self._wake.set()

    def take_waits(self) -> list[float]:
        """How long urgent writes waited for their commit, seconds, since the last call; one of each batch."""
        waits, self._waits = self._waits, []
        return waits

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            if self._held_enough or self._stopping:
                await self._give_back()
            if not (self._urgent or self._patient):
                if self._stopping:
                    return
                self._wake.clear()
                continue
            batch = self._gather()
            try:
                await self._commit(batch)
            except Exception as exc:
                # A bug of ours; whoever waits must hear of it, and the next batch must have its turn.
                log.exception("committer_failed")
                for entry in batch:
                    entry.resolve(exc)
            if self._was_urgent and len(self._waits) < MAX_WAITS:
                self._waits.append(monotonic() - batch[0].since)

    async def _connection(self) -> AsyncConnection:
        """The connection that is held; taking one for each batch costs more than many a batch."""
        self._is_in_use = True
        if self._held is None:
            self._held = await self._holding.enter_async_context(self._database.hold())
            self._look_later()
        return self._held

    def _look_later(self) -> None:
        self._next_look = asyncio.get_running_loop().call_later(HELD_FOR, self._look)

    def _look(self) -> None:
        """Hold the connection no longer if another waits for one, or if no batch came since the last look."""
        if self._is_in_use and not self._database.waiting:
            self._is_in_use = False
            self._look_later()
        else:
            self._held_enough = True
            self._wake.set()

    async def _give_back(self) -> None:
        self._held, self._held_enough = None, False
        if self._next_look is not None:
            self._next_look.cancel()
        try:
            await self._holding.aclose()
        except Exception:
            # It is closed then, and the next batch gets another.
            log.exception("connection_not_given_back")

    def _gather(self) -> list[_Entry]:
        """The next batch: urgent and patient writes take turns."""
        self._was_urgent = bool(self._urgent) and not (self._was_urgent and self._patient)
        waiting = self._urgent if self._was_urgent else self._patient
        most = MAX_BATCH_WEIGHT
        if not self._was_urgent and monotonic() - self._urgent_at < LATELY:
            most = MAX_PATIENT_WEIGHT
        batch = [waiting.popleft()]
        weight = batch[0].weight
        while waiting and weight + waiting[0].weight <= most:
            entry = waiting.popleft()
            weight += entry.weight
            batch.append(entry)
        self._waiting_weight -= weight
        metrics.commit_batch.observe(weight)
        return batch

    async def _commit(self, batch: list[_Entry]) -> None:
        try:
            answers = await self._transact_again(batch)
        except StoreUnavailable as exc:
            log.warning("commit_unavailable", writes=len(batch), reason=str(exc))
            answers = [exc] * len(batch)
        except Exception as exc:
            if len(batch) > 1:
                middle = len(batch) // 2
                await self._commit(batch[:middle])
                await self._commit(batch[middle:])
                return
            log.exception("write_failed", write=getattr(batch[0].write, "__name__", "?"))
            answers = [exc]
        for entry, answer in zip(batch, answers, strict=True):
            entry.resolve(answer)

    async def _transact_again(self, batch: list[_Entry]) -> list[Any]:
        """Write a batch, and write it anew where another process was at the same rows."""
        for _ in range(MAX_TRIES - 1):
            try:
                return await self._transact(batch)
            except LeaseChanged:
                # It is read now, and held.
                continue
            except StoreContended:
                await asyncio.sleep(random.uniform(0, MAX_PAUSE))  # noqa: S311 - so that two do not meet again
        return await self._transact(batch)

    async def _transact(self, batch: list[_Entry]) -> list[Any]:
        """Write a batch in one transaction: begin, mark, apply, commit. Returns the answers in batch order."""
        batch_id = new_id()
        answers: dict[_Entry, Any] = {}
        news = News()
        applied = False
        # Another may begin while this one is at work.
        session = self.session
        held = await self._connection()
        try:
            async with self._database.write(held) as connection:
                asked = monotonic()
                now = await sessions.mark_batch(connection, session, batch_id)
                self.clock.learn(now, asked=asked)
                tx = Transaction(
                    connection=connection,
                    now=now,
                    clock=monotonic(),
                    session=session,
                    news=news,
                    leases=self.leases,
                )
                for write, entries in _by_kind(batch):
                    results = await write(tx, [entry.item for entry in entries])
                    answers.update(zip(entries, results, strict=True))
                await tx.write_counts()
                await tx.tell_others()
                applied = True
        except Exception:
            # Only when COMMIT itself got no good answer can the batch be on disk all the same.
            is_unsure = applied and self._database.reached_commit(held)
            # Whatever is wrong with it, the next one has its own.
            await self._give_back()
            if not (is_unsure and await self._was_committed(batch_id, session)):
                raise
        if news:
            self.on_news(news)
        return [answers[entry] for entry in batch]

    async def _was_committed(self, batch_id: str, session: str) -> bool:
        async for attempt in AsyncRetrying(
            retry=retry_if_exception_type(StoreUnavailable),
            wait=wait_exponential(multiplier=0.05, max=2),
            stop=stop_after_delay(FATE_WITHIN),
            # The database is away; nobody has to wait with us to hear that.
            before_sleep=lambda _: self._refuse_waiting(),
            reraise=True,
        ):
            with attempt:
                return await sessions.last_batch(self._database, session) == batch_id
        raise StoreUnavailable("the fate of a commit could not be looked up")

    def _refuse_waiting(self) -> None:
        """Tell all who wait for a batch of their own that nothing of theirs was stored."""
        for waiting in (self._urgent, self._patient):
            while waiting:
                entry = waiting.popleft()
                self._waiting_weight -= entry.weight
                entry.resolve(StoreUnavailable("the database is away"))


def _by_kind(batch: list[_Entry]) -> list[tuple[Write[Any, Any], list[_Entry]]]:
    kinds: dict[Write[Any, Any], list[_Entry]] = {}
    for entry in batch:
        kinds.setdefault(entry.write, []).append(entry)
    return list(kinds.items())
