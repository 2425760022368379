"""Probes a webhook receiver: sends good, tampered, stale, repeated, oversized and malformed requests, and says what it
let through.

All that is sent goes to the one address of the target, and each request has a deadline. Dozens of the messages are good
ones: what the receiver does upon a message it will do upon them, so it had better not be in production. What cannot be
seen from outside, above all whether a repeat was processed again, is said to be unknown unless `Target.effects` counts
it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

from dispatcher.conformance.receiver_examination import (
    answers,
    attacks_on_freshness,
    attacks_on_http,
    attacks_on_signatures,
)
from dispatcher.conformance.receiver_examination.attacker import Attacker, Effects, Target, TooManyRequests
from dispatcher.conformance.receiver_examination.caller import Answer
from dispatcher.conformance.receiver_examination.requirements import CannotTell, Check
from dispatcher.conformance.results import Outcome, Report, Requirement, Result, Timeline
from dispatcher.errors import ConfigError

__all__ = ["REQUIREMENTS", "Effects", "Target", "probe"]

_CHECKS: tuple[Check, ...] = (
    *answers.CHECKS,
    *attacks_on_signatures.CHECKS,
    *attacks_on_freshness.CHECKS,
    *attacks_on_http.CHECKS,
    *answers.LAST_CHECKS,
)

#: all that is asked of a receiver, in the order in which it is looked for
REQUIREMENTS: tuple[Requirement, ...] = tuple(check.requirement for check in _CHECKS)

_SCENARIOS = {
    "good requests": "Well-formed, well-signed requests were sent.",
    "signatures": "Requests were sent whose signatures were missing, wrong, cut, or of something else.",
    "time": "Well-signed requests were sent whose time was off.",
    "repeats": "Requests were sent again: the same, changed, forged, and several at once.",
    "bodies": "Well-signed bodies were sent that are not what was agreed on.",
    "methods": "Requests were sent by other methods than POST.",
    "sizes": "Requests were sent that are too large, too long, or do not end.",
    "framing": "Requests were sent that HTTP/1.1 forbids, or that are easily misread.",
    "what answers show": "Errors were provoked, and all answers searched for what they must not show.",
}


async def probe(
    target: Target, *, only: Collection[str] | None = None, on_result: Callable[[Result], None] | None = None
) -> Report:
    """Examine a receiver. `only` names requirements by id; `on_result` hears of each as soon as it is known.

    Where no good request is taken, refusals prove nothing, and most requirements are skipped. Raises ConfigError if
    `only` names what there is not, or if the target's key cannot serve its schemes.
    """
    unknown = sorted(set(only or ()) - {requirement.id for requirement in REQUIREMENTS})
    if unknown:
        raise ConfigError(f"There is no requirement {unknown[0]}; the first is {REQUIREMENTS[0].id}.")
    started_at, started = time.time(), time.monotonic()
    attacker = Attacker(target)
    baseline = await _baseline(attacker)
    results: list[Result] = []
    timelines: list[Timeline] = []
    for scenario, title in _SCENARIOS.items():
        checks = [one for one in _CHECKS if one.requirement.scenario == scenario]
        attacker.begin_scenario()
        for check in checks:
            if only is not None and check.requirement.id not in only:
                continue
            results.append(await _examine(attacker, check, baseline))
            if on_result is not None:
                on_result(results[-1])
        if attacker.attempts:
            timelines.append(
                Timeline(
                    scenario=scenario,
                    title=title,
                    seconds=round(attacker.elapsed, 4),
                    attempts=tuple(attacker.attempts),
                )
            )
    return Report(
        subject=f"receiver at {target.origin}",
        kind="receiver",
        started_at=started_at,
        seconds=round(time.monotonic() - started, 3),
        results=tuple(results),
        timelines=tuple(timelines),
    )


async def _baseline(attacker: Attacker) -> Answer:
    """What a good request is answered: without a 2xx, no refusal means anything."""
    try:
        return await attacker.send(attacker.message())
    except TooManyRequests:
        return Answer(status=429)


async def _examine(attacker: Attacker, check: Check, baseline: Answer) -> Result:
    if check.only_for is not None and not attacker.schemes & check.only_for:
        names = ", ".join(attacker.target.schemes)
        return _result(check, Outcome.SKIPPED, f"It cannot be asked with {names}: {check.because}.")
    if not (baseline.is_success or check.is_basic):
        return _result(
            check, Outcome.SKIPPED, f"A good request {baseline.in_words()}, so that a refusal proves nothing."
        )
    try:
        finding = await check.look(attacker)
    except CannotTell as unknown:
        return _result(check, Outcome.SKIPPED, str(unknown))
    except TooManyRequests:
        return _result(
            check, Outcome.SKIPPED, "A request was answered 429: allow more of them to the probe, then it can tell."
        )
    return _result(check, Outcome.FAILED if finding else Outcome.PASSED, finding)


def _result(check: Check, outcome: Outcome, detail: str) -> Result:
    return Result(requirement=check.requirement, outcome=outcome, detail=detail)
