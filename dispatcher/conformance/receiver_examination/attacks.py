"""What is asked of a receiver about messages: whose they are, of when, and how often they count."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import secrets
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dispatcher.conformance.receiver_examination.attacker import (
    ASYMMETRIC,
    IN_HEX,
    MANY_SIGNATURES,
    SIGNATURE_HEADERS,
    SIGNED_ID,
    SIGNED_TIME,
    STATED_TIME,
    Attacker,
    Message,
    encoded,
)
from dispatcher.conformance.receiver_examination.caller import Answer
from dispatcher.conformance.receiver_examination.requirements import CannotTell, Check, asks, orderly, refused, taken
from dispatcher.conformance.results import Level
from dispatcher.conformance.signatures import schemes
from dispatcher.conformance.signatures.schemes import Key
from dispatcher.conformance.sources import (
    GITHUB_PRACTICES,
    GITHUB_VALIDATING,
    OWASP_ERRORS,
    SIGNATURES,
    STANDARD,
    WEBSUB,
    rfc,
)

#: checks that concern messages, in the order in which they are made
CHECKS: list[Check] = []
#: those that look at all answers, so that they come last of all
LAST_CHECKS: list[Check] = []

_good = partial(asks, scenario="good requests", into=CHECKS)
_signed = partial(asks, scenario="signatures", into=CHECKS)
_timed = partial(asks, scenario="time", into=CHECKS)
_repeated = partial(asks, scenario="repeats", into=CHECKS)
_answered = partial(asks, scenario="what answers show", into=LAST_CHECKS)

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


# --- good requests --------------------------------------------------------------------------------------


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


# --- signatures -----------------------------------------------------------------------------------------


@_signed("RECV-05", Level.MUST, "A request without a signature is refused.", STANDARD)
async def _refuses_unsigned(attacker: Attacker) -> str:
    return await refused(
        attacker, ("A request without a signature", attacker.message().without(*SIGNATURE_HEADERS, "signature-input"))
    )


@_signed("RECV-06", Level.MUST, "A request with a made-up signature is refused.", STANDARD)
async def _refuses_made_up(attacker: Attacker) -> str:
    made_up = attacker.message().with_digests(lambda digest: secrets.token_bytes(len(digest)))
    zeros = attacker.message().with_digests(lambda digest: bytes(len(digest)))
    return await refused(
        attacker, ("A request with a made-up signature", made_up), ("A signature of nothing but zeros", zeros)
    )


@_signed("RECV-07", Level.MUST, "A body that was changed by one byte after signing is refused.", STANDARD)
async def _refuses_changed_body(attacker: Attacker) -> str:
    message = attacker.message()
    # as long as it was, and still JSON
    at = message.body.index(attacker.marker.encode())
    body = message.body[:at] + b"P" + message.body[at + 1 :]
    changed = replace(message, body=body)
    cases = [("A body that was changed by one byte", changed)]
    if message.header("content-digest"):
        with_digest = changed.having(("Content-Digest", attacker.signed(changed).header("content-digest")))
        cases.append(("A changed body with its own Content-Digest, under the old signature,", with_digest))
    cases.append(("A body with one byte more", replace(message, body=message.body + b" ")))
    return await refused(attacker, *cases)


@_signed("RECV-08", Level.MUST, "The bytes are verified as they came, not the JSON in them.", GITHUB_VALIDATING)
async def _verifies_raw_bytes(attacker: Attacker) -> str:
    payload = attacker.payload(probe=f"{attacker.marker} é € \U0001f600 </")
    came = (json.dumps(payload, separators=(" ,", " :  ")).replace("/", "\\/") + "\n").encode()
    finding = await taken(
        attacker, ("A well-signed body, in JSON such as no serialiser writes,", attacker.message(came))
    )
    if finding:
        return finding
    signed_instead = {
        "Python's": json.dumps(payload).encode(),
        "compact": json.dumps(payload, separators=(",", ":")).encode(),
        "JavaScript's": json.dumps(payload, separators=(",", ":"), ensure_ascii=False).encode(),
        "sorted": json.dumps(payload, separators=(",", ":"), sort_keys=True).encode(),
        "indented": json.dumps(payload, indent=2).encode(),
    }
    return await refused(
        attacker,
        *(
            (
                f"A body under the signature of the same JSON in {form} form",
                replace(attacker.message(signed), body=came),
            )
            for form, signed in signed_instead.items()
        ),
    )


@_signed(
    "RECV-62",
    Level.MUST,
    "Bytes are not verified as text: what only reads alike is another body.",
    GITHUB_VALIDATING,
)
async def _verifies_no_text(attacker: Attacker) -> str:
    text = encoded(attacker.payload(text="AT")).replace(b"AT", "\ufffd\u00e9\u00c5".encode()) + b"\n"
    lookalikes = {
        "in which bytes that are no UTF-8 stand for U+FFFD": text.replace(b"\xef\xbf\xbd", b"\xff"),
        "with bytes in it that are no UTF-8": text.replace(b"\xc3\xa9", b"\xc3\xa9\xff"),
        "with CR LF at its end instead of LF": text[:-1] + b"\r\n",
        "with a byte order mark before it": b"\xef\xbb\xbf" + text,
        "in another form of Unicode": text.replace(b"\xc3\xa9", b"e\xcc\x81"),
        "with another character of the same look": text.replace(b"\xc3\x85", b"\xe2\x84\xab"),
    }
    cases = [
        (f"A signed body {what}", replace(attacker.message(text), body=changed)) for what, changed in lookalikes.items()
    ]
    return await refused(attacker, *cases)


@_signed("RECV-09", Level.MUST, "A signature by another secret is refused.", STANDARD)
async def _refuses_other_secrets(attacker: Attacker) -> str:
    cases = [("A request that is signed with another secret", attacker.message(key=attacker.other_key()))]
    if not attacker.schemes & {"rfc9421", "rfc9421-ed25519"}:
        message = attacker.message()
        content = message.body
        if attacker.schemes & MANY_SIGNATURES:
            content = f"{message.id}.{message.timestamp}.".encode() + content
        # what a receiver takes whose secret was never configured
        by_nothing = message.with_digests(lambda _digest: hmac.digest(b"", content, "sha256"))
        cases.append(("A request that is signed with an empty secret", by_nothing))
    return await refused(attacker, *cases)


@_signed("RECV-10", Level.MUST, "A signature that was cut short is refused.", STANDARD)
async def _refuses_cut_signatures(attacker: Attacker) -> str:
    message = attacker.message()
    half = message.with_digest_texts(lambda text: text[: len(text) // 8 * 4])
    four = attacker.message().with_digest_texts(lambda text: text[:4])
    longer = attacker.message().with_digest_texts(lambda text: text + text)
    return await refused(
        attacker,
        ("Half a signature", half),
        ("A signature cut to four characters", four),
        ("A signature with something behind it", longer),
    )


@_signed("RECV-11", Level.MUST, "A signature that is right but for its last byte is refused.", GITHUB_VALIDATING)
async def _compares_to_the_end(attacker: Attacker) -> str:
    last = attacker.message().with_digests(lambda digest: digest[:-1] + bytes([digest[-1] ^ 1]))
    half = attacker.message().with_digests(lambda digest: digest[: len(digest) // 2] + bytes(len(digest) // 2))
    return await refused(
        attacker,
        ("A signature that is right but for its last byte", last),
        ("A signature of which the first half is right", half),
    )


@_signed("RECV-12", Level.MUST, "An empty signature is refused.", STANDARD)
async def _refuses_empty_signatures(attacker: Attacker) -> str:
    message = attacker.message()
    empty = message.having(*((name, "") for name, _value in message.signatures))
    label_only = attacker.message().with_digest_texts(lambda _text: "")
    return await refused(
        attacker, ("An empty signature header", empty), ("A signature header that is a label only", label_only)
    )


@_signed(
    "RECV-13",
    Level.MUST,
    "A right signature under the label of another algorithm is refused.",
    STANDARD,
    only_for=frozenset({"websub", "github", "servicestack", "standard", "standard-ed25519"}),
    because="the scheme's signatures have no label",
)
async def _refuses_wrong_labels(attacker: Attacker) -> str:
    def labelled(message: Message, *, hub: str, standard: str) -> Message:
        renamed = []
        for name, value in message.signatures:
            if name.lower() == "webhook-signature":
                tokens = value.split(" ")
                renamed.append((name, " ".join(standard + token.partition(",")[2] for token in tokens)))
            elif "=" in value and name.lower().startswith("x-hub-"):
                renamed.append((name, hub + value.partition("=")[2]))
            else:
                renamed.append((name, secrets.token_hex(32)))
        return message.having(*renamed)

    return await refused(
        attacker,
        ("A signature under another label", labelled(attacker.message(), hub="md5=", standard="v9,")),
        ("A signature under the label none", labelled(attacker.message(), hub="none=", standard="none,")),
        ("A signature without its label", labelled(attacker.message(), hub="", standard="")),
    )


@_signed(
    "RECV-14",
    Level.MUST,
    "A signature by a weaker algorithm than the agreed one, or by none, is refused.",
    WEBSUB,
    only_for=frozenset({"websub", "github", "standard", "timestamped", "rfc9421", "rfc9421-ed25519"}),
    because="the scheme knows one algorithm, and its label names none",
)
async def _refuses_weaker_algorithms(attacker: Attacker) -> str:
    message = attacker.message()
    if attacker.schemes & {"websub"} and attacker.target.hub_method == "sha1":
        raise CannotTell("SHA-1 is what was agreed on; nothing weaker is known to WebSub.")
    cases: list[tuple[str, Message]] = []
    hmac_of = partial(schemes.sign, "websub", attacker.target.key, method="POST", url="", headers=(), timestamp=0)
    sha1 = dict(hmac_of(body=message.body, message_id=message.id, hub_method="sha1"))["X-Hub-Signature"]
    if attacker.schemes & {"websub", "github"}:
        weaker = message.without("x-hub-signature-256").having(("X-Hub-Signature", sha1))
        cases.append(("A right SHA-1 signature, where SHA-256 is agreed on,", _others_made_up(weaker)))
        under_256 = message.having(("X-Hub-Signature-256", sha1), ("X-Hub-Signature", sha1))
        cases.append(("A right SHA-1 signature in each header", _others_made_up(under_256)))
    if "timestamped" in attacker.schemes:
        bare = message.having(("X-Webhook-Signature", sha1.partition("=")[2]))
        cases.append(("A right SHA-1 signature", bare))
    if "standard" in attacker.schemes:
        unsigned = message.having(("webhook-signature", "v0, none, v1,"))
        cases.append(("A list of signatures by no algorithm", unsigned))
    if attacker.schemes & {"rfc9421", "rfc9421-ed25519"}:
        cases += _weakened_message_signatures(attacker)
    return await refused(attacker, *cases)


def _others_made_up(message: Message) -> Message:
    """Signatures of further schemes must not make the request good."""
    others = [one for one in message.signatures if not one[0].lower().startswith("x-hub-")]
    return message.without(*(name.lower() for name, _value in others))


def _weakened_message_signatures(attacker: Attacker) -> list[tuple[str, Message]]:
    message = attacker.message()
    inputs = message.header("signature-input")
    label = inputs.partition("=")[0]
    none = f'{label}=();created={message.timestamp};alg="none"'
    return [
        (
            "A signature of no components by no algorithm",
            message.having(("Signature-Input", none), ("Signature", f"{label}=::")),
        ),
        (
            "A signature whose list of components was emptied",
            attacker.message().having(("Signature-Input", f"{label}=();created={message.timestamp}")),
        ),
        ("A signature whose Signature-Input is missing", attacker.message().without("signature-input")),
    ]


@_signed(
    "RECV-15",
    Level.MUST,
    "A public key is not taken for a shared secret.",
    SIGNATURES,
    only_for=ASYMMETRIC,
    because="the scheme has no public key",
)
async def _refuses_confused_keys(attacker: Attacker) -> str:
    key = attacker.target.key
    public = key.public_key
    if public is None and key.seed is not None:
        public = Ed25519PrivateKey.from_private_bytes(key.seed).public_key().public_bytes_raw()
    if public is None:
        raise CannotTell("The public key is not known.")
    forged = Key(secret="whsec_" + base64.b64encode(public).decode("ascii"))
    message = attacker.message()
    cases: list[tuple[str, Message]] = []
    for asymmetric, symmetric in (("standard-ed25519", "standard"), ("rfc9421-ed25519", "rfc9421")):
        if asymmetric not in attacker.schemes:
            continue
        made = schemes.sign(
            symmetric,
            forged,
            method=message.method,
            url=attacker.target.origin + attacker.target.request_target,
            headers=message.headers,
            body=message.body,
            message_id=message.id,
            timestamp=message.timestamp,
            key_id=attacker.target.key_id,
        )
        hmaced = message.without(*SIGNATURE_HEADERS, "signature-input").having(*made)
        cases.append(("An HMAC whose secret is the public key", hmaced))
        if asymmetric == "standard-ed25519":
            digest = hmaced.digests()[0]
            cases.append(("The same under the label v1a", hmaced.having(("webhook-signature", f"v1a,{digest}"))))
    return await refused(attacker, *cases)


@_signed(
    "RECV-16",
    Level.MUST,
    "Of several signatures one that is right is enough, wherever it stands: secrets are rotated so.",
    STANDARD,
    only_for=MANY_SIGNATURES,
    because="the scheme carries one signature",
)
async def _takes_one_of_several(attacker: Attacker) -> str:
    def among(*, is_first: bool, unknown: bool = False) -> Message:
        message = attacker.message()
        right = message.header("webhook-signature")
        wrong = message.with_digests(lambda digest: secrets.token_bytes(len(digest))).header("webhook-signature")
        if unknown:
            wrong = "v9,unknown"
        value = f"{right} {wrong}" if is_first else f"{wrong} {right}"
        return message.having(("webhook-signature", value))

    return await taken(
        attacker,
        ("A right signature before a wrong one", among(is_first=True)),
        ("A right signature behind a wrong one", among(is_first=False)),
        ("A right signature behind one of an unknown version", among(is_first=False, unknown=True)),
    )


@_signed("RECV-17", Level.MUST, "The names of headers are read in any letter case.", rfc(9110, "5.1"))
async def _reads_names_in_any_case(attacker: Attacker) -> str:
    def renamed(message: Message, *, upper: bool) -> Message:
        return replace(
            message, headers=tuple((name.upper() if upper else name.lower(), value) for name, value in message.headers)
        )

    return await taken(
        attacker,
        ("A request with names of headers in small letters", renamed(attacker.message(), upper=False)),
        ("A request with names of headers in capitals", renamed(attacker.message(), upper=True)),
    )


@_signed(
    "RECV-18",
    Level.MAY,
    "A signature in capital hexadecimal digits is taken.",
    WEBSUB,
    only_for=IN_HEX,
    because="letter case counts in base64",
)
async def _takes_capital_digits(attacker: Attacker) -> str:
    return await taken(
        attacker, ("A signature in capital digits", attacker.message().with_digest_texts(lambda text: text.upper()))
    )


@_signed("RECV-19", Level.MUST, "Garbage in the place of a signature is refused in order.", GITHUB_VALIDATING)
async def _survives_garbage(attacker: Attacker) -> str:
    garbage = (
        "=",
        ",",
        "v1",
        "v1,%%%",
        "sha256=zz",
        "sha256=\xe9\xff",
        "a=:b:",
        '"',
        "v1," * 400,
        ("v1,QQ== " * 60).strip(),
    )
    cases = []
    for text in garbage:
        message = attacker.message()
        cases.append(
            (
                "Garbage in the place of a signature",
                message.having(*((name, text) for name, _value in message.signatures)),
            )
        )
    return await refused(attacker, *cases)


# --- time -----------------------------------------------------------------------------------------------


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


# --- repeats --------------------------------------------------------------------------------------------


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


# --- what answers show ----------------------------------------------------------------------------------


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
