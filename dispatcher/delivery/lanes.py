"""Lanes: a worker's in-memory queues, one per destination, and the fair choice among them. No I/O, no clock.

A lane knows how wide it may send. It starts narrow, doubles with each success and halves with each failure; a row
of failures opens its circuit, and it stays quiet for a while. Send slots go round by account, then by lane, so a
lane that hangs or floods takes its turn like any other.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator

from dispatcher.models import Outcome, account_of
from dispatcher.retry import RETRIED_4XX
from dispatcher.store.records import LeasedDelivery

#: width of a lane that has not proven itself
FIRST_WIDTH = 2
#: width of a lane whose circuit is closing again
PROBE_WIDTH = 8
#: failures in a row that open the circuit
CIRCUIT_FAILURES = 10
#: seconds that an open circuit stays quiet: at first, and at most
FIRST_QUIET = 1.0
LAST_QUIET = 15.0
#: lanes that are remembered while they have nothing to do
IDLE_LANES = 20_000


class Lane:
    """One destination: a subscription, or an account's callbacks to one origin."""

    __slots__ = (
        "backlog",
        "failures",
        "in_flight",
        "key",
        "queue",
        "quiet",
        "quiet_until",
        "reserved",
        "widest",
        "width",
    )

    def __init__(self, key: str, *, widest: int) -> None:
        self.key = key
        #: leased deliveries that wait to be sent
        self.queue: deque[LeasedDelivery] = deque()
        #: requests under way
        self.in_flight = 0
        #: places promised to deliveries that are being committed
        self.reserved = 0
        #: requests that may be under way at once: now, and at most
        self.width = min(FIRST_WIDTH, widest)
        self.widest = widest
        #: failures in a row
        self.failures = 0
        #: how long the circuit stays open the next time, seconds
        self.quiet = FIRST_QUIET
        #: monotonic time before which nothing is sent
        self.quiet_until = 0.0
        #: more due work waits in the database than there was room for
        self.backlog = False

    def room(self, now: float) -> int:
        """How many more deliveries it takes into memory: twice its width, so that sending never starves."""
        if now < self.quiet_until:
            return 0
        return max(0, 2 * self.width - self.in_flight - len(self.queue) - self.reserved)

    def can_send(self, now: float) -> bool:
        """Whether its next delivery may start."""
        return bool(self.queue) and self.in_flight < self.width and now >= self.quiet_until

    def is_idle(self, now: float) -> bool:
        """Whether nothing would be forgotten with it."""
        return not (self.queue or self.in_flight or self.reserved or self.failures or now < self.quiet_until)

    def note(self, outcome: Outcome, status: int | None, now: float) -> None:
        """Learn from an answer. An endpoint that refuses one message for good is in good health."""
        if outcome is Outcome.INTERNAL_ERROR:
            return
        if not _is_failure(outcome, status):
            self.failures = 0
            self.quiet = FIRST_QUIET
            self.width = min(self.widest, self.width * 2)
            return
        self.failures += 1
        self.width = max(1, self.width // 2)
        if self.failures >= CIRCUIT_FAILURES and now >= self.quiet_until:
            self.quiet_until = now + self.quiet
            self.quiet = min(LAST_QUIET, self.quiet * 2)
            self.width = min(PROBE_WIDTH, self.widest)


def _is_failure(outcome: Outcome, status: int | None) -> bool:
    if outcome is Outcome.HTTP_ERROR and status is not None:
        return status >= 500 or status in RETRIED_4XX
    return outcome is not Outcome.SUCCESS


class Lanes:
    """All lanes of a process, and whose turn it is."""

    def __init__(self, *, widest: int, max_bytes: int, max_in_flight: int) -> None:
        self._widest = widest
        self._max_bytes = max_bytes
        #: no account holds more than half of what can be in flight
        self._account_share = max(1, max_in_flight // 2)
        self._lanes: OrderedDict[str, Lane] = OrderedDict()
        #: accounts that have lanes with something to send, in turn, each with those lanes in turn
        self._turns: OrderedDict[str, OrderedDict[str, Lane]] = OrderedDict()
        self._in_flight: dict[str, int] = {}
        #: bytes of bodies in memory or promised
        self.bytes = 0
        #: deliveries that wait in queues
        self.waiting = 0

    def __len__(self) -> int:
        return len(self._lanes)

    def __iter__(self) -> Iterator[Lane]:
        return iter(list(self._lanes.values()))

    def get(self, key: str) -> Lane:
        """The lane of this name."""
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = Lane(key, widest=self._widest)
        else:
            self._lanes.move_to_end(key)
        return lane

    def has_memory(self, size: int = 0) -> bool:
        """Whether bodies of `size` more bytes may be held."""
        return self.bytes + size <= self._max_bytes

    def reserve(self, key: str, size: int, now: float) -> bool:
        """Promise a place to a delivery that is about to be committed."""
        lane = self.get(key)
        if lane.backlog or lane.room(now) == 0 or not self.has_memory(size):
            return False
        lane.reserved += 1
        self.bytes += size
        return True

    def cancel_reservation(self, key: str, size: int) -> None:
        """Take a promise back."""
        self.get(key).reserved -= 1
        self.bytes -= size

    def put(self, delivery: LeasedDelivery, now: float) -> None:
        """Queue a leased delivery."""
        lane = self.get(delivery.lane)
        lane.queue.append(delivery)
        self.bytes += delivery.size
        self.waiting += 1
        self.refresh(lane, now)

    def take(self, now: float) -> tuple[Lane, LeasedDelivery] | None:
        """The next delivery to send: the turn goes round by account, then by lane."""
        for account in list(self._turns):
            if self._in_flight.get(account, 0) >= self._account_share and len(self._turns) > 1:
                continue
            lanes = self._turns[account]
            while lanes:
                key, lane = lanes.popitem(last=False)
                if not lane.can_send(now):
                    continue
                delivery = lane.queue.popleft()
                lane.in_flight += 1
                self.waiting -= 1
                self._in_flight[account] = self._in_flight.get(account, 0) + 1
                if lane.can_send(now):
                    lanes[key] = lane
                self._turns.move_to_end(account)
                if not lanes:
                    del self._turns[account]
                return lane, delivery
            del self._turns[account]
        return None

    def finish(self, lane: Lane, delivery: LeasedDelivery, now: float) -> None:
        """A request is over, or was not made after all."""
        lane.in_flight -= 1
        self.bytes -= delivery.size
        account = delivery.account
        self._in_flight[account] -= 1
        if not self._in_flight[account]:
            del self._in_flight[account]
        self.refresh(lane, now)

    def empty(self, lane: Lane) -> list[LeasedDelivery]:
        """Take everything out of a lane's queue."""
        deliveries = list(lane.queue)
        lane.queue.clear()
        self.waiting -= len(deliveries)
        self.bytes -= sum(delivery.size for delivery in deliveries)
        return deliveries

    def refresh(self, lane: Lane, now: float) -> None:
        """Give a lane its turn if it can send."""
        if lane.can_send(now):
            self._turns.setdefault(account_of(lane.key), OrderedDict())[lane.key] = lane

    def forget_idle(self, now: float) -> None:
        """Drop lanes that have had nothing to do for longest."""
        for key in list(self._lanes)[: max(0, len(self._lanes) - IDLE_LANES)]:
            if self._lanes[key].is_idle(now):
                del self._lanes[key]
