"""What a scenario is, the register of all of them, and what they are written with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from dispatcher.conformance.certificates import Authority
from dispatcher.conformance.sender_examination.stage import Seen, Stage, Subject

#: seconds within which what has to come comes
PROMPT = 10.0
#: seconds of silence after which nothing more is expected
SILENCE = 2.0
#: seconds between tries where they have to be quick
QUICK = (0.2,)


@dataclass(frozen=True, kw_only=True, slots=True)
class Observed:
    """What came of a scenario."""

    subjects: dict[str, Subject]
    #: whatever else was found out, by name
    facts: dict[str, object] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Subject:
        return self.subjects[name]

    @property
    def seen(self) -> list[Seen]:
        """The requests to all subjects."""
        return [one for subject in self.subjects.values() for one in subject.seen]

    @property
    def messages(self) -> list[list[Seen]]:
        """The requests of each message."""
        return [ones for subject in self.subjects.values() for ones in subject.messages.values()]

    @property
    def gaps(self) -> list[list[float]]:
        """Of each message the seconds between one request and the next."""
        return [gaps for subject in self.subjects.values() for gaps in subject.gaps]

    @property
    def published(self) -> int:
        """How many messages there should be."""
        return sum(len(subject.published) for subject in self.subjects.values())


@dataclass(frozen=True, kw_only=True, slots=True)
class Scenario:
    """One situation."""

    name: str
    #: a sentence: what is done in it
    title: str
    #: what the sender has to be able to do
    needs: frozenset[str]
    play: Callable[[Stage, Authority], Awaitable[Observed]]


SCENARIOS: dict[str, Scenario] = {}

Play = Callable[[Stage, Authority], Awaitable[Observed]]


def scenario(title: str, *needs: str) -> Callable[[Play], Play]:
    def register(play: Play) -> Play:
        name = play.__name__.strip("_").replace("_", "-")
        SCENARIOS[name] = Scenario(name=name, title=title, needs=frozenset(needs) | {"subscribe"}, play=play)
        return play

    return register


def observed(*subjects: Subject, **facts: object) -> Observed:
    return Observed(subjects={one.name: one for one in subjects}, facts=facts)


async def deliver(stage: Stage, subject: Subject, *, times: int = 1, requests: int = 1, **wish: object) -> None:
    """Subscribe, publish, and wait until so many requests of each message have come, and then for silence."""
    await stage.subscribe(subject, **wish)  # type: ignore[arg-type]  # passed through
    await stage.publish(subject, times=times)
    for count in range(1, times * requests + 1):
        # each in its own time: a late one makes all that follow late
        if not await subject.wait(count, within=PROMPT):
            break
    await subject.rest(SILENCE)
