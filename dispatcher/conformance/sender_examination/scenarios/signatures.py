"""The situations that show signatures: for each scheme two subscriptions, each with a secret of its own."""

from __future__ import annotations

import asyncio

from dispatcher.conformance.certificates import Authority
from dispatcher.conformance.sender_examination.scenario import PROMPT, SCENARIOS, Observed, Scenario, observed
from dispatcher.conformance.sender_examination.scenarios.requests import ODD_PAYLOADS
from dispatcher.conformance.sender_examination.stage import Stage
from dispatcher.conformance.signatures.schemes import SCHEMES

#: seconds between tries where they have to fall into different seconds, whatever chance takes away
SPACED = (3.4,)


def _signed_by(scheme: str) -> None:
    async def play(stage: Stage, _authority: Authority) -> Observed:
        subject = stage.place("signed", "500,200", schemes=(scheme,))
        other = stage.place("other", schemes=(scheme,))
        await stage.subscribe(subject, schedule=SPACED)
        await stage.subscribe(other)
        for payload in ODD_PAYLOADS:
            await stage.publish(subject, payload)
        await stage.publish(other)
        await asyncio.gather(subject.wait(2 * len(ODD_PAYLOADS), within=PROMPT), other.wait(1, within=PROMPT))
        return observed(subject, other)

    name = f"signed-by-{scheme}"
    SCENARIOS[name] = Scenario(
        name=name,
        title=f"Three events are signed by {scheme}, and sent twice each.",
        needs=frozenset({"subscribe", "schedule", f"scheme:{scheme}"}),
        play=play,
    )


for _scheme in SCHEMES:
    _signed_by(_scheme)
