"""What operators watch, in Prometheus form. No label ever holds an account, a host or an id.

The processes of `--workers` count in files that they share (prometheus_client's multiprocess mode, which begins with
an environment variable before the import): whichever is asked tells of all, those that have ended, too.
"""

from __future__ import annotations

import asyncio
import functools
import os
import shutil
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess
from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

#: seconds between two samples of what is not counted but looked at, where others are to see it
SAMPLE_INTERVAL = 1.0

#: names the folder where they are, to us and to prometheus_client
_SHARED_IN = "PROMETHEUS_MULTIPROC_DIR"
#: whether other processes count with us
shared = _SHARED_IN in os.environ

registry = CollectorRegistry()

# name and text
_ATTEMPTS = "dispatcher_attempts", "Attempts that were settled"
_SECONDS = "dispatcher_attempt_seconds", "Duration of an attempt"


def _gauge(name: str, text: str) -> Gauge:
    return Gauge(name, text, registry=registry, multiprocess_mode="livesum")


tasks_accepted = Counter("dispatcher_tasks_accepted", "Tasks answered with 202", registry=registry)
events_accepted = Counter("dispatcher_events_accepted", "Events answered with 202", registry=registry)
outbox_taken = Counter("dispatcher_outbox_taken", "Rows of the outbox that were taken", registry=registry)
outbox_refused = Counter("dispatcher_outbox_refused", "Rows of the outbox that were refused", registry=registry)
tasks_finished = Counter("dispatcher_tasks_finished", "Tasks that have a result", ["state"], registry=registry)
in_flight = _gauge("dispatcher_requests_in_flight", "Requests under way")
queued = _gauge("dispatcher_lane_items", "Leased deliveries that wait in lanes")
lanes = _gauge("dispatcher_lanes", "Lanes in memory")
commit_batch = Histogram(
    "dispatcher_commit_rows",
    "Rows written by one commit",
    buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500, 1000),
    registry=registry,
)


class Attempts(Protocol):
    """How attempts ended, and how long they took."""

    def count(self, outcome: str, seconds: float) -> None:
        """There was one more."""
        ...


class SharedAttempts:
    """Counts them where other processes see it."""

    def __init__(self, into: CollectorRegistry | None) -> None:
        attempts = Counter(*_ATTEMPTS, ["outcome"], registry=into)
        # to look a counter up by its label takes longer than to count
        self._of = functools.cache(attempts.labels)
        self._seconds = Histogram(*_SECONDS, registry=into)

    def count(self, outcome: str, seconds: float) -> None:
        """There was one more."""
        self._of(outcome).inc()
        self._seconds.observe(seconds)


class OwnAttempts(Collector):
    """Counts them in plain numbers, and tells what prometheus_client would: that has a lock around each of its own."""

    def __init__(self, into: CollectorRegistry) -> None:
        self._begun = time.time()
        #: number of attempts by outcome, and when the first came (Unix seconds)
        self._outcomes: dict[str, int] = {}
        self._first: dict[str, float] = {}
        self._buckets = [0] * len(Histogram.DEFAULT_BUCKETS)
        self._seconds = 0.0
        into.register(self)

    def count(self, outcome: str, seconds: float) -> None:
        """There was one more."""
        if outcome not in self._outcomes:
            self._outcomes[outcome] = 0
            self._first[outcome] = time.time()
        self._outcomes[outcome] += 1
        self._buckets[bisect_left(Histogram.DEFAULT_BUCKETS, seconds)] += 1
        self._seconds += seconds

    def collect(self) -> Iterator[Metric]:
        """What there is to tell."""
        attempts = CounterMetricFamily(*_ATTEMPTS, labels=["outcome"])
        for outcome, number in self._outcomes.items():
            attempts.add_metric([outcome], number, created=self._first[outcome])
        yield attempts
        bounds = map(floatToGoString, Histogram.DEFAULT_BUCKETS)
        seconds = HistogramMetricFamily(
            *_SECONDS, buckets=list(zip(bounds, accumulate(self._buckets), strict=True)), sum_value=self._seconds
        )
        seconds.add_sample(f"{seconds.name}_created", {}, self._begun)
        yield seconds


attempts: Attempts = SharedAttempts(registry) if shared else OwnAttempts(registry)

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
