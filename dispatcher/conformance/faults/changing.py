"""Faults that come and go."""

from __future__ import annotations

import random

from dispatcher.conformance.faults.fault import Settings, fault, status_of
from dispatcher.conformance.faults.step import WELL, Changing, Step, make_step
from dispatcher.conformance.wire.exchange import Behaviour
from dispatcher.errors import ConfigError


@fault(
    "It is up and down in turn, whoever asks.",
    expects="",
    up="requests that are answered well (3)",
    down="requests that then are not (2)",
    status="the status while it is down (503)",
)
def _flap(settings: Settings) -> Behaviour:
    up = settings.whole("up", 3, low=0, high=1_000_000)
    down = settings.whole("down", 2, low=0, high=1_000_000)
    if up + down == 0:
        raise ConfigError("'up' and 'down' cannot both be 0")
    steps = (WELL, make_step(str(status_of(settings, 503)), {}))
    count = -1

    def draw() -> Step:
        nonlocal count
        count = (count + 1) % (up + down)
        return steps[count >= up]

    return Changing(draw)


@fault(
    "It draws lots: another fault each time, or none. The same seed draws the same.",
    expects="",
    seed="a whole number (0)",
    among="what is drawn from, such as ok/500/reset (ok/500/503/429/close/reset/cut/garbage/wrong-length)",
)
def _random(settings: Settings) -> Behaviour:
    lots = random.Random(settings.whole("seed", 0, low=0, high=10**11))  # noqa: S311 - has to be repeatable
    names = settings.text("among", "ok/500/503/429/close/reset/cut/garbage/wrong-length").split("/")
    if {"random", "flap"} & set(names):
        raise ConfigError("'among' cannot have what draws itself")
    try:
        steps = [make_step(name.strip(), {}) for name in names]
    except ConfigError as exc:
        raise ConfigError(f"'among': {exc}") from exc
    return Changing(lambda: lots.choice(steps))
