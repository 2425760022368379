"""What the database says, read by nothing of ours, while the dispatcher is down or beside it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tests.support.ledgers import Place, answers, ask

LIVE = ("pending", "leased", "held")

#: a delivery and the number of an attempt: one request, at most
Sending = tuple[str, int]


@dataclass(frozen=True, kw_only=True)
class Books:
    """The database at one moment."""

    #: state by task
    tasks: dict[str, str]
    #: deliveries that it has or will have, by event
    events: dict[str, int]
    #: deliveries that are still to be made, by event that is not fanned out
    unmade: dict[str, int]
    #: state by delivery
    deliveries: dict[str, str]
    #: the event and the subscription, by delivery; none of those that answer a task
    messages: dict[str, tuple[str, str]]
    #: number of the last attempt by delivery
    attempts: dict[str, int]
    #: what was being sent, or waited in memory to be
    leased: frozenset[Sending]
    #: the most that any one delivery was interrupted in a row
    most_interruptions: int
    #: leases in a row that were interrupted, by task
    task_interruptions: dict[str, int]
    #: tries of tasks that count as failed
    failed_tries: int
    #: `accepted`, and deliveries by their final state, as they were counted one by one
    ledger: dict[str, int]

    @property
    def counted(self) -> dict[str, int]:
        """The ledger, counted anew from the rows of deliveries."""
        return {"accepted": len(self.deliveries), **Counter(self.deliveries.values())}

    def check(self) -> None:
        """The ledger must reconcile, whenever one looks."""
        final = {state: number for state, number in self.counted.items() if state not in LIVE}
        assert final == self.ledger, f"rows say {final}, the ledger {self.ledger}"
        made = Counter(event for event, _ in self.messages.values())
        assert len(set(self.messages.values())) == len(self.messages), "a subscription has an event twice"
        for event, number in self.events.items():
            assert made[event] + self.unmade.get(event, 0) == number, f"of {number}, {made[event]} were made"

    @classmethod
    def read(cls, place: Place) -> Books:
        """Read them, all of one moment."""
        rows, work, events, unmade, ledger = answers(
            place,
            ("SELECT id, state, attempt, repeats, last_outcome, source_id, subscription_id FROM deliveries", ()),
            ("SELECT id, state, interruptions, failures FROM tasks", ()),
            ("SELECT id, deliveries FROM events", ()),
            ("SELECT event_id, size - done FROM fan_outs", ()),
            ("SELECT state, CAST(sum(count) AS bigint) FROM ledger GROUP BY state", ()),
        )
        return cls(
            tasks={row[0]: row[1] for row in work},
            events=dict(events),
            unmade=dict(unmade),
            deliveries={row[0]: row[1] for row in rows},
            messages={row[0]: (row[5], row[6]) for row in rows if row[6] is not None},
            attempts={row[0]: row[2] for row in rows},
            leased=frozenset((row[0], row[2]) for row in rows if row[1] == "leased"),
            most_interruptions=max((row[3] for row in rows if row[4] == "interrupted"), default=0),
            task_interruptions={row[0]: row[2] for row in work},
            failed_tries=sum(row[3] for row in work),
            ledger={state: number for state, number in ledger if number},
        )


def outcomes(place: Place) -> dict[Sending, str]:
    """Every attempt on record."""
    rows = ask(place, "SELECT delivery_id, number, outcome FROM attempts")
    return {(delivery, number): outcome for delivery, number, outcome in rows}


def remains(place: Place) -> dict[str, int]:
    """What there must be none of once everything is delivered and the dispatcher was stopped."""
    questions = {
        "callback URLs": "SELECT count(*) FROM tasks WHERE callback_url IS NOT NULL",
        "sessions": "SELECT count(*) FROM sessions",
        "tasks with a lease": "SELECT count(*) FROM tasks WHERE session IS NOT NULL OR due_at IS NOT NULL",
        "deliveries with a lease": "SELECT count(*) FROM deliveries WHERE session IS NOT NULL OR due_at IS NOT NULL",
        "deliveries without a source": "SELECT count(*) FROM deliveries"
        " WHERE source_id NOT IN (SELECT id FROM tasks UNION ALL SELECT id FROM events)",
        "fan-outs": "SELECT count(*) FROM fan_outs",
        "deliveries without a body": "SELECT count(*) FROM deliveries WHERE body_id NOT IN (SELECT id FROM bodies)",
        "second deliveries": "SELECT count(*) - count(DISTINCT source_id || coalesce(subscription_id, ''))"
        " FROM deliveries",
    }
    if isinstance(place, Path):
        assert ask(place, "PRAGMA integrity_check") == [("ok",)]
    counts = answers(place, *((question, ()) for question in questions.values()))
    return {name: number for name, [[number]] in zip(questions, counts, strict=True)}
