from __future__ import annotations

import base64
import hashlib
import hmac
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from subscriptions import message_signatures
from subscriptions.message_signatures import MessageSignatureError
from subscriptions.secrets import Secret, SecretError, SigningKey, generate, generate_seed, private_key
from subscriptions.signatures import (
    ASYMMETRIC,
    HUB_METHODS,
    SINGLE_VALUED,
    Scheme,
    SignatureError,
    check_combination,
    check_schemes,
    default_schemes,
    has_single_valued,
    sign,
)

VECTORS = Path(__file__).parents[1] / "vectors"
BASE64_SECRET = Secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
PLAIN_SECRET = Secret("It's a Secret to Everybody")
SEED = bytes(range(32))
KEY = SigningKey(secret=BASE64_SECRET, seed=SEED)

#: schemes of which only one can be used
EXCLUSIVE = [{Scheme.WEBSUB, Scheme.GITHUB, Scheme.SERVICESTACK}, {Scheme.RFC9421, Scheme.RFC9421_ED25519}]


def published(name: str) -> list[Any]:
    vectors: list[Any] = json.loads((VECTORS / name).read_text())["vectors"]
    return [pytest.param(vector, id=vector["source"]) for vector in vectors]


def signed(schemes: Sequence[Scheme], *keys: SigningKey, **changed: Any) -> dict[str, str]:
    values: dict[str, Any] = {
        "keys": keys or (KEY,),
        "delivery_id": "0192aa",
        "timestamp": 1_700_000_000,
        "body": b"{}",
        "content_type": "application/json",
        "target_uri": "https://api.example.com/hooks?a=1",
        "key_id": "0193bb",
    }
    headers = sign(schemes, **{**values, **changed})
    assert len(dict(headers)) == len(headers)
    return dict(headers)


def with_secret(text: str) -> SigningKey:
    return SigningKey(secret=Secret(text))


# --- published vectors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", published("hub_signature.json"))
def test_websub_gives_the_published_signatures(vector: dict[str, str]) -> None:
    headers = signed(
        [Scheme.WEBSUB], with_secret(vector["secret"]), body=vector["body"].encode(), hub_method=vector["method"]
    )
    assert headers == {"X-Hub-Signature": f"{vector['method']}={vector['hex']}"}


@pytest.mark.parametrize("vector", published("github.json"))
def test_github_gives_the_published_signatures(vector: dict[str, str]) -> None:
    headers = signed([Scheme.GITHUB], with_secret(vector["secret"]), body=vector["body"].encode())
    assert headers[vector["header"]] == vector["value"]
    assert list(headers) == ["X-Hub-Signature-256", "X-Hub-Signature"]


@pytest.mark.parametrize("vector", published("hmac_sha256.json"))
def test_servicestack_and_timestamped_give_the_published_hmac(vector: dict[str, str]) -> None:
    headers = signed(
        [Scheme.SERVICESTACK, Scheme.TIMESTAMPED], with_secret(vector["secret"]), body=vector["body"].encode()
    )
    assert headers == {"X-Hub-Signature": f"sha1={vector['hex']}", "X-Webhook-Signature": vector["hex"]}


@pytest.mark.parametrize("vector", published("standard_webhooks.json"))
def test_standard_gives_the_published_signature(vector: dict[str, Any]) -> None:
    headers = signed(
        [Scheme.STANDARD],
        with_secret(vector["secret"]),
        delivery_id=vector["id"],
        timestamp=vector["timestamp"],
        body=vector["body"].encode(),
    )
    assert headers == {
        "webhook-id": vector["id"],
        "webhook-timestamp": str(vector["timestamp"]),
        "webhook-signature": vector["signature"],
    }


@pytest.mark.parametrize("vector", published("standard_webhooks_ed25519.json"))
def test_standard_ed25519_gives_the_published_signature(vector: dict[str, Any]) -> None:
    headers = signed(
        [Scheme.STANDARD_ED25519],
        SigningKey(secret=PLAIN_SECRET, seed=base64.b64decode(vector["seed"])),
        delivery_id=vector["id"],
        timestamp=vector["timestamp"],
        body=vector["body"].encode(),
    )
    assert headers["webhook-signature"] == vector["signature"]


@pytest.mark.parametrize("vector", published("message_signatures.json"))
def test_message_signatures_give_the_published_texts(vector: dict[str, Any]) -> None:
    components = [(name, value) for name, value in vector["components"]]
    params = message_signatures.signature_params(
        [name for name, _ in components], created=vector["created"], key_id=vector["key_id"]
    )
    base = message_signatures.signature_base(components, params)
    assert base.decode() == "\n".join(vector["base"])
    key = base64.b64decode(vector["key"])
    signers: dict[str, Callable[[], bytes]] = {
        "hmac-sha256": lambda: hmac.digest(key, base, "sha256"),
        "ed25519": lambda: private_key(key).sign(base),
    }
    fields = message_signatures.signature_fields(vector["label"], params, signers[vector["algorithm"]]())
    assert fields == [("Signature-Input", vector["signature_input"]), ("Signature", vector["signature"])]
    read = message_signatures.read_signature_input(vector["signature_input"], vector["label"])
    assert read is not None
    assert (read.names, read.params) == (tuple(name for name, _ in components), params)
    assert (read.created, read.expires, read.key_id, read.alg) == (vector["created"], None, vector["key_id"], None)


@pytest.mark.parametrize("vector", published("content_digest.json"))
def test_content_digest_gives_the_published_value(vector: dict[str, str]) -> None:
    assert message_signatures.content_digest(vector["body"].encode()) == vector["value"]
    headers = signed([Scheme.RFC9421], body=vector["body"].encode())
    assert headers["Content-Digest"] == vector["value"]


# --- what each scheme sends ---------------------------------------------------------------------------------


@given(st.binary(), st.sampled_from(HUB_METHODS))
def test_the_key_of_websub_is_the_whole_text(body: bytes, method: str) -> None:
    headers = signed([Scheme.WEBSUB], body=body, hub_method=method)
    expected = hmac.new(b"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", body, getattr(hashlib, method))
    assert headers == {"X-Hub-Signature": f"{method}={expected.hexdigest()}"}


@pytest.mark.parametrize("scheme", [Scheme.WEBSUB, Scheme.GITHUB, Scheme.SERVICESTACK, Scheme.TIMESTAMPED])
def test_the_key_of_a_hex_scheme_is_utf8(scheme: Scheme) -> None:
    headers = signed([scheme], with_secret("sécrét €"), body=b"x")
    expected = hmac.new("sécrét €".encode(), b"x", "sha256").hexdigest()
    assert expected in {value.rpartition("=")[2] for value in headers.values()}


def test_github_has_a_true_sha1_beside_it_and_servicestack_has_not() -> None:
    key = BASE64_SECRET.reveal().encode()
    github, servicestack = signed([Scheme.GITHUB], body=b"x"), signed([Scheme.SERVICESTACK], body=b"x")
    assert github["X-Hub-Signature"] == "sha1=" + hmac.new(key, b"x", hashlib.sha1).hexdigest()
    assert servicestack["X-Hub-Signature"] == "sha1=" + hmac.new(key, b"x", hashlib.sha256).hexdigest()


def test_servicestack_never_decodes_its_key() -> None:
    text = "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    headers = signed([Scheme.SERVICESTACK], with_secret(text), body=b"x")
    decoded = hmac.new(base64.b64decode(text), b"x", "sha256").hexdigest()
    assert headers["X-Hub-Signature"] == "sha1=" + hmac.new(text.encode(), b"x", "sha256").hexdigest()
    assert decoded not in headers["X-Hub-Signature"]


@pytest.mark.parametrize("method", ["md5", "SHA256", "sha224", "sha3_256", ""])
def test_other_methods_are_refused(method: str) -> None:
    with pytest.raises(SignatureError, match="sha1, sha256, sha384, sha512"):
        signed([Scheme.WEBSUB], hub_method=method)


def test_standard_signs_with_and_without_the_prefix_alike() -> None:
    bare = with_secret(BASE64_SECRET.reveal().removeprefix("whsec_"))
    assert signed([Scheme.STANDARD], bare) == signed([Scheme.STANDARD])


def test_standard_refuses_to_sign_with_another_key_than_asked() -> None:
    with pytest.raises(SecretError, match="base64"):
        signed([Scheme.STANDARD], SigningKey(secret=PLAIN_SECRET), KEY)


@pytest.mark.parametrize("scheme", sorted(ASYMMETRIC))
def test_ed25519_needs_a_key_pair(scheme: Scheme) -> None:
    with pytest.raises(SignatureError, match="key pair"):
        signed([scheme], SigningKey(secret=BASE64_SECRET), KEY)


def test_rfc9421_covers_what_matters() -> None:
    headers = signed([Scheme.RFC9421])
    digest = base64.b64encode(hashlib.sha256(b"{}").digest()).decode()
    covered = '("@method" "@target-uri" "content-digest" "content-type" "x-webhook-delivery")'
    params = f'{covered};created=1700000000;keyid="0193bb";alg="hmac-sha256"'
    base = (
        '"@method": POST\n'
        '"@target-uri": https://api.example.com/hooks?a=1\n'
        f'"content-digest": sha-256=:{digest}:\n'
        '"content-type": application/json\n'
        '"x-webhook-delivery": 0192aa\n'
        f'"@signature-params": {params}'
    )
    signature = hmac.new(b"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", base.encode(), "sha256").digest()
    assert headers == {
        "Content-Digest": f"sha-256=:{digest}:",
        "Signature-Input": f"webhook={params}",
        "Signature": f"webhook=:{base64.b64encode(signature).decode()}:",
    }


def test_rfc9421_names_its_algorithm_and_quotes_its_key_id() -> None:
    headers = signed([Scheme.RFC9421_ED25519], key_id='a"b\\c')
    assert headers["Signature-Input"].endswith(r';keyid="a\"b\\c";alg="ed25519"')


@pytest.mark.parametrize("change", ["method", "target_uri", "body", "content_type", "delivery_id"])
@pytest.mark.parametrize("scheme", [Scheme.RFC9421, Scheme.RFC9421_ED25519])
def test_rfc9421_changes_with_everything_it_covers(scheme: Scheme, change: str) -> None:
    other: dict[str, Any] = {change: b"{} " if change == "body" else "PUT"}
    assert signed([scheme])["Signature"] != signed([scheme], **other)["Signature"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("content_type", 'application/json\n"@status": 200'),
        ("content_type", "application/json\r"),
        ("content_type", "text/plän"),
        ("target_uri", "https://api.example.com/h\x7fooks"),
        ("delivery_id", "0192\x00"),
        ("method", "POST\n"),
        ("key_id", "a\nb"),
        ("key_id", "schlüssel"),
    ],
)
def test_rfc9421_signs_nothing_that_could_be_read_otherwise(field: str, value: str) -> None:
    with pytest.raises(SignatureError, match="printable ASCII") as caught:
        signed([Scheme.RFC9421], **{field: value})
    assert value not in str(caught.value)


# --- several schemes, several keys --------------------------------------------------------------------------


def test_schemes_are_combined_in_the_order_given() -> None:
    names = [*signed([Scheme.STANDARD, Scheme.TIMESTAMPED, Scheme.WEBSUB])]
    assert names == [
        "webhook-id",
        "webhook-timestamp",
        "webhook-signature",
        "X-Webhook-Signature",
        "X-Hub-Signature",
    ]
    assert signed([]) == {}


def test_the_standard_schemes_share_their_headers() -> None:
    both = signed([Scheme.STANDARD_ED25519, Scheme.WEBSUB, Scheme.STANDARD])
    asymmetric, symmetric = signed([Scheme.STANDARD_ED25519]), signed([Scheme.STANDARD])
    name = "webhook-signature"
    assert both[name] == f"{asymmetric[name]} {symmetric[name]}"
    assert [*both] == ["webhook-id", "webhook-timestamp", name, "X-Hub-Signature"]
    assert asymmetric[name].startswith("v1a,")
    assert symmetric[name].startswith("v1,")


@pytest.mark.parametrize("scheme", Scheme)
def test_every_scheme_has_a_signer(scheme: Scheme) -> None:
    assert signed([scheme])


@pytest.mark.parametrize("scheme", sorted(SINGLE_VALUED))
def test_a_single_valued_scheme_signs_with_the_first_key_only(scheme: Scheme) -> None:
    other = SigningKey(secret=generate(), seed=generate_seed())
    assert signed([scheme], KEY, other) == signed([scheme], KEY)
    assert signed([scheme], KEY, other) != signed([scheme], other, KEY)


@pytest.mark.parametrize("scheme", [Scheme.STANDARD, Scheme.STANDARD_ED25519])
def test_a_multi_valued_scheme_carries_a_signature_by_every_key(scheme: Scheme) -> None:
    keys = [SigningKey(secret=generate(), seed=generate_seed()) for _ in range(3)]
    alone = [signed([scheme], key)["webhook-signature"] for key in keys]
    assert signed([scheme], *keys)["webhook-signature"] == " ".join(alone)


def test_an_older_key_that_cannot_serve_a_scheme_is_left_out() -> None:
    older = SigningKey(secret=PLAIN_SECRET)
    assert signed([Scheme.STANDARD], KEY, older) == signed([Scheme.STANDARD], KEY)
    assert signed([Scheme.STANDARD_ED25519], KEY, older) == signed([Scheme.STANDARD_ED25519], KEY)


def test_one_key_pair_under_two_secrets_signs_once() -> None:
    rotated = SigningKey(secret=generate(), seed=SEED)
    assert signed([Scheme.STANDARD_ED25519], rotated, KEY) == signed([Scheme.STANDARD_ED25519], KEY)


def test_signing_without_a_key_is_refused() -> None:
    with pytest.raises(SignatureError, match="key"):
        signed([Scheme.WEBSUB], keys=())


def test_single_valued() -> None:
    assert set(Scheme) - SINGLE_VALUED == {Scheme.STANDARD, Scheme.STANDARD_ED25519}
    assert not has_single_valued([])
    assert not has_single_valued([Scheme.STANDARD, Scheme.STANDARD_ED25519])
    assert has_single_valued([Scheme.STANDARD, Scheme.TIMESTAMPED])


# --- which schemes can be used ------------------------------------------------------------------------------


def test_default_schemes() -> None:
    assert default_schemes(BASE64_SECRET) == (Scheme.WEBSUB, Scheme.STANDARD)
    assert default_schemes(generate()) == (Scheme.WEBSUB, Scheme.STANDARD)
    assert default_schemes(PLAIN_SECRET) == (Scheme.WEBSUB,)
    assert default_schemes(Secret("whsec_AAECAw")) == (Scheme.WEBSUB,)


@pytest.mark.parametrize("secret", [BASE64_SECRET, PLAIN_SECRET])
def test_the_default_schemes_can_always_be_used(secret: Secret) -> None:
    check_schemes(default_schemes(secret), secret, has_key_pair=False)
    assert signed(default_schemes(secret), SigningKey(secret=secret))


@pytest.mark.parametrize("pair", list(itertools.combinations(Scheme, 2)), ids="+".join)
def test_only_schemes_with_one_header_exclude_each_other(pair: tuple[Scheme, Scheme]) -> None:
    if any(group.issuperset(pair) for group in EXCLUSIVE):
        with pytest.raises(SignatureError, match=r"Use one of .*writes the header"):
            check_combination(pair)
        with pytest.raises(SignatureError, match="use one of them"):
            signed(pair)
    else:
        check_combination(pair)
        check_schemes(pair, BASE64_SECRET, has_key_pair=True)
        assert signed(pair)


@pytest.mark.parametrize(
    ("schemes", "secret", "has_key_pair", "says"),
    [
        ([], BASE64_SECRET, True, "at least one scheme"),
        ([Scheme.WEBSUB, Scheme.WEBSUB], BASE64_SECRET, True, "once"),
        ([Scheme.STANDARD, Scheme.WEBSUB, Scheme.STANDARD], BASE64_SECRET, True, "once"),
        ([Scheme.WEBSUB, Scheme.STANDARD, Scheme.GITHUB], BASE64_SECRET, True, "Use one of"),
        ([Scheme.STANDARD], PLAIN_SECRET, True, "needs a base64 secret"),
        ([Scheme.WEBSUB, Scheme.STANDARD], PLAIN_SECRET, False, "`websub` alone"),
        ([Scheme.STANDARD_ED25519], BASE64_SECRET, False, "only subscriptions have a key pair"),
        ([Scheme.WEBSUB, Scheme.RFC9421_ED25519], PLAIN_SECRET, False, "`rfc9421-ed25519` needs a key pair"),
    ],
)
def test_check_schemes_refuses(schemes: list[Scheme], secret: Secret, has_key_pair: bool, says: str) -> None:
    with pytest.raises(SignatureError, match=says) as caught:
        check_schemes(schemes, secret, has_key_pair=has_key_pair)
    assert secret.reveal() not in str(caught.value)


@pytest.mark.parametrize(
    ("schemes", "secret", "has_key_pair"),
    [
        ([Scheme.WEBSUB], PLAIN_SECRET, False),
        ([Scheme.STANDARD], BASE64_SECRET, False),
        ([Scheme.STANDARD, Scheme.WEBSUB], BASE64_SECRET, False),
        ([Scheme.RFC9421, Scheme.TIMESTAMPED, Scheme.SERVICESTACK], PLAIN_SECRET, False),
        ([Scheme.STANDARD_ED25519, Scheme.RFC9421_ED25519], PLAIN_SECRET, True),
    ],
)
def test_check_schemes_takes(schemes: list[Scheme], secret: Secret, has_key_pair: bool) -> None:
    check_schemes(schemes, secret, has_key_pair=has_key_pair)


# --- reading Signature-Input and Signature ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "params"),
    [
        ('a=("x");created=1', '("x");created=1'),
        ('b=("y";sf), a=("x");created=1', '("x");created=1'),
        ('b="a=(), ",  a=("x");created=1', '("x");created=1'),
        ('a=("z");created=2,a=("x");created=1', '("x");created=1'),
        ("a=();created=1", "();created=1"),
        ('a=( "x"  "y" ); created=1;b;c=?0 , b=1', '( "x"  "y" ); created=1;b;c=?0'),
    ],
)
def test_signature_input_is_read_as_a_dictionary(field: str, params: str) -> None:
    read = message_signatures.read_signature_input(field, "a")
    assert read is not None
    assert (read.params, read.created) == (params, 1)


@pytest.mark.parametrize("field", ["", 'b=("x")', 'A=("x")', 'b="a=()"'])
def test_a_missing_label_is_none(field: str) -> None:
    if field.startswith("A"):
        with pytest.raises(MessageSignatureError):
            message_signatures.read_signature_input(field, "a")
    else:
        assert message_signatures.read_signature_input(field, "a") is None


@pytest.mark.parametrize(
    "field",
    [
        "a",
        "a=1",
        'a="x"',
        "a=(x)",
        'a=("x"',
        'a=("x""y")',
        'a=("x";sf)',
        'a=("x");created=now',
        'a=("x");created="1"',
        'a=("x");created',
        'a=("x");created=1.5',
        'a=("x");keyid=1',
        'a=("x\n")',
        'a=("ä")',
        'a=("x',
        "=",
        ", ,",
    ],
)
def test_other_signature_inputs_are_refused(field: str) -> None:
    with pytest.raises(MessageSignatureError):
        message_signatures.read_signature_input(field, "a")


@pytest.mark.parametrize("field", ["a", "a=", "a=:", "a=1", "a=:AA:", "a=:AAAA", "a=:AA-_:", 'a=":AAAA:"'])
def test_what_is_no_byte_sequence_is_refused(field: str) -> None:
    with pytest.raises(MessageSignatureError):
        message_signatures.read_byte_sequence(field, "a")


@given(st.text(max_size=60))
def test_reading_a_field_ends_well(field: str) -> None:
    for read in (message_signatures.read_signature_input, message_signatures.read_byte_sequence):
        try:
            read(f"a={field}", "a")
        except MessageSignatureError:
            continue
