"""What a case is, who takes part in it, and how large everything is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

Figures = Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much each case does."""

    #: seconds of posting in a closed loop
    seconds: float = 5.0
    #: connections of the load generator, and workers of the bare loops
    connections: int = 64
    #: seconds of wrk and of the bare loops
    rival_seconds: int = 3
    #: tasks that Celery drains
    celery_tasks: int = 2_000
    #: posts before anything is measured
    warm_up: int = 500
    #: deliveries of the backlog that is drained, and that is overdue
    backlog: int = 100_000
    #: rows that wait beside what is measured, in the case `backlog`
    waiting: int = 1_000_000
    #: distinct endpoints
    endpoints: int = 2_000
    #: subscriptions that an event goes to
    subscribers: int = 50
    #: seconds of each load of which the latency is taken
    latency_seconds: float = 10.0
    #: endpoints among which one in ten hangs, and one in ten fails
    neighbours: int = 1_000
    #: quiet endpoints beside the one with an overdue backlog, and posts to them in a second
    quiet: int = 100
    quiet_per_s: float = 100.0
    #: subscriptions that one event goes to, beside posts at a steady rate for some seconds
    crowd: int = 20_000
    crowd_per_s: float = 50.0
    crowd_seconds: float = 16.0
    #: deliveries that are drained to receivers that take their time, on PostgreSQL
    slow_backlog: int = 10_000
    #: seconds of the load under which memory is watched, and stretches of it after each of which that is done
    soak_seconds: float = 1_800.0
    soak_stretches: int = 60


FULL = Sizes()
QUICK = Sizes(
    seconds=1.5,
    rival_seconds=1,
    celery_tasks=200,
    warm_up=100,
    backlog=4_000,
    waiting=20_000,
    endpoints=500,
    latency_seconds=1.5,
    neighbours=200,
    crowd=500,
    crowd_seconds=3.0,
    slow_backlog=500,
    soak_seconds=60.0,
    soak_stretches=12,
)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One contender's turn: it has a folder of its own, on a disk that is one."""

    folder: Path
    sizes: Sizes
    #: what contenders of one round leave for those after them
    shared: dict[str, float] = field(default_factory=dict)

    def log(self, name: str) -> Path:
        """Where a process of this turn writes."""
        return self.folder / f"{name}.log"


@dataclass(frozen=True, kw_only=True)
class Contender:
    """Who takes part."""

    name: str
    run: Callable[[Scene], Figures]
    #: tools without which it is left out
    needs: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is measured."""

    name: str
    #: one sentence for the report
    about: str
    contenders: Sequence[Contender]
    #: figures of which ours is compared with the others'
    compared: Sequence[str] = ("per_s",)
    #: whether it runs without being asked for
    by_default: bool = True
