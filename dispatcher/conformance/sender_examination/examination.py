"""Examine a sender: play the scenarios, judge what was seen, and report."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

from dispatcher.conformance.certificates import Authority
from dispatcher.conformance.results import Attempt, Outcome, Report, Result, Timeline
from dispatcher.conformance.sender_examination.checks import CHECKS, Check
from dispatcher.conformance.sender_examination.checks.judging import Unproven
from dispatcher.conformance.sender_examination.neighbourhood import Neighbourhood
from dispatcher.conformance.sender_examination.scenario import Observed, Scenario
from dispatcher.conformance.sender_examination.scenarios import SCENARIOS
from dispatcher.conformance.sender_examination.senders import ABILITIES, Refused, Sender
from dispatcher.conformance.sender_examination.stage import Stage, Unplayable
from dispatcher.errors import ConfigError

#: seconds after which a scenario is given up
LONGEST = 90.0


def chosen(patterns: Sequence[str]) -> list[Check]:
    """The checks whose ids match one of these (`SIGN-*`); all if there are none. Raises ConfigError."""
    unknown = [pattern for pattern in patterns if not any(fnmatchcase(id_, pattern) for id_ in CHECKS)]
    if unknown:
        raise ConfigError(f"no requirement is called {unknown[0]}; `dispatcher conformance list` names them all")
    return [
        check for id_, check in CHECKS.items() if not patterns or any(fnmatchcase(id_, pattern) for pattern in patterns)
    ]


async def examine(
    sender: Sender,
    authority: Authority,
    *,
    neighbourhood: Neighbourhood | None = None,
    only: Sequence[str] = (),
    on_played: Callable[[Scenario], None] | None = None,
) -> Report:
    """Examine a sender that is running. `on_played` is told of each scenario that is over.

    `neighbourhood` is the one that the sender was told of; without one, what it does as in production is not looked at.

    Raises:
        ConfigError: a pattern names no requirement, or the sender broke down.
    """
    checks = chosen(only)
    started_at, began = time.time(), time.monotonic()
    names = dict.fromkeys(check.requirement.scenario for check in checks)
    places = [Stage(sender, neighbourhood) for _ in names]
    plays = [_play(name, stage, authority, on_played) for name, stage in zip(names, places, strict=True)]
    played = dict(zip(names, await asyncio.gather(*plays), strict=True))
    return Report(
        subject=sender.name,
        kind="sender",
        started_at=started_at,
        seconds=time.monotonic() - began,
        results=[_judge(check, played[check.requirement.scenario][0]) for check in checks],
        timelines=[timeline for _, timeline in played.values() if timeline is not None],
    )


async def _play(
    name: str, stage: Stage, authority: Authority, on_played: Callable[[Scenario], None] | None
) -> tuple[Observed | str, Timeline | None]:
    """What was observed, or why there is nothing."""
    scenario = SCENARIOS[name]
    lacking = sorted(scenario.needs - stage.sender.abilities)
    if lacking:
        return f"the sender cannot {ABILITIES.get(lacking[0], lacking[0])}", None
    began = time.monotonic()
    try:
        async with stage, asyncio.timeout(LONGEST):
            observed = await scenario.play(stage, authority)
    except Refused as exc:
        return f"the sender refused what the scenario needs: {exc}", None
    except Unplayable as exc:
        return str(exc), None
    except TimeoutError:
        return f"the scenario was not over after {LONGEST:g} s", None
    if on_played is not None:
        on_played(scenario)
    return observed, _timeline(scenario, observed, began)


def _judge(check: Check, observed: Observed | str) -> Result:
    if not isinstance(observed, Observed):
        return Result(requirement=check.requirement, outcome=Outcome.SKIPPED, detail=str(observed))
    try:
        wrong = check.judge(observed)
    except Unproven as exc:
        return Result(requirement=check.requirement, outcome=Outcome.SKIPPED, detail=str(exc))
    outcome = Outcome.PASSED if wrong is None else Outcome.FAILED
    return Result(requirement=check.requirement, outcome=outcome, detail=wrong or "")


def _timeline(scenario: Scenario, observed: Observed, began: float) -> Timeline:
    attempts: list[Attempt] = []
    message = 0
    for subject in observed.subjects.values():
        for ones in subject.messages.values():
            message += 1
            attempts += [
                Attempt(after=one.request.clock - began, answer=one.answer.partition(";")[0], message=message)
                for one in ones
            ]
    return Timeline(
        scenario=scenario.name,
        title=scenario.title,
        seconds=time.monotonic() - began,
        attempts=tuple(sorted(attempts, key=lambda one: one.after)),
    )
