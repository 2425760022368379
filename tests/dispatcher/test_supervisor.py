"""The parent of `--workers`, with children that are small and do what a test wants of them."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from dispatcher.serving import supervisor
from dispatcher.serving.listening import listen
from dispatcher.serving.supervisor import Supervisor
from tests.support.patience import PATIENCE

#: how a child, in bash, says that it takes requests
READY = "printf r >&${2#*,}"


def until_told(then: str = "exit 0") -> str:
    """What a child does that takes requests until it is told to stop, and then ends like this."""
    return f"trap 'kill $!; {then}' TERM; {READY}; sleep 600 & wait"


@pytest.fixture(autouse=True)
def _hardly_any_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "FIRST_REST", 0.01)


class Family:
    """A parent of two, and children that run a script, in which `n` says how many were started before, and itself."""

    def __init__(self, folder: Path, script: str, *, patience: float = PATIENCE) -> None:
        self._starts = folder / "starts"
        self.ready = asyncio.Event()
        self._listener = listen("127.0.0.1", 0)
        count = f"echo $$ >> {self._starts}; n=$(grep -nx $$ {self._starts} | cut -d: -f1)"
        self.parent = Supervisor(
            ["bash", "-c", f"{count}; {script}", "child"],
            self._listener,
            count=2,
            patience=patience,
            metrics=str(folder),
            on_ready=self.ready.set,
        )

    async def run(self) -> int:
        """The exit status."""
        with self._listener:
            return await asyncio.wait_for(self.parent.run(), PATIENCE)

    @property
    def pids(self) -> list[int]:
        """Of the children that were started so far."""
        return [int(line) for line in self._starts.read_text().splitlines()]


def is_running(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def test_told_to_stop_it_waits_for_its_children(tmp_path: Path) -> None:
    # They take a moment to end.
    family = Family(tmp_path, until_told("sleep 0.3; exit 0"))
    running = asyncio.create_task(family.run())
    await family.ready.wait()
    assert all(map(is_running, family.pids))
    family.parent.stop(signal.SIGTERM)
    assert await running == 0
    assert not any(map(is_running, family.pids))


async def test_one_that_dies_is_started_until_it_runs(tmp_path: Path) -> None:
    """What comes in its place dies twice before it takes requests."""
    family = Family(tmp_path, f"case $n in 3|4) exit 3;; *) {until_told()};; esac")
    running = asyncio.create_task(family.run())
    await family.ready.wait()
    os.kill(family.pids[0], signal.SIGKILL)
    async with asyncio.timeout(PATIENCE):
        while len(family.pids) < 5:  # noqa: ASYNC110 - other processes write it
            await asyncio.sleep(0.05)
    family.parent.stop(signal.SIGTERM)
    assert await running == 0
    assert not any(map(is_running, family.pids))


async def test_if_one_cannot_start_none_runs(tmp_path: Path) -> None:
    family = Family(tmp_path, f"case $n in 2) exit 2;; *) {until_told()};; esac")
    assert await family.run() == 1
    assert not family.ready.is_set()
    assert not any(map(is_running, family.pids))


async def test_one_that_does_not_stop_is_killed(tmp_path: Path) -> None:
    family = Family(tmp_path, f"trap '' TERM; {READY}; exec sleep 600", patience=0.2)
    running = asyncio.create_task(family.run())
    await family.ready.wait()
    family.parent.stop(signal.SIGTERM)
    assert await running == 1
    assert not any(map(is_running, family.pids))


async def test_one_that_ends_badly_when_it_is_told_to_stop_is_told_of(tmp_path: Path) -> None:
    family = Family(tmp_path, until_told("exit $((n - 1))"))
    running = asyncio.create_task(family.run())
    await family.ready.wait()
    family.parent.stop(signal.SIGTERM)
    assert await running == 1
