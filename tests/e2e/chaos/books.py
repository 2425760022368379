"""Holds the books against each other: what producers were answered, what receivers got, and what the database says.

Everything here is a question about facts that were noted; nothing is asked of the dispatcher's own code.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.e2e.chaos.nodes import Node
from tests.e2e.chaos.producers import Answers, Order, number_of
from tests.e2e.chaos.receivers import Arrival
from tests.e2e.chaos.watch import LIVE, Sending, Watch

#: outcomes after which a delivery is sent again
AGAIN = "interrupted", "timeout", "connection_error", "http_error", "protocol_error"


#: how far the X-Webhook-Timestamp of a request may be from the time of its arrival, seconds, whatever clock its sender
#: has: a frozen one may end what it had begun
LATE, EARLY = 90.0, 3.0


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One attempt on record."""

    outcome: str
    reconnected: bool


@dataclass(kw_only=True)
class Database:
    """All that the database says at one moment when nothing is under way."""

    #: state, reason and attempts by delivery
    deliveries: dict[str, tuple[str, str | None, int]]
    attempts: dict[Sending, Attempt]
    #: `accepted`, and deliveries by their final state, as they were counted one by one
    ledger: dict[str, int]
    tasks: Counter[str]

    @classmethod
    async def read(cls, node: Node) -> Database:
        """Read it, by plain SQL."""
        rows = await node.fetch("SELECT id, state, reason, attempt FROM deliveries")
        tried = await node.fetch("SELECT delivery_id, number, outcome, timing::text FROM attempts")
        noted = await node.fetch("SELECT state, sum(count) FROM ledger GROUP BY state")
        tasks = await node.fetch("SELECT state, count(*) FROM tasks GROUP BY state")
        return cls(
            deliveries={row[0]: (row[1], row[2], row[3]) for row in rows},
            attempts={
                (row[0], row[1]): Attempt(
                    outcome=row[2], reconnected=bool(row[3] and json.loads(row[3]).get("reconnected"))
                )
                for row in tried
            },
            ledger={row[0]: int(row[1]) for row in noted if row[1]},
            tasks=Counter({row[0]: row[1] for row in tasks}),
        )

    @property
    def states(self) -> Counter[str]:
        """Deliveries by state."""
        return Counter(state for state, _, _ in self.deliveries.values())


async def live(node: Node) -> int:
    """How many deliveries and tasks can still move."""
    [[deliveries]] = await node.fetch(f"SELECT count(*) FROM deliveries WHERE state IN {LIVE}")
    [[tasks]] = await node.fetch("SELECT count(*) FROM tasks WHERE state IN ('queued', 'processing')")
    return int(deliveries + tasks)


def reconcile(database: Database, answers: Answers) -> Iterator[str]:
    """At rest: the ledger, the rows, and what producers were answered say the same. What does not."""
    states = {"accepted": len(database.deliveries), **database.states}
    if states != database.ledger:
        yield f"rows say {states}, the ledger {database.ledger}"
    if database.ledger.get("accepted", 0) != answers.deliveries:
        yield f"producers were answered {answers.deliveries} deliveries, the ledger says {database.ledger}"
    known = {id_ for id_ in answers.accepted.values() if id_ is not None}
    if lost := known - database.deliveries.keys():
        yield f"{len(lost)} deliveries that were answered 202 are not there: {sorted(lost)[:5]}"


@dataclass(kw_only=True)
class Verdict:
    """What came of it all."""

    #: what should not be
    wrong: list[str] = field(default_factory=list)
    #: requests that came after one of the same delivery had been answered 2xx, by what made them come: the outcome on
    #: record of the attempt before
    duplicates: Counter[str] = field(default_factory=Counter)
    #: these attempts
    causes: list[Sending] = field(default_factory=list)
    #: requests sent twice within one attempt, over a new connection
    reconnected: int = 0
    interrupted: int = 0
    requests: int = 0
    lost: int = 0

    def check(self, found: Sequence[str] | Iterator[str]) -> None:
        """Take in what should not be."""
        self.wrong.extend(found)


def judge(database: Database, answers: Answers, arrivals: Sequence[Arrival], watch: Watch) -> Verdict:
    """The end of it: everything accepted has arrived, and every request is accounted for."""
    verdict = Verdict(requests=len(arrivals))
    verdict.check(f"producers: {wrong}" for wrong in answers.wrong)
    verdict.check(f"changed after its end: {changed}" for changed in watch.changed)
    verdict.check(reconcile(database, answers))
    taken = _taken(arrivals, verdict)
    lost = answers.accepted.keys() - taken
    verdict.lost = len(lost)
    verdict.check(f"lost: {order}" for order in sorted(lost))
    verdict.check(f"nobody asked for {order}" for order in sorted(taken - answers.accepted.keys()))
    _states(database, verdict)
    _requests(database, arrivals, verdict)
    _interruptions(database, watch, verdict)
    return verdict


def _taken(arrivals: Sequence[Arrival], verdict: Verdict) -> set[Order]:
    """The orders that receivers have answered 2xx, each with its right body."""
    taken = set()
    bodies: dict[str, bytes] = {}
    for arrival in arrivals:
        if bodies.setdefault(arrival.wire_id, arrival.body) != arrival.body:
            verdict.wrong.append(f"{arrival.wire_id} had another body before")
        if not -LATE < arrival.ahead < EARLY:
            verdict.wrong.append(f"{arrival.wire_id} says that it is {arrival.ahead:+.0f} s from now")
        n = number_of(arrival.path, arrival.body)
        if n is None:
            verdict.wrong.append(f"{arrival.wire_id} has a wrong body: {arrival.body[:200]!r}")
        elif arrival.taken_at is not None:
            taken.add((arrival.path, n))
    return taken


def _states(database: Database, verdict: Verdict) -> None:
    """Receivers are there again in the end, so whatever ends otherwise than delivered needs a lawful reason."""
    for id_, (state, reason, attempts) in database.deliveries.items():
        if state == "delivered":
            continue
        last = [database.attempts.get((id_, number)) for number in range(attempts - 9, attempts + 1)]
        poisoned = all(attempt is not None and attempt.outcome == "interrupted" for attempt in last)
        if (state, reason) != ("exhausted", "poison") or not poisoned:
            verdict.wrong.append(f"{id_} ended as {state}, reason {reason}, after {attempts} attempts")
    if set(database.tasks) - {"succeeded"}:
        verdict.wrong.append(f"tasks: {dict(database.tasks)}")


def _requests(database: Database, arrivals: Sequence[Arrival], verdict: Verdict) -> None:
    """Every request is an attempt on record; one that comes after a 2xx has a reason."""
    by_delivery: dict[str, list[Arrival]] = defaultdict(list)
    for arrival in arrivals:
        by_delivery[arrival.wire_id].append(arrival)
    for id_, requests in by_delivery.items():
        times = Counter(arrival.attempt for arrival in requests)
        for number, count in times.items():
            attempt = database.attempts.get((id_, number))
            if attempt is None:
                verdict.wrong.append(f"{id_} was sent as attempt {number}, which is not on record")
            elif count > 1:
                verdict.reconnected += count - 1
                if count > 2 or not (attempt.reconnected or attempt.outcome == "interrupted"):
                    verdict.wrong.append(f"{id_}, attempt {number} ({attempt.outcome}), was sent {count} times")
        _duplicates(database, id_, requests, verdict)


def _duplicates(database: Database, id_: str, requests: Sequence[Arrival], verdict: Verdict) -> None:
    """What comes after a 2xx comes because of an attempt that is on record as interrupted or failed."""
    is_answered, highest = False, 0
    for arrival in sorted(requests, key=lambda one: one.at):
        # One that comes late, after a later attempt, is what an interrupted one had begun.
        is_late = arrival.attempt < highest
        cause = arrival.attempt if is_late else arrival.attempt - 1
        if is_answered and arrival.attempt != highest:
            because = database.attempts.get((id_, cause))
            outcome = "none" if because is None else because.outcome
            verdict.duplicates[outcome] += 1
            verdict.causes.append((id_, cause))
            if outcome not in (("interrupted",) if is_late else AGAIN):
                verdict.wrong.append(f"{id_} came again as attempt {arrival.attempt}, and {cause} is {outcome}")
        is_answered = is_answered or arrival.taken_at is not None
        highest = max(highest, arrival.attempt)


def _interruptions(database: Database, watch: Watch, verdict: Verdict) -> None:
    """Every interrupted attempt was a lease of a session that had ended."""
    interrupted = {sending for sending, attempt in database.attempts.items() if attempt.outcome == "interrupted"}
    verdict.interrupted = len(interrupted)
    held = {sending for session in watch.sessions.values() if session.ended_at for sending in session.leases}
    verdict.check(f"interrupted, but of no session that ended: {one}" for one in sorted(interrupted - held))


def in_order(lines: dict[tuple[str, str], list[int]], arrivals: Sequence[Arrival]) -> Iterator[str]:
    """Nothing overtakes: whatever comes first comes when all before it in its line were answered 2xx."""
    place = {(path, n): (path, key, index) for (path, key), line in lines.items() for index, n in enumerate(line)}
    came: dict[tuple[str, str], int] = Counter()
    taken: dict[tuple[str, int], float] = {}
    for arrival in sorted(arrivals, key=lambda one: one.at):
        n = _number(arrival)
        found = place.get((arrival.path, n))
        if found is None:
            continue
        path, key, index = found
        if index > came[path, key]:
            yield f"{path} {key}: number {n} came before its turn"
        elif index == came[path, key]:
            before = lines[path, key][index - 1] if index else None
            if before is not None and taken.get((path, before), float("inf")) > arrival.at:
                yield f"{path} {key}: {n} came before {before} was answered"
            came[path, key] += 1
        if arrival.taken_at is not None:
            taken.setdefault((path, n), arrival.taken_at)


def _number(arrival: Arrival) -> int:
    read: Any = json.loads(arrival.body)
    return int(read.get("n", -1))


@dataclass(frozen=True, kw_only=True)
class Strays:
    """What a frozen process still sent once it went on."""

    #: requests under leases that were over
    requests: int
    #: connections that it had open to receivers when it froze
    connections: int


def strays(
    arrivals: Sequence[Arrival], leases: frozenset[Sending], *, after: float, open_ports: set[int]
) -> tuple[Strays, list[str]]:
    """At most one request of each frozen send may still come, over a connection that it had begun before.

    `leases` are those that were over when the process went on, `after` is that moment.
    """
    wrong: list[str] = []
    late = [one for one in arrivals if one.at >= after and (one.wire_id, one.attempt) in leases]
    for (id_, number), count in Counter((one.wire_id, one.attempt) for one in late).items():
        if count > 1:
            wrong.append(f"a frozen process sent {id_}, attempt {number}, {count} times once it went on")
    wrong += [f"a process began {one.wire_id} anew with an old lease" for one in late if one.peer not in open_ports]
    for peer, count in Counter(one.peer for one in late).items():
        if count > 1:
            wrong.append(f"a process sent {count} requests with old leases over one connection ({peer})")
    return Strays(requests=len(late), connections=len(open_ports)), wrong
