"""How the checks of a receiver are written: a requirement, whom it concerns, and a function that looks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from dispatcher.conformance.receiver_examination.attacker import Attacker, Message
from dispatcher.conformance.receiver_examination.caller import Answer
from dispatcher.conformance.results import Level, Requirement, Source


class CannotTell(Exception):
    """What it takes to look is missing: the text says what, or what was seen that proves nothing."""


#: what was seen and what would be right; empty if all is well. Raises CannotTell, TooManyRequests
Look = Callable[[Attacker], Awaitable[str]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """A requirement and how it is looked for."""

    requirement: Requirement
    look: Look
    #: the schemes that it concerns; None: all
    only_for: frozenset[str] | None
    #: why it cannot be asked of the others
    because: str
    #: it is looked for even if no good request is taken
    is_basic: bool


def asks(
    requirement_id: str,
    level: Level,
    title: str,
    source: Source,
    *,
    scenario: str,
    into: list[Check],
    only_for: frozenset[str] | None = None,
    because: str = "",
    is_basic: bool = False,
) -> Callable[[Look], Look]:
    """Enter the function below as the check of this requirement."""
    requirement = Requirement(id=requirement_id, level=level, title=title, source=source, scenario=scenario)

    def enter(look: Look) -> Look:
        into.append(Check(requirement=requirement, look=look, only_for=only_for, because=because, is_basic=is_basic))
        return look

    return enter


async def refused(attacker: Attacker, *cases: tuple[str, Message]) -> str:
    """Send each; what was seen of the first that was not answered 4xx."""
    for what, message in cases:
        answer = await attacker.send(message)
        if not answer.is_refusal:
            return f"{what} {answer.in_words()}; a 4xx would be right."
    return ""


async def taken(attacker: Attacker, *cases: tuple[str, Message]) -> str:
    """Send each; what was seen of the first that was not answered 2xx."""
    for what, message in cases:
        answer = await attacker.send(message)
        if not answer.is_success:
            return f"{what} {answer.in_words()}; 2xx would be right."
    return ""


async def orderly(attacker: Attacker, *cases: tuple[str, Message]) -> str:
    """Send each; what was seen of the first that was answered by a server error, or not at all."""
    for what, message in cases:
        answer = await attacker.send(message)
        if not is_orderly(answer):
            return f"{what} {answer.in_words()}; a 4xx, or a 2xx, would be right."
    return ""


def is_orderly(answer: Answer) -> bool:
    """An answer that is neither a redirect nor a server error."""
    return answer.is_success or answer.is_refusal


def first(findings: Sequence[str]) -> str:
    """The first finding that is one."""
    return next((one for one in findings if one), "")
