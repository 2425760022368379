from __future__ import annotations

import hashlib
import hmac
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook, WebhookVerificationError

from subscriptions.secrets import Secret, SecretError, generate
from subscriptions.signatures import (
    HUB_METHODS,
    Scheme,
    SignatureError,
    check_schemes,
    default_schemes,
    sign,
)

VECTORS = Path(__file__).parents[1] / "vectors"
BASE64_SECRET = Secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
PLAIN_SECRET = Secret("It's a Secret to Everybody")


def published(name: str) -> list[Any]:
    vectors: list[Any] = json.loads((VECTORS / name).read_text())["vectors"]
    return [pytest.param(vector, id=vector["source"]) for vector in vectors]


def signed(
    schemes: Sequence[Scheme], *, secret: Secret, body: bytes = b"{}", hub_method: str = "sha256"
) -> dict[str, str]:
    headers = sign(
        schemes,
        secret=secret,
        delivery_id="0192aa",
        timestamp=int(time.time()),
        body=body,
        hub_method=hub_method,
    )
    assert len(dict(headers)) == len(headers)
    return dict(headers)


@pytest.mark.parametrize("vector", published("hub_signature.json"))
def test_websub_gives_the_published_signatures(vector: dict[str, str]) -> None:
    headers = signed(
        [Scheme.WEBSUB],
        secret=Secret(vector["secret"]),
        body=vector["body"].encode(),
        hub_method=vector["method"],
    )
    assert headers == {"X-Hub-Signature": f"{vector['method']}={vector['hex']}"}


@pytest.mark.parametrize("vector", published("standard_webhooks.json"))
def test_standard_gives_the_published_signature(vector: dict[str, Any]) -> None:
    headers = sign(
        [Scheme.STANDARD],
        secret=Secret(vector["secret"]),
        delivery_id=vector["id"],
        timestamp=vector["timestamp"],
        body=vector["body"].encode(),
    )
    assert headers == [
        ("webhook-id", vector["id"]),
        ("webhook-timestamp", str(vector["timestamp"])),
        ("webhook-signature", vector["signature"]),
    ]


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_the_reference_library_verifies_what_standard_signs(body: str) -> None:
    secret = generate()
    headers = signed([Scheme.STANDARD], secret=secret, body=body.encode())
    Webhook(secret.reveal()).verify(body, headers, json_parse=False)
    with pytest.raises(WebhookVerificationError):
        Webhook(secret.reveal()).verify(body + " ", headers, json_parse=False)
    with pytest.raises(WebhookVerificationError):
        Webhook(generate().reveal()).verify(body, headers, json_parse=False)


def test_standard_signs_with_and_without_the_prefix_alike() -> None:
    bare = Secret(BASE64_SECRET.reveal().removeprefix("whsec_"))
    assert signed([Scheme.STANDARD], secret=bare) == signed([Scheme.STANDARD], secret=BASE64_SECRET)


@given(st.binary(), st.sampled_from(HUB_METHODS))
def test_plain_hmac_verifies_what_websub_signs(body: bytes, method: str) -> None:
    headers = signed([Scheme.WEBSUB], secret=BASE64_SECRET, body=body, hub_method=method)
    # the whole text is the key, whsec_ included
    expected = hmac.new(b"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", body, getattr(hashlib, method))
    assert headers == {"X-Hub-Signature": f"{method}={expected.hexdigest()}"}


def test_the_key_of_websub_is_utf8() -> None:
    headers = signed([Scheme.WEBSUB], secret=Secret("sécrét €"), body=b"x")
    expected = hmac.new("sécrét €".encode(), b"x", "sha256").hexdigest()
    assert headers["X-Hub-Signature"] == f"sha256={expected}"


@pytest.mark.parametrize("method", ["md5", "SHA256", "sha224", "sha3_256", ""])
def test_other_methods_are_refused(method: str) -> None:
    with pytest.raises(SignatureError, match="sha1, sha256, sha384, sha512"):
        signed([Scheme.WEBSUB], secret=PLAIN_SECRET, hub_method=method)


def test_schemes_are_combined_in_the_order_given() -> None:
    names = [*signed([Scheme.STANDARD, Scheme.WEBSUB], secret=BASE64_SECRET)]
    assert names == ["webhook-id", "webhook-timestamp", "webhook-signature", "X-Hub-Signature"]
    assert signed([], secret=BASE64_SECRET) == {}


@pytest.mark.parametrize("scheme", Scheme)
def test_every_scheme_has_a_signer(scheme: Scheme) -> None:
    assert signed([scheme], secret=BASE64_SECRET)


def test_standard_refuses_to_sign_with_another_key_than_asked() -> None:
    with pytest.raises(SecretError, match="base64"):
        signed([Scheme.STANDARD], secret=PLAIN_SECRET)


def test_default_schemes() -> None:
    assert default_schemes(BASE64_SECRET) == (Scheme.WEBSUB, Scheme.STANDARD)
    assert default_schemes(generate()) == (Scheme.WEBSUB, Scheme.STANDARD)
    assert default_schemes(PLAIN_SECRET) == (Scheme.WEBSUB,)
    assert default_schemes(Secret("whsec_AAECAw")) == (Scheme.WEBSUB,)


@pytest.mark.parametrize("secret", [BASE64_SECRET, PLAIN_SECRET])
def test_the_default_schemes_can_always_be_used(secret: Secret) -> None:
    check_schemes(default_schemes(secret), secret)
    assert signed(default_schemes(secret), secret=secret)


@pytest.mark.parametrize(
    ("schemes", "secret", "says"),
    [
        ([], BASE64_SECRET, "at least one scheme"),
        ([Scheme.WEBSUB, Scheme.WEBSUB], BASE64_SECRET, "once"),
        ([Scheme.STANDARD, Scheme.WEBSUB, Scheme.STANDARD], BASE64_SECRET, "once"),
        ([Scheme.STANDARD], PLAIN_SECRET, "needs a base64 secret"),
        ([Scheme.WEBSUB, Scheme.STANDARD], PLAIN_SECRET, "`websub` alone"),
    ],
)
def test_check_schemes_refuses(schemes: list[Scheme], secret: Secret, says: str) -> None:
    with pytest.raises(SignatureError, match=says) as caught:
        check_schemes(schemes, secret)
    assert secret.reveal() not in str(caught.value)


@pytest.mark.parametrize(
    ("schemes", "secret"),
    [
        ([Scheme.WEBSUB], PLAIN_SECRET),
        ([Scheme.STANDARD], BASE64_SECRET),
        ([Scheme.STANDARD, Scheme.WEBSUB], BASE64_SECRET),
    ],
)
def test_check_schemes_takes(schemes: list[Scheme], secret: Secret) -> None:
    check_schemes(schemes, secret)
