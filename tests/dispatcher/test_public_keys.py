"""Keys that everybody may have: what is sealed to one is opened by its owner, in its place, or not at all."""

from __future__ import annotations

import pickle

import pytest

from dispatcher.public_keys import PREFIX, KeyPair, PublicKey, SealingError

PAIR = KeyPair(bytes(range(32)))
SEALED = PAIR.public.seal(b"s3cr3t", b"here")


def test_the_owner_opens_what_was_sealed() -> None:
    assert PAIR.open(SEALED, b"here") == b"s3cr3t"
    assert KeyPair(PAIR.private_bytes()).open(SEALED, b"here") == b"s3cr3t"
    assert PublicKey.kid_of(SEALED) == PAIR.public.kid


def test_the_same_text_is_never_sealed_alike() -> None:
    assert PAIR.public.seal(b"s3cr3t", b"here") != SEALED
    assert b"s3cr3t" not in SEALED


@pytest.mark.parametrize("at", [0, 1, 4, 5, 36, 37, len(SEALED) - 17, len(SEALED) - 1])
def test_a_changed_value_is_not_opened(at: int) -> None:
    changed = bytearray(SEALED)
    changed[at] ^= 1
    with pytest.raises(SealingError) as caught:
        PAIR.open(bytes(changed), b"here")
    assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize("length", [0, 1, 5, 36, 37, len(SEALED) - 1, len(SEALED) + 1])
def test_a_value_of_another_length_is_not_opened(length: int) -> None:
    with pytest.raises(SealingError):
        PAIR.open((SEALED + b"\0")[:length], b"here")


def test_a_value_is_opened_in_its_place_only() -> None:
    with pytest.raises(SealingError, match="does not belong here"):
        PAIR.open(SEALED, b"there")


def test_another_pair_opens_nothing() -> None:
    with pytest.raises(SealingError, match="not sealed for this key"):
        KeyPair.generate().open(SEALED, b"here")


def test_a_key_is_read_as_it_is_shown() -> None:
    shown = str(PAIR.public)
    assert shown.startswith(PREFIX)
    assert PublicKey.parse(shown).raw == PAIR.public.raw


@pytest.mark.parametrize(
    "text",
    [
        "",
        PREFIX,
        str(PAIR.public)[:-1],
        str(PAIR.public) + "A",
        str(PAIR.public).removeprefix(PREFIX),
        PREFIX + "é" * 44,
    ],
)
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(SealingError):
        PublicKey.parse(text)


def test_a_point_that_keeps_no_secret_is_refused() -> None:
    with pytest.raises(SealingError):
        PublicKey(bytes(32)).seal(b"s3cr3t", b"here")


def test_a_pair_is_neither_printed_nor_pickled() -> None:
    assert PAIR.private_bytes().hex() not in repr(PAIR) + repr(vars(PAIR))
    with pytest.raises(TypeError):
        pickle.dumps(PAIR)
