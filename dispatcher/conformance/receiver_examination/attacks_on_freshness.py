"""What is asked of a receiver about time and repeats: of when a message is, and how often it counts."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from dispatcher.conformance.receiver_examination.attacker import (
    MANY_SIGNATURES,
    SIGNATURE_HEADERS,
    SIGNED_ID,
    SIGNED_TIME,
    STATED_TIME,
    Attacker,
    Message,
)
from dispatcher.conformance.receiver_examination.caller import Answer
from dispatcher.conformance.receiver_examination.requirements import CannotTell, Check, asks, orderly, refused, taken
from dispatcher.conformance.results import Level
from dispatcher.conformance.sources import (
    GITHUB_PRACTICES,
    STANDARD,
)

#: its checks, in the order in which they are made
CHECKS: list[Check] = []

_timed = partial(asks, scenario="time", into=CHECKS)
_repeated = partial(asks, scenario="repeats", into=CHECKS)

#: seconds beyond the tolerance, so that a slow answer is no excuse
_BEYOND = 60.0
#: messages between one and its repeat
_BETWEEN = 24
#: headers that hold the id, signed or not
_ID_NAMES = ("webhook-id", "X-Webhook-Delivery")
#: duplicates that are sent at the same moment
_AT_ONCE = 8
_NO_TIME = "the scheme's signature does not cover the time"
_NO_STATED_TIME = "the scheme has no timestamp"
_NO_ID = "the scheme's signature does not cover the id"


# --- time ------------------------------------------------------------------------------------------------


@_timed(
    "RECV-20",
    Level.MUST,
    "A message whose time is too long ago is refused, however well it is signed.",
    STANDARD,
    only_for=STATED_TIME,
    because=_NO_STATED_TIME,
)
async def _refuses_old_messages(attacker: Attacker) -> str:
    beyond = attacker.target.tolerance + _BEYOND
    return await refused(
        attacker,
        (f"A message that is {beyond:g} s old", attacker.message(age=beyond)),
        ("A message that is a year old", attacker.message(age=365 * 86_400)),
    )


@_timed(
    "RECV-21",
    Level.MUST,
    "A message whose time is too far ahead is refused, however well it is signed.",
    STANDARD,
    only_for=STATED_TIME,
    because=_NO_STATED_TIME,
)
async def _refuses_future_messages(attacker: Attacker) -> str:
    beyond = attacker.target.tolerance + _BEYOND
    return await refused(
        attacker,
        (f"A message of {beyond:g} s ahead", attacker.message(age=-beyond)),
        ("A message of a year ahead", attacker.message(age=-365 * 86_400)),
    )


@_timed(
    "RECV-22",
    Level.SHOULD,
    "A message whose time is a little off, either way, is taken: clocks differ and networks are slow.",
    STANDARD,
    only_for=STATED_TIME,
    because=_NO_STATED_TIME,
)
async def _takes_slightly_old_messages(attacker: Attacker) -> str:
    half = attacker.target.tolerance / 2
    return await taken(
        attacker,
        (f"A message that is {half:g} s old", attacker.message(age=half)),
        (f"A message of {half / 5:g} s ahead", attacker.message(age=-half / 5)),
    )


@_timed(
    "RECV-23",
    Level.MUST,
    "A time that was changed after signing is refused.",
    STANDARD,
    only_for=SIGNED_TIME,
    because=_NO_TIME,
)
async def _refuses_changed_times(attacker: Attacker) -> str:
    message = attacker.message(age=30)
    # one that it knows: this is how a recorded message is kept from growing old
    await attacker.send(message)
    newer = str(message.timestamp + 20)
    stamped = message.having(("X-Webhook-Timestamp", newer))
    if message.header("webhook-timestamp"):
        stamped = stamped.having(("webhook-timestamp", newer))
    inputs = message.header("signature-input")
    if inputs:
        stamped = stamped.having(("Signature-Input", inputs.replace(str(message.timestamp), newer)))
    return await refused(attacker, ("A message whose time was changed after signing", stamped))


@_timed(
    "RECV-24",
    Level.MUST,
    "A message without a time, or with what is none, is refused in order.",
    STANDARD,
    only_for=STATED_TIME - {"rfc9421", "rfc9421-ed25519"},
    because="the scheme states no time in a header of its own",
)
async def _refuses_what_is_no_time(attacker: Attacker) -> str:
    names = ("webhook-timestamp",) if attacker.schemes & MANY_SIGNATURES else ("X-Webhook-Timestamp",)
    cases = [("A message without a time", attacker.message().without(*(name.lower() for name in names)))]
    for text in ("", "soon", "1e99", "-1", "nan", "99999999999999999999999999", "\xb2", "0x10"):
        changed = attacker.message().having(*((name, text) for name in names))
        cases.append(("A message with a time that is none", changed))
    return await refused(attacker, *cases)


@_timed(
    "RECV-64",
    Level.MUST,
    "A message that is too old is refused, whatever time a header says that is not signed.",
    STANDARD,
    only_for=MANY_SIGNATURES,
    because="the scheme has one time, or none",
)
async def _believes_the_signed_time(attacker: Attacker) -> str:
    beyond = attacker.target.tolerance + _BEYOND
    old = attacker.message(age=beyond)
    now = str(old.timestamp + int(beyond))
    beside = replace(old, headers=(*old.headers, ("webhook-timestamp", now)))
    return await refused(
        attacker,
        ("An old message with the time of now in X-Webhook-Timestamp", old.having(("X-Webhook-Timestamp", now))),
        ("An old message with a second webhook-timestamp of now", beside),
    )


# --- repeats ---------------------------------------------------------------------------------------------


@_repeated(
    "RECV-25",
    Level.MUST,
    "An id that was changed after signing is refused.",
    STANDARD,
    only_for=SIGNED_ID,
    because=_NO_ID,
)
async def _refuses_changed_ids(attacker: Attacker) -> str:
    message = attacker.message()
    # one that it knows: this is how a recorded message is made to look new
    await attacker.send(message)
    other = "probe_" + secrets.token_hex(12)
    changed = message.having(("X-Webhook-Delivery", other))
    if message.header("webhook-id"):
        changed = changed.having(("webhook-id", other))
    return await refused(attacker, ("A message whose id was changed after signing", replace(changed, id=other)))


@_repeated(
    "RECV-26", Level.SHOULD, "A request that is sent again, byte for byte, has no second effect.", GITHUB_PRACTICES
)
async def _replays_do_nothing(attacker: Attacker) -> str:
    message = attacker.message()
    return await _has_one_effect(attacker, message, [await attacker.send(message), await attacker.send(message)])


@_repeated(
    "RECV-27",
    Level.SHOULD,
    "A message that is sent again with a newer time is acknowledged, and has no second effect.",
    STANDARD,
)
async def _retries_do_nothing(attacker: Attacker) -> str:
    earlier = attacker.message(age=5)
    later = attacker.message(earlier.body, id=earlier.id).having(("X-Webhook-Attempt", "2"))
    answers = [await attacker.send(earlier), await attacker.send(later)]
    if answers[1].is_refusal and answers[1].status != 409:
        return f"A message that was sent again, signed anew, {answers[1].in_words()}; 2xx, or 409, would be right."
    return await _has_one_effect(attacker, earlier, answers)


@_repeated("RECV-28", Level.MUST, "Duplicates that come at the same moment have one effect.", GITHUB_PRACTICES)
async def _duplicates_at_once_do_nothing(attacker: Attacker) -> str:
    control = attacker.message()
    await attacker.send(control)
    refuses_repeats = (await attacker.send(control)).is_refusal
    message = attacker.message()
    answers = await asyncio.gather(*(attacker.send(message) for _ in range(_AT_ONCE)))
    successes = sum(answer.is_success for answer in answers)
    if refuses_repeats and successes > 1:
        return (
            f"Of {_AT_ONCE} duplicates at once {successes} were taken, though repeats are refused; one would be right."
        )
    return await _has_one_effect(attacker, message, answers)


async def _has_one_effect(attacker: Attacker, message: Message, answers: Sequence[Answer]) -> str:
    """What was seen of messages that are one message. What cannot be seen is said by CannotTell."""
    for answer in answers:
        if not (answer.is_success or answer.is_refusal):
            return f"A repeated message {answer.in_words()}; 2xx, or 409, would be right."
    if not any(answer.is_success for answer in answers):
        return "None of a message's repeats was taken; the first would have to be."
    count = await attacker.times_processed(message)
    if count is not None:
        return "" if count == 1 else f"The message was processed {count} times; once would be right."
    if sum(answer.is_success for answer in answers) == 1:
        return ""
    raise CannotTell(
        "Repeats are answered 2xx. Whether they are processed again cannot be seen from outside:"
        " let the probe count what was processed, or refuse repeats with 409."
    )


@_repeated("RECV-29", Level.MUST, "A forged message does not use up the id of the real one.", STANDARD)
async def _forgeries_use_up_nothing(attacker: Attacker) -> str:
    message = attacker.message()
    forged = message.with_digests(lambda digest: secrets.token_bytes(len(digest)))
    first = await attacker.send(forged)
    if not first.is_refusal:
        return f"A forged message {first.in_words()}; a 4xx such as 401 would be right."
    real = await attacker.send(message)
    if not real.is_success:
        return f"A real message, whose id a forged one had, {real.in_words()}; 2xx would be right."
    if await attacker.times_processed(message) == 0:
        return "A real message, whose id a forged one had, was acknowledged and never processed."
    return ""


@_repeated("RECV-30", Level.MUST, "What is refused has no effect.", STANDARD)
async def _refusals_do_nothing(attacker: Attacker) -> str:
    unsigned = attacker.message().without(*SIGNATURE_HEADERS)
    forged = attacker.message().with_digests(lambda digest: secrets.token_bytes(len(digest)))
    for message in (unsigned, forged):
        await attacker.send(message)
        count = await attacker.times_processed(message, at_least=0)
        if count is None:
            raise CannotTell("Effects cannot be seen from outside: let the probe count what was processed.")
        if count:
            return "A message without a good signature was processed."
    return ""


@_repeated("RECV-31", Level.MUST, "A strange or very long id is no server error.", STANDARD)
async def _survives_strange_ids(attacker: Attacker) -> str:
    # all of visible ASCII and without a full stop: others cannot be signed by Standard Webhooks
    strange = ("'OR'1'='1", "';DROP/**/TABLE/**/messages;--", "%00%0d%0a", "{{7*7}}", "<b>", "a" * 3000, "${jndi:x}")
    return await orderly(attacker, *(("A message with a strange id", attacker.message(id=text)) for text in strange))


@_repeated(
    "RECV-61",
    Level.SHOULD,
    "A repeat with another id in a header that is not signed, or beside the signed one, has no second effect.",
    STANDARD,
    only_for=SIGNED_ID,
    because=_NO_ID,
)
async def _unsigned_ids_do_nothing(attacker: Attacker) -> str:
    message = attacker.message()
    other = "probe_" + secrets.token_hex(12)
    tricks = [replace(message, headers=(*message.headers, (name, other))) for name in _ID_NAMES if message.header(name)]
    if not attacker.schemes & {"rfc9421", "rfc9421-ed25519"}:
        tricks.append(message.having(("X-Webhook-Delivery", other)))
    answers = [await attacker.send(message)]
    for trick in tricks:
        answers.append(await attacker.send(trick))
        # a receiver may well count it under the other name
        if await attacker.times_processed(replace(message, id=other), at_least=0):
            return "A repeat was processed again, under an id that is not the signed one."
    return await _has_one_effect(attacker, message, answers)


@_repeated("RECV-63", Level.SHOULD, "A repeat is known for one after others came in between.", GITHUB_PRACTICES)
async def _late_repeats_do_nothing(attacker: Attacker) -> str:
    message = attacker.message()
    answers = [await attacker.send(message)]
    for _ in range(_BETWEEN):
        await attacker.send(attacker.message())
    return await _has_one_effect(attacker, message, [*answers, await attacker.send(message)])
