"""What came of an examination: requirements, how each fared, and what was seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum


class Level(StrEnum):
    """How much a requirement weighs (RFC 2119)."""

    MUST = "MUST"
    SHOULD = "SHOULD"
    MAY = "MAY"


class Outcome(StrEnum):
    """How a requirement fared."""

    PASSED = "passed"
    FAILED = "failed"
    #: what it takes to look is missing: the detail says what
    SKIPPED = "skipped"


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Where a requirement comes from."""

    name: str
    url: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Requirement:
    """One thing that is asked of whoever is examined."""

    #: such as SIGN-03; never given to another
    id: str
    level: Level
    #: a sentence: "The id stays the same over all attempts of a message."
    title: str
    source: Source
    #: the situation in which it is looked for
    scenario: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """How one requirement fared."""

    requirement: Requirement
    outcome: Outcome
    #: what was seen and what would be right; empty when it passed. Shows no secret
    detail: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """One request in a timeline."""

    #: seconds since the scenario began
    after: float
    #: what it was answered: a status, or the name of a fault
    answer: str
    #: which message it was of: 1, 2, 3 …
    message: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Timeline:
    """What was seen in one scenario."""

    scenario: str
    #: a sentence: what was done in it
    title: str
    seconds: float
    attempts: Sequence[Attempt] = field(default_factory=tuple)


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """One examination."""

    #: who was examined: "webhook-dispatcher 0.1.0"
    subject: str
    #: "sender" or "receiver"
    kind: str
    #: Unix time, seconds
    started_at: float
    seconds: float
    results: Sequence[Result]
    timelines: Sequence[Timeline] = ()

    def failed(self, *levels: Level) -> list[Result]:
        """What failed at these levels."""
        return [
            one for one in self.results if one.outcome is Outcome.FAILED and one.requirement.level in (levels or Level)
        ]

    def exit_code(self, strictness: Level = Level.SHOULD) -> int:
        """0: nothing failed that weighs as much as `strictness`. 1: something did. 2: nothing could be looked at."""
        if all(one.outcome is Outcome.SKIPPED for one in self.results):
            return 2
        order = list(Level)
        return int(bool(self.failed(*order[: order.index(strictness) + 1])))
