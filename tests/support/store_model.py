"""What the store should do, written plainly: lists, loops and whole hours, and nothing of how it does it.

Each method is one thing that happens. What must be true of an order is not brought about step by step: after whatever
happened, each line is put as it should stand (`_line_up`). A machine that stands still for less than an hour changes
nothing here: every span is of whole hours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from dispatcher.models import Outcome
from dispatcher.retry import Answer

ENDED = frozenset({"delivered", "exhausted", "rejected", "expired", "cancelled"})
#: what a redelivery of many sends again
MISSED = frozenset({"exhausted", "rejected", "expired"})
#: 4xx that speak of the moment, and those that may speak of one payload
PASSING_4XX = frozenset({408, 423, 425, 429})
PAYLOAD_4XX = frozenset({400, 409, 413, 414, 415, 422, 431})
#: hours for which keys, and what has ended, are kept
KEPT = 24


class Refused(Exception):
    """What was asked is not done; the slug says why."""

    def __init__(self, slug: str) -> None:
        super().__init__(slug)
        self.slug = slug


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Numbers that production has larger."""

    #: deliveries that one request makes at once
    at_once: int
    #: deliveries that are held for one subscription
    held: int
    #: interruptions in a row that end a delivery, and from which on it waits
    poison_after: int
    suspect_after: int
    #: failures that it takes to find an endpoint failing
    failures: int
    #: what keeps no order is released after what does; nobody is promised that, and databases differ
    unplaced_last: bool


@dataclass(eq=False, kw_only=True)
class Source:
    """What deliveries tell of: an event, or a ping."""

    id: str
    #: the hour in which there was no more to do for it
    finished: int | None = None
    ordering_key: str | None = None


@dataclass(eq=False, kw_only=True)
class Task(Source):
    """A task, and its callback."""

    state: str
    lane: str
    window_end: int | None
    is_wiped: bool = False
    attempt: int = 0
    failures: int = 0
    interruptions: int = 0
    due: int | None = None
    session: str | None = None

    def is_over(self, now: int) -> bool:
        """Whether its window has ended."""
        return self.window_end is not None and self.window_end <= now


@dataclass(eq=False, kw_only=True)
class Subscription:
    """A subscription, and what is known of its endpoint."""

    id: str
    ordering: str
    on_exhausted: str
    disable_after_4xx: int
    disable_on: str
    #: hours
    disable_after: int
    hold_for: int
    state: str = "active"
    reason: str | None = None
    movement: str | None = None
    then: str | None = None
    verifying: Delivery | None = None
    refusals: int = 0
    failures: int = 0
    failing_since: int | None = None
    next_place: int = 0
    #: the moment at which it was enabled, and the hour in which it was deleted
    enabled: int = 0
    deleted: int = 0


@dataclass(eq=False, kw_only=True)
class Delivery:
    """A delivery."""

    #: known when it was seen in the database
    id: str | None = None
    source: Source
    subscription: Subscription | None
    lane: str
    wire_of: Delivery | None = None
    redelivery_of: Delivery | None = None
    kind: str = "message"
    #: the moment at which it was made
    made: int
    state: str = "pending"
    reason: str | None = None
    mark: str | None = None
    has_body: bool = True
    attempt: int = 0
    #: number, outcome, status
    attempts: list[tuple[int, str, int | None]] = field(default_factory=list)
    failures: int = 0
    last_outcome: str | None = None
    repeats: int = 0
    due: int | None = None
    session: str | None = None
    place: int | None = None
    key: str | None = None
    refused: bool = False
    other_secret: bool = False
    hold_until: int | None = None
    finished: int | None = None

    @property
    def is_live(self) -> bool:
        return self.state not in ENDED

    @property
    def wire_id(self) -> str | None:
        return self.id if self.wire_of is None else self.wire_of.wire_id


@dataclass(eq=False, kw_only=True)
class FanOut:
    """An event whose deliveries are still being made."""

    event: Source
    targets: list[Subscription]


@dataclass(kw_only=True)
class Model:
    """One account."""

    limits: Limits
    #: hours since the beginning
    now: int = 0
    #: things that happened so far: moments, finer than hours
    moment: int = 0
    #: the hour until which each session lives
    sessions: dict[str, int] = field(default_factory=dict)
    subscriptions: dict[str, Subscription] = field(default_factory=dict)
    tasks: dict[str, Task] = field(default_factory=dict)
    events: dict[str, Source] = field(default_factory=dict)
    deliveries: list[Delivery] = field(default_factory=list)
    fan_outs: list[FanOut] = field(default_factory=list)
    #: the body and the answer of each key, and the hour in which it was used
    keys: dict[str, tuple[bytes, bytes, int]] = field(default_factory=dict)
    #: deliveries that were accepted, and that ended in each state, rows or no rows
    counted: Counter[str] = field(default_factory=Counter)

    # --- what can be asked

    def find(self, id_: str) -> Delivery | None:
        """A delivery by its id."""
        return next((one for one in self.deliveries if one.id == id_), None)

    def of(self, source: Source) -> list[Delivery]:
        """The deliveries that tell of something."""
        return [one for one in self.deliveries if one.source is source]

    def latest(self, task: Task) -> Delivery:
        """The latest delivery of a task's result."""
        return self.of(task)[-1]

    def held(self, subscription: Subscription) -> list[Delivery]:
        """What is held for a subscription, in the order in which it is released."""
        found = [one for one in self.deliveries if one.subscription is subscription and one.state == "held"]
        last = self.limits.unplaced_last
        return sorted(found, key=lambda one: ((one.place is None) == last, one.place or 0, one.id or ""))

    def due(self) -> list[Delivery]:
        """What may be leased."""
        return [one for one in self.deliveries if one.state == "pending" and self._is_due(one.due)]

    def waiting_lanes(self) -> dict[str, int]:
        """The lanes in which something waits for its time, and the hour of the first."""
        lanes: dict[str, int] = {}
        for one in self.deliveries:
            if one.state == "pending" and one.due is not None:
                lanes[one.lane] = min(one.due, lanes.get(one.lane, one.due))
        return lanes

    def holds(self, id_: str, attempt: int, session: str) -> Delivery | None:
        """The delivery whose lease this session has by this number, if it has."""
        one = self.find(id_)
        is_held = one is not None and (one.state, one.attempt, one.session) == ("leased", attempt, session)
        return one if is_held else None

    def earlier(self, key: str | None, fingerprint: bytes) -> bytes | None:
        """What was answered under this key before."""
        if key is None or key not in self.keys or self._is_old(self.keys[key][2]):
            return None
        if self.keys[key][0] != fingerprint:
            raise Refused("idempotency-mismatch")
        return self.keys[key][1]

    def ledger(self) -> dict[str, int]:
        """What is not zero of the ledger."""
        return dict(self.counted + Counter(one.state for one in self.deliveries if one.is_live))

    def stuck(self) -> list[Delivery]:
        """What nothing would ever move again."""
        return [one for one in self.deliveries if one.is_live and not self._moves(one)]

    def _moves(self, one: Delivery) -> bool:
        if one.state == "held":
            assert one.subscription is not None
            return one.subscription.state == "disabled" or one.subscription.movement is not None
        before = (
            other for other in self.deliveries if other.is_live and (other.lane, other.key) == (one.lane, one.key)
        )
        waits = one.place is not None and any(
            (other.place or 0) < one.place or other.state == "leased" for other in before
        )
        works = isinstance(one.source, Task) and one.source.state in {"queued", "processing"}
        return one.state == "leased" or one.due is not None or waits or works

    def _is_due(self, hour: int | None) -> bool:
        return hour is not None and hour <= self.now

    def _is_old(self, hour: int) -> bool:
        return hour <= self.now - KEPT

    # --- time and sessions

    def pass_time(self, hours: int) -> None:
        """Let hours go by."""
        self.now += hours

    @contextmanager
    def happening(self) -> Iterator[None]:
        """Something happens: a moment of its own, and afterwards each line stands as it should."""
        self.moment += 1
        yield
        self._line_up()

    def _line_up(self) -> None:
        lines: dict[tuple[str, str | None], list[Delivery]] = {}
        for one in self.deliveries:
            if one.is_live and one.place is not None:
                lines.setdefault((one.lane, one.key), []).append(one)
        for line in lines.values():
            first, *others = sorted(line, key=lambda one: one.place or 0)
            if any(one.state == "leased" for one in line):
                # What is being sent is waited for, even by something that is sent again and stands before it.
                others = line
            elif first.state == "pending" and first.due is None:
                first.due = self.now
            for one in others:
                one.due = None

    def reap(self, by: str) -> bool:
        """Free what dead sessions held. Whether something waits for some seconds because of it."""
        for name, until in list(self.sessions.items()):
            if name != by and until <= self.now:
                del self.sessions[name]
        waits = False
        for task in self.tasks.values():
            if task.state == "processing" and task.session not in self.sessions:
                task.interruptions += 1
                waits |= task.interruptions >= self.limits.suspect_after
                self._queue(task, self._after(task.interruptions))
        for one in self.deliveries:
            if one.state == "leased" and one.session not in self.sessions:
                waits |= self.interrupt(one)
        return waits

    def interrupt(self, one: Delivery) -> bool:
        """A lease ended without a report. Whether the delivery waits for some seconds because of it."""
        self.settle(one, Answer(outcome=Outcome.INTERRUPTED), ())
        return one.state == "pending" and one.repeats >= self.limits.suspect_after

    def _after(self, interruptions: int) -> int:
        """Seconds are within the hour."""
        return self.now + (interruptions >= self.limits.suspect_after)

    # --- making

    def _add(self, one: Delivery) -> Delivery:
        self.deliveries.append(one)
        self.counted["accepted"] += 1
        return one

    def _end(self, one: Delivery, state: str, reason: str | None) -> None:
        one.state, one.reason, one.finished = state, reason, self.now
        one.due = one.session = one.mark = one.hold_until = None
        self.counted[state] += 1
        if isinstance(one.source, Task) and state in {"delivered", "expired"}:
            one.source.is_wiped = True

    def _hold(self, one: Delivery) -> None:
        assert one.subscription is not None
        one.state, one.due, one.session = "held", None, None
        one.hold_until = self.now + one.subscription.hold_for

    def accept(self, task: Task, delivery_id: str, session: str | None) -> None:
        """A task is accepted; a session means that its delivery is handed off."""
        self.tasks[task.id] = task
        is_done = task.state == "succeeded"
        task.finished, task.due = (self.now, None) if is_done else (None, self.now)
        one = self._add(Delivery(id=delivery_id, source=task, subscription=None, lane=task.lane, made=self.moment))
        one.has_body = is_done
        one.due = self.now if is_done else None
        if session is not None:
            self._lease(one, session)

    def publish(self, events: Sequence[Source], handed_off: Callable[[str, str], bool], session: str) -> None:
        """Events are accepted, by one request; `handed_off` says what went to the session's lanes at once."""
        room = self.limits.at_once
        for event in events:
            self.events[event.id] = event
            targets = [one for one in self.subscriptions.values() if one.state != "deleted" and one.reason != "gone"]
            later: list[Subscription] = []
            if len(targets) > room:
                later = [one for one in targets if one.ordering == "none"]
                targets = [one for one in targets if one.ordering != "none"]
            if later:
                self.fan_outs.append(FanOut(event=event, targets=later))
            room -= len(targets)
            event.finished = None if later else self.now
            for to in targets:
                one = self._make(event, to)
                if handed_off(event.id, to.id):
                    assert one.state == "pending"
                    assert one.place is None
                    self._lease(one, session)

    def fan_out(self) -> None:
        """One step: it makes what up to four events have yet to get."""
        for job in sorted(self.fan_outs, key=lambda job: job.event.id)[:4]:
            for to in job.targets:
                self._make(job.event, to)
            job.event.finished = self.now
            self.fan_outs.remove(job)

    def _make(self, event: Source, to: Subscription) -> Delivery:
        one = self._add(Delivery(source=event, subscription=to, lane=f"acme {to.id}", made=self.moment, due=self.now))
        if to.state == "deleted":
            self._end(one, "cancelled", "deleted")
        elif to.state == "disabled" and len(self.held(to)) >= self.limits.held:
            self._end(one, "expired", "quota")
        else:
            if to.ordering != "none" and (to.ordering == "fifo" or event.ordering_key is not None):
                one.key = "" if to.ordering == "fifo" else event.ordering_key
                one.place, to.next_place, one.due = to.next_place, to.next_place + 1, None
            if to.state == "disabled":
                self._hold(one)
        return one

    # --- work

    def lease_tasks(self, session: str) -> list[Task]:
        """All that is due is leased, but for what came too late."""
        due = [one for one in self.tasks.values() if one.state == "queued" and self._is_due(one.due)]
        for task in due:
            if task.is_over(self.now):
                self._end_task(task, "expired", "window")
            else:
                task.state, task.due, task.session = "processing", None, session
                task.attempt += 1
        return [task for task in due if task.state == "processing"]

    def works(self, task_id: str, attempt: int, session: str) -> Task | None:
        """The task whose lease this session has by this number, if it has."""
        task = self.tasks.get(task_id)
        has = task is not None and (task.state, task.attempt, task.session) == ("processing", attempt, session)
        return task if has else None

    def finish(self, task: Task, state: str) -> None:
        """A task has its result."""
        task.state, task.session, task.finished = state, None, self.now
        for one in self.of(task):
            one.has_body, one.due = True, self.now

    def retry(self, task: Task, hours: int) -> None:
        """A try at a task failed."""
        task.failures += 1
        task.interruptions = 0
        self._queue(task, self.now + hours)

    def release_task(self, task: Task) -> None:
        """A task is given back that was not begun."""
        task.attempt -= 1
        self._queue(task, self.now)

    def _queue(self, task: Task, due: int) -> None:
        task.state, task.due, task.session = "queued", due, None

    def _end_task(self, task: Task, state: str, reason: str) -> None:
        """A task ends without a result, and so does the delivery that waits for it."""
        task.state, task.due, task.session, task.finished = state, None, None, self.now
        for one in self.of(task):
            self._end(one, state, reason)

    def end_windows(self) -> None:
        """What waits for a callback that can be used no more is over."""
        for task in self.tasks.values():
            if task.is_wiped or not task.is_over(self.now):
                continue
            if task.state in {"queued", "processing"}:
                self._end_task(task, "expired", "window")
            for one in self.of(task):
                if one.state == "pending":
                    self._end(one, "expired", "window")
            task.is_wiped = True

    def cancel(self, task_id: str) -> None:
        """A caller withdraws a task."""
        task = self.tasks.get(task_id)
        if task is None:
            raise Refused("not-found")
        one = self.latest(task)
        if task.state in {"queued", "processing"}:
            self._end_task(task, "cancelled", "cancelled")
        elif one.state == "leased":
            one.mark = "cancel"
        elif one.state == "pending":
            self._end(one, "cancelled", "cancelled")
        elif one.state != "cancelled":
            raise Refused("conflict")

    def replace_callback(self, task_id: str, lane: str, window_end: int | None) -> None:
        """A caller puts another callback."""
        task = self.tasks.get(task_id)
        if task is None:
            raise Refused("not-found")
        one = self.latest(task)
        if task.state in {"expired", "cancelled"} or one.mark == "cancel":
            raise Refused("conflict")
        task.lane, task.window_end, task.is_wiped = lane, window_end, False
        if one.state == "leased":
            one.mark = "retarget"
        elif one.is_live:
            one.lane, one.due = lane, self.now if one.has_body else None
        else:
            self._send_again(one)

    # --- leases

    def _lease(self, one: Delivery, session: str) -> None:
        one.state, one.due, one.session = "leased", None, session
        one.attempt += 1

    def lease(self, chosen: Iterable[Delivery], session: str) -> list[Delivery]:
        """What was found due is leased, or ends, or is held."""
        leased = []
        for one in chosen:
            to = one.subscription
            if isinstance(one.source, Task) and (one.source.is_wiped or one.source.is_over(self.now)):
                self._end(one, "expired", "window")
            elif to is not None and to.state == "deleted":
                self._end(one, "cancelled", "deleted")
            elif to is not None and to.state == "disabled" and one.kind == "message":
                self._hold(one)
            else:
                self._lease(one, session)
                leased.append(one)
        return leased

    def release(self, one: Delivery, hours: int) -> None:
        """A lease is given back as if it had never been taken."""
        if one.mark == "cancel":
            self._end(one, "cancelled", "deleted" if one.subscription else "cancelled")
            return
        one.attempt -= 1
        self._wait(one, 0 if one.mark == "retarget" else hours)

    def _wait(self, one: Delivery, hours: int) -> None:
        one.state, one.session, one.mark, one.due = "pending", None, None, self.now + hours
        if isinstance(one.source, Task):
            one.lane = one.source.lane

    # --- answers

    def settle(self, one: Delivery, answer: Answer, schedule: tuple[int, ...]) -> None:
        """An attempt ended, by this answer (hours are in the schedule, seconds in the answer)."""
        to = one.subscription if one.kind == "message" else None
        outcome = str(answer.outcome)
        mark = "cancel" if one.subscription is not None and one.subscription.state == "deleted" else one.mark
        one.attempts.append((one.attempt, outcome, answer.status))
        one.repeats = one.repeats + 1 if outcome == one.last_outcome else 1
        one.last_outcome = outcome
        refusal = self._refusal(one, answer)
        other_secret = answer.other_secret and not one.other_secret and refusal == "rejected"
        if outcome != "success" and mark is None and other_secret and (to is None or to.state == "active"):
            one.other_secret = True
            self._wait(one, 0)
            return
        one.other_secret = False
        disabled_it = to is not None and mark is None and self._learn(to, one, answer, refusal)
        if outcome == "success":
            self._end(one, "delivered", None)
        elif mark == "cancel":
            self._end(one, "cancelled", "deleted" if one.subscription else "cancelled")
        elif mark == "retarget":
            if self._is_over(one, self.now):
                self._end(one, "expired", "window")
            else:
                one.repeats = 0
                self._wait(one, 0)
        elif outcome == "interrupted":
            self._interrupted(one)
        else:
            self._failed(one, answer, schedule, refusal)
        if one.state == "pending" and to is not None and to.state == "disabled":
            self._hold(one)
        one.refused |= disabled_it and one.state == "held"
        self._follow(one)

    def _refusal(self, one: Delivery, answer: Answer) -> str | None:
        if answer.abort:
            return "aborted"
        if answer.outcome == "egress_refused" and one.repeats >= 3:
            return "egress"
        status = answer.status
        if status is None or not 400 <= status <= 499 or status in PASSING_4XX:
            return None
        return "gone" if status == 410 else "rejected"

    def _interrupted(self, one: Delivery) -> None:
        if one.repeats >= self.limits.poison_after:
            self._end(one, "exhausted", "poison")
        elif self._is_over(one, self.now):
            self._end(one, "expired", "window")
        else:
            self._wait(one, self._after(one.repeats) - self.now)

    def _failed(self, one: Delivery, answer: Answer, schedule: tuple[int, ...], refusal: str | None) -> None:
        left = schedule[one.failures :]
        pause = round((answer.retry_after or 0) / 3600)
        one.failures += 1
        if refusal == "rejected" and one.subscription and one.kind == "message" and one.subscription.state != "active":
            self._hold(one)
        elif refusal is not None:
            self._end(one, "rejected", refusal)
        elif not left:
            self._end(one, "exhausted", "schedule")
        elif pause > 24:
            self._end(one, "exhausted", "retry-after")
        elif self._is_over(one, self.now + pause):
            # The last try begins half a minute before the end: an hour that ends with the window is too late.
            self._end(one, "expired", "window")
        else:
            self._wait(one, max(left[0], pause))

    def _is_over(self, one: Delivery, hour: int) -> bool:
        return isinstance(one.source, Task) and one.source.is_over(hour)

    def _learn(self, to: Subscription, one: Delivery, answer: Answer, refusal: str | None) -> bool:
        """What an answer says of the endpoint. Whether it is a refusal that disables the subscription."""
        if answer.outcome == "success":
            to.refusals, to.failures, to.failing_since = 0, 0, None
        if answer.outcome in {"success", "interrupted", "internal_error"} or refusal == "aborted":
            if answer.disable:
                self._disable(to, "asked")
            return False
        is_spared = refusal == "rejected" and to.disable_on == "endpoint" and answer.status in PAYLOAD_4XX
        if not is_spared:
            to.failures += 1
            to.refusals += refusal == "rejected"
            to.failing_since = self.now if to.failing_since is None else to.failing_since
        if refusal in {"gone", "egress"}:
            self._disable(to, str(refusal))
        elif answer.disable:
            self._disable(to, "asked")
        elif is_spared or (refusal == "rejected" and one.refused):
            pass
        elif refusal == "rejected" and to.refusals >= to.disable_after_4xx:
            return self._disable(to, "rejected")
        elif (
            to.failing_since is not None
            and to.failures >= self.limits.failures
            and self.now - to.failing_since >= to.disable_after
        ):
            self._disable(to, "failing")
        return False

    def _follow(self, one: Delivery) -> None:
        """What becomes of the subscription by what became of its delivery."""
        to = one.subscription
        if to is None or one.is_live:
            return
        if one.state == "exhausted" and one.kind == "message" and one.place is not None and to.on_exhausted == "block":
            self._disable(to, "blocked")
        if to.verifying is one:
            if one.state == "delivered":
                to.state, to.reason, to.enabled = "active", None, self.moment
                to.movement, to.then = to.then or "release", None
                to.refusals, to.failures, to.failing_since = 0, 0, None
            to.verifying = None

    # --- subscriptions

    def _disable(self, to: Subscription, reason: str) -> bool:
        if to.state != "active" and (reason != "gone" or to.reason == "gone"):
            return False
        to.state, to.reason, to.movement = "disabled", reason, "hold"
        return True

    def standing(self, id_: str) -> Subscription:
        """A subscription that its owner can do something with."""
        found = self.subscriptions.get(id_)
        if found is None or found.state == "deleted":
            raise Refused("not-found")
        return found

    def disable(self, id_: str) -> None:
        """Its owner disables a subscription."""
        to = self.standing(id_)
        self._disable(to, "manual")
        to.verifying = None

    def enable(self, id_: str, then: str, ping: str | None) -> None:
        """Its owner wants it enabled: its endpoint is asked, by this ping."""
        to = self.standing(id_)
        if to.state == "active":
            assert ping is None
            return
        assert ping is not None
        to.verifying, to.then = self.ping(id_, ping), then

    def ping(self, id_: str, delivery_id: str) -> Delivery:
        """Its owner has a ping sent."""
        to = self.standing(id_)
        return self._add(
            Delivery(
                id=delivery_id,
                source=Source(id="", finished=self.now),
                subscription=to,
                lane=f"acme {to.id} ping",
                kind="ping",
                made=self.moment,
                due=self.now,
            )
        )

    def delete(self, id_: str) -> None:
        """Its owner deletes it."""
        to = self.standing(id_)
        to.state, to.reason, to.movement, to.verifying, to.deleted = "deleted", None, "cancel", None, self.now

    def move(self, release: int) -> None:
        """One step for each subscription that changed."""
        for to in self.subscriptions.values():
            if to.movement is not None and not self._step(to, release):
                to.movement = None

    def _step(self, to: Subscription, release: int) -> int:
        match to.movement:
            case "hold":
                moved = self._waiting(to, lambda _one: True)
                for one in moved:
                    self._hold(one)
            case "release":
                moved = self.held(to)[: None if to.ordering == "fifo" else release]
                for one in moved:
                    self._wait(one, 0)
                    one.due = self.now if one.place is None else None
                    one.hold_until, one.last_outcome, one.other_secret = None, None, False
                    one.failures = one.repeats = 0
            case "discard":
                moved = self.held(to) + self._waiting(to, lambda one: one.made < to.enabled)
                for one in moved:
                    self._end(one, "cancelled", "discarded")
            case _:
                for one in self.deliveries:
                    if one.subscription is to and one.state == "leased":
                        one.mark = "cancel"
                moved = self.held(to) + self._waiting(to, lambda _one: True)
                for one in moved:
                    self._end(one, "cancelled", "deleted")
        return len(moved)

    def _waiting(self, to: Subscription, which: Callable[[Delivery], bool]) -> list[Delivery]:
        """Messages that wait for their time; when there are none any more, those that wait for others."""
        mine = [
            one
            for one in self.deliveries
            if one.subscription is to and one.kind == "message" and one.state == "pending" and which(one)
        ]
        return [one for one in mine if one.due is not None] or mine

    def end_holds(self) -> None:
        """What was held for long enough is over."""
        for one in self.deliveries:
            if one.state == "held" and self._is_due(one.hold_until):
                self._end(one, "expired", "hold")

    # --- again

    def redeliver(self, id_: str) -> Delivery:
        """A caller wants an ended delivery sent again."""
        one = self.find(id_)
        if one is None:
            raise Refused("not-found")
        if one.is_live:
            raise Refused("conflict")
        to = one.subscription
        if isinstance(one.source, Task):
            if self.latest(one.source).is_live or not one.has_body:
                raise Refused("conflict")
            if one.source.is_wiped or one.source.is_over(self.now):
                raise Refused("callback-wiped")
            return self._send_again(one)
        if to is None or to.id not in self.subscriptions or to.state == "deleted" or one.kind != "message":
            raise Refused("conflict")
        if any(other.is_live for other in self._same(one)):
            raise Refused("conflict")
        is_held = to.state == "disabled" or (one.place is not None and to.movement == "release")
        if is_held and len(self.held(to)) >= self.limits.held:
            raise Refused("conflict")
        again = self._send_again(one)
        if is_held:
            self._hold(again)
        return again

    def redeliver_all(self) -> None:
        """All that did not arrive, and was not sent again since, is sent again."""
        for one in sorted(self.deliveries, key=lambda one: one.id or ""):
            if one.state in MISSED and one.kind == "message" and one is self._same(one)[-1]:
                try:
                    self.redeliver(one.id or "")
                except Refused:
                    continue

    def _same(self, one: Delivery) -> list[Delivery]:
        """Deliveries of the same message to the same endpoint, the latest last."""
        return [other for other in self.of(one.source) if other.wire_id == one.wire_id]

    def _send_again(self, one: Delivery) -> Delivery:
        is_callback = isinstance(one.source, Task)
        return self._add(
            Delivery(
                source=one.source,
                subscription=one.subscription,
                lane=one.source.lane if isinstance(one.source, Task) else one.lane,
                wire_of=one,
                redelivery_of=one,
                made=self.moment,
                due=self.now if is_callback or one.place is None else None,
                place=one.place,
                key=one.key,
            )
        )

    # --- forgetting

    def forget_answers(self) -> None:
        """Keys that are past their time are free again."""
        self.keys = {key: kept for key, kept in self.keys.items() if not self._is_old(kept[2])}

    def delete_old(self) -> None:
        """What ended a day ago is deleted; the ledger goes on to count it."""

        def is_over(source: Source) -> bool:
            hours = [source.finished, *(one.finished for one in self.of(source))]
            return all(hour is not None and self._is_old(hour) for hour in hours)

        gone = {id(one) for one in (*self.tasks.values(), *self.events.values()) if is_over(one)}
        self.tasks = {name: one for name, one in self.tasks.items() if id(one) not in gone}
        self.events = {name: one for name, one in self.events.items() if id(one) not in gone}
        self.deliveries = [one for one in self.deliveries if id(one.source) not in gone]
        named = {id(one.subscription) for one in self.deliveries}
        for name, to in list(self.subscriptions.items()):
            if (to.state, to.movement) == ("deleted", None) and self._is_old(to.deleted) and id(to) not in named:
                del self.subscriptions[name]
