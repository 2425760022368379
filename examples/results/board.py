"""What the demo shows: a table that follows the deliveries, and one that sums up. Neither holds a token."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

FINAL = frozenset({"delivered", "exhausted", "rejected", "expired", "cancelled"})
STYLES = {
    "succeeded": "green",
    "delivered": "green",
    "failed": "yellow",
    "processing": "cyan",
    "leased": "cyan",
    "exhausted": "red",
    "rejected": "red",
    "expired": "red",
}
#: width of the tables where there is no terminal to ask
PLAIN_WIDTH = 100


@dataclass(kw_only=True)
class Job:
    """One task of the demo, and what is known of it so far."""

    name: str
    type: str
    #: how the work should end: `succeeded`, or `failed` for a task whose payload is wrong
    expect: str
    task_id: str
    delivery_id: str
    document_id: str
    token: str = field(repr=False)
    task_state: str = "queued"
    delivery_state: str = "pending"
    attempts: list[dict[str, Any]] = field(default_factory=list)
    #: what the receiver wrote down about this task
    received: list[dict[str, Any]] = field(default_factory=list)

    @property
    def is_final(self) -> bool:
        """Whether nothing more will happen to its delivery."""
        return self.delivery_state in FINAL

    @property
    def verified(self) -> bool:
        """Delivered, with every check of every attempt good, and with the result that was to be expected."""
        return (
            self.delivery_state == "delivered"
            and self.task_state == self.expect
            and len(self.received) == len(self.attempts)
            and self.received[-1]["status"] == 200
            and self.received[-1]["result"]["status"] == self.expect
            and self.received[-1]["document_id"] == self.document_id
            and all(map(checks_passed, self.received))
        )

    def next_try(self) -> str:
        """How long until it is tried again, if it waits for that: `in 0.8 s`."""
        retry_at = self.attempts[-1].get("retry_at") if self.attempts else None
        if self.is_final or retry_at is None:
            return ""
        seconds = (datetime.fromisoformat(retry_at) - datetime.now(UTC)).total_seconds()
        return f"in {max(seconds, 0):.1f} s"


def checks_passed(entry: dict[str, Any]) -> bool:
    """Whether the receiver found token and signatures of one request to be good."""
    return bool(entry["token_ok"] and entry["hub_signature_ok"] and entry["standard_signature_ok"])


def styled(state: str) -> str:
    """A state in its colour."""
    return f"[{STYLES.get(state, 'dim')}]{state}[/]"


def answers(job: Job) -> str:
    """What its attempts were answered: `503 503 200`."""
    return " ".join(str(attempt.get("status") or attempt.get("outcome")) for attempt in job.attempts)


def live_table(jobs: Sequence[Job]) -> Table:
    """All tasks as they stand, in no more than 80 columns."""
    done = sum(job.is_final for job in jobs)
    table = Table(
        title=f"what the dispatcher says: {done} of {len(jobs)} deliveries done", box=SIMPLE_HEAD, title_justify="left"
    )
    for heading in ("task", "type", "work", "delivery", "answers", "next try"):
        table.add_column(heading, no_wrap=True)
    for job in jobs:
        table.add_row(
            job.name,
            job.type,
            styled(job.task_state),
            styled(job.delivery_state),
            answers(job),
            job.next_try(),
        )
    return table


class PlainLines:
    """The same for a log file: one line whenever a task changed."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._started = time.monotonic()
        self._shown: dict[str, tuple[str, str, int]] = {}

    def update(self, jobs: Sequence[Job]) -> None:
        """Print what changed since the last call."""
        for job in jobs:
            now = (job.task_state, job.delivery_state, len(job.attempts))
            if self._shown.get(job.name) == now:
                continue
            self._shown[job.name] = now
            self._console.print(
                f"{time.monotonic() - self._started:4.1f} s  {job.name:9} work {job.task_state:11} "
                f"delivery {job.delivery_state:10} {answers(job)} {job.next_try()}".rstrip(),
                highlight=False,
            )


def summary_table(jobs: Sequence[Job]) -> Table:
    """What the receiver found: each result, what it answered, and its checks of every request that brought it."""
    table = Table(
        title="what the receiver found, and its checks of token and signatures", box=SIMPLE_HEAD, title_justify="left"
    )
    table.add_column("task", no_wrap=True)
    table.add_column("result")
    table.add_column("answered", no_wrap=True)
    for heading in ("token", "websub", "standard"):
        table.add_column(heading, no_wrap=True)
    for job in jobs:
        found = [
            bool(job.received) and all(entry[check] for entry in job.received)
            for check in ("token_ok", "hub_signature_ok", "standard_signature_ok")
        ]
        answered = " ".join(str(entry["status"]) for entry in job.received)
        table.add_row(job.name, gist(job), answered, *map(yes_no, found))
    return table


def yes_no(good: bool) -> str:
    """A check's result."""
    return "[green]yes[/]" if good else "[red]NO[/]"


def gist(job: Job) -> str:
    """The result in a few words."""
    body = job.received[-1]["result"] if job.received else None
    if not body:
        return ""
    if body["status"] != "succeeded":
        return f"{body['status']}: {body['error']['message']}"
    result = body["result"]
    match job.type:
        case "invoice.total":
            return f"{result['lines']} lines, {result['total_eur_cents'] / 100:,.2f} EUR"
        case "text.summary":
            return f"{result['words']} words on {result['keywords'][0]}"
        case "report.stats":
            return f"{result['requests']} requests, {result['errors']} errors"
    return ""
