"""What becomes of leased deliveries: settle, reap, interrupt. And, for those of subscriptions, of the subscription.

docs/states.md draws the states. A lease raises `attempt`; that number is the fencing token, so whoever reports on
an older one changes nothing. What an answer means, `dispatcher.retry` and `subscriptions.health` say.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from time import monotonic
from typing import Any, NamedTuple

import sqlalchemy as sa

from dispatcher import retry
from dispatcher.errors import LeaseChanged, LeaseLost
from dispatcher.models import TERMINAL_STATES, DeliveryKind, DeliveryState, Mark, Outcome
from dispatcher.store import endpoints, holding, ordering
from dispatcher.store.committer import Transaction
from dispatcher.store.deliveries import cancel_reason, count_held, lane_after, leased_rows, wiping
from dispatcher.store.leases import Leased
from dispatcher.store.notices import NoticeType
from dispatcher.store.records import AttemptRecord, Report, Settled
from dispatcher.store.sessions import is_over
from dispatcher.store.statements import Statement, among, as_json
from dispatcher.store.tables import attempts, deliveries, is_live, subscriptions
from subscriptions import health
from subscriptions.health import DisabledReason, DisableOn, Health, Policy
from subscriptions.models import OnExhausted, SubscriptionState


class _Outcome(NamedTuple):
    """One report, the row it is on, and what follows."""

    report: Report
    row: Leased
    decision: retry.Decision
    #: it is the refusal that disabled the subscription
    refused: bool = False


async def settle(tx: Transaction, reports: Sequence[Report]) -> list[Settled | LeaseLost]:
    """Record attempts and what follows from them. A report on a lease that is no longer held answers LeaseLost."""
    rows = await _rows(tx, reports)
    held = [
        (report, rows[report.delivery_id])
        for report in reports
        if report.delivery_id in rows and _holds(report, rows[report.delivery_id], tx)
    ]
    outcomes, promoted = await _conclude(tx, held)
    settled = {outcome.row.id: outcome for outcome in outcomes}
    results: list[Settled | LeaseLost] = []
    for report in reports:
        outcome = settled.get(report.delivery_id)
        if outcome is None or outcome.report is not report:
            results.append(LeaseLost("the lease of this delivery is no longer held"))
            continue
        lane, decision = lane_after(outcome.row), outcome.decision
        if decision.pause is not None and outcome.row.kind == DeliveryKind.MESSAGE:
            # A ping is asked for by somebody who waits; a pause would keep the next one waiting, too.
            tx.news.pauses[outcome.row.lane] = max(decision.pause, tx.news.pauses.get(outcome.row.lane, 0.0))
        # What has its turn now, we lease ourselves: we are at this lane, and others need not hear of it.
        results.append(Settled(state=decision.state, lane=lane, delay=decision.delay, promoted=lane in promoted))
    return results


async def settle_all(tx: Transaction, gathered: Sequence[Sequence[Report]]) -> list[list[Settled | LeaseLost]]:
    """The same for reports that were gathered before: each group is one write, with an answer for each report."""
    answers = iter(await settle(tx, [report for reports in gathered for report in reports]))
    return [[next(answers) for _ in reports] for reports in gathered]


async def _rows(tx: Transaction, reports: Sequence[Report]) -> dict[str, Leased]:
    """The deliveries that are reported on, if they are leased; as they were leased, where that is known here."""
    known: dict[str, Leased] = {}
    unknown: list[str] = []
    for report in reports:
        row = tx.leases.take(report.delivery_id, report.attempt, tx.session)
        if row is None:
            unknown.append(report.delivery_id)
        else:
            known[row.id] = row
    return known | await leased_rows(tx, unknown)


def _holds(report: Report, row: Leased, tx: Transaction) -> bool:
    return row.attempt == report.attempt and row.session == tx.session


async def reap(tx: Transaction, limit: int) -> int:
    """Free what dead sessions left leased, `limit` at most. Answers how many there were."""
    ids = await tx.connection.scalars(
        sa.select(deliveries.c.id)
        .where(is_live, deliveries.c.state == DeliveryState.LEASED, is_over(deliveries.c.session))
        .limit(limit)
        # Held until they are freed: another process may be at the same ones, and lease them anew in between.
        .with_for_update(skip_locked=True)
    )
    return await interrupt(tx, list(ids))


async def interrupt(tx: Transaction, ids: list[str], *, held_by: str | None = None) -> int:
    """Record that leases of these deliveries ended without a report; of one session only, if it is named."""
    rows = await leased_rows(tx, ids)
    left = [row for row in rows.values() if held_by is None or row.session == held_by]
    await _conclude(tx, [(_interrupted(row.id, row.attempt), row) for row in left])
    tx.news.more |= bool(left)
    return len(left)


def _interrupted(delivery_id: str, attempt: int) -> Report:
    now = monotonic()
    return Report(
        delivery_id=delivery_id,
        attempt=attempt,
        answer=retry.Answer(outcome=Outcome.INTERRUPTED),
        record=AttemptRecord(
            outcome=Outcome.INTERRUPTED,
            error="the worker ended without a report; the request may have been sent",
            started=now,
            ended=now,
        ),
        schedule=(),
        jitter=random.uniform(-1, 1),  # noqa: S311 - spreads retries; nothing secret hangs on it
    )


# --- decide -----------------------------------------------------------------------------------------------


async def _conclude(tx: Transaction, reported: Sequence[tuple[Report, Leased]]) -> tuple[list[_Outcome], set[str]]:
    """Decide and write. Answers the outcomes, and lanes where others became due."""
    ids = [row.subscription_id for _, row in reported if row.subscription_id is not None]
    standing = await endpoints.standing(tx.connection, ids, lock=True)
    known = {id_: _Standing(row) for id_, row in standing.items()}
    outcomes = [_outcome(report, row, known, tx.now) for report, row in reported]
    await _write(tx, outcomes, known)
    for one in known.values():
        await one.write(tx)
    # Also where it goes on: something that is sent again may stand before it now.
    promoted = await ordering.promote(tx, ordering.groups_of(one.row for one in outcomes))
    tx.news.chores |= any(one.moves for one in known.values())
    return outcomes, promoted


def _outcome(report: Report, row: Leased, known: dict[str, _Standing], now: int) -> _Outcome:
    standing = None if row.subscription_id is None else known.get(row.subscription_id)
    history = retry.History(
        failures=row.failures,
        last_outcome=Outcome(row.last_outcome) if row.last_outcome else None,
        repeats=row.repeats,
        mark=_mark(report, row, standing),
        other_secret=bool(row.other_secret),
    )
    is_message = row.kind == DeliveryKind.MESSAGE
    refused = False
    if standing is not None and is_message and history.mark is None:
        refused = standing.judge(report.answer, history, now=now, may_disable=not row.refused)
    decision = retry.decide(
        report.answer,
        history,
        schedule=report.schedule,
        now=now / 1000,
        window_end=row.window_end / 1000 if row.window_end is not None else None,
        jitter=report.jitter,
        disabled=standing is not None and is_message and standing.is_disabled,
    )
    if standing is not None:
        standing.follow(row, decision, report, is_message=is_message)
    return _Outcome(report=report, row=row, decision=decision, refused=refused)


def _mark(report: Report, row: Leased, standing: _Standing | None) -> Mark | None:
    """What was asked of a delivery while it was sent, by itself or by a change of its subscription."""
    if standing is not None and standing.is_deleted:
        # What is being sent is marked step by step; it counts from the first moment.
        return Mark.CANCEL
    if row.mark:
        return Mark(row.mark)
    if standing is not None and not standing.is_disabled and standing.is_newer(report):
        # A refusal of the secret, the URL or the headers that it had says nothing about those that it has.
        is_refused = retry.refusal(report.answer, retry.History()) in {retry.REJECTED, retry.GONE}
        return Mark.RETARGET if is_refused and row.kind == DeliveryKind.MESSAGE else None
    return None


class _Standing:
    """A subscription while its deliveries are settled, one after the other."""

    def __init__(self, row: endpoints.Standing) -> None:
        self.row = row
        self.is_disabled = row["state"] != SubscriptionState.ACTIVE
        self.is_deleted = row["state"] == SubscriptionState.DELETED
        self._before = Health(
            refusals=row["refusals"],
            failures=row["failures"],
            failing_since=None if row["failing_since"] is None else row["failing_since"] / 1000,
        )
        self._health = self._before
        self._policy = Policy(
            disable_after_4xx=row["disable_after_4xx"],
            disable_on=DisableOn(row["disable_on"]),
            disable_after=row["disable_after"],
        )
        self._disable: DisabledReason | None = None
        self._status: int | None = None
        self._failing = False
        self._exhausted = 0
        self._verified: bool | None = None
        self._granted_rate: float | None = None

    def is_newer(self, report: Report) -> bool:
        """Whether it was changed since this attempt was made of it."""
        return report.version is not None and report.version != self.row["version"]

    @property
    def moves(self) -> bool:
        """Whether there are deliveries to hold or to release, or something to tell of."""
        return bool(self._disable is not None or self._verified or self._failing or self._exhausted)

    def judge(self, answer: retry.Answer, history: retry.History, *, now: int, may_disable: bool) -> bool:
        """Learn from an answer. Whether it is the refusal that disables the subscription."""
        if retry.wants_other_secret(answer, history) and not self.is_disabled:
            return False
        kind = retry.health_kind(answer, history)
        verdict = health.judge(
            kind,
            self._health,
            self._policy,
            now=now / 1000,
            status=answer.status,
            asks_to_stop=answer.disable,
            may_disable=may_disable,
        )
        self._health = verdict.health
        self._failing = self._failing or verdict.failing
        if verdict.disable is None:
            return False
        return self._note_disabled(verdict.disable, answer.status) and verdict.disable is DisabledReason.REJECTED

    def _note_disabled(self, reason: DisabledReason, status: int | None = None) -> bool:
        # An endpoint that is gone is gone, whatever it was disabled for before.
        if self.is_disabled and (reason is not DisabledReason.GONE or self.row["disabled_reason"] == reason):
            return False
        self.is_disabled = True
        self._disable, self._status = reason, status
        return True

    def follow(self, row: Leased, decision: retry.Decision, report: Report, *, is_message: bool) -> None:
        """Learn from what becomes of a delivery."""
        if row.id == self.row["verifying"] and decision.state in TERMINAL_STATES:
            self._verified = decision.state is DeliveryState.DELIVERED
            self._granted_rate = report.granted_rate
        if decision.state is DeliveryState.EXHAUSTED and is_message:
            self._exhausted += 1
            if row.seq is not None and self.row["on_exhausted"] == OnExhausted.BLOCK:
                self._note_disabled(DisabledReason.BLOCKED)

    async def write(self, tx: Transaction) -> None:
        """Store what was learned, and tell of it."""
        if self._health != self._before:
            since = self._health.failing_since
            await tx.connection.execute(
                sa.update(subscriptions)
                .where(subscriptions.c.id == self.row["id"])
                .values(
                    refusals=self._health.refusals,
                    failures=self._health.failures,
                    failing_since=None if since is None else round(since * 1000),
                )
            )
        if self._failing:
            await holding.tell(tx, self.row, NoticeType.FAILING, {"failures": self._health.failures})
        if self._exhausted:
            await holding.tell(tx, self.row, NoticeType.EXHAUSTED, {}, count=self._exhausted)
        if self._disable is not None:
            await holding.disable(tx, self.row, self._disable, status=self._status)
        if self._verified and self._disable is None:
            await holding.activate(tx, self.row, granted_rate=self._granted_rate)
        elif self._verified is False:
            await tx.connection.execute(
                sa.update(subscriptions).where(subscriptions.c.id == self.row["id"]).values(verifying=None)
            )


# --- write ------------------------------------------------------------------------------------------------


async def _write(tx: Transaction, outcomes: Sequence[_Outcome], known: dict[str, _Standing]) -> None:
    if not outcomes:
        return
    attempt_rows: list[tuple[Any, ...]] = []
    # Most of a batch end alike; those that do are written by one execution.
    alike: defaultdict[tuple[Any, ...], list[str]] = defaultdict(list)
    to_wipe: set[str] = set()
    held: Counter[str] = Counter()
    for one in outcomes:
        row, state = one.row, one.decision.state
        due_at = _due_at(one.decision, tx.now)
        attempt_rows.append(_attempt_row(one.report, tx, due_at))
        alike[_settled(one, known, due_at, tx.now) + _decided_on(row)].append(row.id)
        if row.subscription_id is None and state in _WIPING_STATES:
            to_wipe.add(row.source_id)
        if state in TERMINAL_STATES:
            tx.counts[row.account, state] += 1
        elif state is DeliveryState.HELD and row.subscription_id is not None:
            held[row.subscription_id] += 1

    def must_be_all(settled: int, _rows: list[Any]) -> None:
        if settled != len(outcomes):
            raise LeaseChanged("a lease is no longer as it was taken")

    await tx.leave(
        (_ATTEMPT, attempt_rows),
        wiping(to_wipe),
        (_SETTLE, [(*columns, ids) for columns, ids in alike.items()]),
        check=must_be_all,
    )
    await count_held(tx, held)


#: a callback's URL is used no more
_WIPING_STATES = {DeliveryState.DELIVERED, DeliveryState.EXPIRED}

#: columns of a delivery that a settled attempt sets
_SETTLED = (
    "state", "reason", "lane", "failures", "last_outcome", "repeats", "due_at", "other_secret", "refused",
    "hold_until", "finished_at",
)  # fmt: skip


def _settled(one: _Outcome, known: dict[str, _Standing], due_at: int | None, now: int) -> tuple[Any, ...]:
    row, decision = one.row, one.decision
    ended = decision.state in TERMINAL_STATES
    held = decision.state is DeliveryState.HELD
    return (
        decision.state.value,
        cancel_reason(row) if decision.state is DeliveryState.CANCELLED else decision.reason,
        # What has ended keeps the lane that it was sent in; what goes on follows its callback.
        None if ended or row.subscription_id is not None else lane_after(row),
        decision.failures,
        one.report.answer.outcome.value,
        decision.repeats,
        due_at,
        decision.other_secret,
        bool(row.refused or (one.refused and held)),
        holding.hold_until(known[row.subscription_id].row, now) if held and row.subscription_id else None,
        now if ended else None,
    )


#: columns that change when anything happens to a delivery while it is leased, but for its state
_DECIDED_ON = ("attempt", "session", "mark")


def _decided_on(row: Leased) -> tuple[Any, ...]:
    return row.attempt, row.session, row.mark


_SETTLE = Statement(
    sa.update(deliveries)
    .where(
        among(deliveries.c.id, "ids"),
        deliveries.c.state == sa.literal_column(f"'{DeliveryState.LEASED}'"),
        *(deliveries.c[name].is_not_distinct_from(sa.bindparam(f"its_{name}")) for name in _DECIDED_ON),
    )
    .values(
        {name: sa.bindparam(name) for name in _SETTLED}
        | {
            "lane": sa.func.coalesce(sa.bindparam("lane", type_=deliveries.c.lane.type), deliveries.c.lane),
            "mark": sa.null(),
            "session": sa.null(),
        }
    ),
    *_SETTLED,
    *(f"its_{name}" for name in _DECIDED_ON),
    "ids",
)


def _due_at(decision: retry.Decision, now: int) -> int | None:
    return None if decision.delay is None else now + round(decision.delay * 1000)


def _attempt_row(report: Report, tx: Transaction, retry_at: int | None) -> tuple[Any, ...]:
    record = report.record
    return (
        report.delivery_id,
        report.attempt,
        record.outcome.value,
        record.status,
        record.error,
        tx.now - round((tx.clock - record.started) * 1000),
        round((record.ended - record.started) * 1000, 1),
        retry_at,
        record.truncated,
        as_json(record.response_headers or None),
        record.response_body,
        as_json(record.timing),
    )


_ATTEMPT = Statement(
    sa.insert(attempts),
    "delivery_id", "number", "outcome", "status", "error", "started_at", "duration_ms", "retry_at", "truncated",
    "response_headers", "response_body", "timing",
)  # fmt: skip
