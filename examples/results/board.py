"""What the demo shows: a table that follows the deliveries, and one that sums up. Neither holds a token."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

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
PLAIN_WIDTH = 132


@dataclass(kw_only=True)
class Job:
    """One task of the demo, and what is known of it so far."""

    name: str
    type: str
    #: how the work should end: `succeeded`, or `failed` for a task whose payload is wrong
    expect: str
    task_id: str
    delivery_id: str
    #: scheme and host of the callback as the dispatcher shows it
    host: str
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

    def next_retry(self) -> str:
        """How long until it is tried again, if it waits for that."""
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
    """All tasks as they stand."""
    done = sum(job.is_final for job in jobs)
    table = Table(title=f"deliveries: {done} of {len(jobs)} done")
    for heading in ("task", "type", "host", "work", "delivery", "answers", "next retry"):
        table.add_column(heading, no_wrap=True)
    for job in jobs:
        table.add_row(
            job.name,
            job.type,
            job.host,
            styled(job.task_state),
            styled(job.delivery_state),
            answers(job),
            job.next_retry(),
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
                f"{time.monotonic() - self._started:5.1f} s  {job.name:9} {job.type:14} {job.host}  work "
                f"{job.task_state:11} delivery {job.delivery_state:10} {answers(job)} {job.next_retry()}",
                highlight=False,
            )


def summary_table(jobs: Sequence[Job]) -> Table:
    """Each task's result, and what the receiver itself found out about the requests that brought it."""
    table = Table(title="as the receiver saw it")
    table.add_column("task", no_wrap=True)
    table.add_column("result", min_width=12)
    table.add_column("answers", no_wrap=True)
    for heading in ("token", "X-Hub-\nSignature", "webhook-\nsignature", "all"):
        table.add_column(heading)
    for job in jobs:
        found = [
            bool(job.received) and all(entry[check] for entry in job.received)
            for check in ("token_ok", "hub_signature_ok", "standard_signature_ok")
        ]
        table.add_row(
            job.name,
            gist(job),
            " ".join(str(entry["status"]) for entry in job.received),
            *map(yes_no, (*found, job.verified)),
        )
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
        return f"{body['status']}: {error_text(body['error'])}"
    result = body["result"]
    match job.type:
        case "invoice.total":
            return f"{result['lines']} lines, {result['currency']}; {result['total_eur_cents'] / 100:,.2f} EUR"
        case "text.summary":
            return f"{result['words']} words: {', '.join(result['keywords'][:3])}"
        case "report.stats":
            busiest = result["routes"][0]
            return f"{result['requests']} requests, {result['errors']} errors, p95 {busiest['p95_ms']} ms"
    return ""


def error_text(error: Any) -> str:
    """The text of a failed task's error, whichever form it has."""
    return str(error.get("message") or error.get("detail") or error) if isinstance(error, dict) else str(error)
