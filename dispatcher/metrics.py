"""What operators watch, in Prometheus form. No label ever holds an account, a host or an id.

The processes of `--workers` count in files that they share (prometheus_client's multiprocess mode, which begins with
an environment variable before the import): whichever is asked tells of all, those that have ended, too.
"""

from __future__ import annotations

import asyncio
import functools
import os
import shutil
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess

#: seconds between two samples of what is not counted but looked at, where others are to see it
SAMPLE_INTERVAL = 1.0

#: names the folder where they are, to us and to prometheus_client
_SHARED_IN = "PROMETHEUS_MULTIPROC_DIR"
#: whether other processes count with us
shared = _SHARED_IN in os.environ

registry = CollectorRegistry()


def _gauge(name: str, text: str) -> Gauge:
    return Gauge(name, text, registry=registry, multiprocess_mode="livesum")


tasks_accepted = Counter("dispatcher_tasks_accepted", "Tasks answered with 202", registry=registry)
events_accepted = Counter("dispatcher_events_accepted", "Events answered with 202", registry=registry)
outbox_taken = Counter("dispatcher_outbox_taken", "Rows of the outbox that were taken", registry=registry)
outbox_refused = Counter("dispatcher_outbox_refused", "Rows of the outbox that were refused", registry=registry)
tasks_finished = Counter("dispatcher_tasks_finished", "Tasks that have a result", ["state"], registry=registry)
attempts = Counter("dispatcher_attempts", "Attempts that were settled", ["outcome"], registry=registry)
attempt_seconds = Histogram("dispatcher_attempt_seconds", "Duration of an attempt", registry=registry)
in_flight = _gauge("dispatcher_requests_in_flight", "Requests under way")
queued = _gauge("dispatcher_lane_items", "Leased deliveries that wait in lanes")
lanes = _gauge("dispatcher_lanes", "Lanes in memory")
commit_batch = Histogram(
    "dispatcher_commit_rows",
    "Rows written by one commit",
    buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500, 1000),
    registry=registry,
)

#: the counter of one outcome: to look it up by its label takes longer than to count
attempts_of = functools.cache(attempts.labels)

_watched: dict[Gauge, Callable[[], float]] = {}


def watch(gauge: Gauge, value: Callable[[], float]) -> None:
    """Have a gauge tell what this function answers."""
    _watched[gauge] = value
    if not shared:
        gauge.set_function(value)


async def sample() -> None:
    """Note what is watched, where others are to see it; then rest."""
    for gauge, value in _watched.items():
        gauge.set(value())
    await asyncio.sleep(SAMPLE_INTERVAL)


def remove_shared() -> None:
    """Remove the files that are shared, in place of whoever made them and is gone. We can go on: they are open."""
    shutil.rmtree(os.environ[_SHARED_IN], ignore_errors=True)


def exposition() -> bytes:
    """All of it, in Prometheus' text format."""
    if not shared:
        return generate_latest(registry)
    everybody = CollectorRegistry()
    multiprocess.MultiProcessCollector(everybody)  # type: ignore[no-untyped-call]  # it has no types
    return generate_latest(everybody)
