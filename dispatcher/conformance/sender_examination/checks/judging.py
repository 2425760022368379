"""What a check is: a numbered requirement on a sender, and a function that judges what one scenario observed.

A judge answers what was wrong; None if nothing was. Where what was seen shows neither, it raises Unproven.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from dispatcher.conformance.results import Level, Requirement, Source
from dispatcher.conformance.sender_examination.scenario import Observed
from dispatcher.conformance.sender_examination.stage import Seen, Subject

MUST, SHOULD, MAY = Level.MUST, Level.SHOULD, Level.MAY

Judge = Callable[[Observed], str | None]


class Unproven(Exception):
    """That nothing was seen says nothing, since what had to be seen was not there either; the text says what."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """A requirement, and how it is judged."""

    requirement: Requirement
    judge: Judge


#: all of them, by id, as the modules here have registered them
REGISTERED: dict[str, Check] = {}


def check(id_: str, level: Level, scenario: str, source: Source, title: str) -> Callable[[Judge], Judge]:
    """Register a requirement and the function that judges it."""

    def register(judge: Judge) -> Judge:
        if id_ in REGISTERED:
            raise ValueError(f"{id_} is there already")
        requirement = Requirement(id=id_, level=level, title=title, source=source, scenario=scenario)
        REGISTERED[id_] = Check(requirement=requirement, judge=judge)
        return judge

    return register


def unless_mute(observed: Observed) -> None:
    """That nothing is wrong with what came says nothing where nothing came. Raises Unproven."""
    if not observed.seen:
        raise Unproven("it shows nothing: no request came")


def each(subject: Subject, wrong: Callable[[Seen], str | None]) -> str | None:
    """What is wrong with the first request that has something wrong; also if there is no request."""
    if not subject.seen:
        return "no request came"
    found = ((seen, wrong(seen)) for seen in subject.seen)
    return next((f"request {seen.request.number}: {text}" for seen, text in found if text), None)


def all_of(observed: Observed, judge: Callable[[Subject], str | None]) -> str | None:
    """What is wrong at the first subject where something is."""
    found = ((name, judge(subject)) for name, subject in observed.subjects.items())
    return next((f"{name}: {text}" for name, text in found if text), None)


def first(texts: Iterable[str | None]) -> str | None:
    """The first of these that says something."""
    return next((text for text in texts if text), None)


def tries(subject: Subject, count: int, *, or_more: bool = False) -> str | None:
    """What is wrong when each message should have come so many times, or at least as often."""
    if not subject.seen:
        return "no request came"
    came = [len(ones) for ones in subject.messages.values()]
    odd = [times for times in came if times < count or (times > count and not or_more)]
    return f"a message came {odd[0]} times, not {count}" if odd else None


def signature_fault(subject: Subject, scheme: str, one: Seen, *, secret: str | None = None) -> str | None:
    """Why a request is not signed by this scheme; None if it is."""
    verdict = subject.verify(scheme, one.request, secret=secret)
    return None if verdict.is_good else verdict.reason
