"""Lanes: a worker's in-memory queues, one per destination, and the fair choice among them. No I/O, no clock.

A lane knows how wide it may send. It starts narrow, doubles with each success and halves with each failure; a row
of failures opens its circuit, and it stays quiet for a while.

Send slots go round by account, then by lane, so a lane that hangs or floods takes its turn like any other. A request
holds its slot until it is answered, or until our patience ends. Something is always kept for others: no account takes
more than it leaves free, and all lanes that have not proven themselves have half.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict, deque
from collections.abc import Iterator

from dispatcher.models import DeliveryKind, Outcome, account_of
from dispatcher.pace import AHEAD as PACED_AHEAD
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
#: seconds by which a send may come before its time in the pace: timers are not exact
EARLY = 0.002
#: seconds of sending that a fast lane holds in memory, and deliveries at most
AHEAD = 0.5
LARGEST_QUEUE = 512
#: bytes of bodies for which a lane holds more than twice its width: nobody's speed takes the memory of all
AHEAD_BYTES = 8 * 1024 * 1024
#: seconds over which it is counted how fast a lane is
COUNTED_OVER = 0.25
#: lanes that are remembered while they have nothing to do
IDLE_LANES = 20_000


class Lane:
    """One destination: a subscription, or an account's callbacks to one origin."""

    __slots__ = (
        "account",
        "answers",
        "backlog",
        "closed_until",
        "counted_from",
        "failures",
        "in_flight",
        "key",
        "largest",
        "last_send",
        "pace",
        "queue",
        "quiet",
        "quiet_until",
        "rate",
        "reserved",
        "timer",
        "widest",
        "width",
    )

    def __init__(self, key: str, *, widest: int) -> None:
        self.key = key
        self.account = account_of(key)
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
        #: good answers per second, of late; and what is being counted for the next time
        self.rate = 0.0
        self.answers = 0
        self.counted_from = 0.0
        #: bytes of the largest body of late
        self.largest = 1
        #: how long the circuit stays open the next time, seconds
        self.quiet = FIRST_QUIET
        #: monotonic time before which nothing is sent
        self.quiet_until = 0.0
        #: seconds between two sends, where there is a limit to their rate
        self.pace = 0.0
        #: monotonic time of the last send, as its pace counts it
        self.last_send = -math.inf
        #: monotonic time before which there are no places for us in a pace that others keep, too
        self.closed_until = 0.0
        #: it will be looked at when its pace allows the next send
        self.timer = False
        #: more due work waits in the database than there was room for
        self.backlog = False

    def room(self, now: float) -> int:
        """How many more deliveries it takes into memory."""
        if now < self.opens_at:
            return 0
        return max(0, self.capacity - self.in_flight - len(self.queue) - self.reserved)

    @property
    def capacity(self) -> int:
        """How many deliveries it holds at most: twice its width, so that sending never starves; less at a slow pace.

        A fast one holds more, but no more than it sends in a moment: a lease is worth its commit when it is large.
        """
        if self.pace:
            return max(1, min(2 * self.width, int(PACED_AHEAD / self.pace)))
        return max(2 * self.width, min(LARGEST_QUEUE, int(self.rate * AHEAD), AHEAD_BYTES // self.largest))

    @property
    def worth_leasing(self) -> int:
        """How many places are free when it is worth to lease more: half of those in which deliveries wait."""
        capacity = self.capacity
        return max(1, (capacity - min(self.width, capacity // 2)) // 2)

    def is_worth_leasing(self, now: float) -> bool:
        """Whether it has so many places that a lease is worth its commit."""
        return self.room(now) >= self.worth_leasing

    @property
    def opens_at(self) -> float:
        """Monotonic time from which on it takes more: what it could not send soon, it leaves in the database."""
        return max(self.closed_until, self.sends_soon_at)

    @property
    def sends_soon_at(self) -> float:
        """Monotonic time from which on its next send is only a moment away."""
        return max(self.quiet_until, self.next_send - PACED_AHEAD)

    def can_send(self, now: float) -> bool:
        """Whether its next delivery may start."""
        if not self.queue or self.in_flight >= self.width or now < self.quiet_until:
            return False
        return now >= self.next_send - EARLY

    @property
    def next_send(self) -> float:
        """Monotonic time before which the pace allows no other send."""
        paced = self.last_send + self.pace
        return max(paced, self.queue[0].not_before) if self.queue else paced

    @property
    def is_proven(self) -> bool:
        """Whether its endpoint has lately answered well."""
        return self.width > FIRST_WIDTH and self.failures < CIRCUIT_FAILURES

    def is_idle(self, now: float) -> bool:
        """Whether it can be forgotten. What it knew of its endpoint, a new one learns again."""
        return not (
            self.queue
            or self.in_flight
            or self.reserved
            or self.backlog
            or now < self.quiet_until
            or now < self.next_send
        )

    def note(self, outcome: Outcome, status: int | None, now: float) -> None:
        """Learn from an answer. An endpoint that refuses one message for good is in good health."""
        if outcome is Outcome.INTERNAL_ERROR:
            return
        if not _is_failure(outcome, status):
            self.failures = 0
            self.quiet = FIRST_QUIET
            self.width = min(self.widest, self.width * 2)
            self._count(now)
            return
        self.rate = 0.0
        self.failures += 1
        self.width = max(1, self.width // 2)
        if self.failures >= CIRCUIT_FAILURES and now >= self.quiet_until:
            self.quiet_until = now + self.quiet
            self.quiet = min(LAST_QUIET, self.quiet * 2)
            self.width = min(PROBE_WIDTH, self.widest)

    def _count(self, now: float) -> None:
        self.answers += 1
        span = now - self.counted_from
        if span >= COUNTED_OVER:
            self.rate = self.answers / span
            self.answers = 0
            self.counted_from = now
            self.largest = max(1, self.largest // 2)


def _is_failure(outcome: Outcome, status: int | None) -> bool:
    if outcome is Outcome.HTTP_ERROR and status is not None:
        return status >= 500 or status in RETRIED_4XX
    return outcome is not Outcome.SUCCESS


class Turn:
    """A delivery whose request is under way, and the slot that it holds."""

    __slots__ = ("delivery", "holds_slot", "is_proven", "lane")

    def __init__(self, lane: Lane, delivery: LeasedDelivery) -> None:
        self.lane = lane
        self.delivery = delivery
        #: whether the lane had proven itself when the request began
        self.is_proven = lane.is_proven
        #: whether it still counts against the send slots
        self.holds_slot = True


#: accounts that have lanes with something to send, in turn, each with those lanes in turn
_Ring = OrderedDict[str, OrderedDict[str, Lane]]


class Lanes:
    """All lanes of a process, and whose turn it is."""

    def __init__(self, *, widest: int, max_bytes: int, slots: int, max_in_flight: int) -> None:
        self._widest = widest
        self._max_bytes = max_bytes
        self._slots = slots
        self._max_in_flight = max_in_flight
        self._lanes: OrderedDict[str, Lane] = OrderedDict()
        #: proven lanes, and the others: they take turns, so that neither keep the others out
        self._rings: tuple[_Ring, _Ring] = (OrderedDict(), OrderedDict())
        self._next_ring = 0
        self._slots_of: Counter[str] = Counter()
        self._slots_held = 0
        self._unproven_slots = 0
        self._unproven_in_flight = 0
        self._in_flight_of: Counter[str] = Counter()
        #: requests under way
        self.in_flight = 0
        #: bytes of bodies in memory or promised
        self.bytes = 0
        #: deliveries that wait in queues
        self.waiting = 0

    def __len__(self) -> int:
        return len(self._lanes)

    def __iter__(self) -> Iterator[Lane]:
        return iter(list(self._lanes.values()))

    @property
    def has_turns(self) -> bool:
        """Whether there may be something to send, as far as its lanes are concerned."""
        return bool(self._rings[0] or self._rings[1])

    def get(self, key: str) -> Lane:
        """The lane of this name."""
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = Lane(key, widest=self._widest)
        else:
            self._lanes.move_to_end(key)
        return lane

    def has_place(self, key: str) -> bool:
        """Whether a pause of this lane may be remembered. It is told by whoever may speak on the database's channel,
        and of lanes that there are not: they shall not take the memory of all.
        """
        return key in self._lanes or len(self._lanes) < IDLE_LANES

    def has_memory(self, size: int = 0) -> bool:
        """Whether bodies of `size` more bytes may be held."""
        return self.bytes + size <= self._max_bytes

    def reserve(self, key: str, size: int, now: float) -> bool:
        """Promise a place to a delivery that is about to be committed."""
        lane = self.get(key)
        lane.largest = max(lane.largest, size)
        if lane.backlog or lane.room(now) == 0 or not self.has_memory(size):
            return False
        lane.reserved += 1
        self.bytes += size
        return True

    def cancel_reservation(self, key: str, size: int) -> None:
        """Take a promise back."""
        self.get(key).reserved -= 1
        self.bytes -= size

    def put(self, delivery: LeasedDelivery, now: float) -> Lane:
        """Queue a leased delivery; returns its lane."""
        lane = self.get(delivery.lane)
        rate = delivery.endpoint.rate_limit
        lane.pace = 1 / rate if rate is not None and delivery.kind is DeliveryKind.MESSAGE else 0.0
        lane.queue.append(delivery)
        lane.largest = max(lane.largest, delivery.size)
        self.bytes += delivery.size
        self.waiting += 1
        self.refresh(lane, now)
        return lane

    def take(self, now: float) -> Turn | None:
        """The next delivery to send, if there is a slot for it."""
        if self._slots_held >= self._slots or self.in_flight >= self._max_in_flight:
            return None
        first = self._next_ring
        for number in (first, 1 - first):
            if number == 1 and self._unproven_have_their_share():
                continue
            turn = self._take_from(self._rings[number], now)
            if turn is not None:
                self._next_ring = 1 - number
                return turn
        return None

    def _take_from(self, ring: _Ring, now: float) -> Turn | None:
        for account in list(ring):
            if self._has_its_share(account):
                continue
            lanes = ring[account]
            while lanes:
                _, lane = lanes.popitem(last=False)
                if not lane.can_send(now):
                    continue
                turn = self._begin(lane, account, now)
                self.refresh(lane, now)
                if lanes:
                    ring.move_to_end(account)
                else:
                    ring.pop(account, None)
                return turn
            del ring[account]
        return None

    def _unproven_have_their_share(self) -> bool:
        return self._unproven_slots >= max(1, self._slots // 2) or self._unproven_in_flight >= max(
            1, self._max_in_flight // 2
        )

    def _has_its_share(self, account: str) -> bool:
        """Whether an account holds as much as it leaves free: so the next one always finds something."""
        free_slots = self._slots - self._slots_held
        free = self._max_in_flight - self.in_flight
        return self._slots_of[account] >= free_slots or self._in_flight_of[account] >= free

    def _begin(self, lane: Lane, account: str, now: float) -> Turn:
        lane.last_send = max(now, lane.next_send)
        turn = Turn(lane, lane.queue.popleft())
        lane.in_flight += 1
        self.waiting -= 1
        self.in_flight += 1
        self._in_flight_of[account] += 1
        self._slots_of[account] += 1
        self._slots_held += 1
        self._unproven_slots += not turn.is_proven
        self._unproven_in_flight += not turn.is_proven
        return turn

    def free_slot(self, turn: Turn) -> None:
        """The request has its answer, or has waited so long that others go first."""
        if turn.holds_slot:
            turn.holds_slot = False
            self._slots_held -= 1
            _decrement(self._slots_of, turn.delivery.account)
            self._unproven_slots -= not turn.is_proven

    def finish(self, turn: Turn, now: float) -> None:
        """The request is over."""
        self.free_slot(turn)
        turn.lane.in_flight -= 1
        self.in_flight -= 1
        self._unproven_in_flight -= not turn.is_proven
        self.bytes -= turn.delivery.size
        _decrement(self._in_flight_of, turn.delivery.account)
        self.refresh(turn.lane, now)

    def empty(self, lane: Lane) -> list[LeasedDelivery]:
        """Take everything out of a lane's queue."""
        deliveries = list(lane.queue)
        lane.queue.clear()
        self.waiting -= len(deliveries)
        self.bytes -= sum(delivery.size for delivery in deliveries)
        return deliveries

    def trim(self, lane: Lane, now: float) -> list[LeasedDelivery]:
        """Take out of a lane's queue what its pace lets it send only later: a pace is known with the first of them."""
        keep = 0 if now < lane.sends_soon_at else lane.capacity
        surplus = [lane.queue.pop() for _ in range(len(lane.queue) - keep)]
        self.waiting -= len(surplus)
        self.bytes -= sum(delivery.size for delivery in surplus)
        return surplus

    def refresh(self, lane: Lane, now: float) -> None:
        """Give a lane its turn if it can send."""
        if not lane.can_send(now):
            return
        account = lane.account
        mine, other = self._rings if lane.is_proven else self._rings[::-1]
        if account in other:
            other[account].pop(lane.key, None)
        if account not in mine:
            mine[account] = OrderedDict()
        mine[account][lane.key] = lane

    def forget_idle(self, now: float) -> None:
        """Drop lanes that have had nothing to do for longest."""
        for key in list(self._lanes)[: max(0, len(self._lanes) - IDLE_LANES)]:
            if self._lanes[key].is_idle(now):
                del self._lanes[key]


def _decrement(counts: Counter[str], key: str) -> None:
    counts[key] -= 1
    if not counts[key]:
        del counts[key]
