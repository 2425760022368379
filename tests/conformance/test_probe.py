"""The probe finds nothing in a good receiver, and each of many broken ones out, by the requirement meant for it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dispatcher.conformance.receiver_examination.attacker import Attacker
from dispatcher.conformance.receiver_examination.caller import Answer, MalformedAnswer, parse
from dispatcher.conformance.receiver_examination.probe import REQUIREMENTS, Target, probe
from dispatcher.conformance.results import Level, Outcome, Report, Result
from dispatcher.conformance.signatures import schemes
from dispatcher.conformance.signatures.schemes import Key
from dispatcher.conformance.wire.requests import Received
from dispatcher.errors import ConfigError
from tests.conformance.broken_receivers import (
    BROKEN,
    SECRET,
    Different,
    Good,
    GoodHub,
    LooksThenRemembers,
    Reply,
    Request,
    VerifiesSpacedJsonOnly,
)
from tests.conformance.lone_receivers import Lone, lone
from tests.support.forking import ForkServer

SEED = bytes(range(32))
PUBLIC = Ed25519PrivateKey.from_private_bytes(SEED).public_key().public_bytes_raw()


@pytest.fixture(scope="module")
def forks() -> Iterator[ForkServer]:
    """Where broken receivers come from."""
    with contextlib.closing(ForkServer("tests.conformance.broken_receivers")) as server:
        yield server


def target_of(receiver: Good | Lone, **settings: Any) -> Target:
    chosen = {
        "schemes": (receiver.scheme,),
        "deadline": 5.0,
        "effects": receiver.count,
        "too_large": 1_048_576,
        **settings,
    }
    return Target(url=receiver.url, key=Key(secret=SECRET, seed=SEED), **chosen)


def outcomes(report: Report) -> dict[str, Outcome]:
    return {one.requirement.id: one.outcome for one in report.results}


def details(report: Report, outcome: Outcome) -> dict[str, str]:
    return {one.requirement.id: one.detail for one in report.results if one.outcome is outcome}


def test_every_requirement_has_its_own_id_and_its_source() -> None:
    ids = [one.id for one in REQUIREMENTS]
    assert len(ids) == len(set(ids)) >= 25
    assert sorted(ids) == [f"RECV-{number:02}" for number in range(1, len(ids) + 1)]
    assert all(one.source.url.startswith("https://") and one.title.endswith(".") for one in REQUIREMENTS)


async def test_nothing_fails_at_a_good_receiver() -> None:
    heard: list[Result] = []
    async with Good() as receiver:
        receiver.patience = 0.3
        report = await probe(target_of(receiver, too_large=10 * 1_048_576, patience=1.0), on_result=heard.append)
    print(f"{len(report.results)} requirements in {report.seconds:.2f} s")
    assert details(report, Outcome.FAILED) == {}
    assert heard == list(report.results)
    assert len(report.results) == len(REQUIREMENTS)
    # https over loopback; what schemes with key pairs, and with hexadecimal digits, are asked
    assert set(details(report, Outcome.SKIPPED)) == {"RECV-04", "RECV-15", "RECV-18"}
    assert report.exit_code() == 0
    assert report.timelines
    assert all(one.attempts for one in report.timelines)
    shown = repr(report)
    assert "/hooks/a" not in shown
    assert SECRET not in shown


@pytest.mark.parametrize("good", [Different, GoodHub], ids=lambda one: one.__name__)
async def test_nothing_fails_at_a_receiver_that_is_good_in_another_way(good: type[Good]) -> None:
    async with good() as receiver:
        report = await probe(target_of(receiver))
    # capital digits may be refused
    assert set(details(report, Outcome.FAILED)) <= {"RECV-18"}


def verified(scheme: str, key: Key, request: Request) -> bool:
    received = Received(
        number=1,
        at=time.time(),
        clock=0.0,
        connection=1,
        remote="127.0.0.1",
        method=request.method,
        target=request.target,
        headers=request.headers,
        body=request.body,
        raw=b"",
    )
    return schemes.verify(scheme, [key], received, now=time.time()).is_good


class Verifying(Good):
    """A good receiver of any scheme, by the kit's own verification."""

    def __init__(self, scheme: str) -> None:
        super().__init__()
        self.name = scheme

    def is_signed(self, request: Request) -> bool:
        return verified(self.name, Key(secret=SECRET, public_key=PUBLIC), request)

    def is_fresh(self, request: Request) -> bool:
        return True


@pytest.mark.parametrize("scheme", schemes.SCHEMES)
async def test_nothing_fails_at_a_good_receiver_of_any_scheme(scheme: str) -> None:
    async with Verifying(scheme) as receiver:
        report = await probe(target_of(receiver, schemes=(scheme,), effects=None))
    failed = details(report, Outcome.FAILED)
    # capital digits: the kit's verification is strict, and a MAY allows it
    assert set(failed) <= {"RECV-18"}
    skipped = details(report, Outcome.SKIPPED)
    assert all(skipped.values())
    assert len(skipped) < 21


@pytest.mark.parametrize("broken", BROKEN, ids=lambda one: one.__name__)
async def test_a_broken_receiver_is_found_out(broken: type[Good], forks: ForkServer) -> None:
    async with lone(broken, forks) as receiver:
        report = await probe(target_of(receiver, **broken.settings), only={broken.caught_by})
    assert outcomes(report) == {broken.caught_by: Outcome.FAILED}
    detail = report.results[0].detail
    assert detail
    assert SECRET not in detail


def test_the_score(capsys: pytest.CaptureFixture[str]) -> None:
    meant = {one.caught_by for one in BROKEN}
    with capsys.disabled():
        print(f"\n{len(BROKEN)} broken receivers, found out by {len(meant)} of {len(REQUIREMENTS)} requirements")
        print("no broken one for:", ", ".join(one.id for one in REQUIREMENTS if one.id not in meant))
    assert len(BROKEN) >= 20
    heavy = {one.id for one in REQUIREMENTS if one.level is Level.MUST}
    assert len(heavy - meant) <= 2


class ConfusesKeys(Verifying):
    """Verifies v1 by HMAC with whatever key it has of the sender: with the public one."""

    def is_signed(self, request: Request) -> bool:
        public = Key(secret="whsec_" + base64.b64encode(PUBLIC).decode())
        return super().is_signed(request) or verified("standard", public, request)


async def test_a_confused_key_is_found_out() -> None:
    async with ConfusesKeys("standard-ed25519") as receiver:
        report = await probe(target_of(receiver, schemes=("standard-ed25519",)), only={"RECV-15"})
    assert outcomes(report) == {"RECV-15": Outcome.FAILED}


async def test_what_is_verified_after_serialising_is_named() -> None:
    async with VerifiesSpacedJsonOnly() as receiver:
        report = await probe(target_of(receiver), only={"RECV-01"})
    assert "verify what it serialises" in report.results[0].detail


async def test_schemes_are_probed_together() -> None:
    """A receiver that is content with either of two is as strong as the weaker one: websub has no time."""
    async with Verifying("websub") as receiver:
        report = await probe(
            target_of(receiver, schemes=("websub", "standard")), only={"RECV-05", "RECV-16", "RECV-20"}
        )
    assert outcomes(report)["RECV-05"] is Outcome.PASSED
    assert outcomes(report)["RECV-20"] is Outcome.FAILED


async def test_plain_http_elsewhere_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Target, "is_local", property(lambda _target: False))
    async with Good() as receiver:
        report = await probe(target_of(receiver), only={"RECV-04"})
    assert outcomes(report) == {"RECV-04": Outcome.FAILED}


@pytest.mark.parametrize(
    ("host", "is_local"),
    [
        ("localhost", True),
        ("127.9.9.9", True),
        ("[::1]", True),
        ("receiver.invalid", False),
        ("localhost.invalid", False),
    ],
)
def test_which_receivers_are_on_this_machine(host: str, is_local: bool) -> None:
    target = Target(url=f"http://{host}:1/", schemes=("standard",), key=Key(secret=SECRET))
    assert target.is_local is is_local


async def test_what_cannot_be_seen_is_said_to_be_unknown() -> None:
    async with Good() as receiver:
        report = await probe(target_of(receiver, effects=None), only={"RECV-26", "RECV-27", "RECV-28", "RECV-30"})
    assert set(outcomes(report).values()) == {Outcome.SKIPPED}
    assert all("cannot be seen from outside" in one.detail for one in report.results)


class RefusesRepeats(Good):
    def repeated(self) -> Reply:
        return Reply(status=409)


async def test_repeats_that_are_refused_can_be_seen() -> None:
    async with RefusesRepeats() as receiver:
        report = await probe(target_of(receiver, effects=None), only={"RECV-26", "RECV-27", "RECV-28"})
    assert set(outcomes(report).values()) == {Outcome.PASSED}


class RacesWithItself(LooksThenRemembers):
    def repeated(self) -> Reply:
        return Reply(status=409)


async def test_a_race_can_be_seen_where_repeats_are_refused() -> None:
    async with RacesWithItself() as receiver:
        report = await probe(target_of(receiver, effects=None), only={"RECV-28"})
    assert outcomes(report) == {"RECV-28": Outcome.FAILED}


async def test_refusals_prove_nothing_where_nobody_listens() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/"
        report = await probe(Target(url=url, schemes=("standard",), key=Key(secret=SECRET), deadline=1.0))
    found = outcomes(report)
    assert found["RECV-01"] is Outcome.FAILED
    assert "nobody listens" in details(report, Outcome.FAILED)["RECV-01"]
    assert found["RECV-05"] is found["RECV-52"] is Outcome.SKIPPED
    assert Outcome.PASSED not in {one for name, one in found.items() if name > "RECV-04"}


class Limits(Good):
    def unsigned(self, request: Request) -> Reply:
        return Reply(status=429, headers=(("Retry-After", "60"),))


async def test_a_rate_limit_is_no_refusal() -> None:
    async with Limits() as receiver:
        report = await probe(target_of(receiver), only={"RECV-05", "RECV-20"})
    assert outcomes(report) == {"RECV-05": Outcome.SKIPPED, "RECV-20": Outcome.PASSED}
    assert "429" in report.results[0].detail


@pytest.mark.parametrize("trusted", [True, False])
async def test_https(trusted: bool, tmp_path: Path) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    async with Good(tls=context) as receiver:
        known = target_of(receiver, authority=str(tmp_path / "ca.pem") if trusted else None)
        report = await probe(known, only={"RECV-01", "RECV-04", "RECV-43", "RECV-49", "RECV-56"})
        unverified = await probe(replace(known, is_verified=False), only={"RECV-01", "RECV-05"})
    if trusted:
        assert set(outcomes(report).values()) == {Outcome.PASSED}
    else:
        assert "certificate" in details(report, Outcome.FAILED)["RECV-01"]
    assert set(outcomes(unverified).values()) == {Outcome.PASSED}


@pytest.mark.parametrize(
    ("flood", "trouble"),
    [
        (b"HTTP/1.1 200 OK\r\nX: " + b"a" * 90_000, "not HTTP/1.1"),
        (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", "not HTTP/1.1"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", "not answered in time"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n", "not answered in time"),
    ],
    ids=["endless head", "not HTTP", "only 100", "half a head"],
)
async def test_answers_are_read_within_bounds(flood: bytes, trouble: str) -> None:
    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            writer.write(flood)
            await writer.drain()
            await reader.read(-1)
        except OSError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(pour, "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        target = Target(
            url=url, schemes=("standard",), key=Key(secret=SECRET), deadline=0.2 if "time" in trouble else 3.0
        )
        report = await probe(target, only={"RECV-01"})
    assert trouble in details(report, Outcome.FAILED)["RECV-01"]


@pytest.mark.parametrize(
    ("data", "is_ended", "expected"),
    [
        (b"HTTP/1.1 204 No Content\r\n\r\nrest", False, (204, b"", 27)),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nabc", False, (200, b"ab", 40)),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\na", False, None),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\na", True, (200, b"a", 39)),
        (b"HTTP/1.1 200 OK\r\n\r\nabc", False, None),
        (b"HTTP/1.0 200 OK\r\n\r\nabc", True, (200, b"abc", 22)),
        (b"HTTP/1.1 200\r\nTransfer-Encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n0\r\n\r\nX", False, (200, b"abc", 61)),
        (b"HTTP/1.1 200\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n", False, None),
    ],
)
def test_an_answer_is_read(data: bytes, is_ended: bool, expected: tuple[int, bytes, int] | None) -> None:
    parsed = parse(data, is_ended=is_ended)
    assert (None if parsed is None else (parsed[0], *parsed[2:])) == expected


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_what_is_no_answer_is_told(data: bytes) -> None:
    with pytest.raises(MalformedAnswer):
        parse(data, is_ended=False)


@pytest.mark.parametrize(
    "wrong",
    [
        {"url": "ftp://127.0.0.1/"},
        {"url": "http:///path"},
        {"url": "http://user:p4ss@127.0.0.1/"},
        {"url": "http://127.0.0.1/a b"},
        {"url": "http://127.0.0.1/\r\nX: y"},
        {"url": "http://127.0.0.1:99999/"},
        {"schemes": ()},
        {"schemes": ("md5",)},
        {"headers": (("X-Secret", "a\r\nb"),)},
        {"headers": (("X Secret", "a"),)},
        {"headers": (("Content-Length", "1"),)},
        {"payload": {"at": object()}},
        {"content_type": "text/plain\r\nX: y"},
        {"deadline": 0.0},
        {"tolerance": float("nan")},
        {"deadline": float("inf")},
    ],
)
def test_a_target_that_cannot_be_used_is_refused(wrong: dict[str, Any]) -> None:
    good: dict[str, Any] = {"url": "http://127.0.0.1/s3cret-path", "schemes": ("standard",), "key": Key(secret=SECRET)}
    with pytest.raises(ConfigError) as raised:
        Target(**{**good, **wrong})
    assert "p4ss" not in str(raised.value)


def test_a_target_shows_no_secret() -> None:
    target = Target(
        url="http://127.0.0.1/s3cret-path",
        schemes=("standard",),
        key=Key(secret=SECRET),
        headers=(("X-Secret", "s3cret-value"),),
    )
    assert "s3cret" not in repr(target)
    assert SECRET not in repr(target)


async def test_what_is_not_asked_of_receivers_is_refused() -> None:
    target = Target(url="http://127.0.0.1:1/", schemes=("standard",), key=Key(secret=SECRET))
    with pytest.raises(ConfigError):
        await probe(target, only={"RECV-99"})
    with pytest.raises(ConfigError):
        await probe(replace(target, schemes=("websub", "servicestack")))
    with pytest.raises(ConfigError):
        await probe(replace(target, key=Key(secret="not base64!")))


@pytest.mark.parametrize("run", [b"\n", b" \n", b" ", b"\tat a", b" at x(:1", b'File "', b"#1 /a", b"a.py"])
def test_answers_are_searched_in_a_time_in_proportion(run: bytes) -> None:
    """What a receiver answers must not keep the probe busy beyond every deadline."""
    attacker = Attacker(Target(url="http://127.0.0.1:9/", schemes=("websub",), key=Key(secret=SECRET)))
    answer = Answer(status=400, body=run * (60_000 // len(run)))
    began = time.process_time()
    attacker.note(attacker.message(), answer)
    assert time.process_time() - began < 2.0
