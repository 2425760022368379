"""The situations that an endpoint puts a sender into: it has no end, is late, answers twice, or turns it away."""

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

#: a deadline for one request, seconds, where a scenario lets it pass
DEADLINE = 1.0


@scenario("Answers that would never end, each with a deadline of a second.", "schedule", "timeout")
async def _endless(stage: Stage, _authority: Authority) -> Observed:
    # Floods are slowed down: what is looked at is whether they are cut, and not how fast the machine is.
    slow = ";pause=0.01"
    faults = {
        "hang": "", "slow-headers": "", "endless-headers": slow, "interim-flood": slow, "drip": "", "huge": slow
    }  # fmt: skip
    # The last two begin with a good head: some take that for a success, some try again, which is the same for ever.
    subjects = [
        stage.place(fault, f"{fault}{settings}" + ("" if fault in {"drip", "huge"} else ",200"))
        for fault, settings in faults.items()
    ]

    async def play(subject: Subject) -> None:
        requests = 1 if subject.name in {"drip", "huge"} else 2
        # On a busy machine a try may be over before it is here, so where two are looked for there are some to spare.
        schedule = QUICK if requests == 1 else QUICK * 3
        await deliver(stage, subject, times=2, requests=requests, schedule=schedule, deadline=DEADLINE)
        await subject.over(within=PROMPT)

    await asyncio.gather(*(play(one) for one in subjects))
    return observed(*subjects)


@scenario("An endpoint takes two seconds to answer, which is within the deadline.", "timeout")
async def _slow(stage: Stage, _authority: Authority) -> Observed:
    subject = stage.place("slow", "late;after=2,200")
    await deliver(stage, subject, schedule=QUICK, deadline=PROMPT)
    await subject.over(within=PROMPT)
    await subject.rest(SILENCE)
    return observed(subject)


@scenario("An endpoint sends a second answer that nobody asked for.")
async def _second_answer(stage: Stage, _authority: Authority) -> Observed:
    subject = stage.place("second-answer", "second-answer;status=200")
    await stage.subscribe(subject)
    for _ in range(4):
        await stage.publish(subject)
        await subject.wait(len(subject.published), within=SILENCE)
    await subject.rest(SILENCE)
    return observed(subject)


@scenario("One endpoint hangs with thirty events; another is in good health.", "timeout")
async def _neighbours(stage: Stage, _authority: Authority) -> Observed:
    hanging, healthy = stage.place("hanging", "hang"), stage.place("healthy")
    await stage.subscribe(hanging, deadline=PATIENT)
    await stage.subscribe(healthy)
    await stage.publish(hanging, times=30)
    await hanging.wait(1, within=PROMPT)
    delays: list[float] = []
    for count in range(1, 6):
        began = time.monotonic()
        await stage.publish(healthy)
        await healthy.wait(count, within=PROMPT)
        delays.append(time.monotonic() - began)
    return observed(hanging, healthy, delays=delays)


@scenario("410 Gone is answered; two more events follow.", "state", "schedule")
async def _gone(stage: Stage, _authority: Authority) -> Observed:
    return await _turned_away(stage, "410")


@scenario("401 is answered; two more events follow.", "state")
async def _unauthorized(stage: Stage, _authority: Authority) -> Observed:
    return await _turned_away(stage, "401")


async def _turned_away(stage: Stage, answer: str) -> Observed:
    subject = stage.place("subject", answer)
    await stage.subscribe(subject, schedule=QUICK)
    assert subject.subscribed is not None
    was_active = await stage.sender.is_active(subject.subscribed.id)
    await stage.publish(subject)
    await subject.wait(1, within=PROMPT)
    await subject.rest(SILENCE)
    active = await _stays_active(stage, subject)
    before = len(subject.seen)
    await stage.publish(subject, times=2)
    await subject.rest(SILENCE)
    return observed(subject, was_active=was_active, active=active, before=before)


@scenario("An endpoint refuses with 401, three more events follow, it is mended and enabled.", "state", "enable")
async def _enabling(stage: Stage, _authority: Authority) -> Observed:
    subject = stage.place("subject", "401")
    await deliver(stage, subject, schedule=QUICK)
    await _stays_active(stage, subject)
    for n in range(3):
        await stage.publish(subject, b'{"later": %d}' % n)
    await subject.rest(SILENCE)
    before = len(subject.seen)
    subject.script = ("200",)
    assert subject.subscribed is not None
    await stage.sender.enable(subject.subscribed.id)
    await subject.until(lambda: not subject.missing(before), within=PROMPT)
    await subject.rest(SILENCE)
    active = await stage.sender.is_active(subject.subscribed.id)
    return observed(subject, before=before, active=active)


async def _stays_active(stage: Stage, subject: Subject) -> bool:
    """Whether a subscription is still active after all the time that a slow sender may need to disable it."""
    assert subject.subscribed is not None
    end = time.monotonic() + PROMPT / 2
    while await stage.sender.is_active(subject.subscribed.id):
        if time.monotonic() > end:
            return True
        await asyncio.sleep(0.1)
    return False
