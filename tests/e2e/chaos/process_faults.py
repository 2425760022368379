"""Faults of the dispatcher's processes: killed, frozen, stopped; clocks that are wrong."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from pathlib import Path

from tests.e2e.chaos import books
from tests.e2e.chaos.faults import Cause, Fault, accepted_again
from tests.e2e.chaos.processes import SEND_TIMEOUT, SESSION_TTL, Clock, Process, local_ports
from tests.e2e.chaos.scene import Scene
from tests.e2e.chaos.waiting import until
from tests.e2e.chaos.watch import Session

#: seconds until the leases of a session that is not kept are freed: its end, the round of upkeep, and patience
FREED_WITHIN = SESSION_TTL + 60.0
#: how wrong clocks are at most, seconds
FAR = 6 * 3600
#: how close is close enough, seconds
CLOSE = 60.0


async def kill_worker(scene: Scene, fault: Fault, dice: random.Random) -> None:
    """kill -9; it is started again a moment later."""
    worker = dice.choice(scene.workers)
    pid = worker.pid
    await _is_at_work(scene, pid)
    await worker.kill()
    at = time.monotonic()
    fault.note(f"{worker.name} gone, {scene.watch.leases(pid)} leases held", seen=not worker.running)
    await asyncio.sleep(dice.uniform(0, 3))
    await worker.start()
    await _freed(scene, fault, pid, since=at)


async def _is_at_work(scene: Scene, pid: int) -> None:
    """Wait for a moment in which it holds something, or a little while."""
    await until(lambda: scene.watch.leases(pid) > 0, within=3)


async def _freed(scene: Scene, fault: Fault, pid: int, *, since: float) -> None:
    """Wait until what a dead process held is free, and note it."""
    if await until(lambda: not scene.watch.has_session(pid), within=FREED_WITHIN) is None:
        fault.wrong.append(f"the session of {pid} was not ended within {FREED_WITHIN} s")
        return
    fault.leases = _held(scene.watch.of(pid))
    fault.recovered = time.monotonic() - since
    fault.effects.append(f"{len(fault.leases)} leases freed")


def _held(sessions: list[Session]) -> frozenset[tuple[str, int]]:
    return frozenset(lease for session in sessions for lease in session.leases)


async def freeze_worker(scene: Scene, fault: Fault, dice: random.Random) -> None:
    """SIGSTOP until its lease is over and freed, then SIGCONT."""
    worker = dice.choice(scene.workers)
    pid = worker.pid
    await _is_at_work(scene, pid)
    await _freeze(worker)
    ports = local_ports(pid, scene.ports)
    before = [session for session in scene.watch.of(pid) if session.ended_at is None]
    fault.note(f"{worker.name} {_state(pid)}", seen=_state(pid) == "T")
    waited = await until(lambda: not scene.watch.has_session(pid), within=FREED_WITHIN)
    await asyncio.sleep(dice.uniform(0, 2))
    went_on = time.monotonic()
    worker.signal(signal.SIGCONT)
    if waited is None:
        fault.wrong.append("a frozen process kept its session")
        return
    fault.leases = _held(before)
    back = await until(lambda: scene.watch.has_session(pid), within=FREED_WITHIN)
    fault.recovered = back
    if back is None:
        fault.wrong.append("a process that went on got no new session")
    # What it had begun has ended by then.
    await asyncio.sleep(SEND_TIMEOUT + 1)
    found, wrong = books.strays(scene.arrivals, fault.leases, after=went_on, open_ports=ports)
    fault.wrong += wrong
    fault.strays = found.requests
    fault.effects.append(
        f"{len(fault.leases)} leases freed after {waited:.0f} s, {found.connections} connections open,"
        f" {found.requests} stray requests"
    )


async def _freeze(process: Process) -> None:
    process.signal(signal.SIGSTOP)
    await until(lambda: _state(process.pid) == "T", within=5)


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


async def freeze_briefly(scene: Scene, fault: Fault, dice: random.Random) -> None:
    """SIGSTOP for longer than a send may take, and not as long as a lease lasts."""
    process = dice.choice(scene.processes)
    pid = process.pid
    await _freeze(process)
    held, state = scene.watch.leases(pid), _state(pid)
    for_seconds = dice.uniform(SEND_TIMEOUT + 0.5, SEND_TIMEOUT + 4)
    await asyncio.sleep(for_seconds)
    process.signal(signal.SIGCONT)
    at = time.monotonic()
    fault.note(f"{process.name} {state} for {for_seconds:.1f} s with {held} leases", seen=state == "T")
    await accepted_again(scene, fault, at)


async def kill_api(scene: Scene, fault: Fault, dice: random.Random) -> None:
    """kill -9 of the process that takes requests; it is started again a moment later."""
    pid = scene.api.pid
    broken = scene.producers.answers.broken
    await scene.api.kill()
    await asyncio.sleep(dice.uniform(0.3, 2))
    await scene.api.start()
    at = time.monotonic()
    await accepted_again(scene, fault, at)
    met = scene.producers.answers.broken - broken
    fault.note(f"gone, {met} requests broke off", seen=met > 0)
    await until(lambda: not scene.watch.has_session(pid), within=FREED_WITHIN)
    fault.leases = _held(scene.watch.of(pid))


async def stop_api(scene: Scene, fault: Fault, dice: random.Random) -> None:
    """SIGTERM, as when a new version is installed."""
    pid = scene.api.pid
    broken = scene.producers.answers.broken
    status = await scene.api.stop()
    await asyncio.sleep(dice.uniform(0.3, 1))
    await scene.api.start()
    at = time.monotonic()
    await accepted_again(scene, fault, at)
    met = scene.producers.answers.broken - broken
    fault.note(f"ended with status {status}, {met} requests broke off", seen=pid != scene.api.pid and met > 0)
    if status:
        fault.wrong.append(f"the API ended with status {status}")


async def turn_clock(scene: Scene, fault: Fault, dice: random.Random) -> None:
    """The clock of a running process jumps, by hours."""
    worker = scene.workers[-1]
    clock = worker.clock
    assert clock is not None
    if clock.monotonic:
        await _restart(worker, fault, Clock(scene.folder / "clock", clock.library, monotonic=False), offset=0)
    assert worker.clock is not None
    worker.clock.set(dice.choice((-1, 1)) * dice.randint(600, FAR))
    await _is_off(scene, fault, worker.clock.offset)


async def start_with_another_clock(scene: Scene, fault: Fault, dice: random.Random) -> None:
    """A process whose clocks are wrong from the beginning, the monotonic one too."""
    worker = scene.workers[-1]
    assert worker.clock is not None
    offset = dice.choice((-1, 1)) * dice.randint(600, FAR)
    await _restart(worker, fault, Clock(scene.folder / "clock", worker.clock.library, monotonic=True), offset=offset)
    await _is_off(scene, fault, offset)


async def _restart(worker: Process, fault: Fault, clock: Clock, *, offset: int) -> None:
    if status := await worker.stop():
        fault.wrong.append(f"{worker.name} ended with status {status}")
    clock.set(offset)
    worker.clock = clock
    await worker.start()


async def _is_off(scene: Scene, fault: Fault, offset: int) -> None:
    """What it logs shows its clock; `books` looks at what it sends."""
    worker = scene.workers[-1]
    await until(lambda: abs(worker.logged_ahead() - offset) < CLOSE, within=60)
    seen = worker.logged_ahead()
    fault.note(f"{worker.name} logs that it is {seen / 3600:+.2f} h off", seen=abs(seen - offset) < CLOSE)
    await asyncio.sleep(2)


def process_faults(scene: Scene) -> dict[str, Cause]:
    """Those that can be brought about here."""
    clocks: dict[str, Cause] = {
        "clock jumps": turn_clock,
        "clock jumps, once more": turn_clock,
        "starts with another clock": start_with_another_clock,
    }
    return {
        "worker killed": kill_worker,
        "worker killed, once more": kill_worker,
        "worker frozen past its lease": freeze_worker,
        "process frozen briefly": freeze_briefly,
        "API killed": kill_api,
        "API stopped": stop_api,
        **(clocks if scene.workers[-1].clock is not None else {}),
    }
