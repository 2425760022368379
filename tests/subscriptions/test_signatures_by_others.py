"""Libraries written by others accept what each scheme signs, and refuse the nearest misses."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook, WebhookVerificationError

from subscriptions.secrets import SigningKey, generate, generate_seed
from subscriptions.signatures import HUB_METHODS, Scheme, sign
from tests.support.verifiers import Captured, accepted_by

URL = "https://api.example.com/hooks/42?token=eyJ0&b=%20"
KEY = SigningKey(secret=generate(), seed=generate_seed())
OTHER = SigningKey(secret=generate(), seed=generate_seed())
BODY = '{"name" : "Zoë ✓", "n": 1.0}\n'.encode()

TIMED = [
    Scheme.STANDARD,
    Scheme.STANDARD_ED25519,
    Scheme.TIMESTAMPED,
    Scheme.RFC9421,
    Scheme.RFC9421_ED25519,
]
SIGNED_TIME = [scheme for scheme in TIMED if scheme is not Scheme.TIMESTAMPED]
MESSAGE = [Scheme.RFC9421, Scheme.RFC9421_ED25519]


def captured(
    scheme: Scheme,
    *keys: SigningKey,
    knows: SigningKey = KEY,
    age: float = 0,
    body: bytes = BODY,
    hub_method: str = "sha256",
) -> Captured:
    """A request as our dispatcher sends it, at a receiver that knows one of the keys."""
    timestamp = int(time.time() - age)
    signature = sign(
        [scheme],
        keys=keys or (KEY,),
        delivery_id="0192" + "a" * 28,
        timestamp=timestamp,
        body=body,
        content_type="application/json; charset=utf-8",
        target_uri=URL,
        key_id="0193" + "b" * 28,
        hub_method=hub_method,
    )
    headers = {
        "Content-Type": "application/json; charset=utf-8",
        "X-Webhook-Delivery": "0192" + "a" * 28,
        "X-Webhook-Timestamp": str(timestamp),
        **dict(signature),
    }
    return Captured(
        scheme=scheme,
        url=URL,
        headers=headers,
        body=body,
        secret=knows.secret.reveal(),
        public_key=knows.public_key or "",
    )


def flip(text: str, at: int) -> str:
    return text[:at] + ("0" if text[at] != "0" else "1") + text[at + 1 :]


def changed(case: Captured, header: str, change: Callable[[str], str]) -> Captured:
    return replace(case, headers={**case.headers, header: change(case.headers[header])})


def without(case: Captured, header: str) -> Captured:
    return replace(case, headers={name: value for name, value in case.headers.items() if name != header})


def right_cases() -> dict[str, Captured]:
    cases = {str(scheme): captured(scheme) for scheme in Scheme}
    for method in HUB_METHODS:
        cases[f"websub, {method}"] = captured(Scheme.WEBSUB, hub_method=method)
    for scheme in (Scheme.STANDARD, Scheme.STANDARD_ED25519):
        for who, key in (("new", KEY), ("old", OTHER)):
            cases[f"{scheme}, rotated, {who}"] = captured(scheme, KEY, OTHER, knows=key)
    for scheme in TIMED:
        cases[f"{scheme}, 295 s old"] = captured(scheme, age=295)
    for scheme in set(Scheme) - {Scheme.GITHUB}:  # its library takes no empty body
        cases[f"{scheme}, no body"] = captured(scheme, body=b"")
    return cases


def wrong_cases() -> dict[str, Captured]:
    cases: dict[str, Captured] = {}
    for scheme in Scheme:
        case = captured(scheme)
        cases[f"{scheme}, body flipped"] = replace(case, body=bytes([BODY[0] ^ 1]) + BODY[1:])
        cases[f"{scheme}, body longer"] = replace(case, body=BODY + b"\n")
        cases[f"{scheme}, other secret"] = captured(scheme, knows=OTHER)
        for header in sign_headers(case):
            cases[f"{scheme}, without {header}"] = without(case, header)
    for scheme in TIMED:
        cases[f"{scheme}, stale"] = captured(scheme, age=310)
        cases[f"{scheme}, from the future"] = captured(scheme, age=-310)
    for scheme in SIGNED_TIME:
        header = "Signature-Input" if scheme in MESSAGE else "webhook-timestamp"
        cases[f"{scheme}, time altered"] = changed(captured(scheme), header, one_second_less)
    for scheme in (Scheme.STANDARD, Scheme.STANDARD_ED25519):
        cases[f"{scheme}, id altered"] = changed(captured(scheme), "webhook-id", lambda text: flip(text, 5))
    for scheme in MESSAGE:
        case = captured(scheme)
        cases[f"{scheme}, other URL"] = replace(case, url=URL + "0")
        cases[f"{scheme}, other method"] = replace(case, method="PUT")
        cases[f"{scheme}, other content type"] = changed(case, "Content-Type", str.upper)
        cases[f"{scheme}, id altered"] = changed(case, "X-Webhook-Delivery", lambda text: flip(text, 5))
        cases[f"{scheme}, digest altered"] = changed(case, "Content-Digest", lambda text: flip(text, 20))
    cases["github, only its SHA-1 altered"] = changed(
        captured(Scheme.GITHUB), "X-Hub-Signature", lambda text: flip(text, 9)
    )
    # the schemes of one header are not each other's
    cases["servicestack, read as websub"] = replace(captured(Scheme.SERVICESTACK), scheme="websub")
    cases["websub's sha1, read as servicestack"] = replace(
        captured(Scheme.WEBSUB, hub_method="sha1"), scheme="servicestack"
    )
    return cases


def sign_headers(case: Captured) -> list[str]:
    ours = {"Content-Type", "X-Webhook-Delivery", "X-Webhook-Timestamp"}
    return [name for name in case.headers if name not in ours]


def one_second_less(text: str) -> str:
    return re.sub(r"(?<=created=)\d+|^\d+$", lambda match: str(int(match[0]) - 1), text)


def test_others_accept_every_scheme() -> None:
    cases = right_cases()
    answers = dict(zip(cases, accepted_by(list(cases.values())), strict=True))
    assert all(answers.values()), "each case has a verifier"
    assert {name: answer for name, answer in answers.items() if not all(answer.values())} == {}


def test_others_refuse_the_nearest_misses() -> None:
    cases = wrong_cases()
    answers = dict(zip(cases, accepted_by(list(cases.values())), strict=True))
    assert all(answers.values()), "each case has a verifier"
    assert {name: answer for name, answer in answers.items() if any(answer.values())} == {}


def test_every_scheme_is_known_to_a_verifier_that_is_not_ours() -> None:
    answers = dict(zip(Scheme, accepted_by([captured(scheme) for scheme in Scheme]), strict=True))
    known = {str(scheme): sorted(answer) for scheme, answer in answers.items()}
    assert known == {
        "websub": ["node"],
        "github": ["node"],
        "standard": ["node", "standardwebhooks", "svix"],
        "standard-ed25519": ["node"],
        "timestamped": ["node"],
        "servicestack": ["node", "plain hmac"],
        "rfc9421": ["http-message-signatures"],
        "rfc9421-ed25519": ["http-message-signatures"],
    }


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_the_reference_library_verifies_what_standard_signs(body: str) -> None:
    secret = generate()
    headers = dict(
        sign(
            [Scheme.STANDARD],
            keys=[SigningKey(secret=secret)],
            delivery_id="0192aa",
            timestamp=int(time.time()),
            body=body.encode(),
            content_type="text/plain",
            target_uri=URL,
            key_id="0193bb",
        )
    )
    Webhook(secret.reveal()).verify(body, headers, json_parse=False)
    with pytest.raises(WebhookVerificationError):
        Webhook(secret.reveal()).verify(body + " ", headers, json_parse=False)
    with pytest.raises(WebhookVerificationError):
        Webhook(generate().reveal()).verify(body, headers, json_parse=False)
