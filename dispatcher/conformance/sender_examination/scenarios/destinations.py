"""The situations in which a sender must not trust, or not send: certificates, its own machine, and names of it."""

from __future__ import annotations

import asyncio
import ssl

from dispatcher.conformance.certificates import Authority
from dispatcher.conformance.sender_examination.neighbourhood import ADMITTED, DEAF, LOOPBACK, MIXED, OWN, REBOUND
from dispatcher.conformance.sender_examination.scenario import (
    PROMPT,
    QUICK,
    SILENCE,
    Observed,
    observed,
    scenario,
)
from dispatcher.conformance.sender_examination.stage import Stage


@scenario(
    "TLS with certificates that are not to be trusted, in versions that are none any more, and all in order.",
    "schedule",
    "authority",
)
async def _tls(stage: Stage, authority: Authority) -> Observed:
    contexts = {
        "good": authority.context(["localhost"]),
        "expired": authority.context(["localhost"], expired=True),
        "other-host": authority.context(["other.example"]),
        "self-signed": authority.context(["localhost"], self_signed=True),
        "tls-1.0": authority.context(["localhost"], maximum=ssl.TLSVersion.TLSv1),
        "tls-1.1": authority.context(["localhost"], maximum=ssl.TLSVersion.TLSv1_1),
    }
    subjects = [stage.place(name, origin=await stage.listen(context)) for name, context in contexts.items()]
    for subject in subjects:
        await stage.subscribe(subject, schedule=QUICK)
        await stage.publish(subject)
    # A certificate that was refused is a handshake that came to nothing: then there is no need to wait for silence.
    await asyncio.gather(*(stage.dialled(one, within=PROMPT) for one in subjects))
    await asyncio.gather(*(one.rest(SILENCE) for one in subjects))
    return observed(*subjects)


#: spellings that lead to this machine and no further; what an attacker would try first
SPELLINGS = (
    "127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "127.1", "2130706433", "0x7f000001", "0177.0.0.1",
    "127.0.0.1.", "user@127.0.0.1",
)  # fmt: skip


@scenario("The sender runs as in production, and is to send to URLs that lead to its own machine.", "strict")
async def _own_machine(stage: Stage, _authority: Authority) -> Observed:
    next_door = stage.neighbourhood
    before = sum(map(next_door.dialled, OWN))
    spelt = [(scheme, spelling) for scheme in next_door.ports for spelling in SPELLINGS]
    subjects = [
        stage.place_next_door(f"{scheme}-{number}", origin=f"{scheme}://{spelling}:{next_door.ports[scheme]}")
        for number, (scheme, spelling) in enumerate(spelt)
    ]
    answers = await asyncio.gather(*(stage.sender.send_strictly(one.url) for one in subjects))
    await asyncio.gather(*(one.rest(SILENCE) for one in subjects))
    taken = [spelling for (_, spelling), is_taken in zip(spelt, answers, strict=True) if is_taken]
    return observed(*subjects, taken=taken, dialled=sum(map(next_door.dialled, OWN)) - before)


#: names by what they are for, and what they stand for at each query
NAMES = {
    "admitted": (ADMITTED,),
    "loopback": (LOOPBACK, f"::ffff:{LOOPBACK}", OWN[1]),
    # A sender may ask when it takes the URL, when it looks at the addresses, and when it connects.
    "rebound": (
        *(",".join([*[ADMITTED] * good, REBOUND]) for good in (1, 2, 3)),
        ",".join([ADMITTED, REBOUND] * 20),
    ),
    # Where nobody listens on the admitted address, another is tried.
    "mixed": tuple(
        "+".join(pair)
        for pair in (
            (ADMITTED, MIXED), (MIXED, ADMITTED), (DEAF, MIXED), (MIXED, DEAF),
        )
    ),
    # The addresses of two families come by two answers, of which one may be late.
    "apart": (f"{ADMITTED}+::ffff:{MIXED}",),
}  # fmt: skip


#: seconds of silence after which nothing more is expected of names: a sender may keep an answer for a second
_LOOKED_UP = 3.0


@scenario(
    "The sender runs as in production. Names lead to an address that its operator admits, beside it, or first there.",
    "strict",
    "resolver",
    "authority",
)
async def _names(stage: Stage, _authority: Authority) -> Observed:
    next_door = stage.neighbourhood
    before = {address: next_door.dialled(address) for address in (LOOPBACK, REBOUND, MIXED)}
    subjects = [
        stage.place_next_door(
            f"{kind}-{scheme}-{number}",
            # What is tried again is looked up again.
            "503" if kind == "rebound" else "200",
            origin=f"{scheme}://{next_door.host(kind, script)}:{port}",
        )
        for scheme, port in next_door.ports.items()
        for kind, scripts in NAMES.items()
        for number, script in enumerate(scripts, 1)
    ]
    answers = await asyncio.gather(*(stage.sender.send_strictly(one.url) for one in subjects))
    taken = {one.name for one, is_taken in zip(subjects, answers, strict=True) if is_taken}
    admitted = [one for one in subjects if one.name in taken and one.name.startswith("admitted")]
    await asyncio.gather(*(one.wait(1, within=PROMPT) for one in admitted))
    await asyncio.gather(*(one.rest(_LOOKED_UP) for one in subjects))
    dialled = {address: next_door.dialled(address) - count for address, count in before.items()}
    return observed(*subjects, taken=taken, dialled=dialled)
