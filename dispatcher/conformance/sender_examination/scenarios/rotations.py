"""The situations of a rotation: with an overlap and without, and as receivers live through it that know one secret."""

from __future__ import annotations

import asyncio
import base64
import secrets
import time

from dispatcher.conformance.certificates import Authority
from dispatcher.conformance.sender_examination.scenario import PROMPT, QUICK, SILENCE, Observed, observed, scenario
from dispatcher.conformance.sender_examination.stage import Stage, Subject

#: a scheme whose header has room for a signature by each secret, and one whose header has room for one
MANY, ONE = "standard", "websub"
#: seconds for which both secrets are good: longer than this lasts
_OVERLAP = 3600.0
_NEW_SECRET = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"  # noqa: S105 - of the kit's own subjects


@scenario(
    "A secret is rotated with an overlap; of receivers that verify, some know the new one only, some the old one only.",
    "rotate",
    "schedule",
    "scheme:standard",
    "scheme:websub",
)
async def _overlap(stage: Stage, _authority: Authority) -> Observed:
    new = "whsec_" + base64.b64encode(secrets.token_bytes(24)).decode()
    subjects: list[Subject] = []
    for scheme in (MANY, ONE):
        for knows in ("new", "old"):
            subject = stage.place(f"{knows}-{scheme}", schemes=(scheme,))
            known = new if knows == "new" else subject.secret
            subject.script = (f"until-rotated;scheme={scheme};secret={known}",)
            subjects.append(subject)
    await asyncio.gather(*(_play(stage, one, new) for one in subjects))
    active: dict[str, bool] = {}
    if "state" in stage.sender.abilities:
        for one in subjects:
            assert one.subscribed is not None
            active[one.name] = await stage.sender.is_active(one.subscribed.id)
    return observed(*subjects, new=new, active=active)


async def _play(stage: Stage, subject: Subject, new: str) -> None:
    await stage.subscribe(subject, schedule=QUICK)
    assert subject.subscribed is not None
    await stage.sender.rotate(subject.subscribed.id, new, overlap=_OVERLAP)
    known = new if subject.name.startswith("new") else None
    # One after the other: a sender that disables whoever refuses has nothing left for the second.
    for payload in (b'{"n": 1}', b'{"n": 2}'):
        before = len(subject.seen)
        await stage.publish(subject, payload)
        await _taken(subject, before, known)
    await subject.rest(SILENCE)


async def _taken(subject: Subject, before: int, secret: str | None) -> None:
    """Wait until a request beyond these is signed with what the receiver knows: then it is taken."""
    end = time.monotonic() + PROMPT
    count = before
    while await subject.wait(count + 1, within=max(0.0, end - time.monotonic())):
        count += 1
        if subject.verify(subject.schemes[0], subject.seen[count - 1].request, secret=secret).is_good:
            return


@scenario("A secret is rotated with an overlap; receivers know one or the other.", "rotate", "schedule")
async def _rotation(stage: Stage, _authority: Authority) -> Observed:
    both = stage.place("both", schemes=("standard",))
    old = stage.place("old", "401,200", schemes=("websub",))
    for subject in (both, old):
        await stage.subscribe(subject)
        assert subject.subscribed is not None
        await stage.sender.rotate(subject.subscribed.id, _NEW_SECRET, overlap=_OVERLAP)
        await stage.publish(subject)
    await asyncio.gather(both.wait(1, within=PROMPT), old.wait(2, within=PROMPT))
    at_once = stage.place("at-once", schemes=("standard",))
    await stage.subscribe(at_once)
    assert at_once.subscribed is not None
    await stage.sender.rotate(at_once.subscribed.id, _NEW_SECRET, overlap=0.0)
    # The sender may use a moment to make the change known everywhere.
    await at_once.rest(SILENCE)
    await stage.publish(at_once)
    await at_once.wait(1, within=PROMPT)
    return observed(both, old, at_once, new=_NEW_SECRET)
