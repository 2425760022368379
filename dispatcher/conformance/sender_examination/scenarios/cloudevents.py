"""The situations for CloudEvents: endpoints that are asked before they are sent to, and events in both forms."""

from __future__ import annotations

import asyncio
import contextlib
import time

from dispatcher.conformance.certificates import Authority
from dispatcher.conformance.sender_examination.handshakes import Consent
from dispatcher.conformance.sender_examination.scenario import PROMPT, QUICK, SILENCE, Observed, observed, scenario
from dispatcher.conformance.sender_examination.senders import Refused
from dispatcher.conformance.sender_examination.stage import Stage, Subject

#: answers that let a sender send
GRANTS = {
    "own name": Consent(),
    "any name": Consent(allowed=lambda _: "*"),
}
#: answers that do not, the near misses among them
DENIALS = {
    "200 without a name": Consent(allowed=lambda _: None),
    "200 with another name": Consent(allowed=lambda _: "other.example"),
    "200 with a longer name": Consent(allowed=lambda origin: f"{origin}.example"),
    "200 with a subdomain": Consent(allowed=lambda origin: f"x.{origin}"),
    "405": Consent(allowed=lambda _: None, status=405),
    "403": Consent(allowed=lambda _: None, status=403),
    "500": Consent(allowed=lambda _: None, status=500),
}
#: seconds that a grant takes, where the sender is to be seen waiting
_THINKING = 1.5
#: requests a minute that are granted, and messages that are published at once; the first is far below the second
GRANTED_RATE = 3
_TOO_MANY = 8

#: payloads whose value is the same however they are written
PAYLOADS = (
    b'{"n": 1}',
    b'{"text": "\\u00e9\xe2\x82\xac\xf0\x9f\x90\x9d \\"x\\"", "list": [1, -2.5, true, null, {"a": {}}]}',
    b'["a", ["b"]]',
)


@scenario(
    "Endpoints are asked by a handshake: some grant it, some do not; then two events each are published.", "handshake"
)
async def _handshake(stage: Stage, _authority: Authority) -> Observed:
    subjects = []
    for name, consent in (GRANTS | DENIALS).items():
        subject = stage.place(name.replace(" ", "-"), rest="/a%2Fb?x=1&x=2")
        subject.consent = consent
        # A sender may refuse to subscribe who does not agree; and where there is no subscription, nothing comes.
        with contextlib.suppress(Refused):
            await stage.subscribe(subject, handshake=True)
        subjects.append(subject)
    await asyncio.gather(*(_asked(one) for one in subjects))
    for subject in subjects:
        with contextlib.suppress(Refused):
            await stage.publish(subject, times=2)
    await asyncio.gather(*(one.wait(2, within=PROMPT) for one in subjects[: len(GRANTS)]))
    await asyncio.gather(*(one.rest(2 * SILENCE) for one in subjects))
    return observed(*subjects)


@scenario("An endpoint takes a while to grant; events are published meanwhile.", "handshake")
async def _late_grant(stage: Stage, _authority: Authority) -> Observed:
    subject = stage.place("late")
    subject.consent = Consent(after=_THINKING)
    subscribing = asyncio.create_task(stage.subscribe(subject, handshake=True))
    await _asked(subject, is_answered=False)
    await stage.publish(subject, times=2)
    with contextlib.suppress(Refused):
        await subscribing
    await _asked(subject)
    await stage.publish(subject)
    await subject.wait(1, within=PROMPT)
    await subject.rest(SILENCE)
    return observed(subject)


@scenario(
    f"An endpoint grants {GRANTED_RATE} requests a minute; {_TOO_MANY} events are published at once.", "handshake"
)
async def _granted_rate(stage: Stage, _authority: Authority) -> Observed:
    subject = stage.place("rate")
    subject.consent = Consent(rate=str(GRANTED_RATE))
    await stage.subscribe(subject, handshake=True)
    await _asked(subject)
    await stage.publish(subject, times=_TOO_MANY)
    await subject.wait(1, within=PROMPT)
    await subject.rest(2 * SILENCE)
    return observed(subject)


async def _asked(subject: Subject, *, is_answered: bool = True) -> None:
    """Wait until a handshake has come, and, unless that does not matter, was answered."""
    end = time.monotonic() + PROMPT
    while time.monotonic() < end:
        if any(one.answered is not None or not is_answered for one in subject.handshakes):
            return
        await asyncio.sleep(0.02)


@scenario("Events are sent as CloudEvents in binary mode, twice each.", "schedule", "body:cloudevents-binary")
async def _cloudevents_binary(stage: Stage, _authority: Authority) -> Observed:
    return await _as_cloudevents(stage, "cloudevents-binary")


@scenario("Events are sent as CloudEvents in structured mode, twice each.", "schedule", "body:cloudevents-structured")
async def _cloudevents_structured(stage: Stage, _authority: Authority) -> Observed:
    return await _as_cloudevents(stage, "cloudevents-structured")


async def _as_cloudevents(stage: Stage, body: str) -> Observed:
    """A subject for each payload, so that it is known whose request each is, whatever stands in it."""
    subjects = [stage.place(f"payload-{number}", "500,200") for number in range(1, len(PAYLOADS) + 1)]

    async def play(subject: Subject, payload: bytes) -> None:
        await stage.subscribe(subject, schedule=QUICK, body=body)
        await stage.publish(subject, payload)
        await subject.wait(2, within=PROMPT)

    await asyncio.gather(*(play(one, payload) for one, payload in zip(subjects, PAYLOADS, strict=True)))
    return observed(*subjects)
