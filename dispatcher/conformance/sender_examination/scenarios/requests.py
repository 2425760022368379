"""The situations that show a request as it is: its bytes, its target, its headers, and who gets it."""

from __future__ import annotations

import asyncio
import contextlib

from dispatcher.conformance.certificates import Authority
from dispatcher.conformance.sender_examination.scenario import (
    PROMPT,
    SILENCE,
    Observed,
    observed,
    scenario,
)
from dispatcher.conformance.sender_examination.senders import Refused
from dispatcher.conformance.sender_examination.stage import Stage

#: bytes that a sender which parses and writes anew does not keep
ODD_PAYLOADS = (
    b'{"n": 1}',
    b'{ "big" : 12345678901234567890123, "tiny":1e-400,\n"escaped":"\\u00e9\\/", '
    b'"plain":"\xc3\xa9\xe2\x82\xac\xf0\x9f\x90\x9d" }',
    b'[1.0, 10E2, {"b":1,"a":2,"b":3}]',
)


@scenario("Three events with unusual bytes go to a URL with escapes and a query; every answer sets a cookie.")
async def _plain(stage: Stage, _authority: Authority) -> Observed:
    subject = stage.place("plain", "set-cookie", rest="/a%2Fb%20c;p=1?x=1&y=%C3%A9&x=2")
    await stage.subscribe(subject)
    for payload in ODD_PAYLOADS:
        await stage.publish(subject, payload)
        await subject.wait(len(subject.published), within=PROMPT)
    await subject.rest(SILENCE)
    return observed(subject, refusals=stage.refusals)


@scenario(
    "Event types with line breaks and header-like text are subscribed to and published, where the sender takes them."
)
async def _injection(stage: Stage, _authority: Authority) -> Observed:
    subject = stage.place("injection")
    await stage.subscribe(subject)
    await stage.publish(subject)
    others = [stage.place(f"injection-{n}") for n in range(len(_INJECTIONS))]
    for other, text in zip(others, _INJECTIONS, strict=True):
        other.event += text
        with contextlib.suppress(Refused):
            await stage.subscribe(other)
        with contextlib.suppress(Refused):
            await stage.publish(other)
    await subject.wait(1, within=PROMPT)
    await asyncio.gather(*(other.rest(SILENCE) for other in others))
    return observed(subject, *others, refusals=stage.refusals)


_INJECTIONS = ("\r\nX-Injected: 1", "\nX-Injected: 1", "\rX-Injected: 1", "\x00")


@scenario("An answer to a task goes to a URL that carries a token.", "callback")
async def _callback(stage: Stage, _authority: Authority) -> Observed:
    token = "eyJhbGciOiJIUzI1NiJ9.eyJleHAiOjQxMDI0NDQ4MDB9.c2lnbmF0dXJlLW9mLXRoZS10b2tlbg"  # noqa: S105 - made up
    subject = stage.place("callback", rest=f"/{token}")
    subject.published.append(ODD_PAYLOADS[1])
    await stage.sender.call_back(subject.url, ODD_PAYLOADS[1], secret=subject.secret)
    await subject.wait(1, within=PROMPT)
    return observed(subject, token=token)


@scenario("Two subscriptions want events whose types begin alike, and each type is published.")
async def _routes(stage: Stage, _authority: Authority) -> Observed:
    short, long, deep = stage.place("short"), stage.place("long"), stage.place("deep")
    long.event, deep.event = f"{short.event}x", f"{short.event}.x"
    subjects = (short, long, deep)
    for subject in subjects:
        await stage.subscribe(subject)
    for n, subject in enumerate(subjects):
        await stage.publish(subject, b'{"route": %d}' % n)
    await asyncio.gather(*(one.wait(1, within=PROMPT) for one in subjects))
    await asyncio.gather(*(one.rest(SILENCE) for one in subjects))
    return observed(*subjects)
