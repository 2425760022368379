"""`python -m tests.e2e.chaos`: breaks the dispatcher on PostgreSQL in every way it knows, and holds it to its word."""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
from pathlib import Path

import uvloop

from tests.e2e.chaos import report
from tests.e2e.chaos.conductor import Conductor
from tests.e2e.chaos.nodes import why_no_mounts
from tests.e2e.chaos.processes import faketime
from tests.e2e.chaos.scene import Scene
from tests.support import forking, postgres

MIB = 1 << 20


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/chaos", description=__doc__)
    parser.add_argument("--faults", type=int, default=20, help="how many things go wrong at least [20]")
    parser.add_argument("--deliveries", type=int, default=2_000, help="how many there are at least [2000]")
    parser.add_argument("--rate", type=float, default=100.0, help="deliveries asked for in a second, about [100]")
    parser.add_argument("--calm-every", type=int, default=25, help="faults between two rests [25]")
    parser.add_argument("--disk", type=int, default=768, help="MiB of each database's small disk [768]")
    parser.add_argument("--seed", default=f"{random.randrange(1 << 32):08x}", help="for the same faults again")
    parser.add_argument("--keep", action="store_true", help="keep the logs, and say where they are")
    return parser.parse_args()


def _tell(line: str) -> None:
    print(line, flush=True)


async def _run(given: argparse.Namespace, folder: Path, *, disk: int | None) -> list[str]:
    scene = Scene(folder, seed=given.seed, rate=given.rate, disk=disk)
    try:
        await scene.start()
        conductor = Conductor(
            scene,
            faults=given.faults,
            deliveries=given.deliveries,
            calm_every=given.calm_every,
            seed=given.seed,
            tell=_tell,
        )
        story = await conductor.run()
    finally:
        await scene.remove()
    _tell("")
    for line in report.lines(story, scene, seed=given.seed):
        _tell(line)
    return story.verdict.wrong


def main() -> int:
    """Run it. The exit status is 1 when anything was lost, or was not as it has to be."""
    given = _arguments()
    if (lacks := postgres.lacking()) is not None:
        _tell(f"missing on this machine: {lacks}")
        return 2
    _tell(f"seed {given.seed}")
    no_disk = why_no_mounts()
    if no_disk is not None:
        _tell(f"left out: a full disk ({no_disk})")
    if faketime() is None:
        _tell("left out: wrong clocks (libfaketime is not installed)")
    # a short name: the path of a socket has little room
    folder = Path(tempfile.mkdtemp(prefix="chaos-", dir="/tmp"))
    folder.chmod(0o755)  # PostgreSQL runs as another user
    try:
        with forking.ending_with_us():
            wrong = uvloop.run(_run(given, folder, disk=None if no_disk else given.disk * MIB))
    except BaseException:
        _tell(f"logs: {folder}")
        raise
    if wrong or given.keep:
        _tell(f"logs: {folder}")
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
