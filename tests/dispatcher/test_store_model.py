"""Anything in any order, by two processes: what the store says is what a plain model of it says, after every step.

Time passes by letting every moment in the database recede. By hand, for long: `MODEL_SECONDS=600 pytest …`.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import time
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field, fields
from dataclasses import replace as replace_
from typing import Any, TypeVar

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from msgspec.structs import replace

from dispatcher import retry
from dispatcher.bodies import JSON, Body
from dispatcher.errors import LeaseLost, Problem, StoreUnavailable
from dispatcher.ids import new_id
from dispatcher.models import Outcome, TaskState, lane_of
from dispatcher.store import Store, committer, ledger, making, publishing
from dispatcher.store.deliveries import Release
from dispatcher.store.publishing import Accepted
from dispatcher.store.records import (
    AttemptRecord,
    IdempotencyKey,
    LaneClaim,
    LeasedDelivery,
    LeasedTask,
    Replayed,
    Report,
    TaskClaim,
    TaskReport,
)
from dispatcher.store.redelivering import Bulk, Criteria, Redelivered
from dispatcher.store.tables import attempts, deliveries, subscriptions, tasks
from dispatcher.store.work import TaskRelease
from subscriptions import health
from subscriptions.models import Draft, Movement, OnExhausted, Ordering, Subscription
from subscriptions.schema import Instant, metadata
from tests.support import store_model
from tests.support.store_model import Model, Refused, Source, Task
from tests.support.stores import (
    ACCOUNT,
    Home,
    accept,
    delivery_rows,
    draft,
    new_event,
    new_task,
    open_store,
    planned,
    publish_planned,
    signing_key,
    who,
)

T = TypeVar("T")

#: smaller than in production, so that each is reached
LIMITS = store_model.Limits(at_once=8, held=6, poison_after=5, suspect_after=3, failures=3, unplaced_last=False)
#: hours that a session lives without a heartbeat
TTL = 2
HOUR = 3600
ORIGINS = ("https://a.example.com", "https://b.example.com")


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What a subscription is like."""

    ordering: Ordering
    on_exhausted: OnExhausted = OnExhausted.BLOCK
    #: refusals that disable it, and which do
    after: int = 1
    on: health.DisableOn = health.DisableOn.ANY
    #: hours without a success that disable it
    hours: int = 100

    @property
    def fields(self) -> dict[str, Any]:
        """As its owner says it."""
        return {
            "ordering": self.ordering,
            "on_exhausted": self.on_exhausted,
            "disable_after_4xx": self.after,
            "disable_on": self.on,
            "disable_after": float(self.hours * HOUR),
        }


KINDS = (
    Kind(ordering=Ordering.NONE, hours=5),
    Kind(ordering=Ordering.FIFO),
    Kind(ordering=Ordering.FIFO, on_exhausted=OnExhausted.SKIP, after=2, on=health.DisableOn.ENDPOINT, hours=3),
    Kind(ordering=Ordering.FIFO_BY_KEY, on=health.DisableOn.ENDPOINT),
    Kind(ordering=Ordering.FIFO_BY_KEY, on_exhausted=OnExhausted.SKIP),
)
#: every line of the table of what an answer means, the common ones more than once
ANSWERS = (
    *(retry.Answer(outcome=Outcome.SUCCESS, status=204) for _ in range(4)),
    *(retry.Answer(outcome=Outcome.HTTP_ERROR, status=503) for _ in range(2)),
    *(retry.Answer(outcome=Outcome.HTTP_ERROR, status=401) for _ in range(2)),
    retry.Answer(outcome=Outcome.HTTP_ERROR, status=302),
    retry.Answer(outcome=Outcome.HTTP_ERROR, status=422),
    retry.Answer(outcome=Outcome.HTTP_ERROR, status=410),
    retry.Answer(outcome=Outcome.HTTP_ERROR, status=429, retry_after=2.0 * HOUR),
    retry.Answer(outcome=Outcome.HTTP_ERROR, status=503, retry_after=25.0 * HOUR),
    retry.Answer(outcome=Outcome.HTTP_ERROR, status=401, other_secret=True),
    retry.Answer(outcome=Outcome.HTTP_ERROR, status=500, abort=True),
    retry.Answer(outcome=Outcome.HTTP_ERROR, status=500, disable=True),
    retry.Answer(outcome=Outcome.SUCCESS, status=200, disable=True),
    retry.Answer(outcome=Outcome.EGRESS_REFUSED),
    retry.Answer(outcome=Outcome.TIMEOUT),
    retry.Answer(outcome=Outcome.INTERNAL_ERROR),
)
#: hours between tries
SCHEDULES = ((0, 0, 0), (0, 3), (), (1, 2, 3))

#: whichever of several there is
any_of = st.integers(0, 30)


@dataclass(eq=False, kw_only=True)
class Worker:
    """A process, as far as the store knows it."""

    store: Store
    #: it does nothing, not even a heartbeat
    is_frozen: bool = False

    @property
    def session(self) -> str:
        return self.store._committer.session


@dataclass(kw_only=True)
class Place:
    """An installation that one example after the other has to itself, and the loop that all of it runs in."""

    home: Home
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)
    #: what the examples did, in all
    steps: int = 0
    examples: int = 0

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Do something in the loop."""
        return self.loop.run_until_complete(work)

    async def open(self) -> None:
        """Make the installation."""
        self.first = await self.stack.enter_async_context(open_store(self.home, alone=False, session_ttl=TTL * HOUR))

    async def worker(self) -> Worker:
        """One more process."""
        store = await Store.open(self.first.database, self.first.keyring, session_ttl=TTL * HOUR, alone=False)
        return Worker(store=store)

    async def clear(self) -> None:
        """As new."""
        async with self.first.database.write() as connection:
            for table in metadata.sorted_tables:
                if table.name != "installation":
                    await connection.execute(sa.delete(table))

    def close(self) -> None:
        """End it."""
        self.run(self.stack.aclose())
        self.loop.close()


@contextmanager
def place(home: Home) -> Iterator[Place]:
    """An installation for examples."""
    made = Place(home=home)
    made.run(made.open())
    try:
        yield made
    finally:
        made.close()


def assert_same(found: dict[str, dict[str, Any]], expected: dict[str, dict[str, Any]]) -> None:
    """The same rows with the same values; else tell which are not."""
    assert found.keys() == expected.keys()
    differ = {
        (id_, name): (value, expected[id_][name])
        for id_, row in found.items()
        for name, value in row.items()
        if value != expected[id_][name]
    }
    assert not differ, "(found, expected) by id and name"


class Machine(RuleBasedStateMachine):
    """Two processes and a model."""

    #: ids of long ago, so that what they name may be deleted as soon as it is old
    ids = itertools.count(1)
    #: where it is
    place: Place

    def __init__(self) -> None:
        super().__init__()
        place = self.place
        self.run = place.run
        self.model = Model(limits=replace_(LIMITS, unplaced_last=not place.home.is_embedded))
        self.names = itertools.count()
        #: leases that were ever taken: by whom, and what
        self.taken: list[tuple[Worker, LeasedDelivery]] = []
        self.worked: list[tuple[Worker, LeasedTask]] = []
        self.run(place.clear())
        self.workers = [self.run(place.worker()) for _ in range(2)]
        for worker in self.workers:
            self._beats(worker)
        place.examples += 1

    def teardown(self) -> None:
        for worker in self.workers:
            self.run(worker.store.close())

    # --- the two of them

    def _worker(self, number: int) -> Worker:
        living = [worker for worker in self.workers if not worker.is_frozen]
        return living[number % len(living)]

    def _beats(self, worker: Worker) -> None:
        self.model.sessions[worker.session] = self.model.now + TTL

    def _both(self, ours: Coroutine[Any, Any, T], theirs: Any) -> tuple[T | None, Any]:
        """What the store and the model make of it; refused by both, for the same reason, or by neither."""
        mine: T | None = None
        refusal = expected = None
        try:
            mine = self.run(ours)
        except Problem as problem:
            refusal = problem.slug
        with self.model.happening():
            try:
                told = theirs(mine)
            except Refused as refused:
                told, expected = None, refused.slug
        assert refusal == expected
        return mine, told

    # --- accept and publish

    @initialize()
    def subscribe_all(self) -> None:
        self._subscribe(self.workers[0].store, KINDS)

    @precondition(lambda self: len(self.model.subscriptions) < 7)
    @rule(by=any_of, kind=st.sampled_from(KINDS))
    def subscribe(self, by: int, kind: Kind) -> None:
        self._subscribe(self._worker(by).store, [kind])

    def _subscribe(self, store: Store, kinds: Sequence[Kind]) -> None:
        async def create() -> list[str]:
            wishes = [draft(store, f"s{next(self.names)}", hold_for=30.0 * HOUR, **kind.fields) for kind in kinds]
            creating = [store.create_subscription(who(store), wish, signing_key(), is_active=True) for wish in wishes]
            return [changed.subscription.id for changed in await asyncio.gather(*creating)]

        made = self.run(create())
        with self.model.happening():
            for id_, kind in zip(made, kinds, strict=True):
                self.model.subscriptions[id_] = store_model.Subscription(
                    id=id_,
                    ordering=kind.ordering,
                    on_exhausted=kind.on_exhausted,
                    disable_after_4xx=kind.after,
                    disable_on=kind.on,
                    disable_after=kind.hours,
                    hold_for=30,
                )

    @rule(
        by=any_of,
        origin=st.sampled_from(ORIGINS),
        window=st.sampled_from([None, None, 1, 4]),
        form=st.sampled_from(["relay", "handed off", "work"]),
        key=st.sampled_from([None, None, "k", "l"]),
        body=st.sampled_from([b"1", b"1", b"2"]),
    )
    def accept(self, by: int, origin: str, window: int | None, form: str, key: str | None, body: bytes) -> None:
        worker = self._worker(by)
        made = new_task(
            origin=origin,
            url=f"{origin}/results",
            window_end=self._moment(window),
            handed_off=form == "handed off",
            task_type="count" if form == "work" else "relay",
        )
        made = replace(made, id=self._old_id())
        once = None if key is None else IdempotencyKey(account=ACCOUNT, route="/tasks", key=key, fingerprint=body)
        storing = accept(worker.store, made, key=once, answer=made.id.encode())

        def expected(_: object) -> bytes | None:
            earlier = self.model.earlier(key, body)
            if earlier is not None:
                return earlier
            task = Task(
                id=made.id,
                state="queued" if form == "work" else "succeeded",
                lane=lane_of(ACCOUNT, origin),
                window_end=self._hour(window),
            )
            self.model.accept(task, made.delivery_id, worker.session if made.handed_off else None)
            if key is not None:
                self.model.keys[key] = (body, made.id.encode(), self.model.now)
            return None

        replayed, earlier = self._both(storing, expected)
        assert earlier == (replayed.answer if replayed is not None else None)
        if made.handed_off and self.model.find(made.delivery_id):
            self._take(worker, [made.delivery_id])

    @rule(
        by=any_of,
        ordering_keys=st.lists(st.sampled_from(["a", "b", None]), min_size=1, max_size=3),
        hand_off=st.booleans(),
        key=st.sampled_from([None, None, None, "m"]),
        body=st.sampled_from([b"1", b"1", b"2"]),
    )
    def publish(
        self, by: int, ordering_keys: Sequence[str | None], hand_off: bool, key: str | None, body: bytes
    ) -> None:
        worker = self._worker(by)
        events = [replace(new_event(ordering_key=one), id=self._old_id()) for one in ordering_keys]
        once = None if key is None else IdempotencyKey(account=ACCOUNT, route="/events", key=key, fingerprint=body)
        offered: dict[str, str] = {}

        async def publishing_() -> Accepted | Replayed:
            roster = await worker.store.roster(ACCOUNT)
            plans = [await planned(roster, event, hand_off=hand_off) for event in events]
            offered.update({id_: f"{one.event.id} {to}" for one in plans for to, id_ in one.handed_off.items()})
            return (await publish_planned(worker.store, plans, key=once)).result

        handed_off: set[str] = set()

        def expected(result: Accepted | Replayed | None) -> bytes | None:
            earlier = self.model.earlier(key, body)
            if earlier is not None:
                return earlier
            assert isinstance(result, Accepted)
            assert result.handed_off <= offered.keys()
            gone = {offered[id_] for id_ in result.handed_off}
            sources = [Source(id=event.id, ordering_key=event.ordering_key) for event in events]
            self.model.publish(sources, lambda event, to: f"{event} {to}" in gone, worker.session)
            handed_off.update(result.handed_off)
            if key is not None:
                self.model.keys[key] = (body, result.answer, self.model.now)
            return None

        result, earlier = self._both(publishing_(), expected)
        assert earlier == (result.answer if isinstance(result, Replayed) else None)
        self._adopt()
        self._take(worker, sorted(handed_off))

    @precondition(lambda self: self.model.fan_outs)
    @rule(by=any_of)
    def fan_out(self, by: int) -> None:
        self.run(self._worker(by).store.fan_out())
        with self.model.happening():
            self.model.fan_out()

    def _old_id(self) -> str:
        return f"{next(self.ids):032x}"

    def _moment(self, hours: int | None) -> int | None:
        return None if hours is None else time.time_ns() // 1_000_000 + hours * HOUR * 1000

    def _hour(self, hours: int | None) -> int | None:
        return None if hours is None else self.model.now + hours

    # --- lease, settle, give back

    @precondition(lambda self: self.model.due())
    @rule(by=any_of)
    def lease_all(self, by: int) -> None:
        """What is due, wherever it is."""
        worker = self._worker(by)
        lanes = self.run(worker.store.due_lanes(after="", limit=100))
        expected = self.model.waiting_lanes()
        assert lanes.keys() == expected.keys()
        assert {lane for lane, seconds in lanes.items() if seconds == 0} == {one.lane for one in self.model.due()}
        if not lanes:
            return
        batch = self.run(worker.store.lease([LaneClaim(lane=lane, limit=100) for lane in sorted(lanes)]))
        with self.model.happening():
            leased = self.model.lease(self.model.due(), worker.session)
        assert {one.id for one in batch.deliveries} == {one.id for one in leased}
        self._note_leased(worker, batch.deliveries)

    @precondition(lambda self: self.model.due())
    @rule(by=any_of, answers=st.lists(st.sampled_from(ANSWERS), min_size=1, max_size=4), plan=any_of)
    def send(self, by: int, answers: Sequence[retry.Answer], plan: int) -> None:
        """All that is due is sent, and answered at once."""
        self.lease_all(by)
        worker = self._worker(by)
        mine = self._in_hand(worker)
        messages = [one for one in mine if one.kind == "message"]
        self._settle(
            worker,
            messages,
            list(itertools.islice(itertools.cycle(answers), len(messages))),
            SCHEDULES[plan % len(SCHEDULES)],
        )
        for ping in mine:
            if ping.kind == "ping":
                self._settle(worker, [ping], answers, (0,))

    @precondition(lambda self: self.model.due())
    @rule(by=any_of, lane=any_of, limit=st.integers(1, 2))
    def lease_some(self, by: int, lane: int, limit: int) -> None:
        """The first few of a lane that holds none back."""
        worker = self._worker(by)
        names = sorted({one.lane for one in self.model.due()})
        name = names[lane % len(names)]
        due = [one for one in self.model.due() if one.lane == name]
        if any(self._stays(one) for one in due):
            return
        batch = self.run(worker.store.lease([LaneClaim(lane=name, limit=limit)]))
        ids = {one.id for one in batch.deliveries}
        chosen = [one for one in due if one.id in ids]
        assert len(ids) == len(chosen) == min(limit, len(due))
        left = [one.due or 0 for one in due if one not in chosen]
        assert all((one.due or 0) <= min(left, default=self.model.now) for one in chosen), "not the oldest first"
        with self.model.happening():
            self.model.lease(chosen, worker.session)
        self._note_leased(worker, batch.deliveries)

    def _stays(self, one: store_model.Delivery) -> bool:
        to = one.subscription
        over = isinstance(one.source, Task) and (one.source.is_wiped or one.source.is_over(self.model.now))
        return over or (to is not None and to.state != "active")

    def _note_leased(self, worker: Worker, leased: Sequence[LeasedDelivery]) -> None:
        for one in leased:
            expected = self.model.find(one.id)
            assert expected is not None
            assert (one.attempt, one.kind, one.other_secret, one.wire_id) == (
                expected.attempt,
                expected.kind,
                expected.other_secret,
                expected.wire_id,
            )
            self.taken.append((worker, one))

    def _take(self, worker: Worker, ids: Sequence[str]) -> None:
        """What was handed off is in hand."""
        for id_ in ids:
            one = self.model.find(id_)
            assert one is not None
            if one.attempt == 1 and one.state == "leased":
                self.taken.append((worker, _as_leased(id_, one)))

    def _in_hand(self, by: Worker) -> list[LeasedDelivery]:
        """Leases of this process that are still its own."""
        mine = [one for worker, one in self.taken if worker is by]
        held = {one.id: one for one in mine if self.model.holds(one.id, one.attempt, by.session)}
        return list(held.values())

    @precondition(lambda self: any(one.state == "leased" for one in self.model.deliveries))
    @rule(by=any_of, which=any_of, answers=st.lists(st.sampled_from(ANSWERS), min_size=1, max_size=3), plan=any_of)
    def settle(self, by: int, which: int, answers: Sequence[retry.Answer], plan: int) -> None:
        """Attempts end, and are told of together."""
        worker = self._worker(by)
        mine = self._in_hand(worker)
        messages = [one for one in mine if one.kind == "message"]
        # A ping is told of by itself: what it enables is not there yet for those that are told of with it.
        chosen = messages if len(answers) > 1 else mine
        chosen = [chosen[(which + n) % len(chosen)] for n in range(min(len(answers), len(chosen)))]
        self._settle(worker, chosen, answers, SCHEDULES[plan % len(SCHEDULES)])

    @precondition(lambda self: self.taken)
    @rule(by=any_of, which=any_of, answer=st.sampled_from(ANSWERS))
    def settle_late(self, by: int, which: int, answer: retry.Answer) -> None:
        """Of a lease that somebody had once."""
        _, one = self.taken[-1 - which % len(self.taken)]
        self._settle(self._worker(by), [one], [answer], (0, 0, 0))

    def _settle(
        self,
        worker: Worker,
        chosen: Sequence[LeasedDelivery],
        answers: Sequence[retry.Answer],
        schedule: tuple[int, ...],
    ) -> None:
        if not chosen:
            return
        if any(self._has_window(one.id) for one in chosen):
            # It would shorten delays to what are no whole hours.
            schedule = (0, 0, 0)
        told = list(zip(chosen, answers, strict=False))
        settled = self.run(worker.store.settle([_report(one, answer, schedule) for one, answer in told]))
        with self.model.happening():
            expected = [self.model.holds(one.id, one.attempt, worker.session) for one, _ in told]
            for one, (_, answer) in zip(expected, told, strict=True):
                if one is not None:
                    self.model.settle(one, answer, schedule)
            due = [None if one is None else one.due for one in expected]
        for result, one, hour in zip(settled, expected, due, strict=True):
            if one is None:
                assert isinstance(result, LeaseLost)
                continue
            assert not isinstance(result, LeaseLost)
            assert result.state == one.state
            assert result.delay == (None if hour is None else (hour - self.model.now) * HOUR)

    def _has_window(self, id_: str) -> bool:
        one = self.model.find(id_)
        return one is not None and isinstance(one.source, Task) and one.source.window_end is not None

    @precondition(lambda self: any(one.state == "leased" for one in self.model.deliveries))
    @rule(by=any_of, which=any_of, hours=st.sampled_from([0, 0, 1]))
    def release(self, by: int, which: int, hours: int) -> None:
        worker = self._worker(by)
        mine = self._in_hand(worker)
        if not mine:
            return
        one = mine[which % len(mine)]
        released = self.run(
            worker.store.release(Release(delivery_id=one.id, attempt=one.attempt, delay=float(hours * HOUR)))
        )
        with self.model.happening():
            expected = self.model.find(one.id)
            assert expected is not None
            self.model.release(expected, hours)
        assert (released is not None) == (expected.state == "pending")

    @precondition(lambda self: any(one.state == "leased" for one in self.model.deliveries))
    @rule(by=any_of, which=any_of)
    def interrupt(self, by: int, which: int) -> None:
        """It is not known any more what became of a lease."""
        worker = self._worker(by)
        mine = self._in_hand(worker)
        if not mine:
            return
        one = mine[which % len(mine)]
        assert self.run(worker.store.interrupt([one.id])) == 1
        with self.model.happening():
            expected = self.model.find(one.id)
            assert expected is not None
            waits = self.model.interrupt(expected)
        if waits:
            self._let_seconds_pass()

    # --- processes

    @rule(which=any_of)
    def freeze(self, which: int) -> None:
        """A process stands still."""
        worker = self.workers[which % 2]
        worker.is_frozen = not self.workers[1 - which % 2].is_frozen

    @precondition(lambda self: any(worker.is_frozen for worker in self.workers))
    @rule()
    def thaw(self) -> None:
        """It goes on, and finds that its session is over, if it is."""
        [worker] = [worker for worker in self.workers if worker.is_frozen]
        lives = worker.session in self.model.sessions
        if not lives:
            with pytest.raises(StoreUnavailable, match="session"):
                self.run(worker.store.due_lanes(after="", limit=1))
        assert self.run(worker.store.heartbeat()) == lives
        if not lives:
            self.run(worker.store.renew_session())
        worker.is_frozen = False
        self._beats(worker)

    @rule(which=any_of)
    def restart(self, which: int) -> None:
        """A process ends, and another begins: what it had is free."""
        worker = self.workers[which % 2]
        if worker.is_frozen:
            return
        self.run(worker.store.close())
        del self.model.sessions[worker.session]
        self.workers[which % 2] = self.run(self.place.worker())
        self._beats(self.workers[which % 2])

    @rule(by=any_of)
    def reap(self, by: int) -> None:
        worker = self._worker(by)
        self.run(worker.store.reap())
        with self.model.happening():
            waits = self.model.reap(worker.session)
        if waits:
            self._let_seconds_pass()

    def _let_seconds_pass(self) -> None:
        """What is suspected waits for seconds, which this machine may take for itself: now they are over."""
        self.pass_time(1)

    # --- work

    @precondition(lambda self: any(one.state == "queued" for one in self.model.tasks.values()))
    @rule(by=any_of)
    def lease_tasks(self, by: int) -> None:
        worker = self._worker(by)
        leased = self.run(worker.store.lease_tasks(TaskClaim(types=("count",), limit=100)))
        with self.model.happening():
            expected = self.model.lease_tasks(worker.session)
        assert {(one.id, one.attempt) for one in leased} == {(one.id, one.attempt) for one in expected}
        self.worked += [(worker, one) for one in leased]

    @precondition(lambda self: self.worked)
    @rule(by=any_of, which=any_of, end=st.sampled_from(["succeeded", "failed", "retry", "release"]))
    def finish_task(self, by: int, which: int, end: str) -> None:
        worker = self._worker(by)
        _, one = self.worked[-1 - which % len(self.worked)]
        task = self.model.works(one.id, one.attempt, worker.session)
        if end == "release":
            self.run(worker.store.release_task(TaskRelease(task_id=one.id, attempt=one.attempt)))
            with self.model.happening():
                if task is not None:
                    self.model.release_task(task)
            return
        report = TaskReport(task_id=one.id, attempt=one.attempt, retry_in=2.0 * HOUR)
        if end != "retry":
            report = replace(report, state=TaskState(end), body=Body(b"{}", JSON))
        if task is None:
            with pytest.raises(LeaseLost):
                self.run(worker.store.finish_task(report))
            return
        self.run(worker.store.finish_task(report))
        with self.model.happening():
            if end == "retry":
                self.model.retry(task, 2)
            else:
                self.model.finish(task, end)

    # --- callers

    def _task(self, which: int) -> str:
        return [*self.model.tasks, "0" * 32][which % (len(self.model.tasks) + 1)]

    @precondition(lambda self: self.model.tasks)
    @rule(by=any_of, which=any_of)
    def cancel(self, by: int, which: int) -> None:
        id_ = self._task(which)
        self._both(self._worker(by).store.cancel_task(ACCOUNT, id_), lambda _: self.model.cancel(id_))

    @precondition(lambda self: self.model.tasks)
    @rule(by=any_of, which=any_of, origin=st.sampled_from(ORIGINS), window=st.sampled_from([None, 2]))
    def replace_callback(self, by: int, which: int, origin: str, window: int | None) -> None:
        id_, lane = self._task(which), lane_of(ACCOUNT, origin)
        callback = new_task(origin=origin, url=f"{origin}/others", window_end=self._moment(window)).callback
        self._both(
            self._worker(by).store.replace_callback(ACCOUNT, id_, callback),
            lambda _: self.model.replace_callback(id_, lane, self._hour(window)),
        )
        self._adopt()

    @precondition(lambda self: self.model.deliveries)
    @rule(by=any_of, which=any_of)
    def redeliver(self, by: int, which: int) -> None:
        ended = [one for one in self.model.deliveries if not one.is_live] or self.model.deliveries
        id_ = ended[which % len(ended)].id or ""
        redelivered, expected = self._both(
            self._worker(by).store.redeliver(ACCOUNT, id_, None), lambda _: self.model.redeliver(id_)
        )
        self._adopt()
        if expected is not None:
            assert isinstance(redelivered, Redelivered)
            assert (redelivered.delivery_id, redelivered.lane) == (expected.id, expected.lane)

    @precondition(lambda self: any(one.state in store_model.MISSED for one in self.model.deliveries))
    @rule(by=any_of)
    def redeliver_all(self, by: int) -> None:
        store = self._worker(by).store

        async def all_of_them() -> None:
            wish = Bulk(id=new_id(), account=ACCOUNT, criteria=Criteria(since=0), key=None)
            await store.redeliver_all(wish)
            while (await store.step_redeliveries()).unfinished:
                pass

        self.run(all_of_them())
        with self.model.happening():
            self.model.redeliver_all()
        self._adopt()

    # --- owners

    def _subscription(self, which: int) -> str:
        return list(self.model.subscriptions)[which % len(self.model.subscriptions)]

    @rule(by=any_of, which=any_of)
    def disable(self, by: int, which: int) -> None:
        id_, store = self._subscription(which), self._worker(by).store
        self._both(store.disable_subscription(who(store), id_), lambda _: self.model.disable(id_))

    @precondition(lambda self: any(one.state != "active" for one in self.model.subscriptions.values()))
    @rule(by=any_of, which=any_of, then=st.sampled_from([Movement.RELEASE, Movement.RELEASE, Movement.DISCARD]))
    def enable(self, by: int, which: int, then: Movement) -> None:
        off = [one.id for one in self.model.subscriptions.values() if one.state == "disabled"]
        id_ = off[which % len(off)] if off else self._subscription(which)
        store = self._worker(by).store
        self._both(
            store.enable_subscription(who(store), id_, then),
            lambda changed: self.model.enable(
                id_, then, None if changed is None or changed.asked is None else changed.asked.delivery_id
            ),
        )
        self._adopt()

    @rule(by=any_of, which=any_of)
    def ping(self, by: int, which: int) -> None:
        id_, store = self._subscription(which), self._worker(by).store
        self._both(
            store.ping_subscription(who(store), id_),
            lambda asked: self.model.ping(id_, "" if asked is None else asked.delivery_id),
        )

    @precondition(lambda self: len(self.model.subscriptions) > 3)
    @rule(by=any_of, which=any_of)
    def delete(self, by: int, which: int) -> None:
        id_, store = self._subscription(which), self._worker(by).store
        self._both(store.delete_subscription(who(store), id_), lambda _: self.model.delete(id_))

    @rule(by=any_of, which=any_of, ordering=st.sampled_from(Ordering))
    def switch(self, by: int, which: int, ordering: Ordering) -> None:
        """Another order, from now on."""
        id_, store = self._subscription(which), self._worker(by).store

        def expected(_: object) -> None:
            self.model.standing(id_).ordering = ordering

        edited = store.change_subscription(who(store), id_, lambda before: _with_ordering(before, ordering))
        self._both(edited, expected)

    # --- what time does

    @precondition(lambda self: any(one.movement for one in self.model.subscriptions.values()))
    @rule(by=any_of, limit=st.integers(1, 3))
    def move(self, by: int, limit: int) -> None:
        self.run(self._worker(by).store.move_deliveries(limit))
        with self.model.happening():
            self.model.move(limit)

    @precondition(lambda self: any(one.state == "held" for one in self.model.deliveries))
    @rule(by=any_of)
    def end_holds(self, by: int) -> None:
        self.run(self._worker(by).store.end_holds())
        with self.model.happening():
            self.model.end_holds()

    @precondition(lambda self: any(one.window_end is not None for one in self.model.tasks.values()))
    @rule(by=any_of)
    def end_windows(self, by: int) -> None:
        self.run(self._worker(by).store.end_windows())
        with self.model.happening():
            self.model.end_windows()

    @precondition(lambda self: self.model.now >= store_model.KEPT)
    @rule(by=any_of)
    def forget(self, by: int) -> None:
        store = self._worker(by).store
        self.run(store.forget_answers())
        while self.run(store.delete_old(0)):
            pass
        with self.model.happening():
            self.model.forget_answers()
            self.model.delete_old()

    @rule(hours=st.sampled_from([1, 1, 2, 3, 24, 40]))
    def pass_time(self, hours: int) -> None:
        self.run(self._recede(hours * HOUR * 1000))
        with self.model.happening():
            self.model.pass_time(hours)
        for worker in self.workers:
            if not worker.is_frozen:
                assert self.run(worker.store.heartbeat())
                self._beats(worker)

    async def _recede(self, milliseconds: int) -> None:
        async with self.place.first.database.write() as connection:
            for table in metadata.sorted_tables:
                moments = {column.name: column - milliseconds for column in table.c if column.type is Instant}
                if moments:
                    await connection.execute(sa.update(table).values(moments))
        for worker in self.workers:
            # What it remembers of its leases has receded, too.
            worker.store._committer.leases.clear()

    # --- what must be the same

    def _adopt(self) -> None:
        """The ids of deliveries that the store gave them."""
        if all(one.id is not None for one in self.model.deliveries):
            return
        rows = self.run(delivery_rows(self.place.first))
        known = {one.id for one in self.model.deliveries}
        new = {
            (row["source_id"], row["subscription_id"], row["redelivery_of"]): row["id"]
            for row in rows
            if row["id"] not in known
        }
        for one in self.model.deliveries:
            if one.id is None:
                before = one.redelivery_of.id if one.redelivery_of else None
                one.id = new[one.source.id, one.subscription.id if one.subscription else None, before]

    @invariant()
    def they_say_the_same(self) -> None:
        self.place.steps += 1
        self._adopt()
        self.run(self._compare())
        assert not self.model.stuck()

    async def _compare(self) -> None:
        model = self.model
        async with self.place.first.database.read() as connection:
            rows, standing, work, tried = [
                (await connection.execute(sa.select(table))).mappings().all()
                for table in (deliveries, subscriptions, tasks, attempts)
            ]
            counts = await ledger.read(connection, ACCOUNT)
        now = time.time_ns() // 1_000_000
        assert_same(
            {row["id"]: _shown(row, _DELIVERY, now) for row in rows},
            {one.id or "": self._expected(one) for one in model.deliveries},
        )
        assert_same(
            {row["id"]: _shown(row, _SUBSCRIPTION, now) for row in standing},
            {one.id: self._expected_subscription(one) for one in model.subscriptions.values()},
        )
        assert_same(
            {row["id"]: _shown(row, _TASK, now) for row in work},
            {one.id: self._expected_task(one) for one in model.tasks.values()},
        )
        assert sorted((row["delivery_id"], row["number"], row["outcome"], row["status"]) for row in tried) == sorted(
            (one.id, *attempt) for one in model.deliveries for attempt in one.attempts
        )
        assert {state: number for state, number in counts.items() if number} == model.ledger()

    def _expected(self, one: store_model.Delivery) -> dict[str, Any]:
        return {
            "subscription_id": one.subscription.id if one.subscription else None,
            "kind": one.kind,
            "wire_id": one.wire_id,
            "redelivery_of": one.redelivery_of.id if one.redelivery_of else None,
            "lane": one.lane,
            "state": one.state,
            "reason": one.reason,
            "mark": one.mark,
            "attempt": one.attempt,
            "failures": one.failures,
            "last_outcome": one.last_outcome,
            "repeats": one.repeats,
            "session": one.session,
            "seq": one.place,
            "order_key": one.key,
            "refused": one.refused,
            "other_secret": one.other_secret,
            "body_id": one.has_body,
            "due_at": self._when(one.due),
            "hold_until": self._when(one.hold_until),
            "finished_at": one.finished is not None,
        }

    def _expected_subscription(self, one: store_model.Subscription) -> dict[str, Any]:
        return {
            "state": one.state,
            "disabled_reason": one.reason,
            "movement": one.movement,
            "verifying": one.verifying.id if one.verifying else None,
            "refusals": one.refusals,
            "failures": one.failures,
            "held": len(self.model.held(one)),
            "next_seq": one.next_place,
            "ordering": one.ordering,
        }

    def _expected_task(self, one: Task) -> dict[str, Any]:
        return {
            "state": one.state,
            "attempt": one.attempt,
            "failures": one.failures,
            "interruptions": one.interruptions,
            "session": one.session,
            "callback_url": not one.is_wiped,
            "delivery_id": self.model.latest(one).id,
            "due_at": self._when(one.due),
            "window_end": self._when(one.window_end),
            "finished_at": one.finished is not None,
        }

    def _when(self, hour: int | None) -> str:
        return "never" if hour is None else "now" if hour <= self.model.now else "later"


def machine_at(place: Place) -> type[Machine]:
    """A machine in this place."""
    return type("Machine", (Machine,), {"place": place})


#: columns as they are; of which only is looked whether there is something; and moments
Columns = tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]
_DELIVERY: Columns = (
    (
        "subscription_id", "kind", "wire_id", "redelivery_of", "lane", "state", "reason", "mark", "attempt",
        "failures", "last_outcome", "repeats", "session", "seq", "order_key", "refused", "other_secret",
    ),
    ("body_id", "finished_at"),
    ("due_at", "hold_until"),
)  # fmt: skip
_SUBSCRIPTION: Columns = (
    ("state", "disabled_reason", "movement", "verifying", "refusals", "failures", "held", "next_seq", "ordering"),
    (),
    (),
)
_TASK: Columns = (
    ("state", "attempt", "failures", "interruptions", "session", "delivery_id"),
    ("callback_url", "finished_at"),
    ("due_at", "window_end"),
)


def _shown(row: sa.RowMapping, columns: Columns, now: int) -> dict[str, Any]:
    values, is_there, moments = columns
    return {
        **{name: row[name] for name in values},
        **{name: row[name] is not None for name in is_there},
        **{name: "never" if row[name] is None else "now" if row[name] <= now else "later" for name in moments},
    }


def _as_leased(id_: str, one: store_model.Delivery) -> Any:
    """As the engine knows what was handed off: all that matters here are its names."""
    return _HandedOff(id=id_, attempt=one.attempt, kind=one.kind)


@dataclass(frozen=True, kw_only=True)
class _HandedOff:
    id: str
    attempt: int
    kind: str


def _report(one: LeasedDelivery, answer: retry.Answer, schedule: tuple[int, ...]) -> Report:
    now = time.monotonic()
    return Report(
        delivery_id=one.id,
        attempt=one.attempt,
        answer=answer,
        record=AttemptRecord(outcome=answer.outcome, status=answer.status, started=now, ended=now),
        schedule=tuple(float(hours * HOUR) for hours in schedule),
        jitter=0.0,
    )


def _with_ordering(before: Subscription, ordering: Ordering) -> Draft:
    said = {one.name: getattr(before, one.name) for one in fields(Draft)}
    return Draft(**{**said, "ordering": ordering})


#: seconds for which new examples are tried, by hand; else the same few
SECONDS = float(os.environ.get("MODEL_SECONDS", "0"))
FEW = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=6,
    stateful_step_count=50,
    suppress_health_check=list(HealthCheck),
    # To shrink a failure takes minutes, and to explain it would trace every line.
    phases=(Phase.generate,),
    report_multiple_bugs=False,
)
MANY = settings(FEW, derandomize=False, max_examples=50, phases=(Phase.generate, Phase.shrink))


@pytest.mark.timeout(SECONDS + 900)
def test_the_store_is_what_its_model_is(
    home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(publishing, "AT_ONCE", LIMITS.at_once)
    monkeypatch.setattr(making, "MAX_HELD", LIMITS.held)
    monkeypatch.setattr(retry, "POISON_AFTER", LIMITS.poison_after)
    monkeypatch.setattr(health, "MIN_FAILURES", LIMITS.failures)
    # Two processes in one wait for each other's connection to a file.
    monkeypatch.setattr(committer, "HELD_FOR", 0.0)
    until = time.monotonic() + SECONDS
    with place(home) as one:
        run_state_machine_as_test(machine_at(one), settings=FEW)
        while time.monotonic() < until:
            number = random.getrandbits(32)
            with capsys.disabled():
                print(f"\n{one.steps} steps; seed {number}", flush=True)
            run_state_machine_as_test(seed(number)(machine_at(one)), settings=MANY)
