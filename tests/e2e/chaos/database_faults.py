"""Faults of the database: restarted, crashed, cut off, replaced by its standby, out of disk."""

from __future__ import annotations

import asyncio
import random
import signal
import time

from tests.e2e.chaos.faults import Cause, Fault, accepted_again
from tests.e2e.chaos.scene import Scene

#: seconds until a full disk must have been noticed
NOTICED_WITHIN = 40.0
#: which of its connections are the dispatchers'
OURS = "datname = current_database() AND application_name NOT IN ('watch', '') AND backend_type = 'client backend'"


async def _stopped_and_started(scene: Scene, fault: Fault, dice: random.Random, number: signal.Signals) -> None:
    node = scene.pair.primary
    open_before = _connections(scene)
    await node.stop(number)
    gone = not await node.is_up()
    await asyncio.sleep(dice.uniform(0, 3))
    await node.start()
    at = time.monotonic()
    fault.note(f"server gone, {open_before} connections closed", seen=gone and open_before > 0)
    await accepted_again(scene, fault, at)


def _connections(scene: Scene) -> int:
    return sum(proxy.connections for proxy in scene.proxies)


async def restart_fast(scene: Scene, fault: Fault, dice: random.Random) -> None:
    """As by `pg_ctl restart -m fast`."""
    await _stopped_and_started(scene, fault, dice, signal.SIGINT)


async def restart_immediate(scene: Scene, fault: Fault, dice: random.Random) -> None:
    """As by `pg_ctl restart -m immediate`: it recovers from its log."""
    await _stopped_and_started(scene, fault, dice, signal.SIGQUIT)


async def crash(scene: Scene, fault: Fault, dice: random.Random) -> None:
    """kill -9 of all its processes; it is started again, and recovers from its log."""
    killed = await scene.pair.primary.kill()
    await asyncio.sleep(dice.uniform(0, 2))
    await scene.pair.primary.start()
    at = time.monotonic()
    fault.note(f"{killed} processes of PostgreSQL killed", seen=killed > 1)
    await accepted_again(scene, fault, at)


async def cut_some(scene: Scene, fault: Fault, dice: random.Random) -> None:
    """pg_terminate_backend, for some of the dispatchers' connections."""
    await _cut(scene, fault, f"{OURS} AND random() < {dice.uniform(0.3, 0.7):.2f}")


async def cut_all(scene: Scene, fault: Fault, dice: random.Random) -> None:
    """The same for all of them."""
    await _cut(scene, fault, OURS)


async def _cut(scene: Scene, fault: Fault, which: str) -> None:
    cut: list[int] = []
    for _ in range(20):
        # Some may have none in this moment.
        rows = await scene.pair.primary.fetch(
            f"SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity WHERE {which}"
        )
        cut += [row[0] for row in rows if row[1]]
        if cut:
            break
        await asyncio.sleep(0.2)
    at = time.monotonic()
    fault.note(f"{len(cut)} connections ended", seen=bool(cut))
    await accepted_again(scene, fault, at)


async def reset_network(scene: Scene, fault: Fault, dice: random.Random) -> None:
    """Every connection to the database breaks, and for a while none is made."""
    for proxy in scene.proxies:
        proxy.refusing = True
    broken = sum(proxy.reset() for proxy in scene.proxies)
    turned_away = sum(proxy.turned_away for proxy in scene.proxies)
    await asyncio.sleep(dice.uniform(0, 4))
    for proxy in scene.proxies:
        proxy.refusing = False
    at = time.monotonic()
    turned_away = sum(proxy.turned_away for proxy in scene.proxies) - turned_away
    fault.note(f"{broken} connections reset, {turned_away} more refused", seen=broken > 0)
    await accepted_again(scene, fault, at)


async def swallow_network(scene: Scene, fault: Fault, dice: random.Random) -> None:
    """Nothing gets through to the database or back, and nobody is told. Then all of it does, or all is reset."""
    held = sum(proxy.swallow() for proxy in scene.proxies)
    began = time.monotonic()
    for_seconds = dice.choice((1, 3, 8, 15)) * dice.uniform(0.7, 1.3)
    # What was on its way still comes through.
    await asyncio.sleep(0.3)
    meanwhile = scene.producers.answers.requests
    await asyncio.sleep(max(0.0, for_seconds - 0.3))
    still = scene.producers.answers.requests == meanwhile
    is_reset = dice.random() < 0.5
    for proxy in scene.proxies:
        if is_reset:
            proxy.reset()
        proxy.release()
    at = time.monotonic()
    ended = "reset" if is_reset else "went on"
    fault.note(
        f"{held} connections silent for {at - began:.1f} s, then {ended}",
        seen=held > 0 and still,
    )
    await accepted_again(scene, fault, at)


async def fail_over(scene: Scene, fault: Fault, dice: random.Random) -> None:
    """kill -9 of the primary, and its synchronous standby takes its place. Then it becomes the standby itself."""
    old = scene.pair.primary
    if not await old.has_standby():
        await old.wait_for_standby(scene.pair.standby)
    killed = await old.kill()
    await asyncio.sleep(dice.uniform(0, 1))
    await scene.pair.fail_over()
    at = time.monotonic()
    await accepted_again(scene, fault, at)
    [[is_standby]] = await scene.pair.primary.fetch("SELECT pg_is_in_recovery()")
    [[log_file]] = await scene.pair.primary.fetch("SELECT pg_walfile_name(pg_current_wal_lsn())")
    fault.note(
        f"{killed} processes of {old.name} killed, {scene.pair.primary.name} promoted to timeline {log_file[:8]}",
        seen=killed > 1 and not is_standby,
    )
    await scene.pair.rebuild()


async def fill_disk(scene: Scene, fault: Fault, dice: random.Random) -> None:
    """Not a byte is free on the primary's disk, until somebody has noticed; then there is room again."""
    node, answers = scene.pair.primary, scene.producers.answers
    refused = answers.refused
    await node.fill_disk()
    began = time.monotonic()
    crashed = False
    while time.monotonic() - began < NOTICED_WITHIN:
        await node.fill_disk()  # what the server gives back, too
        crashed = crashed or not await node.is_up()
        if answers.refused > refused and (crashed or dice.random() < 0.2):
            break
        await asyncio.sleep(0.2)
    node.free_disk()
    await node.answers()
    at = time.monotonic()
    await accepted_again(scene, fault, at)
    how = "; PostgreSQL crashed over it" if crashed else ""
    fault.note(
        f"{node.name} full for {at - began:.0f} s, {answers.refused - refused} answers 503{how}",
        seen=answers.refused > refused,
    )


def database_faults(scene: Scene) -> dict[str, Cause]:
    """Those that can be brought about here."""
    disk: dict[str, Cause] = {"disk full": fill_disk} if scene.small else {}
    return {
        "PostgreSQL restarted, fast": restart_fast,
        "PostgreSQL restarted, immediate": restart_immediate,
        "PostgreSQL killed": crash,
        "some connections ended": cut_some,
        "all connections ended": cut_all,
        "network to PostgreSQL reset": reset_network,
        "network to PostgreSQL silent": swallow_network,
        "primary killed, standby promoted": fail_over,
        **disk,
    }
