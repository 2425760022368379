from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from subscriptions import message_signatures
from subscriptions.secrets import Secret, SecretError, SigningKey, generate, generate_seed, private_key
from subscriptions.signatures import ASYMMETRIC, HUB_METHODS, Scheme, SignatureError, sign
from subscriptions.verification import Verification, verify

VECTORS = Path(__file__).parents[1] / "vectors"
URL = "https://api.example.com/hooks/42?token=eyJ0"
NOW = 1_700_000_000
BODY = b'{"n" : 1}'
KEY = SigningKey(secret=generate(), seed=generate_seed())
OTHER = SigningKey(secret=generate(), seed=generate_seed())
TIMED = [Scheme.STANDARD, Scheme.STANDARD_ED25519, Scheme.TIMESTAMPED, Scheme.RFC9421, Scheme.RFC9421_ED25519]
MESSAGE = [Scheme.RFC9421, Scheme.RFC9421_ED25519]


def request(scheme: Scheme, *keys: SigningKey, body: bytes = BODY, hub_method: str = "sha256") -> dict[str, str]:
    headers = sign(
        [scheme],
        keys=keys or (KEY,),
        delivery_id="0192aa",
        timestamp=NOW,
        body=body,
        content_type="application/json",
        target_uri=URL,
        key_id="0193bb",
        hub_method=hub_method,
    )
    return {
        "Content-Type": "application/json",
        "X-Webhook-Delivery": "0192aa",
        "X-Webhook-Timestamp": str(NOW),
        **dict(headers),
    }


def judged(scheme: Scheme, headers: Any, **changed: Any) -> Verification:
    values: dict[str, Any] = {"keys": [KEY], "body": BODY, "target_uri": URL, "now": NOW + 1}
    return verify(scheme, headers=headers, **{**values, **changed})


@pytest.mark.parametrize("scheme", Scheme)
def test_what_is_signed_is_right(scheme: Scheme) -> None:
    headers = request(scheme)
    found = judged(scheme, headers)
    assert found, found.detail
    assert (found.ok, found.scheme) == (True, scheme)
    assert "right" in found.detail
    assert judged(scheme, {name.upper(): f"  {value}\t" for name, value in headers.items()})
    assert judged(scheme, [(name.lower(), value) for name, value in headers.items()])


@pytest.mark.parametrize("method", HUB_METHODS)
def test_every_hub_method_is_known(method: str) -> None:
    assert judged(Scheme.WEBSUB, request(Scheme.WEBSUB, hub_method=method)).detail.endswith(f"({method}).")


@pytest.mark.parametrize("scheme", Scheme)
def test_the_nearest_misses_are_wrong(scheme: Scheme) -> None:
    headers = request(scheme)
    for changed in (
        {"body": BODY + b" "},
        {"body": bytes([BODY[0] ^ 1]) + BODY[1:]},
        {"keys": [OTHER]},
    ):
        found = judged(scheme, headers, **changed)
        assert not found
        assert "not match" in found.detail or "another body" in found.detail
    for name in headers:
        if name not in {"Content-Type", "X-Webhook-Delivery", "X-Webhook-Timestamp"}:
            without = {key: value for key, value in headers.items() if key != name}
            assert judged(scheme, without).detail.lower() == f"the header {name.lower()} is missing."
            assert not judged(scheme, {**headers, name: flip(headers[name])})


def flip(text: str) -> str:
    """Change one character of the signature."""
    at = len(text) - 6
    return text[:at] + ("1" if text[at] == "0" else "0") + text[at + 1 :]


@pytest.mark.parametrize("scheme", Scheme)
def test_any_of_the_keys_is_enough(scheme: Scheme) -> None:
    headers = request(scheme)
    assert judged(scheme, headers, keys=[OTHER, KEY])
    assert judged(scheme, headers, keys=[KEY, OTHER])


@pytest.mark.parametrize("scheme", [Scheme.STANDARD, Scheme.STANDARD_ED25519])
def test_any_of_several_signatures_is_enough(scheme: Scheme) -> None:
    headers = request(scheme, OTHER, KEY)
    assert judged(scheme, headers)
    assert judged(scheme, headers, keys=[OTHER])
    assert not judged(scheme, headers, keys=[SigningKey(secret=generate(), seed=generate_seed())])
    noise = f"v0,AAAA v1,!!! v1a,!!! v1,AAAA v1a,AAAA v1 {headers['webhook-signature']} v9,"
    assert judged(scheme, {**headers, "webhook-signature": noise})


@pytest.mark.parametrize("scheme", sorted(ASYMMETRIC))
def test_a_public_key_is_enough_for_ed25519(scheme: Scheme) -> None:
    headers = request(scheme)
    assert KEY.public_key is not None
    assert OTHER.public_key is not None
    assert judged(scheme, headers, keys=(), public_keys=[KEY.public_key])
    assert judged(scheme, headers, keys=(), public_keys=[KEY.public_key.removeprefix("whpk_")])
    assert judged(scheme, headers, keys=(), public_keys=[OTHER.public_key, KEY.public_key])
    assert not judged(scheme, headers, keys=(), public_keys=[OTHER.public_key])
    with pytest.raises(SignatureError, match="public key"):
        judged(scheme, headers, keys=[SigningKey(secret=KEY.secret)])
    with pytest.raises(SecretError, match="whpk_"):
        judged(scheme, headers, public_keys=["whpk_AAAA"])


@pytest.mark.parametrize("scheme", sorted(set(Scheme) - ASYMMETRIC))
def test_hmac_needs_a_secret(scheme: Scheme) -> None:
    with pytest.raises(SignatureError, match="secret"):
        judged(scheme, request(scheme), keys=(), public_keys=[KEY.public_key])


@pytest.mark.parametrize("scheme", TIMED)
def test_freshness_is_judged_last(scheme: Scheme) -> None:
    headers = request(scheme)
    assert judged(scheme, headers, now=NOW + 300)
    assert judged(scheme, headers, now=NOW - 300)
    old, early = judged(scheme, headers, now=NOW + 301), judged(scheme, headers, now=NOW - 301)
    assert not old
    assert not early
    assert "The signature is right, but" in old.detail
    assert "301 s old" in old.detail
    assert "301 s in the future" in early.detail
    assert judged(scheme, headers, now=NOW + 301, tolerance=301.0)
    assert "does not match" in judged(scheme, headers, now=NOW + 301, keys=[OTHER]).detail


@pytest.mark.parametrize("scheme", sorted(set(Scheme) - set(TIMED)))
def test_a_scheme_without_a_time_is_always_fresh(scheme: Scheme) -> None:
    assert judged(scheme, request(scheme), now=NOW + 10**9)


@pytest.mark.parametrize(
    "text", ["", "now", "1.7e9", "-1", "1700000000.5", "\N{FULLWIDTH DIGIT ONE}700000000", "1" * 16]
)
def test_a_time_is_a_whole_number(text: str) -> None:
    for scheme, name in (
        (Scheme.STANDARD, "webhook-timestamp"),
        (Scheme.STANDARD_ED25519, "webhook-timestamp"),
        (Scheme.TIMESTAMPED, "X-Webhook-Timestamp"),
    ):
        found = judged(scheme, {**request(scheme), name: text})
        assert not found
        assert name in found.detail


def test_the_two_headers_called_sha1_are_told_apart() -> None:
    websub, servicestack = request(Scheme.WEBSUB, hub_method="sha1"), request(Scheme.SERVICESTACK)
    assert "`servicestack`" in judged(Scheme.WEBSUB, servicestack).detail
    assert "true SHA-1" in judged(Scheme.SERVICESTACK, websub).detail
    assert "`sha1=`" in judged(Scheme.SERVICESTACK, request(Scheme.WEBSUB)).detail


def test_github_checks_both_headers() -> None:
    headers = request(Scheme.GITHUB)
    for name in ("X-Hub-Signature-256", "X-Hub-Signature"):
        found = judged(Scheme.GITHUB, {**headers, name: flip(headers[name])})
        assert found.detail.startswith(f"{name} does not match")
        assert "begins with" in judged(Scheme.GITHUB, {**headers, name: "sha512=" + "0" * 128}).detail


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("757107ea", "no `=`"),
        ("md5=" + "0" * 32, "sha1, sha256, sha384, sha512"),
        ("sha256=", "not match"),
        ("sha256=xyz", "not in hex"),
        ("sha256=75 71", "not in hex"),
        ("sha256=757", "not in hex"),
        ("sha256=\N{FULLWIDTH DIGIT ZERO}0", "not ASCII"),
    ],
)
def test_a_malformed_hub_signature(value: str, says: str) -> None:
    assert says in judged(Scheme.WEBSUB, {"X-Hub-Signature": value}).detail


def test_a_header_that_came_twice_is_no_signature() -> None:
    value = request(Scheme.WEBSUB)["X-Hub-Signature"]
    found = judged(Scheme.WEBSUB, [("X-Hub-Signature", value), ("x-hub-signature", value)])
    assert "2 times" in found.detail


def test_a_signature_of_the_other_kind_is_no_signature() -> None:
    assert "`v1a,`" in judged(Scheme.STANDARD_ED25519, request(Scheme.STANDARD)).detail
    assert "`v1,`" in judged(Scheme.STANDARD, request(Scheme.STANDARD_ED25519)).detail


def test_standard_needs_a_base64_secret() -> None:
    plain = SigningKey(secret=Secret("It's a Secret to Everybody"))
    with pytest.raises(SignatureError, match="base64"):
        judged(Scheme.STANDARD, request(Scheme.STANDARD), keys=[plain])
    assert judged(Scheme.STANDARD, request(Scheme.STANDARD), keys=[plain, KEY])


# --- rfc9421 ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", MESSAGE)
def test_a_message_signature_covers_url_method_and_headers(scheme: Scheme) -> None:
    headers = request(scheme)
    assert not judged(scheme, headers, target_uri=URL + "/")
    assert not judged(scheme, headers, method="PUT")
    assert not judged(scheme, {**headers, "Content-Type": "text/plain"})
    assert not judged(scheme, {**headers, "X-Webhook-Delivery": "0192ab"})
    with pytest.raises(SignatureError, match="URL"):
        judged(scheme, headers, target_uri=None)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('"@target-uri" ', "", "does not cover @target-uri"),
        ('"content-digest" ', "", "does not cover content-digest"),
        ('"@method" ', '"@method" "@method" ', "twice"),
        ('"@method" ', '"@method" "@query" ', "not checked here"),
        ('"@method" ', '"@method" "x-other" ', "x-other is missing"),
        ("webhook=", "sig1=", "member `webhook`"),
        ("hmac-sha256", "ed25519", "another algorithm"),
        ("created=1700000000;", "", "when it was made"),
        ("created=1700000000;", "created=1700000001;", "does not match"),
        ("created=1700000000;", 'created="now";', "not an integer"),
        ('keyid="0193bb"', 'keyid="0193bc"', "does not match"),
        ('"@method" ', "@method ", "cannot be read"),
    ],
)
def test_a_signature_input_that_was_changed(old: str, new: str, says: str) -> None:
    headers = request(Scheme.RFC9421)
    altered = headers["Signature-Input"].replace(old, new)
    assert altered != headers["Signature-Input"]
    found = judged(Scheme.RFC9421, {**headers, "Signature-Input": altered})
    assert not found
    assert says in found.detail


def test_signatures_of_others_stand_beside_ours() -> None:
    headers = request(Scheme.RFC9421)
    beside = [
        *((name, value) for name, value in headers.items() if not name.startswith("Signature")),
        ("Signature-Input", 'proxy=("@status";req);created=1'),
        ("Signature-Input", headers["Signature-Input"]),
        ("Signature", f"{headers['Signature']}, proxy=:AAAA:"),
    ]
    assert judged(Scheme.RFC9421, beside)


def test_a_public_key_is_never_a_secret() -> None:
    """An attacker knows the public key: an HMAC made with it must not pass for a signature."""
    assert KEY.public_key is not None
    for text in (KEY.public_key, KEY.public_key.removeprefix("whpk_")):
        forged = request(Scheme.RFC9421, SigningKey(secret=Secret(text)))
        assert not judged(Scheme.RFC9421_ED25519, forged)
        assert not judged(Scheme.RFC9421, forged)


def test_a_signature_that_expires() -> None:
    """Ours do not, but who reads a capture may meet one that does."""
    headers = request(Scheme.RFC9421_ED25519)
    read = message_signatures.read_signature_input(headers["Signature-Input"], "webhook")
    assert read is not None
    values = {"@method": "POST", "@target-uri": URL, "content-digest": headers["Content-Digest"]}
    values |= {"content-type": "application/json", "x-webhook-delivery": "0192aa"}
    params = f"{read.params};expires={NOW + 5}"
    base = message_signatures.signature_base([(name, values[name]) for name in read.names], params)
    assert KEY.seed is not None
    headers |= message_signatures.signature_fields("webhook", params, private_key(KEY.seed).sign(base))
    assert judged(Scheme.RFC9421_ED25519, headers, now=NOW + 5)
    assert "expired 1 s ago" in judged(Scheme.RFC9421_ED25519, headers, now=NOW + 6).detail


# --- what it says -------------------------------------------------------------------------------------------


@given(
    st.sampled_from(Scheme),
    st.lists(
        st.tuples(
            st.sampled_from(
                ["X-Hub-Signature", "webhook-id", "webhook-signature", "Signature", "Signature-Input", "Content-Digest"]
            ),
            st.text(max_size=30),
        )
    ),
)
def test_whatever_came_there_is_an_answer(scheme: Scheme, extra: list[tuple[str, str]]) -> None:
    headers = [(name, value) for name, value in request(scheme).items() if name not in dict(extra)]
    found = judged(scheme, [*headers, *extra])
    assert found.detail


@pytest.mark.parametrize("scheme", Scheme)
def test_no_answer_tells_a_secret_or_the_right_signature(scheme: Scheme) -> None:
    right = request(scheme)
    wrong = {name: flip(value) if "ignature" in name else value for name, value in right.items()}
    found = judged(scheme, wrong)
    assert not found
    told = repr(found)
    assert KEY.secret.reveal() not in told
    assert "eyJ0" not in told
    for value in right.values():
        assert len(value) < 20 or value.rpartition("=")[2] == "" or value not in told


@pytest.mark.parametrize("name", ["hub_signature.json", "standard_webhooks.json", "standard_webhooks_ed25519.json"])
def test_published_signatures_are_right(name: str) -> None:
    vectors: Sequence[dict[str, Any]] = json.loads((VECTORS / name).read_text())["vectors"]
    for vector in vectors:
        body = vector["body"].encode()
        if "hex" in vector:
            headers = {"x-hub-signature": f"{vector['method']}={vector['hex']}"}
            assert judged(Scheme.WEBSUB, headers, keys=[SigningKey(secret=Secret(vector["secret"]))], body=body)
            continue
        headers = {
            "Webhook-Id": vector["id"],
            "Webhook-Timestamp": str(vector["timestamp"]),
            "Webhook-Signature": vector["signature"],
        }
        scheme, key = published_key(vector)
        assert judged(scheme, headers, keys=[key], body=body, now=vector["timestamp"])


def published_key(vector: dict[str, Any]) -> tuple[Scheme, SigningKey]:
    if "seed" in vector:
        seed = base64.b64decode(vector["seed"])
        return Scheme.STANDARD_ED25519, SigningKey(secret=Secret("x"), seed=seed)
    return Scheme.STANDARD, SigningKey(secret=Secret(vector["secret"]))
