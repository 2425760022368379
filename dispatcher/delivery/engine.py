"""The delivery engine: lease -> send -> settle, for first tries and retries alike.

Work reaches a lane in two ways: handed off by intake with its commit, or leased from the database when the agenda
says that it is due. From there on there is one path.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Coroutine, Sequence
from typing import Any

import structlog

from dispatcher import metrics
from dispatcher.account_cache import AccountCache
from dispatcher.config import LEASE_MARGIN, Settings
from dispatcher.delivery.agenda import Agenda
from dispatcher.delivery.availability import until_available
from dispatcher.delivery.governor import Governor
from dispatcher.delivery.lanes import Lane, Lanes, Turn
from dispatcher.delivery.patience import Patience
from dispatcher.delivery.sender import Attempt, Sender
from dispatcher.delivery.settler import Settler
from dispatcher.errors import StoreUnavailable
from dispatcher.heartbeat import Heartbeat
from dispatcher.loops import repeat
from dispatcher.rounds import MOST, Rounds
from dispatcher.store import Store
from dispatcher.store.accounts import Account
from dispatcher.store.deliveries import Release
from dispatcher.store.lanewise import MAX_LANES
from dispatcher.store.news import News
from dispatcher.store.records import LaneClaim, LeasedDelivery, Report, Settled
from subscriptions.keyring import KeyringError

log = structlog.get_logger(__name__)

#: deliveries leased in one go at most, so that their bodies fit into memory
MAX_LEASE = 256
#: seconds for which a delivery may wait in memory before its endpoint is looked at again
MAX_UNSEEN = 1.0
#: seconds before a lane is asked again that had due work but gave none
MIN_RETRY = 0.05
#: timers count in milliseconds; a shorter one would go off at once, again and again
MIN_TIMER = 0.001
#: seconds that a delivery is put off whose account's settings cannot be opened
UNREADABLE_DELAY = 300.0
#: rounds of the event loop from the last byte of an answer until it is heard here
HANDED_ON = 3
#: seconds between scans for work that no hint told of
SCAN_INTERVAL = 60.0
#: seconds between scans at least
SCAN_PAUSE = 1.0
#: lanes read by one step of a scan
SCAN_PAGE = 200
#: a lane that is quiet for longer than this, seconds, gives its queue back to the database
MAX_QUIET_IN_MEMORY = 5.0


class Engine:
    """Sends what is due. `start()` it once; `stop()` finishes what is in flight and gives the rest back."""

    def __init__(
        self,
        store: Store,
        sender: Sender,
        accounts: AccountCache,
        settings: Settings,
        heartbeat: Heartbeat,
    ) -> None:
        self._store = store
        self._sender = sender
        self._accounts = accounts
        self._settings = settings
        self._heartbeat = heartbeat
        #: seconds that the session has to live on for a send to begin
        self._lease_for_a_send = settings.longest_send + LEASE_MARGIN
        #: the event loop's clock, seconds: timers go by it
        self._now = asyncio.get_running_loop().time
        sender.on_made = self._on_made
        heartbeat.tell(on_beat=self._go_on, on_over=self._drop_all)
        self._lanes = Lanes(
            widest=settings.lane_concurrency,
            max_bytes=settings.queue_bytes,
            slots=settings.send_slots,
            max_in_flight=settings.max_in_flight,
        )
        self._agenda = Agenda()
        self._governor = Governor(store.take_waits)
        self._patience = Patience(self._lose_patience)
        self._settler = Settler(store, most=self._governor.settle_at_most, on_settled=self._on_settled)
        self._wake = asyncio.Event()
        self._scan_wanted = asyncio.Event()
        #: attempts that were begun, and whose turn each is
        self._under_way: dict[Attempt, Turn] = {}
        self._all_made = asyncio.Event()
        #: those of which something has to be asked first go on with others that are ready by then
        self._ready = Rounds(self._begin)
        self._is_to_pump = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._loops: list[asyncio.Task[None]] = []
        #: every delivery that this process holds a lease of, until it is settled
        self._known: set[str] = set()
        self._unexplained: set[str] = set()
        #: due work waits for memory, for attempts to be recorded, or for the session's heartbeat
        self._starved = False
        self._stopping = False
        #: nothing is begun any more, not even what has its turn
        self._has_stopped = False

    # Life

    async def start(self) -> None:
        """Begin to lease and send."""
        metrics.watch(metrics.in_flight, lambda: self._lanes.in_flight)
        metrics.watch(metrics.queued, lambda: self._lanes.waiting)
        metrics.watch(metrics.lanes, lambda: len(self._lanes))
        self._loops = [
            asyncio.create_task(repeat(step, while_=lambda: not self._stopping), name=step.__name__)
            for step in (self._lease_due, self._scan)
        ]
        self._loops.append(asyncio.create_task(repeat(self._governor.watch), name="governor"))

    async def stop(self, grace: float) -> None:
        """Stop taking work, finish what is in flight within `grace` seconds, give back every other lease."""
        self._stopping = True
        self._wake.set()
        leasing, *others = self._loops
        # A lease that is being committed is waited for, so that what it brings can be given back.
        await asyncio.gather(leasing, return_exceptions=True)
        self._spawn(self._give_back([delivery for lane in self._lanes for delivery in self._lanes.empty(lane)]))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, grace)):
                await self.settled()
        for _ in range(HANDED_ON):
            # What has its answer by now is heard.
            await asyncio.sleep(0)
        self._has_stopped = True
        for attempt in self._under_way:
            self._sender.abandon(attempt)
        self._under_way.clear()
        left = [*self._tasks, *others]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await self._settler.stop()
        if self._known:
            # Cut off in the middle of a request: the next process must know that it may have arrived.
            with contextlib.suppress(StoreUnavailable):
                await self._store.interrupt(sorted(self._known))
        with contextlib.suppress(StoreUnavailable):
            # What waits for us in lanes that only we were at, others find.
            await self._store.leave()

    async def settled(self) -> None:
        """Wait until nothing is under way any more, and what came of it is recorded."""
        while self._tasks or self._under_way:
            if self._under_way:
                await self._all_made.wait()
            else:
                await asyncio.wait(self._tasks)
        await self._settler.join()

    # Hand-off from intake

    def reserve(self, lane: str, size: int) -> bool:
        """Promise a place in a lane to a delivery that is about to be committed as leased to this process."""
        now = self._now()
        if self._stopping or self._agenda.is_due(lane, now) or not self._may_begin_more(now):
            return False
        return self._lanes.reserve(lane, size, now)

    def cancel_reservation(self, lane: str, size: int) -> None:
        """Take back the promise: the delivery was not committed."""
        self._lanes.cancel_reservation(lane, size)
        self._reconsider(self._lanes.get(lane), self._now())

    def hand_off(self, deliveries: Sequence[LeasedDelivery]) -> None:
        """Take deliveries that were committed as leased to this process, on reserved places."""
        for delivery in deliveries:
            self._lanes.cancel_reservation(delivery.lane, delivery.size)
        self._take_in(deliveries)

    def expect(self, count: int) -> None:
        """Tell that so many deliveries were committed that are not handed off: leasing has to keep up with them."""
        self._governor.expect(count)

    def hear(self, news: News) -> None:
        """Learn what a commit, of this process or another, left to be sent."""
        for lane in news.lanes:
            self._wake_for(lane)
        for key, seconds in news.pauses.items():
            if self._lanes.has_place(key):
                self._pause(self._lanes.get(key), seconds)
        if news.more:
            self._scan_wanted.set()

    def _wake_for(self, lane: str, delay: float = 0.0) -> None:
        """A lane has work in the database, due in `delay` seconds."""
        self._agenda.note(lane, self._now() + delay)
        self._wake.set()

    # Lease

    async def _lease_due(self) -> None:
        """Lease due work of the lanes that have room, then sleep until something changes."""
        now = self._now()
        claims = self._claims(now)
        if not claims:
            due = None if self._starved else self._next_due(now)
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if due is None else max(0.001, due - now)):
                    await self._wake.wait()
            return
        try:
            batch = await self._store.lease(claims)
        except Exception:
            for claim in claims:
                self._agenda.note(claim.lane, now)
            raise
        self._governor.spend(len(batch.deliveries))
        await self._take_in_turn(batch.deliveries)
        now = self._now()
        for key, seconds in batch.closed.items():
            self._lanes.get(key).closed_until = now + seconds
        for lane, delay in batch.next_due.items():
            if delay is not None:
                # What is due and was not leased, another process is just leasing.
                self._agenda.note(lane, now + (delay if batch.deliveries else max(MIN_RETRY, delay)))

    def _claims(self, now: float) -> list[LaneClaim]:
        # What ends the want, a send that ends, one that is recorded or a heartbeat, also wakes us.
        self._starved = not (self._lanes.has_memory() and self._may_begin_more(now))
        if self._starved:
            return []
        lanes: list[Lane] = []
        most = min(MAX_LEASE, self._governor.allowance(now))
        while len(lanes) < min(most, MAX_LANES):
            due = self._agenda.take_due(now, 1)
            if not due:
                break
            lane = self._lanes.get(due[0])
            if lane.is_worth_leasing(now):
                lane.backlog = False
                lanes.append(lane)
            elif now < lane.opens_at:
                self._agenda.note(lane.key, lane.opens_at)
            else:
                lane.backlog = True
        # Shared, not first come: of many lanes most hold but one, and a lease is worth its commit when it is full.
        return [LaneClaim(lane=lane.key, limit=min(lane.room(now), most // len(lanes))) for lane in lanes]

    def _next_due(self, now: float) -> float | None:
        due = self._agenda.next_due()
        return None if due is None else max(due, now + self._governor.ready_in())

    async def _take_in_turn(self, deliveries: list[LeasedDelivery]) -> None:
        """Take in what was leased; beside callers one by one: each send that starts is work that they wait for."""
        self._known.update(delivery.id for delivery in deliveries)
        gap = self._governor.gap
        if not gap:
            self._take_in(deliveries)
            return
        for delivery in deliveries:
            self._take_in([delivery])
            await asyncio.sleep(gap)

    def _take_in(self, deliveries: Sequence[LeasedDelivery]) -> None:
        now = self._now()
        for delivery in self._still_ours(deliveries):
            self._known.add(delivery.id)
            lane = self._lanes.put(delivery, now)
            if now < lane.quiet_until:
                # It fell quiet while this one was on its way from a commit.
                self._hush(lane, lane.quiet_until - now)
        self._pump_soon()
        for key in {delivery.lane for delivery in deliveries}:
            self._pace(self._lanes.get(key))

    # Send

    def _pump_soon(self) -> None:
        """Start sends when all that comes in this round of the event loop is there: together they cost less."""
        if not self._is_to_pump:
            self._is_to_pump = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        """Start as many sends as there are slots and turns."""
        self._is_to_pump = False
        now = self._now()
        if self._stopping or not self._may_begin_more(now):
            return
        turns: list[Turn] = []
        while self._lanes.has_turns:
            if len(turns) == MOST:
                self._pump_soon()
                break
            turn = self._lanes.take(now)
            if turn is None:
                break
            turns.append(turn)
        ready: list[tuple[Turn, Account]] = []
        for turn in turns:
            self._patience.begin(turn, now)
            self._pace(turn.lane)
            account = self._accounts.known(turn.delivery.account)
            if account is None or not _is_fresh(turn.delivery):
                self._spawn(self._ask(turn))
            else:
                ready.append((turn, account))
        if ready:
            self._begin(ready)

    def _begin(self, ready: Sequence[tuple[Turn, Account]]) -> None:
        """Have attempts made, but of those that must not be sent any more."""
        if self._has_stopped:
            return
        attempts: list[Attempt] = []
        for turn, account in ready:
            if not self._may_be_sent(turn.delivery):
                # Leasing it again will expire it, if its window is over.
                self._send_back(turn)
                continue
            attempt = self._sender.attempt(turn.delivery, account)
            self._under_way[attempt] = turn
            attempts.append(attempt)
        if attempts:
            self._all_made.clear()
            self._sender.begin(attempts)

    def _may_be_sent(self, delivery: LeasedDelivery) -> bool:
        """Whether its window, its session and its lease have time left for a send."""
        window_end = delivery.endpoint.window_end
        if window_end is not None and window_end <= self._store.now() * 1000:
            return False
        return bool(self._still_ours([delivery])) and self._has_lease_for_a_send(self._now())

    async def _ask(self, turn: Turn) -> None:
        """Ask what has to be known for a send: its account's settings, and whether its endpoint is what it was."""
        delivery = turn.delivery
        try:
            account = await until_available(lambda: self._accounts.get(delivery.account))
            is_current = _is_fresh(delivery) or await until_available(lambda: self._store.is_current(delivery.endpoint))
        except KeyringError:
            self._send_back(turn, delay=UNREADABLE_DELAY)
            log.error("account_unreadable", account=delivery.account, advice="the keyring lacks the key that sealed it")
        except Exception:
            # Whatever it was, the lease is still in the database, and the scan frees leases nobody knows.
            self._known.discard(delivery.id)
            self._finish(turn, None)
            self._pump_soon()
            log.exception("delivery_failed_inside", delivery=delivery.id)
        else:
            if is_current:
                self._ready.join((turn, account))
            else:
                # A secret may be over, or the subscription gone.
                self._send_back(turn)

    def _send_back(self, turn: Turn, *, delay: float = 0.0) -> None:
        self._spawn(self._give_back([turn.delivery], delay=delay))
        self._finish(turn, None)
        self._pump_soon()

    def _lose_patience(self, turns: list[Turn]) -> None:
        for turn in turns:
            self._lanes.free_slot(turn)
        self._pump()

    def _on_made(self, attempts: Sequence[Attempt]) -> None:
        """Learn from answers, have them settled, and let others have the slots."""
        # A stop has cut off those whose turn is not known any more.
        over = [(turn, attempt.report) for attempt in attempts if (turn := self._under_way.pop(attempt, None))]
        self._settler.add([report for _, report in over if report is not None])
        for turn, report in over:
            if report is None:
                self._known.discard(turn.delivery.id)
            self._finish(turn, report)
        if not self._under_way:
            self._all_made.set()
        self._pump()

    def _finish(self, turn: Turn, report: Report | None) -> None:
        """The request is over, with an answer or without one: its slot and its place are free."""
        self._patience.end(turn)
        lane, now = turn.lane, self._now()
        if report is not None:
            lane.note(report.answer.outcome, report.answer.status, now)
        self._lanes.finish(turn, now)
        if report is not None and now < lane.quiet_until:
            self._hush(lane, lane.quiet_until - now)
        self._reconsider(lane, now)

    def _on_settled(self, report: Report, settled: Settled | None) -> None:
        self._known.discard(report.delivery_id)
        if settled is not None:
            self._plan(settled)
        if self._starved:
            self._wake.set()
        if self._lanes.has_turns:
            # They were held back while recording was behind.
            self._pump_soon()

    def _reconsider(self, lane: Lane, now: float) -> None:
        """Lease more if there is more, now that a place is free."""
        if lane.backlog and (now < lane.opens_at or lane.is_worth_leasing(now)):
            lane.backlog = False
            self._agenda.note(lane.key, max(now, lane.opens_at))
            self._wake.set()
        elif self._starved:
            self._wake.set()

    def _plan(self, settled: Settled) -> None:
        if settled.delay is not None:
            self._wake_for(settled.lane, settled.delay)
        if settled.promoted:
            self._wake_for(settled.lane)

    def _pause(self, lane: Lane, seconds: float) -> None:
        """An endpoint has asked to be left alone."""
        now = self._now()
        lane.quiet_until = max(lane.quiet_until, now + seconds)
        self._hush(lane, seconds)
        self._reconsider(lane, now)

    def _hush(self, lane: Lane, seconds: float) -> None:
        """A lane is quiet for a while: look at it again then, and hold no leases for it too long."""
        if seconds > MAX_QUIET_IN_MEMORY:
            deliveries = self._lanes.empty(lane)
            if deliveries:
                self._spawn(self._give_back(deliveries, delay=seconds))
        else:
            asyncio.get_running_loop().call_later(max(MIN_TIMER, seconds), self._speak_again, lane)

    def _pace(self, lane: Lane) -> None:
        """Give a lane its next turn when its pace allows it; what has to wait for longer waits in the database."""
        if not lane.pace or not lane.queue:
            return
        now = self._now()
        surplus = self._lanes.trim(lane, now)
        if surplus:
            # Without a delay, so that they keep their place before those that come after them.
            self._spawn(self._give_back(surplus))
        if lane.queue and not lane.timer and now < lane.next_send:
            lane.timer = True
            asyncio.get_running_loop().call_later(max(MIN_TIMER, lane.next_send - now), self._step, lane)

    def _step(self, lane: Lane) -> None:
        lane.timer = False
        self._pace(lane)
        self._lanes.refresh(lane, self._now())
        self._reconsider(lane, self._now())
        self._pump()

    def _speak_again(self, lane: Lane) -> None:
        rest = lane.quiet_until - self._now()
        if rest > 0:
            # Timers may be a little early, and a pause may have grown meanwhile.
            self._hush(lane, rest)
            return
        self._lanes.refresh(lane, self._now())
        self._pump()

    # Give back

    async def _give_back(self, deliveries: list[LeasedDelivery], *, delay: float = 0.0) -> None:
        await asyncio.gather(*(self._give_one_back(delivery, delay) for delivery in deliveries))
        self._wake.set()

    async def _give_one_back(self, delivery: LeasedDelivery, delay: float) -> None:
        try:
            release = Release(delivery_id=delivery.id, attempt=delivery.attempt, delay=delay)
            released = await until_available(lambda: self._store.release(release))
            if released is not None:
                self._agenda.note(released.lane, self._now() + released.delay)
        except Exception:
            # As after a failed delivery: the scan frees the lease.
            log.exception("release_failed_inside", delivery=delivery.id)
        self._known.discard(delivery.id)

    # Upkeep

    async def _scan(self) -> None:
        """Find lanes with work that no hint told of, and leases of ours that nobody works on. Then rest."""
        self._scan_wanted.clear()
        await self._find_lanes()
        self._lanes.forget_idle(self._now())
        unexplained = await self._store.unknown_leases(frozenset(self._known))
        # Twice in a row, and a while apart: not just on its way from a commit to us.
        stray = (unexplained & self._unexplained) - self._known
        self._unexplained = unexplained
        if stray:
            log.error("stray_leases", count=len(stray))
            await self._store.interrupt(sorted(stray))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SCAN_INTERVAL):
                await self._scan_wanted.wait()
                # Hints come in swarms; one scan serves them all.
                await asyncio.sleep(SCAN_PAUSE)

    async def _find_lanes(self) -> None:
        after = ""
        while True:
            found = await self._store.due_lanes(after=after, limit=SCAN_PAGE)
            for lane, delay in found.items():
                self._wake_for(lane, delay)
            if len(found) < SCAN_PAGE:
                return
            after = max(found)

    def _go_on(self) -> None:
        """The session lives: what waited for that is sent and leased."""
        self._pump()
        self._wake.set()

    def _drop_all(self) -> None:
        """The session is over. Its leases are being freed by whoever ended it, and nothing of them may be sent."""
        for lane in self._lanes:
            self._known.difference_update(delivery.id for delivery in self._lanes.empty(lane))

    def _still_ours(self, deliveries: Sequence[LeasedDelivery]) -> list[LeasedDelivery]:
        """Without those that were leased under a session that ended while they were on their way to us."""
        ours = [delivery for delivery in deliveries if delivery.session == self._store.session]
        if len(ours) < len(deliveries):
            self._known.difference_update({delivery.id for delivery in deliveries} - {delivery.id for delivery in ours})
        return ours

    def _may_begin_more(self, now: float) -> bool:
        """Whether the session has time left for a send, and what was sent before is being recorded fast enough."""
        return self._has_lease_for_a_send(now) and not self._settler.is_behind

    def _has_lease_for_a_send(self, now: float) -> bool:
        return self._heartbeat.until - now >= self._lease_for_a_send

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _is_fresh(delivery: LeasedDelivery) -> bool:
    """Whether its endpoint was looked at lately, or cannot change while it is leased."""
    return delivery.endpoint.subscription_id is None or time.monotonic() - delivery.seen_at <= MAX_UNSEEN
