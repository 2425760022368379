"""Faults of receivers: down, hanging, resetting, answering 500 or 429."""

from __future__ import annotations

import asyncio
import random
import time
from functools import partial

from tests.e2e.chaos.faults import Cause, Fault
from tests.e2e.chaos.nodes import AWAY
from tests.e2e.chaos.receivers import Mood, Receiver
from tests.e2e.chaos.scene import Scene
from tests.e2e.chaos.waiting import until

#: seconds until somebody must have met it, and until it is sent to again
MET_WITHIN = 180.0


async def change_mood(scene: Scene, fault: Fault, dice: random.Random, mood: Mood) -> None:
    """One receiver behaves badly for some seconds."""
    number = dice.randrange(len(scene.receivers))
    receiver = scene.receivers[number]
    before, began = receiver.let_down, time.time()
    await receiver.change(mood)
    await asyncio.sleep(dice.uniform(1, 6))
    if mood is Mood.DOWN:
        met = 0
        for _ in range(round(MET_WITHIN)):
            met = await _refused(scene, receiver, since=began)
            if met:
                break
            await asyncio.sleep(1)
    else:
        await until(lambda: receiver.let_down > before, within=MET_WITHIN)
        met = receiver.let_down - before
    await receiver.change(Mood.WELL)
    at = time.monotonic()
    what = "attempts found nobody there" if mood is Mood.DOWN else "requests met it"
    fault.note(f"receiver {number}: {met} {what}", seen=met > 0)
    if await until(lambda: receiver.last_taken > at, within=MET_WITHIN) is None:
        fault.wrong.append(f"receiver {number} got nothing for {MET_WITHIN} s")
    else:
        fault.recovered = receiver.last_taken - at


async def _refused(scene: Scene, receiver: Receiver, *, since: float) -> int:
    """Attempts on record that no connection was made for: whoever is down cannot count them."""
    lanes = [f"dev {one.id}" for one in scene.subscriptions if one.port == receiver.port]
    try:
        [[found]] = await scene.pair.primary.fetch(
            "SELECT count(*) FROM attempts a JOIN deliveries d ON d.id = a.delivery_id"
            " WHERE a.started_at >= $1 AND a.outcome = 'connection_error' AND d.lane = ANY($2)",
            round(since * 1000),
            [f"dev {receiver.url}", *lanes],
        )
    except AWAY:
        return 0
    return int(found)


def receiver_faults(_scene: Scene) -> dict[str, Cause]:
    """All of them."""
    return {f"receiver {mood}": partial(change_mood, mood=mood) for mood in Mood if mood is not Mood.WELL}
