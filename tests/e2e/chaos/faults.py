"""What a fault is, and the three that can happen at once: to a process, to the database, to a receiver.

Each says what was seen of it. One of which nothing is seen was no fault, and the run has failed.
"""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from tests.e2e.chaos.scene import Scene
from tests.e2e.chaos.waiting import until
from tests.e2e.chaos.watch import Sending

#: seconds until requests must be accepted again
RECOVERED_WITHIN = 90.0


@dataclass(kw_only=True)
class Fault:
    """One thing that went wrong."""

    number: int
    kind: str
    began: float = field(default_factory=time.monotonic)
    #: whatever was seen of it, in words
    effects: list[str] = field(default_factory=list)
    #: whether what it had to bring about was seen
    seen: bool = False
    #: seconds from its end until all was as before; None where there is no such thing, or it did not happen
    recovered: float | None = None
    #: leases that it ended
    leases: frozenset[Sending] = frozenset()
    #: requests that a frozen process still sent once it went on; None where none was frozen for long enough
    strays: int | None = None
    #: 503s and requests that broke off, from its beginning to its end
    refused: int = 0
    broken: int = 0
    #: what it found that should not be
    wrong: list[str] = field(default_factory=list)

    def note(self, effect: str, *, seen: bool = True) -> None:
        """Note what was seen, and whether that is what had to be."""
        self.effects.append(effect)
        self.seen = seen


#: brings a fault about, waits until it is over, and notes what was seen
Cause = Callable[[Scene, Fault, random.Random], Awaitable[None]]


class Deck:
    """Faults of one track in a random order in which each kind comes again and again."""

    def __init__(self, causes: dict[str, Cause], dice: random.Random) -> None:
        self._causes = causes
        self._dice = dice
        self._left: list[str] = []

    def deal(self) -> tuple[str, Cause]:
        """The next one."""
        if not self._left:
            self._left = list(self._causes)
            self._dice.shuffle(self._left)
        kind = self._left.pop()
        return kind, self._causes[kind]


async def accepted_again(scene: Scene, fault: Fault, since: float) -> None:
    """Wait until a request that was made after the end of a fault is answered 202."""
    if await until(lambda: scene.producers.answers.latest > since, within=RECOVERED_WITHIN) is None:
        fault.wrong.append(f"nothing was accepted for {RECOVERED_WITHIN} s")
    else:
        fault.recovered = time.monotonic() - since
