from __future__ import annotations

import base64
import copy
import json
import pickle
import traceback
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from subscriptions.secrets import (
    Secret,
    SecretError,
    SigningKey,
    check,
    generate,
    generate_seed,
    private_key,
    public_key_bytes,
    standard_key,
)

VECTORS = Path(__file__).parents[1] / "vectors"
TEXT = "correct horse battery staple"


def test_a_secret_shows_nothing_of_itself() -> None:
    secret = Secret(TEXT)
    shown = [repr(secret), str(secret), f"{secret}", f"{secret!r:>40}", f"{secret:>40}", repr([secret])]
    assert all("Secret(…)" in text for text in shown)
    assert not any(word in text for text in shown for word in TEXT.split())
    assert not hasattr(secret, "__dict__")


def test_only_reveal_gives_the_text_back() -> None:
    assert Secret(TEXT).reveal() == TEXT


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_secret_is_not_pickled(protocol: int) -> None:
    with pytest.raises(TypeError, match="not pickled") as caught:
        pickle.dumps(Secret(TEXT), protocol)
    assert TEXT not in "".join(traceback.format_exception(caught.value))


def test_a_secret_is_copied_as_itself() -> None:
    secret = Secret(TEXT)
    assert copy.copy(secret) is secret
    assert copy.deepcopy({"a": [secret]})["a"][0] is secret


def test_equality_hash_and_truth() -> None:
    assert Secret(TEXT) == Secret(TEXT)
    assert Secret(TEXT) != Secret(TEXT + " ")
    assert Secret("é") != Secret("e\u0301")
    assert Secret("\ud800") != Secret("\ud801")
    assert len({Secret(TEXT), Secret(TEXT), Secret("another")}) == 2
    assert (Secret(TEXT) == TEXT) is False
    assert Secret(TEXT)
    assert not Secret("")


def test_a_generated_secret_is_whsec_and_24_bytes_and_never_the_same() -> None:
    made = [generate() for _ in range(50)]
    assert len(set(made)) == 50
    for secret in made:
        text = secret.reveal()
        assert text.startswith("whsec_")
        assert standard_key(secret) == base64.b64decode(text[6:])
        assert len(standard_key(secret)) == 24
        assert check(text) == secret


@pytest.mark.parametrize(
    "text",
    ["12345678", "x" * 255, "with space", "ünïcödé!", "whsec_AAAA", " padded ", "日本語の秘密です"],
)
def test_check_takes(text: str) -> None:
    assert check(text).reveal() == text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "8 to 255"),
        ("1234567", "8 to 255"),
        ("x" * 256, "8 to 255"),
        ("pasted-secret\n", "control"),
        ("pasted\tsecret", "control"),
        ("pasted\x00secret", "control"),
        ("pasted\x7fsecret", "control"),
        ("pasted\x85secret", "control"),
        ("pasted\ud800secret", "control"),
    ],
)
def test_check_refuses_and_does_not_repeat_it(text: str, says: str) -> None:
    with pytest.raises(SecretError, match=says) as caught:
        check(text)
    assert not text or text not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("whsec_AAECAw==", b"\0\1\2\3"),
        ("AAECAw==", b"\0\1\2\3"),
        ("whsec_+/+/", b"\xfb\xff\xbf"),
        ("password", b"\xa5\xab\x2c\xc2\x8a\xdd"),
    ],
)
def test_standard_key_decodes(text: str, key: bytes) -> None:
    assert standard_key(Secret(text)) == key


@pytest.mark.parametrize(
    "text",
    [
        "",
        "whsec_",
        "whsec_AAECAw",  # padding is missing
        "whsec_AAECAw=",
        "whsec_AAECAw===",
        "whsec_=AAECAw=",
        "whsec_AAECAx==",  # stray bits in the last character
        "whsec_-_-_",  # the URL-safe alphabet
        "whsec_AAEC Aw==",
        "whsec_AAECAw==\n",
        "whsec_AAECAw==AAECAw==",
        "whsec_whsec_AAECAw==",
        "whsec_ÄAAA",
        "whpk_AAECAw==",
        "It's a Secret to Everybody",
    ],
)
def test_standard_key_refuses(text: str) -> None:
    with pytest.raises(SecretError, match="base64") as caught:
        standard_key(Secret(text))
    assert not text or text not in str(caught.value)


@given(st.binary(min_size=1, max_size=100), st.booleans())
def test_standard_key_undoes_base64(key: bytes, prefixed: bool) -> None:
    text = "whsec_" * prefixed + base64.b64encode(key).decode()
    assert standard_key(Secret(text)) == key


@given(st.text(max_size=60))
def test_standard_key_takes_only_what_it_would_write(text: str) -> None:
    try:
        key = standard_key(Secret(text))
    except SecretError:
        return
    assert base64.b64encode(key).decode() == text.removeprefix("whsec_")


def published_pairs() -> list[Any]:
    vectors: list[Any] = json.loads((VECTORS / "ed25519_keys.json").read_text())["vectors"]
    return [pytest.param(vector, id=vector["source"]) for vector in vectors]


@pytest.mark.parametrize("vector", published_pairs())
def test_a_key_pair_has_the_published_public_key(vector: dict[str, str]) -> None:
    key = SigningKey(secret=Secret(TEXT), seed=bytes.fromhex(vector["seed"]))
    public = bytes.fromhex(vector["public"])
    assert key.public_key == "whpk_" + base64.b64encode(public).decode()
    assert public_key_bytes(key.public_key) == public


def test_a_signing_key_shows_neither_secret_nor_seed() -> None:
    seed = generate_seed()
    shown = repr(SigningKey(secret=Secret(TEXT), seed=seed))
    assert shown == "SigningKey(secret=Secret(…))"
    assert repr(seed) not in shown


def test_a_signing_key_cannot_be_changed() -> None:
    key = SigningKey(secret=Secret(TEXT))
    assert key.public_key is None
    with pytest.raises(FrozenInstanceError):
        key.seed = generate_seed()  # type: ignore[misc]  # that it cannot be set is what is tested


@pytest.mark.parametrize("length", [0, 31, 33, 64])
def test_a_seed_has_32_bytes(length: int) -> None:
    with pytest.raises(SecretError, match="32"):
        SigningKey(secret=Secret(TEXT), seed=bytes(length))


def test_a_generated_seed_is_32_bytes_and_never_the_same() -> None:
    seeds = {generate_seed() for _ in range(50)}
    assert len(seeds) == 50
    assert {len(seed) for seed in seeds} == {32}


def test_a_private_key_is_loaded_once() -> None:
    one, other = generate_seed(), generate_seed()
    assert private_key(one) is private_key(bytes(bytearray(one)))
    assert private_key(one) is not private_key(other)
    assert private_key(one).private_bytes_raw() == one


@pytest.mark.parametrize("text", ["", "whpk_", "whpk_AAAA", "whsec_" + "A" * 43 + "=", "whpk_" + "A" * 43, "ä" * 44])
def test_other_public_keys_are_refused(text: str) -> None:
    with pytest.raises(SecretError, match="whpk_"):
        public_key_bytes(text)
