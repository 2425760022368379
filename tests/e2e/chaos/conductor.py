"""Lets it all happen: three tracks of faults beside each other, a calm now and then, and the end."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.e2e.chaos import books
from tests.e2e.chaos.books import Database, Verdict
from tests.e2e.chaos.database_faults import database_faults
from tests.e2e.chaos.faults import Cause, Deck, Fault
from tests.e2e.chaos.nodes import AWAY
from tests.e2e.chaos.process_faults import process_faults
from tests.e2e.chaos.receiver_faults import receiver_faults
from tests.e2e.chaos.scene import Scene
from tests.e2e.chaos.waiting import until

#: seconds until all has come to rest once nothing goes wrong any more
REST_WITHIN = 240.0
#: seconds between two faults of one track, at most
PAUSE = 3.0


@dataclass(kw_only=True)
class Calm:
    """A moment when nothing was under way."""

    after_faults: int
    #: deliveries that had been accepted, all of them ended
    deliveries: int
    #: seconds until all was at rest
    seconds: float


@dataclass(kw_only=True)
class Story:
    """What happened."""

    faults: list[Fault] = field(default_factory=list)
    calms: list[Calm] = field(default_factory=list)
    verdict: Verdict = field(default_factory=Verdict)
    database: Database | None = None
    #: seconds in which things went wrong, and in all
    shaken: float = 0.0
    seconds: float = 0.0


class Conductor:
    """Brings about faults until there were so many, and so many deliveries."""

    def __init__(
        self, scene: Scene, *, faults: int, deliveries: int, calm_every: int, seed: str, tell: Callable[[str], None]
    ) -> None:
        self._scene = scene
        self._wanted = faults
        self._deliveries = deliveries
        self._calm_every = calm_every
        self._seed = seed
        self._tell = tell
        self._started = 0
        self._under_way = 0
        self._may_go = asyncio.Event()
        self.story = Story()

    async def run(self) -> Story:
        """All of it."""
        began = time.monotonic()
        self._may_go.set()
        tracks: dict[str, dict[str, Cause]] = {
            "processes": process_faults(self._scene),
            "database": database_faults(self._scene),
            "receivers": receiver_faults(self._scene),
        }
        async with asyncio.TaskGroup() as group:
            for name, causes in tracks.items():
                group.create_task(self._track(causes, random.Random(f"{self._seed} {name}")))
        self.story.shaken = time.monotonic() - began
        await self._scene.producers.pause()
        await self._rest()
        await self._scene.producers.stop()
        await self._end()
        self.story.seconds = time.monotonic() - began
        return self.story

    async def _track(self, causes: dict[str, Cause], dice: random.Random) -> None:
        deck, answers = Deck(causes, dice), self._scene.producers.answers
        while True:
            await asyncio.sleep(dice.uniform(0.3, PAUSE))
            await self._may_go.wait()
            if self._started >= self._wanted and answers.deliveries >= self._deliveries:
                return
            self._started += 1
            if self._started % self._calm_every == 0:
                # The others end what they are at, and this one is the last before the calm.
                self._may_go.clear()
            kind, cause = deck.deal()
            await self._happen(Fault(number=self._started, kind=kind), cause, dice)
            if not self._may_go.is_set() and not self._under_way:
                await self._calm()

    async def _happen(self, fault: Fault, cause: Cause, dice: random.Random) -> None:
        answers = self._scene.producers.answers
        refused, broken = answers.refused, answers.broken
        self._under_way += 1
        try:
            async with asyncio.timeout(300):
                await cause(self._scene, fault, dice)
        finally:
            self._under_way -= 1
        fault.refused, fault.broken = answers.refused - refused, answers.broken - broken
        self.story.faults.append(fault)
        back = "" if fault.recovered is None else f"; recovered in {fault.recovered:.1f} s"
        unseen = "" if fault.seen else "  NOTHING SEEN OF IT"
        self._tell(f"{fault.number:4}  {fault.kind}: {'; '.join(fault.effects)}{back}{unseen}")

    async def _calm(self) -> None:
        """Everything comes to rest, the books are compared, and it goes on."""
        await self._scene.producers.pause()
        await self._rest()
        self._scene.producers.go_on()
        self._may_go.set()

    async def _rest(self) -> None:
        began = time.monotonic()
        if await until(self._is_at_rest, within=REST_WITHIN, every=0.25) is None:
            self.story.verdict.wrong.append(f"deliveries or tasks had not ended after {REST_WITHIN} s")
        database = await Database.read(self._scene.pair.primary)
        answers = self._scene.producers.answers
        found = list(books.reconcile(database, answers))
        shown = await self._scene.ledger()
        counted = {state: number for state, number in shown.items() if number and state != "reconciles"}
        if not shown["reconciles"] or counted != database.ledger:
            found.append(f"GET /ledger says {shown}, the database {database.ledger}")
        await self._scene.watch.audit()
        self.story.verdict.check(found)
        calm = Calm(
            after_faults=len(self.story.faults), deliveries=answers.deliveries, seconds=time.monotonic() - began
        )
        self.story.calms.append(calm)
        self._tell(
            f"calm  {calm.deliveries} deliveries accepted = rows = ledger, all ended after {calm.seconds:.1f} s"
            + "".join(f"  WRONG: {one}" for one in found)
        )

    async def _is_at_rest(self) -> bool:
        try:
            return await books.live(self._scene.pair.primary) == 0
        except AWAY:
            return False

    async def _end(self) -> None:
        verdict, scene = self.story.verdict, self._scene
        stopped = await scene.stop()
        database = await Database.read(scene.pair.primary)
        final = books.judge(database, scene.producers.answers, scene.arrivals, scene.watch)
        final.wrong = [*verdict.wrong, *final.wrong, *stopped]
        final.check(books.in_order(scene.producers.lines, scene.arrivals))
        for fault in self.story.faults:
            final.check(f"fault {fault.number}, {fault.kind}: {wrong}" for wrong in fault.wrong)
            if not fault.seen:
                final.wrong.append(f"fault {fault.number}, {fault.kind}, did nothing: {'; '.join(fault.effects)}")
        self.story.verdict = final
        self.story.database = database
