"""What is asked of a receiver about signatures: whose a message is, and that it is whole."""

from __future__ import annotations

import base64
import hmac
import json
import secrets
from dataclasses import replace
from functools import partial

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dispatcher.conformance.receiver_examination.attacker import (
    ASYMMETRIC,
    IN_HEX,
    MANY_SIGNATURES,
    SIGNATURE_HEADERS,
    Attacker,
    Message,
    encoded,
)
from dispatcher.conformance.receiver_examination.requirements import CannotTell, Check, asks, refused, taken
from dispatcher.conformance.results import Level
from dispatcher.conformance.signatures import schemes
from dispatcher.conformance.signatures.schemes import Key
from dispatcher.conformance.sources import (
    GITHUB_VALIDATING,
    SIGNATURES,
    STANDARD,
    WEBSUB,
    rfc,
)

#: its checks, in the order in which they are made
CHECKS: list[Check] = []

_signed = partial(asks, scenario="signatures", into=CHECKS)


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
