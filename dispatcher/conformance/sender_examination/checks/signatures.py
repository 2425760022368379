"""Each scheme by its own rules, on every attempt; whose secret signs, also while it is rotated."""

from __future__ import annotations

import base64
import hmac
from dataclasses import replace

from dispatcher.conformance.results import Source
from dispatcher.conformance.sender_examination.checks.judging import (
    MUST,
    SHOULD,
    check,
    each,
    signature_fault,
    unless_mute,
)
from dispatcher.conformance.sender_examination.scenario import Observed
from dispatcher.conformance.sender_examination.stage import Seen, Subject
from dispatcher.conformance.signatures.http_signatures import Message, Mismatch, check_content_digest
from dispatcher.conformance.signatures.schemes import ANYBODYS
from dispatcher.conformance.sources import (
    CONTRACT,
    DIGEST,
    GITHUB,
    MESSAGE_SIGNATURES,
    SERVICESTACK,
    STANDARD,
    WEBSUB,
    rfc,
)

_SCHEMES = (
    ("websub", WEBSUB, "X-Hub-Signature is the HMAC of the body that it says"),
    ("github", GITHUB, "X-Hub-Signature-256 and X-Hub-Signature are the HMACs of the body by SHA-256 and SHA-1"),
    ("standard", STANDARD, "webhook-signature is the HMAC-SHA256 of id, timestamp and body"),
    ("standard-ed25519", STANDARD, "webhook-signature is the Ed25519 signature of id, timestamp and body"),
    ("timestamped", CONTRACT, "X-Webhook-Signature is the HMAC-SHA256 of the body"),
    ("servicestack", SERVICESTACK, "X-Hub-Signature is the HMAC-SHA256 of the body, by the secret's text, called sha1"),
    ("rfc9421", MESSAGE_SIGNATURES, "a signature is that of RFC 9421 by HMAC-SHA256, over the digest of the body"),
    ("rfc9421-ed25519", MESSAGE_SIGNATURES, "a signature is that of RFC 9421 by Ed25519, over the digest of the body"),
)


def _of_scheme(number: int, scheme: str, source: Source, what: str) -> None:
    scenario = f"signed-by-{scheme}"

    @check(f"SIGN-{number:02}", MUST, scheme_scenario := scenario, source, f"By {scheme}, {what}; on every attempt.")
    def _(seen: Observed) -> str | None:
        return each(seen["signed"], lambda one: signature_fault(seen["signed"], scheme, one))

    @check(
        f"SIGN-{number + 10:02}",
        MUST,
        scheme_scenario,
        source,
        f"By {scheme}, another subscription's secret signs otherwise.",
    )
    def _(seen: Observed) -> str | None:
        other = seen["other"]
        if not other.seen:
            return "no request came"
        stranger = seen["signed"].verify(scheme, other.seen[0].request)
        return "the other's request verifies with this one's secret" if stranger.is_good else None


for _number, (_scheme, _source, _what) in enumerate(_SCHEMES, 1):
    _of_scheme(_number, _scheme, _source, _what)


@check("SIGN-21", MUST, "plain", STANDARD, "The secret is not in the request.")
def _(seen: Observed) -> str | None:
    text = seen["plain"].secret.removeprefix("whsec_")
    key = base64.b64decode(text)
    forms = (text.encode(), key, key.hex().encode(), text.encode().hex().encode(), base64.b64encode(text.encode()))
    return each(seen["plain"], lambda one: "it is" if any(form in one.request.raw for form in forms) else None)


@check("SIGN-22", SHOULD, "plain", STANDARD, "Without being asked for another, the sender signs by SHA-256 or better.")
def _(seen: Observed) -> str | None:
    return each(seen["plain"], lambda one: _is_weak(seen["plain"], one))


def _is_weak(subject: Subject, one: Seen) -> str | None:
    if any(
        subject.verify(scheme, one.request).is_good
        for scheme, _, _ in _SCHEMES
        if scheme not in {"github", "servicestack"}
    ):
        return None
    # GitHub's has a header by SHA-1 beside the one that counts.
    value = one.request.header("X-Hub-Signature-256") or ""
    expected = hmac.new(subject.secret.encode(), one.request.body, "sha256").hexdigest()
    good = hmac.compare_digest(value.encode("latin-1"), f"sha256={expected}".encode())
    return None if good else "no such signature is good"


@check("SIGN-23", SHOULD, "signed-by-websub", WEBSUB, "Hexadecimal digits are in lower case.")
def _(seen: Observed) -> str | None:
    def wrong(one: Seen) -> str | None:
        value = one.request.header("X-Hub-Signature") or ""
        return None if value == value.lower() else "it has upper case"

    return each(seen["signed"], wrong)


@check("SIGN-24", MUST, "signed-by-rfc9421", DIGEST, "Content-Digest is that of the body.")
def _(seen: Observed) -> str | None:
    def wrong(one: Seen) -> str | None:
        try:
            message = Message(method=one.request.method, url="", headers=one.request.headers)
            check_content_digest(message, one.request.body)
        except Mismatch as exc:
            return str(exc)
        return None

    return each(seen["signed"], wrong)


@check("SIGN-25", SHOULD, "signed-by-rfc9421", MESSAGE_SIGNATURES, "A signature tells when it was made.")
def _(seen: Observed) -> str | None:
    return each(
        seen["signed"],
        lambda one: None if ";created=" in (one.request.header("Signature-Input") or "") else "it has no `created`",
    )


#: of a request's method and target URI; without both, a signature is good for another request with the same body
_TARGETS = (
    ("@method", "@target-uri"),
    ("@method", "@authority", "@request-target"),
    ("@method", "@authority", "@path", "@query"),
    # the stage's URLs for these scenarios have no query
    ("@method", "@authority", "@path"),
)


def _of_coverage(number: int, scheme: str) -> None:
    @check(
        f"SIGN-{number}",
        SHOULD,
        f"signed-by-{scheme}",
        rfc(9421, "7.2.1"),
        f"By {scheme}, method and target URI are covered, too: what was signed for one place is not good for another.",
    )
    def _(seen: Observed) -> str | None:
        return each(seen["signed"], lambda one: _is_movable(seen["signed"], scheme, one))


def _is_movable(subject: Subject, scheme: str, one: Seen) -> str | None:
    profiles = [replace(ANYBODYS, covered=(*ANYBODYS.covered, *names)) for names in _TARGETS]
    verdicts = [subject.verify(scheme, one.request, profile=profile) for profile in profiles]
    return None if any(verdict.is_good for verdict in verdicts) else verdicts[0].reason


@check(
    "SIGN-29", SHOULD, "signed-by-rfc9421", rfc(9421, "7.2.2"), "A retry is signed anew: `created` is of the attempt."
)
def _(seen: Observed) -> str | None:
    unless_mute(seen)
    for ones in seen["signed"].messages.values():
        # they are more than a second apart
        times = [seen["signed"].verify("rfc9421", one.request).timestamp for one in ones]
        if len(times) > 1 and times[0] is not None and len(set(times)) == 1:
            return f"{len(times)} attempts were created at the same time"
    return None


_of_coverage(27, "rfc9421")
_of_coverage(28, "rfc9421-ed25519")


@check("SIGN-26", MUST, "callback", CONTRACT, "A callback is signed with the task's own secret.")
def _(seen: Observed) -> str | None:
    return each(seen["callback"], lambda one: _is_weak(seen["callback"], one))


@check("ROT-01", SHOULD, "rotation", STANDARD, "While two secrets are valid, the header has a signature by each.")
def _(seen: Observed) -> str | None:
    both = seen["both"]
    new = str(seen.facts["new"])
    return each(
        both, lambda one: signature_fault(both, "standard", one) or signature_fault(both, "standard", one, secret=new)
    )


@check(
    "ROT-02",
    SHOULD,
    "rotation",
    CONTRACT,
    "Where a header has room for one, a receiver of the old secret is served by a second attempt.",
)
def _(seen: Observed) -> str | None:
    old = seen["old"]
    if len(old.seen) < 2:
        return "no second attempt came"
    return signature_fault(old, "websub", old.seen[1])


@check("ROT-03", MUST, "rotation", STANDARD, "Without an overlap the old secret does not sign any more.")
def _(seen: Observed) -> str | None:
    at_once = seen["at-once"]
    new = str(seen.facts["new"])

    def wrong(one: Seen) -> str | None:
        if at_once.verify("standard", one.request).is_good:
            return "it is signed with the old secret"
        return signature_fault(at_once, "standard", one, secret=new)

    return each(at_once, wrong)
