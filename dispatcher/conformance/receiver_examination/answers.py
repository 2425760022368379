"""What is asked of a receiver's answers: to good requests, and whatever they show."""

from __future__ import annotations

import asyncio
import json
import secrets
from functools import partial

from dispatcher.conformance.receiver_examination.attacker import (
    SIGNATURE_HEADERS,
    Attacker,
    encoded,
)
from dispatcher.conformance.receiver_examination.requirements import CannotTell, Check, asks
from dispatcher.conformance.results import Level
from dispatcher.conformance.sources import (
    GITHUB_PRACTICES,
    OWASP_ERRORS,
    STANDARD,
)

#: its checks, in the order in which they are made
CHECKS: list[Check] = []
#: those that look at all answers, so that they come last of all
LAST_CHECKS: list[Check] = []

_good = partial(asks, scenario="good requests", into=CHECKS)
_answered = partial(asks, scenario="what answers show", into=LAST_CHECKS)


# --- good requests ---------------------------------------------------------------------------------------


@_good("RECV-01", Level.MUST, "A good request is answered 2xx.", STANDARD, is_basic=True)
async def _takes_good_requests(attacker: Attacker) -> str:
    answer = await attacker.send(attacker.message())
    if answer.is_success:
        return ""
    finding = f"A good request {answer.in_words()}; 2xx would be right."
    if answer.is_refusal:
        spaced = json.dumps(attacker.payload()).encode()
        if (await attacker.send(attacker.message(spaced))).is_success:
            finding += (
                " It takes the same JSON with spaces in it: it seems to verify what it serialises, not what came."
            )
    return finding


@_good(
    "RECV-02", Level.SHOULD, "It is answered within seconds: work is done afterwards.", GITHUB_PRACTICES, is_basic=True
)
async def _answers_promptly(attacker: Attacker) -> str:
    answer = await attacker.send(attacker.message())
    prompt = attacker.target.prompt
    if answer.status is None:
        return f"A good request {answer.in_words()}; an answer within {prompt:g} s would be right."
    if answer.seconds > prompt:
        return f"The answer took {answer.seconds:.1f} s; at most {prompt:g} s would be right."
    return ""


@_good("RECV-03", Level.SHOULD, "No request is redirected, whether it is good or not.", STANDARD, is_basic=True)
async def _does_not_redirect(attacker: Attacker) -> str:
    good = attacker.message()
    for what, message in (
        ("A good request", good),
        ("A request without a signature", attacker.message().without(*SIGNATURE_HEADERS)),
    ):
        answer = await attacker.send(message)
        if answer.status is not None and 300 <= answer.status <= 399:
            return f"{what} {answer.in_words()}; senders do not follow, so an answer of its own would be right."
    return ""


@_good("RECV-04", Level.SHOULD, "It is reached over https.", GITHUB_PRACTICES, is_basic=True)
async def _is_encrypted(attacker: Attacker) -> str:
    await asyncio.sleep(0)
    if attacker.address.tls is not None:
        return ""
    if attacker.target.is_local:
        raise CannotTell("It was asked over loopback, where there need be no TLS.")
    return "Its URL is plain http; https would be right."


# --- what answers show -----------------------------------------------------------------------------------


@_answered("RECV-58", Level.MUST, "No answer shows the secret, or a signature that would be right.", OWASP_ERRORS)
async def _tells_no_secret(attacker: Attacker) -> str:
    await _provoke(attacker)
    return attacker.leaks.get("secret", "")


@_answered("RECV-59", Level.MUST, "No answer shows a stack trace.", OWASP_ERRORS)
async def _tells_no_trace(attacker: Attacker) -> str:
    await _provoke(attacker)
    return attacker.leaks.get("trace", "")


@_answered("RECV-60", Level.SHOULD, "A refusal does not repeat what was sent.", OWASP_ERRORS)
async def _tells_no_payload(attacker: Attacker) -> str:
    await _provoke(attacker)
    return attacker.leaks.get("payload", "")


async def _provoke(attacker: Attacker) -> None:
    """Errors of several kinds; with whatever was seen before, these are what is looked at."""
    broken = encoded(attacker.payload())[:-3]
    await attacker.send(attacker.message().with_digests(lambda digest: secrets.token_bytes(len(digest))))
    await attacker.send(attacker.message(broken))
    await attacker.send(attacker.message(broken).without(*SIGNATURE_HEADERS))
    await attacker.send(attacker.message().having(*((name, "\xff") for name in SIGNATURE_HEADERS)))
