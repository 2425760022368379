"""On PostgreSQL, by one process and by two."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from scripts.benchmark.cases.backlogs import drained
from scripts.benchmark.counting import deliver_all, throughput
from scripts.benchmark.figures import OURS
from scripts.benchmark.postgresql import database
from scripts.benchmark.receivers import receiving, timing
from scripts.benchmark.rivals import CEILING
from scripts.benchmark.scene import Case, Contender, Figures, Scene
from scripts.benchmark.subject import Dispatcher, serving
from scripts.benchmark.tools import POSTGRESQL

#: milliseconds that a slow receiver takes
SLOW_MS = 50
#: requests under way to it from one process: so few that waiting limits what it sends, on any machine
UNDER_WAY = 8


def _postgresql(scene: Scene, count: int) -> Figures:
    with receiving(scene.folder) as receiver, _served_by(scene, count) as dispatcher:
        shape = {"urls": [f"{receiver.origins[0]}/results"], "connections": scene.sizes.connections}
        deliver_all(scene, dispatcher, receiver, dispatcher.job(items=scene.sizes.warm_up, **shape))
        figures = throughput(scene, dispatcher, receiver, dispatcher.job(seconds=scene.sizes.seconds, **shape))
        backlog = drained(scene, dispatcher, receiver, scene.sizes.backlog)
        return {**figures, "drain_per_s": backlog["per_s"], "peak_mib": backlog["peak_mib"]}


def _slow(scene: Scene, count: int) -> Figures:
    limit = {"DISPATCHER_LANE_CONCURRENCY": str(UNDER_WAY)}
    with timing(scene.folder) as receiver, _served_by(scene, count, **limit) as dispatcher:
        return drained(scene, dispatcher, receiver, scene.sizes.slow_backlog, path=f"/slow/{SLOW_MS}")


@contextmanager
def _served_by(scene: Scene, count: int, **environment: str) -> Iterator[Dispatcher]:
    """A dispatcher of so many processes on a new PostgreSQL."""
    with (
        database() as url,
        serving(scene.folder, {"DATABASE_URL": url, **environment}, options=("--workers", str(count))) as dispatcher,
    ):
        yield dispatcher


CASES = (
    Case(
        name="postgresql",
        about="single and drain on PostgreSQL, by two processes (serve --workers 2) and by one",
        contenders=(
            Contender(name=OURS, run=lambda scene: _postgresql(scene, 2), needs=(POSTGRESQL,)),
            Contender(name="one process", run=lambda scene: _postgresql(scene, 1), needs=(POSTGRESQL,)),
            CEILING,
        ),
        compared=("per_s", "drain_per_s"),
        by_default=False,
    ),
    Case(
        name="slow",
        about=f"a backlog on PostgreSQL for a receiver that takes {SLOW_MS} ms, drained with {UNDER_WAY} requests under"
        " way from each process: by two and by one",
        contenders=(
            Contender(name=OURS, run=lambda scene: _slow(scene, 2), needs=(POSTGRESQL,)),
            Contender(name="one process", run=lambda scene: _slow(scene, 1), needs=(POSTGRESQL,)),
        ),
        by_default=False,
    ),
)
