from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import pickle
import stat
import struct
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from subscriptions import keyring
from subscriptions.keyring import CACHED_DATA_KEYS, NOTICED_WITHIN, Key, Keyring, KeyringError, Place, kid_of

PLACE = Place(purpose="callback", account="acme", table="tasks", column="callback_url", row="0192ab")
URL = "https://api.example.com/results/42/eyJhbGciOi"
DAY = 20_000  # days since the epoch
PARTS = ["purpose", "account", "table", "column", "row"]


def a_key(number: int, *, age_days: int = 0) -> Key:
    return Key(
        kid=f"k-{number:08x}",
        key=bytes([number]) * 32,
        created=datetime(2026, 5, 1, tzinfo=UTC) - timedelta(days=age_days),
    )


def write(path: Path, content: object, *, mode: int = 0o600) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    path.chmod(mode)
    return path


def entry(**changes: object) -> dict[str, object]:
    return {
        "kid": "k-0000000a",
        "key": base64.b64encode(b"\x0a" * 32).decode(),
        "created": "2026-05-01T00:00:00Z",
    } | changes


@pytest.fixture
def on_day(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: DAY * 86_400.0 + 86_399.9)


# --- seal and open ----------------------------------------------------------------------------------------


@given(st.one_of(st.text(), st.binary()))
def test_what_is_sealed_is_opened(value: str | bytes) -> None:
    ring = Keyring.generate()
    expected = value.encode() if isinstance(value, str) else value
    assert ring.open(ring.seal(value, where=PLACE), where=PLACE) == expected


def test_sealing_twice_gives_two_values() -> None:
    ring = Keyring.generate()
    assert ring.seal(URL, where=PLACE) != ring.seal(URL, where=PLACE)


@pytest.mark.usefixtures("on_day")
def test_a_sealed_value_is_laid_out_as_documented() -> None:
    """Open one with nothing but hmac (HKDF written out, RFC 5869) and AES-GCM."""
    key = a_key(10)
    sealed = Keyring([key]).seal(URL, where=PLACE)
    version, kid, day, nonce = struct.unpack(">B4sI12s", sealed[:21])
    assert (version, kid, day) == (1, bytes.fromhex("0000000a"), DAY)

    labels = ["webhook-dispatcher", "k-0000000a", "seal", "callback", "acme", "20000"]
    info = "".join(f"{len(label)}:{label}" for label in labels).encode()
    extracted = hmac.digest(bytes(32), key.key, hashlib.sha256)
    data_key = hmac.digest(extracted, info + b"\x01", hashlib.sha256)
    aad = sealed[:9] + b"8:callback4:acme5:tasks12:callback_url6:0192ab"
    assert AESGCM(data_key).decrypt(nonce, sealed[21:], aad) == URL.encode()
    assert len(sealed) == 21 + len(URL) + 16


@pytest.mark.parametrize("part", PARTS)
def test_a_value_opens_in_no_other_place(part: str) -> None:
    ring = Keyring.generate()
    elsewhere = replace(PLACE, **{part: getattr(PLACE, part) + "x"})
    with pytest.raises(KeyringError, match="does not belong here"):
        ring.open(ring.seal(URL, where=PLACE), where=elsewhere)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"table": "ab", "column": "c"}, {"table": "a", "column": "bc"}),
        ({"column": "a1:b", "row": "c"}, {"column": "a", "row": "b1:c"}),
        ({"table": "", "column": "a"}, {"table": "a", "column": ""}),
        ({"row": "é"}, {"row": "e\u0301"}),
        ({"row": "\ud800"}, {"row": "?"}),
    ],
)
def test_places_are_told_apart_at_their_seams(one: dict[str, str], other: dict[str, str]) -> None:
    ring = Keyring.generate()
    with pytest.raises(KeyringError):
        ring.open(ring.seal(URL, where=replace(PLACE, **one)), where=replace(PLACE, **other))


def test_a_change_of_any_bit_is_noticed() -> None:
    ring = Keyring.generate()
    sealed = ring.seal("short", where=PLACE)
    for position in range(len(sealed)):
        for bit in range(8):
            changed = bytearray(sealed)
            changed[position] ^= 1 << bit
            with pytest.raises(KeyringError):
                ring.open(bytes(changed), where=PLACE)


@pytest.mark.parametrize("length", [0, 1, 9, 21, 36])
def test_what_is_too_short_is_no_sealed_value(length: int) -> None:
    ring = Keyring.generate()
    with pytest.raises(KeyringError, match="not a sealed value"):
        ring.open(ring.seal("", where=PLACE)[:length], where=PLACE)


def test_an_empty_value_is_the_shortest_one() -> None:
    ring = Keyring.generate()
    sealed = ring.seal("", where=PLACE)
    assert len(sealed) == 37
    assert ring.open(sealed, where=PLACE) == b""


@given(st.binary(max_size=200))
def test_junk_is_refused_with_our_own_error(junk: bytes) -> None:
    with pytest.raises(KeyringError):
        Keyring([a_key(1)]).open(junk, where=PLACE)


def test_errors_hold_nothing_secret() -> None:
    ring = Keyring([a_key(10)])
    sealed = ring.seal(URL, where=PLACE)
    with pytest.raises(KeyringError) as caught:
        ring.open(sealed, where=replace(PLACE, row="other"))
    shown = "".join(traceback.format_exception(caught.value))
    assert URL not in shown
    assert repr(a_key(10).key) not in shown


def test_a_value_sealed_on_another_day_still_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    ring = Keyring.generate()
    sealed = ring.seal(URL, where=PLACE)
    monkeypatch.setattr(time, "time", lambda: 4_000_000_000.0)
    assert ring.open(sealed, where=PLACE).decode() == URL


def test_more_data_keys_than_are_kept_ready() -> None:
    ring = Keyring.generate()
    places = [replace(PLACE, account=str(number)) for number in range(CACHED_DATA_KEYS + 10)]
    sealed = [ring.seal(place.account, where=place) for place in places]
    assert [ring.open(value, where=place).decode() for value, place in zip(sealed, places, strict=True)] == [
        place.account for place in places
    ]


# --- several keys -----------------------------------------------------------------------------------------


def test_the_first_key_encrypts_and_all_decrypt() -> None:
    old, new = a_key(1, age_days=10), a_key(2)
    before, after = Keyring([old]), Keyring([new, old])
    assert after.kids == ("k-00000002", "k-00000001")
    assert after.open(before.seal(URL, where=PLACE), where=PLACE).decode() == URL
    sealed = after.seal(URL, where=PLACE)
    assert sealed[1:5] == bytes.fromhex("00000002")
    with pytest.raises(KeyringError, match="k-00000002 is not in the keyring"):
        before.open(sealed, where=PLACE)


def test_two_keys_of_one_id_or_none_at_all_are_no_keyring() -> None:
    with pytest.raises(KeyringError, match="same `kid`"):
        Keyring([a_key(1), a_key(1)])
    with pytest.raises(KeyringError, match="at least one"):
        Keyring([])


def test_a_keyring_shows_only_its_key_ids() -> None:
    ring = Keyring([a_key(65), a_key(66)])
    assert repr(ring) == str(ring) == "Keyring(k-00000041, k-00000042)"
    assert "AAAA" not in repr(a_key(65))
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(ring)


# --- fingerprints -----------------------------------------------------------------------------------------


def test_a_fingerprint_is_16_hex_digits_of_text_and_account() -> None:
    ring = Keyring([a_key(1)])
    made = ring.fingerprint(URL, account="acme")
    assert len(made) == 16
    assert int(made, 16) >= 0
    assert made == Keyring([a_key(1)]).fingerprint(URL, account="acme")
    others = [
        ring.fingerprint(URL + "x", account="acme"),
        ring.fingerprint(URL, account="acm"),
        ring.fingerprint("e" + URL, account="acm"),
        Keyring([a_key(2)]).fingerprint(URL, account="acme"),
    ]
    assert made not in others
    assert len(set(others)) == 4


@pytest.mark.parametrize(
    ("text", "account", "fingerprint"),
    [(URL, "acme", "fa9ca5fbc9a45b90"), ("\ud800", "\ud83d", "334d3b8feee07943")],
)
def test_fingerprints_that_are_stored_stay_true(text: str, account: str, fingerprint: str) -> None:
    ring = Keyring([a_key(1)])
    for _ in range(2):
        assert ring.fingerprint(text, account=account) == fingerprint


def test_rotation_and_order_do_not_change_fingerprints() -> None:
    old, middle, new = a_key(1, age_days=10), a_key(2, age_days=5), a_key(3)
    first = Keyring([old]).fingerprint(URL, account="acme")
    for keys in ([middle, old], [new, middle, old], [old, new, middle], [middle, old, new]):
        assert Keyring(keys).fingerprint(URL, account="acme") == first
    assert Keyring([new, middle]).fingerprint(URL, account="acme") != first


def test_of_keys_made_in_one_moment_the_last_is_the_oldest() -> None:
    assert Keyring([a_key(2), a_key(1)]).fingerprint("x", account="a") == Keyring([a_key(1)]).fingerprint(
        "x", account="a"
    )


# --- signing keys -----------------------------------------------------------------------------------------


def test_signing_keys_are_per_purpose_and_key_id() -> None:
    ring = Keyring([a_key(2), a_key(1)])
    kid, key = ring.signing_key("api-token")
    assert kid == "k-00000002"
    assert len(key) == 32
    assert ring.signing_key("api-token", "k-00000002") == (kid, key)
    assert Keyring([a_key(2)]).signing_key("api-token") == (kid, key)
    others = {ring.signing_key("session")[1], ring.signing_key("api-token", "k-00000001")[1], a_key(2).key}
    assert len(others | {key}) == 4


@pytest.mark.parametrize("kid", ["k-00000003", "", "k-", "none", "K-00000001", "k-00000001\n", "k-zzzzzzzz"])
def test_an_unknown_key_id_is_refused_and_not_repeated(kid: str) -> None:
    with pytest.raises(KeyringError, match="not in the keyring") as caught:
        Keyring([a_key(1)]).signing_key("api-token", kid)
    assert not kid or kid not in str(caught.value)


# --- files ------------------------------------------------------------------------------------------------


def test_a_created_keyring_is_loaded_again(tmp_path: Path) -> None:
    path = tmp_path / "keyring.json"
    ring = Keyring.create(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    content = json.loads(path.read_text())
    assert [set(key) for key in content["keys"]] == [{"kid", "key", "created"}]
    assert len(base64.b64decode(content["keys"][0]["key"], validate=True)) == 32
    assert datetime.fromisoformat(content["keys"][0]["created"]).tzinfo is not None
    assert Keyring.load(path).open(ring.seal(URL, where=PLACE), where=PLACE).decode() == URL


def test_the_mode_is_0600_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        Keyring.create(tmp_path / "keyring.json")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "keyring.json").stat().st_mode) == 0o600


def test_a_keyring_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "keyring.json"
    kids = Keyring.create(path).kids
    with pytest.raises(KeyringError, match="never overwritten"):
        Keyring.create(path)
    assert Keyring.load(path).kids == kids


def test_a_write_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(KeyringError, match="No space left"):
        Keyring.create(tmp_path / "keyring.json")
    assert list(tmp_path.iterdir()) == []


def test_create_and_load_say_what_is_wrong_with_the_path(tmp_path: Path) -> None:
    missing = tmp_path / "nowhere" / "keyring.json"
    with pytest.raises(KeyringError, match="No such file or directory"):
        Keyring.create(missing)
    with pytest.raises(KeyringError, match="No such file or directory"):
        Keyring.load(missing)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o644, 0o601])
def test_a_file_that_others_can_reach_is_refused(tmp_path: Path, mode: int) -> None:
    path = write(tmp_path / "keyring.json", {"keys": [entry()]}, mode=mode)
    with pytest.raises(KeyringError, match="chmod 600"):
        Keyring.load(path)


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o700])
def test_a_file_of_its_owner_alone_is_loaded(tmp_path: Path, mode: int) -> None:
    path = write(tmp_path / "keyring.json", {"keys": [entry()]}, mode=mode)
    assert Keyring.load(path).kids == ("k-0000000a",)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "{}",
        "[" * 100_000,
        {"keys": []},
        {"keys": {}},
        {"keys": [entry(), entry()]},
        {"keys": [entry(kid="0000000a")]},
        {"keys": [entry(kid="k-0000000A")]},
        {"keys": [entry(kid="k-0000000aa")]},
        {"keys": [entry(kid=7)]},
        {"keys": [entry(key=base64.b64encode(b"\x0a" * 31).decode())]},
        {"keys": [entry(key=base64.b64encode(b"\x0a" * 33).decode())]},
        {"keys": [entry(key="CgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgo")]},
        {"keys": [entry(key="!" * 44)]},
        {"keys": [entry(created="yesterday")]},
        {"keys": [entry(created="2026-05-01T00:00:00")]},
        {"keys": [{"kid": "k-0000000a"}]},
    ],
)
def test_a_file_that_is_no_keyring_is_refused_and_not_repeated(tmp_path: Path, content: object) -> None:
    path = write(tmp_path / "keyring.json", content)
    with pytest.raises(KeyringError) as caught:
        Keyring.load(path)
    shown = "".join(traceback.format_exception(caught.value))
    assert "CgoKCgoK" not in shown
    assert "!!!!" not in shown


def test_rotate_puts_a_new_key_in_front(tmp_path: Path) -> None:
    path = tmp_path / "keyring.json"
    before = Keyring.create(path)
    sealed, fingerprint = before.seal(URL, where=PLACE), before.fingerprint(URL, account="acme")
    after = Keyring.rotate(path)
    assert len(after.kids) == 2
    assert after.kids[1:] == before.kids
    assert Keyring.load(path).kids == after.kids
    assert Keyring.load(path).open(sealed, where=PLACE).decode() == URL
    assert after.fingerprint(URL, account="acme") == fingerprint
    assert [file.name for file in tmp_path.iterdir()] == ["keyring.json"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_rotate_keeps_a_link_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    Keyring.create(tmp_path / "there" / "keyring.json")
    link = tmp_path / "keyring.json"
    link.symlink_to(tmp_path / "there" / "keyring.json")
    kids = Keyring.rotate(link).kids
    assert link.is_symlink()
    assert Keyring.load(tmp_path / "there" / "keyring.json").kids == kids


def test_a_rotation_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "keyring.json"
    kids = Keyring.create(path).kids

    def refuse(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(KeyringError, match="Input/output error"):
        Keyring.rotate(path)
    assert Keyring.load(path).kids == kids
    assert [file.name for file in tmp_path.iterdir()] == ["keyring.json"]


def test_a_new_key_is_the_youngest_even_if_the_clock_was_set_back(tmp_path: Path) -> None:
    path = write(tmp_path / "keyring.json", {"keys": [entry(created="2999-01-01T00:00:00Z")]})
    before = Keyring.load(path)
    after = Keyring.rotate(path)
    assert after.created[after.kids[0]] > before.created["k-0000000a"]
    assert after.fingerprint_kid == "k-0000000a"


def test_a_new_key_is_on_disk_before_it_is_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process may seal with a first key as soon as it sees it; a loss of power must not take that key away."""
    path = tmp_path / "keyring.json"
    [old] = Keyring.create(path).kids
    seen: list[list[str]] = []
    replace_ = Path.replace

    def note(self: Path, target: Path) -> Path:
        seen.append([key["kid"] for key in json.loads(self.read_text())["keys"]])
        return replace_(self, target)

    monkeypatch.setattr(Path, "replace", note)
    new = Keyring.rotate(path).kids[0]
    assert seen == [[old, new], [new, old]]


def test_rotations_at_the_same_time_lose_no_key(tmp_path: Path) -> None:
    path = tmp_path / "keyring.json"
    Keyring.create(path)
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: Keyring.rotate(path).kids, range(24)))
    assert len(made) == 24
    assert len(Keyring.load(path).kids) == 25


def test_retire_takes_a_key_out(tmp_path: Path) -> None:
    path = tmp_path / "keyring.json"
    [old] = Keyring.create(path).kids
    middle = Keyring.rotate(path)
    sealed = middle.seal(URL, where=PLACE)
    new = Keyring.rotate(path)
    after = Keyring.retire(path, middle.kids[0])
    assert after.kids == Keyring.load(path).kids == (new.kids[0], old)
    assert after.fingerprint("x", account="a") == middle.fingerprint("x", account="a")
    with pytest.raises(KeyringError, match="not in the keyring"):
        after.open(sealed, where=PLACE)
    assert [file.name for file in tmp_path.iterdir()] == ["keyring.json"]


def test_keys_that_are_not_retired(tmp_path: Path) -> None:
    path = tmp_path / "keyring.json"
    [old] = Keyring.create(path).kids
    new = Keyring.rotate(path).kids[0]
    for kid, says in [
        (new, "rotate first"),
        (old, "makes the fingerprints"),
        ("k-00000000", "not in"),
        ("x", "not in"),
    ]:
        with pytest.raises(KeyringError, match=says):
            Keyring.retire(path, kid)
    assert Keyring.load(path).kids == (new, old)
    assert Keyring.retire(path, old, change_fingerprints=True).kids == (new,)
    with pytest.raises(KeyringError, match="rotate first"):
        Keyring.retire(path, new, change_fingerprints=True)


# --- a file that changes under a running process ----------------------------------------------------------


class Clock:
    """The monotonic clock of the keyring, which stands still; and how often the file was looked at and read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.looks = self.reads = 0
        look, read = Path.stat, keyring._read

        def counted_look(path: Path, **options: Any) -> os.stat_result:
            self.looks += 1
            return look(path, **options)

        def counted_read(path: Path) -> Any:
            self.reads += 1
            return read(path)

        monkeypatch.setattr(keyring, "monotonic", lambda: self.now)
        monkeypatch.setattr(Path, "stat", counted_look)
        monkeypatch.setattr(keyring, "_read", counted_read)

    def forget(self) -> None:
        """Count from zero."""
        self.looks = self.reads = 0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.mark.parametrize("make", [Keyring.create, Keyring.load])
def test_a_new_first_key_is_used_within_a_second(tmp_path: Path, clock: Clock, make: Callable[[Path], Keyring]) -> None:
    path = tmp_path / "keyring.json"
    if make == Keyring.load:
        Keyring.create(path)
    ring = make(path)
    [old] = ring.kids
    fingerprint = ring.fingerprint(URL, account="acme")
    new = Keyring.rotate(path).kids[0]
    clock.now += NOTICED_WITHIN - 0.001
    assert kid_of(ring.seal(URL, where=PLACE)) == old
    clock.now += 0.001
    assert kid_of(ring.seal(URL, where=PLACE)) == new
    assert ring.signing_key("api-token")[0] == new
    assert ring.fingerprint(URL, account="acme") == fingerprint
    assert ring.kids == (new, old)


def test_a_value_of_a_new_key_is_opened_at_once(tmp_path: Path, clock: Clock) -> None:
    ring = Keyring.create(tmp_path / "keyring.json")
    for _ in range(2):
        sealed = Keyring.rotate(tmp_path / "keyring.json").seal(URL, where=PLACE)
        assert ring.open(sealed, where=PLACE).decode() == URL
        assert ring.is_current(sealed)


def test_a_file_that_stays_is_looked_at_once_a_second_and_never_read_again(tmp_path: Path, clock: Clock) -> None:
    ring = Keyring.create(tmp_path / "keyring.json")
    clock.forget()
    for _ in range(5):
        clock.now += NOTICED_WITHIN
        for _ in range(100):
            ring.open(ring.seal(URL, where=PLACE), where=PLACE)
            ring.signing_key("api-token")
    assert (clock.looks, clock.reads) == (5, 0)


def test_strangers_key_ids_make_it_look_once_a_second(tmp_path: Path, clock: Clock) -> None:
    ring = Keyring.create(tmp_path / "keyring.json")
    clock.forget()
    for number in range(1000):
        with pytest.raises(KeyringError):
            ring.signing_key("api-token", f"k-{number:08x}")
    assert (clock.looks, clock.reads) == (1, 0)
    # what they did keeps a new key's tokens out for a second, and no longer
    new = Keyring.rotate(tmp_path / "keyring.json").kids[0]
    clock.now += NOTICED_WITHIN
    assert ring.signing_key("api-token", new)[0] == new


def test_a_token_of_a_new_key_is_known_at_once(tmp_path: Path, clock: Clock) -> None:
    ring = Keyring.create(tmp_path / "keyring.json")
    new = Keyring.rotate(tmp_path / "keyring.json")
    assert ring.signing_key("api-token", new.kids[0]) == new.signing_key("api-token")


def test_a_retired_key_is_gone_within_a_second(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "keyring.json"
    [old] = Keyring.create(path).kids
    Keyring.rotate(path)
    ring = Keyring.load(path)
    Keyring.retire(path, old, change_fingerprints=True)
    clock.now += NOTICED_WITHIN
    with pytest.raises(KeyringError, match="not in the keyring"):
        ring.signing_key("api-token", old)


@pytest.mark.parametrize("breaks", ["gone", "exposed", "broken", "empty"])
def test_a_file_that_cannot_be_used_changes_nothing(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture, breaks: str
) -> None:
    path = tmp_path / "keyring.json"
    ring = Keyring.create(path)
    [old] = ring.kids
    sealed = ring.seal(URL, where=PLACE)
    unknown = Keyring.rotate(path).seal(URL, where=PLACE)
    content = path.read_text()
    if breaks == "gone":
        path.unlink()
    elif breaks == "exposed":
        path.chmod(0o644)
    else:
        path.write_text("" if breaks == "empty" else content[:-20])
    clock.forget()
    for _ in range(3):
        clock.now += NOTICED_WITHIN
        for _ in range(50):
            with pytest.raises(KeyringError):
                ring.open(unknown, where=PLACE)
            assert kid_of(ring.seal(URL, where=PLACE)) == old
            assert ring.open(sealed, where=PLACE).decode() == URL
    assert clock.looks <= 3
    assert clock.reads <= 3
    [complaint] = caplog.messages  # told once, with nothing secret
    assert complaint.startswith("the keys known before stay in use: ")
    assert all(key["key"] not in complaint for key in json.loads(content)["keys"])

    path.unlink(missing_ok=True)
    write(path, content)
    clock.now += NOTICED_WITHIN
    assert ring.open(unknown, where=PLACE).decode() == URL


def test_a_keyring_in_memory_has_no_file(clock: Clock) -> None:
    ring = Keyring.generate()
    clock.forget()
    clock.now += 10 * NOTICED_WITHIN
    with pytest.raises(KeyringError):
        ring.open(Keyring.generate().seal(URL, where=PLACE), where=PLACE)
    with pytest.raises(KeyringError):
        ring.signing_key("api-token", "k-00000000")
    assert (ring.path, clock.looks) == (None, 0)


def test_threads_that_seal_and_open_while_the_file_is_rotated(tmp_path: Path) -> None:
    path = tmp_path / "keyring.json"
    ring = Keyring.create(path)
    ended = threading.Event()

    def work(number: int) -> int:
        done = 0
        while not ended.is_set():
            place = replace(PLACE, account=f"{number}-{done}")
            assert ring.open(ring.seal(URL, where=place), where=place).decode() == URL
            done += 1
        return done

    with ThreadPoolExecutor(4) as pool:
        working = [pool.submit(work, number) for number in range(4)]
        try:
            for _ in range(8):
                sealed = Keyring.rotate(path).seal(URL, where=PLACE)
                assert ring.open(sealed, where=PLACE).decode() == URL
        finally:
            ended.set()
        assert all(job.result() for job in working)
    assert len(ring.kids) == 9


def test_a_value_is_resealed_with_the_first_key() -> None:
    old, new = a_key(1, age_days=10), a_key(2)
    sealed = Keyring([old]).seal(b"\x00\xff", where=PLACE)
    ring = Keyring([new, old])
    again = ring.reseal(sealed, where=PLACE)
    assert (kid_of(sealed), kid_of(again)) == ("k-00000001", "k-00000002")
    assert (ring.is_current(sealed), ring.is_current(again)) == (False, True)
    assert ring.open(again, where=PLACE) == b"\x00\xff"
    with pytest.raises(KeyringError):
        ring.reseal(sealed, where=replace(PLACE, row="other"))
