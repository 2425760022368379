"""Attempts are counted in plain numbers, and told as prometheus_client would."""

from __future__ import annotations

import re

from prometheus_client import CollectorRegistry, Histogram, generate_latest

from dispatcher.metrics import OwnAttempts, SharedAttempts
from dispatcher.models import Outcome

#: Unix seconds at which a counter began: the one number that differs
_BEGUN = re.compile(r"(_created(?:\{[^}]*\})?) \S+")


def _told(registry: CollectorRegistry) -> str:
    text, begun = _BEGUN.subn(r"\1 ", generate_latest(registry).decode())
    assert begun
    return text


def test_what_is_told_of_attempts_is_what_prometheus_would_have_told() -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    own, shared = OwnAttempts(ours), SharedAttempts(theirs)
    assert _told(ours) == _told(theirs)
    bounds = Histogram.DEFAULT_BUCKETS[:-1]
    nearby = [seconds for bound in bounds for seconds in (bound, bound * 0.999, bound * 1.001)]
    for number, seconds in enumerate([0.0, *nearby, 1e6]):
        outcome = list(Outcome)[number % 3]
        own.count(outcome, seconds)
        shared.count(outcome, seconds)
        assert _told(ours) == _told(theirs)
