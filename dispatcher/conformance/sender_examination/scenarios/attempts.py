"""The situations in which a message is sent again, or is not: answers of every kind, and connections that break."""

from __future__ import annotations

import asyncio
import time

from dispatcher.conformance.certificates import Authority
from dispatcher.conformance.sender_examination.scenario import (
    PROMPT,
    QUICK,
    SILENCE,
    Observed,
    deliver,
    observed,
    scenario,
)
from dispatcher.conformance.sender_examination.stage import PATIENT, Stage, Subject

#: seconds between tries, where the distances themselves are looked at
RISING = (0.4, 0.9, 4.0)
#: seconds between the first messages to endpoints that must not meet in one wave
APART = 0.05
#: seconds of sleep by which it is seen whether the machine is busy
_BLINK = 0.05


@scenario("At each of two dozen endpoints an event is refused with 500, 503 and 502, and then taken.", "schedule")
async def _retries(stage: Stage, _authority: Authority) -> Observed:
    # One event each: a sender may well spare an endpoint at which everything fails.
    rest = "/a%2Fb?x=1&y=%C3%A9"
    subjects = [stage.place(f"endpoint-{n}", "500,503,502,200", rest=rest) for n in range(1, 25)]

    async def play(turn: int, subject: Subject) -> None:
        await asyncio.sleep(turn * APART)
        await deliver(stage, subject, requests=4, schedule=RISING)

    await _quiet(most=PROMPT)
    await asyncio.gather(*(play(turn, one) for turn, one in enumerate(subjects)))
    return observed(*subjects)


async def _quiet(*, most: float) -> None:
    """Wait until the rush of the beginning is over, in which all scenarios start: distances are measured after it.

    Whether it is shows by how late we are woken ourselves. A machine that never comes to rest is waited for no longer
    than `most` seconds.
    """
    end = time.monotonic() + most
    calm = 0
    while calm < 10 and time.monotonic() < end:
        began = time.monotonic()
        await asyncio.sleep(_BLINK)
        calm = calm + 1 if time.monotonic() - began < 1.5 * _BLINK else 0


@scenario("An event is answered 500 for ever.", "schedule")
async def _exhausted(stage: Stage, _authority: Authority) -> Observed:
    subject = stage.place("exhausted", "500")
    await deliver(stage, subject, requests=4, schedule=QUICK * 3)
    return observed(subject, tries=4)


@scenario("Each 2xx is a success.", "schedule")
async def _successes(stage: Stage, _authority: Authority) -> Observed:
    return await _one_each(stage, ["200", "201", "202", "204", "226", "299"])


@scenario("What speaks of a passing trouble is answered once; then 200.", "schedule")
async def _passing(stage: Stage, _authority: Authority) -> Observed:
    return await _one_each(stage, ["408", "429", "500", "502", "503", "504"], then="200")


@scenario("Refusals that another try will not change.", "schedule")
async def _refusals(stage: Stage, _authority: Authority) -> Observed:
    return await _one_each(stage, ["400", "401", "403", "404", "405", "413", "422"])


@scenario("Not a success: answers that are no 2xx and yet no error.", "schedule")
async def _in_between(stage: Stage, _authority: Authority) -> Observed:
    return await _one_each(stage, ["300", "304", "199"], then="200")


@scenario("Connections that break: before an answer, within it, or by a reset.", "schedule")
async def _broken(stage: Stage, _authority: Authority) -> Observed:
    # Some take a while to see that what came is no answer, and may.
    return await _one_each(stage, ["close", "reset", "garbage", "http09"], then="200", deadline=5.0)


async def _one_each(stage: Stage, answers: list[str], *, then: str = "", deadline: float = PATIENT) -> Observed:
    """A subject for each answer."""
    subjects = [stage.place(f"{answer}", f"{answer},{then}" if then else answer) for answer in answers]
    await asyncio.gather(
        *(deliver(stage, one, requests=2 if then else 1, schedule=QUICK, deadline=deadline) for one in subjects)
    )
    return observed(*subjects)


@scenario("An endpoint answers as a whole, and resets the connection a moment later.")
async def _torn(stage: Stage, _authority: Authority) -> Observed:
    subject = stage.place("torn", "torn,200")
    await deliver(stage, subject, schedule=QUICK)
    return observed(subject)


@scenario("Retry-After in both forms, of the past, and as garbage.", "schedule")
async def _retry_after(stage: Stage, _authority: Authority) -> Observed:
    subjects = [
        stage.place("seconds", "429;retry-after=3,200"),
        stage.place("unavailable", "503;retry-after=3,200"),
        stage.place("date", "429;retry-after-date=4,200"),
        stage.place("past", "429;retry-after-date=-3600,200"),
        stage.place("zero", "429;retry-after=0,200"),
        stage.place("garbage", "429;retry-after-raw=soon,200"),
    ]
    await asyncio.gather(*(deliver(stage, one, requests=2, schedule=(1.0,)) for one in subjects))
    return observed(*subjects)


@scenario("One endpoint asks to be left alone for a minute; another is in good health.")
async def _patience(stage: Stage, _authority: Authority) -> Observed:
    busy, healthy = stage.place("busy", "429;retry-after=60,200"), stage.place("healthy")
    await stage.subscribe(busy, schedule=QUICK)
    await stage.subscribe(healthy)
    await stage.publish(busy)
    await busy.wait(1, within=PROMPT)
    await busy.over(within=PROMPT)
    # until the sender has understood what it was asked
    await busy.rest(SILENCE / 2)
    await stage.publish(healthy)
    await healthy.wait(1, within=PROMPT)
    return observed(busy, healthy)


@scenario("Redirects of every kind point to another path of the receiver.", "schedule")
async def _redirects(stage: Stage, _authority: Authority) -> Observed:
    elsewhere = stage.place("elsewhere")
    subjects = [
        stage.place(str(status), f"redirect;status={status};to={elsewhere.url},200")
        for status in (301, 302, 303, 307, 308)
    ]
    await asyncio.gather(*(deliver(stage, one, requests=2, schedule=QUICK) for one in subjects))
    return observed(elsewhere, *subjects)
