"""What operators watch, in Prometheus form. No label ever holds an account, a host or an id."""

from __future__ import annotations

import functools

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

registry = CollectorRegistry()

tasks_accepted = Counter("dispatcher_tasks_accepted", "Tasks answered with 202", registry=registry)
events_accepted = Counter("dispatcher_events_accepted", "Events answered with 202", registry=registry)
outbox_taken = Counter("dispatcher_outbox_taken", "Rows of the outbox that were taken", registry=registry)
outbox_refused = Counter("dispatcher_outbox_refused", "Rows of the outbox that were refused", registry=registry)
tasks_finished = Counter("dispatcher_tasks_finished", "Tasks that have a result", ["state"], registry=registry)
attempts = Counter("dispatcher_attempts", "Attempts that were settled", ["outcome"], registry=registry)
attempt_seconds = Histogram("dispatcher_attempt_seconds", "Duration of an attempt", registry=registry)
in_flight = Gauge("dispatcher_requests_in_flight", "Requests under way", registry=registry)
queued = Gauge("dispatcher_lane_items", "Leased deliveries that wait in lanes", registry=registry)
lanes = Gauge("dispatcher_lanes", "Lanes in memory", registry=registry)
commit_batch = Histogram(
    "dispatcher_commit_rows",
    "Rows written by one commit",
    buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500, 1000),
    registry=registry,
)

#: the counter of one outcome: to look it up by its label takes longer than to count
attempts_of = functools.cache(attempts.labels)
