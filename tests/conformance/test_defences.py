from __future__ import annotations

import asyncio
import base64
import json
import time
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dispatcher.conformance.receiver.addresses import client_address, parse_networks
from dispatcher.conformance.receiver.callbacks import CallbackIssuer
from dispatcher.conformance.receiver.defences import DEFENCES, Defences, Judgement, Policy
from dispatcher.conformance.receiver.memory import Memory
from dispatcher.conformance.signatures.schemes import Key, sign
from dispatcher.conformance.wire.requests import Headers, Received, Reply
from dispatcher.errors import ConfigError

NOW = 1_700_000_000
URL = "https://receiver.test/hooks?x=1"
KEY = Key(secret="whsec_" + base64.b64encode(b"k" * 24).decode(), seed=b"s" * 32)
OTHER = Key(secret="whsec_" + base64.b64encode(b"o" * 24).decode(), seed=b"t" * 32)
ISSUER_SECRET = "the secret of callbacks, 32 bytes"
BODY = b'{"type": "order.paid", "amount": 12}'
SCHEMAS: Mapping[str, Mapping[str, Any]] = {
    "order.paid": {
        "type": "object",
        "required": ["amount"],
        "properties": {"amount": {"type": "integer"}, "lines": {"items": {"properties": {"a/b": {"type": "string"}}}}},
    }
}


class Clock:
    """A clock that tests set."""

    def __init__(self, now: float = NOW) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def request(
    *,
    headers: Headers = (),
    body: bytes = BODY,
    remote: str = "192.0.2.10",
    is_tls: bool = True,
    target: str = "/hooks?x=1",
    method: str = "POST",
    content_type: str | None = "application/json",
) -> Received:
    kind: Headers = () if content_type is None else (("Content-Type", content_type),)
    return Received(
        number=1,
        at=NOW,
        clock=0.0,
        connection=1,
        remote=remote,
        is_tls=is_tls,
        method=method,
        target=target,
        headers=(("Host", "receiver.test"), *kind, *headers),
        body=body,
        raw=b"",
    )


def signed(
    *schemes: str,
    key: Key = KEY,
    timestamp: int = NOW,
    delivery: str = "delivery-1",
    body: bytes = BODY,
    target: str = "/hooks?x=1",
    extra: Headers = (),
) -> Received:
    headers: Headers = (
        ("Content-Type", "application/json"),
        ("X-Webhook-Delivery", delivery),
        ("X-Webhook-Timestamp", str(timestamp)),
    )
    made: list[tuple[str, str]] = []
    for scheme in schemes:
        made += sign(
            scheme,
            key,
            method="POST",
            url="https://receiver.test" + target,
            headers=headers,
            body=body,
            message_id=delivery,
            timestamp=timestamp,
        )
    return request(headers=(*headers[1:], *made, *extra), body=body, target=target)


def judged(policy: Policy, one: Received, now: float = NOW) -> Judgement:
    return Defences(policy, clock=Clock(now)).judge(one)


def answer(judgement: Judgement) -> tuple[str, int] | None:
    """Which defence refused, and the status."""
    refusal = judgement.refusal
    return None if refusal is None else (refusal.defence, refusal.reply.status)


def header(reply: Reply, name: str) -> str | None:
    return next((value for key, value in reply.headers if key.lower() == name.lower()), None)


def full(**changed: Any) -> Policy:
    """All defences up."""
    values: dict[str, Any] = {
        "https_only": True,
        "allowed_networks": ("192.0.2.0/24",),
        "handshake_origins": ("sender.test",),
        "shared_secrets": ("s3cr3t-of-the-header",),
        "content_types": ("application/json",),
        "max_body_bytes": 4096,
        "max_header_bytes": 4096,
        "max_headers": 32,
        "rate": 1000.0,
        "burst": 1000,
        "signature_schemes": ("standard",),
        "keys": (KEY,),
        "tolerance": 300.0,
        "replay": "refuse",
        "callback": CallbackIssuer(ISSUER_SECRET, single_use=True),
        "schemas": SCHEMAS,
    }
    return Policy(**{**values, **changed})


def callback_target(*, res_id: str = "r1", document: str = "d1", ttl: float = 600) -> str:
    url = CallbackIssuer(ISSUER_SECRET).url(
        "https://receiver.test", id=document, path="/results", res_id=res_id, ttl=ttl, now=NOW
    )
    return url.removeprefix("https://receiver.test")


def good(**changed: Any) -> Received:
    """What passes all of them."""
    values: dict[str, Any] = {"target": callback_target(), "extra": (("X-Secret", "s3cr3t-of-the-header"),)}
    return signed("standard", **{**values, **changed})


# --- reports ------------------------------------------------------------------------------------------------


def test_without_settings_whatever_is_posted_passes() -> None:
    judgement = judged(Policy(), request(is_tls=False, remote="", content_type=None))
    off = tuple(name for name in DEFENCES if name != "method")
    assert judgement == Judgement(passed=("method",), off=off, refusal=None)
    assert judgement.is_accepted
    judgement = judged(Policy(methods=None), request(is_tls=False, remote="", method="GET"))
    assert judgement == Judgement(passed=(), off=DEFENCES, refusal=None)


def test_with_all_up_all_are_passed_in_their_order() -> None:
    judgement = judged(full(), good())
    assert (judgement.passed, judgement.off, judgement.refusal) == (DEFENCES, (), None)
    assert [verdict.is_good for verdict in judgement.verdicts] == [True]
    assert judgement.delivery == "delivery-1"
    assert judgement.claims is not None
    assert (judgement.claims.id, judgement.claims.res_id) == ("d1", "r1")


SWITCHES: dict[str, dict[str, Any]] = {
    "https": {"https_only": False},
    "allow-list": {"allowed_networks": None},
    "handshake": {"handshake_origins": None},
    "method": {"methods": None},
    "shared-secret": {"shared_secrets": None},
    "content-type": {"content_types": None},
    "limits": {"max_body_bytes": None, "max_header_bytes": None, "max_headers": None},
    "rate": {"rate": None},
    "signature": {"signature_schemes": None},
    "timestamp": {"tolerance": None},
    "replay": {"replay": "off"},
    "callback": {"callback": None},
    "schema": {"schemas": None},
}


@pytest.mark.parametrize("name", DEFENCES)
def test_each_can_be_off_alone(name: str) -> None:
    judgement = judged(full(**SWITCHES[name]), good())
    assert judgement.off == (name,)
    assert judgement.passed == tuple(other for other in DEFENCES if other != name)


BAD: dict[str, Callable[[], Received]] = {
    "https": lambda: request(is_tls=False),
    "allow-list": lambda: request(remote="198.51.100.1"),
    "handshake": lambda: request(method="OPTIONS", headers=(("WebHook-Request-Origin", "other.test"),)),
    "method": lambda: request(method="GET"),
    "shared-secret": request,
    "content-type": lambda: request(headers=(("X-Secret", "s3cr3t-of-the-header"),), content_type="text/html"),
    "limits": lambda: request(headers=(("X-Secret", "s3cr3t-of-the-header"),), body=b"x" * 4097),
    "signature": lambda: good(key=OTHER),
    "timestamp": lambda: good(timestamp=NOW - 301),
    "replay": lambda: signed("standard", delivery="seen", extra=(("X-Secret", "s3cr3t-of-the-header"),)),
    "callback": lambda: good(target="/results/r1/no-token"),
    "schema": lambda: good(body=b'{"type": "order.paid"}'),
}


@pytest.mark.parametrize("name", BAD)
def test_a_refusal_says_what_was_passed_before_and_nothing_is_asked_after(name: str) -> None:
    defences = Defences(full(), clock=Clock())
    assert defences.judge(good(delivery="seen", target=callback_target(document="d0"))).is_accepted
    judgement = defences.judge(BAD[name]())
    assert judgement.refusal is not None
    assert judgement.refusal.defence == name
    assert judgement.passed == DEFENCES[: DEFENCES.index(name)]
    assert judgement.off == ()
    assert header(judgement.refusal.reply, "content-type") == "application/problem+json"
    document = json.loads(judgement.refusal.reply.body)
    assert (document["defence"], document["status"]) == (name, judgement.refusal.reply.status)
    challenge = header(judgement.refusal.reply, "WWW-Authenticate")
    assert (challenge is not None) == (judgement.refusal.reply.status == 401)


# --- https, allow-list --------------------------------------------------------------------------------------

PROXIES: dict[str, Any] = {"trusted_proxies": ("10.0.0.0/8", "2001:db8:1::/48")}


@pytest.mark.parametrize(
    ("is_tls", "remote", "said", "passes"),
    [
        (True, "192.0.2.10", (), True),
        (False, "192.0.2.10", (), False),
        # anybody can write the header
        (False, "192.0.2.10", ("https",), False),
        (False, "10.0.0.1", ("https",), True),
        (False, "10.0.0.1", ("HTTPS",), True),
        (False, "11.0.0.0", ("https",), False),
        (False, "10.0.0.1", (), False),
        # the last word is the proxy's
        (False, "10.0.0.1", ("https", "http"), False),
        (False, "10.0.0.1", ("http, https",), True),
        (True, "10.0.0.1", ("http",), False),
    ],
)
def test_https(is_tls: bool, remote: str, said: tuple[str, ...], passes: bool) -> None:
    policy = Policy(https_only=True, forwarded_proto_header="X-Forwarded-Proto", **PROXIES)
    headers = tuple(("x-forwarded-proto", word) for word in said)
    judgement = judged(policy, request(is_tls=is_tls, remote=remote, headers=headers))
    assert answer(judgement) == (None if passes else ("https", 403))


@pytest.mark.parametrize(
    ("remote", "passes"),
    [
        ("192.0.2.0", True),
        ("192.0.2.255", True),
        ("192.0.3.0", False),
        ("192.0.1.255", False),
        ("198.51.100.7", True),
        ("198.51.100.8", False),
        ("::ffff:192.0.2.9", True),
        ("::ffff:192.0.3.0", False),
        ("2001:db8::ffff", True),
        ("2001:db8:0:1::", False),
        ("", False),
        ("testclient", False),
    ],
)
def test_allow_list(remote: str, passes: bool) -> None:
    policy = Policy(allowed_networks=("192.0.2.0/24", "198.51.100.7", "2001:db8::/64"))
    assert answer(judged(policy, request(remote=remote))) == (None if passes else ("allow-list", 403))


@pytest.mark.parametrize(
    ("remote", "forwarded", "client"),
    [
        ("198.51.100.1", ("192.0.2.1",), "198.51.100.1"),
        ("10.0.0.1", ("192.0.2.1",), "192.0.2.1"),
        ("10.0.0.1", ("192.0.2.1, 203.0.113.5",), "203.0.113.5"),
        ("10.0.0.1", ("192.0.2.1", "203.0.113.5, 10.0.0.2"), "203.0.113.5"),
        ("10.0.0.1", ("192.0.2.1, 11.0.0.0",), "11.0.0.0"),
        ("10.0.0.1", ("192.0.2.1:4711",), "192.0.2.1"),
        ("10.0.0.1", ("[2001:db8::5]:4711",), "2001:db8::5"),
        ("2001:db8:1::1", ("2001:db8::5",), "2001:db8::5"),
        ("10.0.0.1", ("10.0.0.3, 10.0.0.2",), "10.0.0.3"),
        ("10.0.0.1", (), "10.0.0.1"),
        # what cannot be read is nobody, not the one who stands left of it
        ("10.0.0.1", ("192.0.2.1, unknown",), None),
        ("10.0.0.1", ("192.0.2.1,",), None),
        ("10.0.0.1", ("192.0.2.1, 192.0.2.256",), None),
    ],
)
def test_whose_address_counts(remote: str, forwarded: tuple[str, ...], client: str | None) -> None:
    one = request(remote=remote, headers=tuple(("X-Forwarded-For", value) for value in forwarded))
    proxies = parse_networks(PROXIES["trusted_proxies"], setting="trusted_proxies")
    found = client_address(one, header="x-forwarded-for", proxies=proxies)
    assert (None if found is None else str(found)) == client
    assert str(client_address(one, header="", proxies=proxies)) == remote


# --- shared secret, limits, rate ----------------------------------------------------------------------------


# --- handshake, method --------------------------------------------------------------------------------------


def asking(*origins: str, rate: str | None = None, method: str = "OPTIONS") -> Received:
    headers: list[tuple[str, str]] = [("WebHook-Request-Origin", origin) for origin in origins]
    headers += [("WebHook-Request-Rate", rate)] if rate else []
    headers.append(("WebHook-Request-Callback", "http://127.0.0.1:9/grant"))
    return request(method=method, headers=tuple(headers), content_type=None, body=b"")


@pytest.mark.parametrize(
    ("chosen", "one", "granted"),
    [
        ({"handshake_origins": ("sender.test",)}, asking("sender.test"), ("sender.test", "*")),
        ({"handshake_origins": ("a.test", "sender.test")}, asking("Sender.Test"), ("Sender.Test", "*")),
        ({"handshake_origins": ("*",)}, asking("sender.test"), ("*", "*")),
        ({"handshake_origins": ("*", "sender.test"), "handshake_rate": 60}, asking("sender.test"), ("*", "60")),
        (
            {"handshake_origins": ("sender.test",), "handshake_rate": 60},
            asking("sender.test", rate="120"),
            ("sender.test", "60"),
        ),
        ({"handshake_origins": ("sender.test",)}, asking("other.test"), None),
        ({"handshake_origins": ("sender.test",)}, asking("sender.tes"), None),
        ({"handshake_origins": ("sender.test",)}, asking("x.sender.test"), None),
        ({"handshake_origins": ("sender.test",)}, asking("sender.test", "other.test"), None),
        ({"handshake_origins": ("sender.test",)}, asking("sender.test, other.test"), None),
        # whatever is repeated in an answer is a name, and nothing else
        ({"handshake_origins": ("*",)}, asking("https://sender.test"), None),
        ({"handshake_origins": ("*",)}, asking("*"), None),
        ({"handshake_origins": ("*",)}, asking(""), None),
        ({"handshake_origins": ("*",)}, asking("a" * 254), None),
    ],
)
def test_a_handshake(chosen: dict[str, Any], one: Received, granted: tuple[str, str] | None) -> None:
    judgement = judged(Policy(**chosen), one)
    if granted is None:
        assert answer(judgement) == ("handshake", 403)
        assert judgement.refusal is not None
        assert header(judgement.refusal.reply, "WebHook-Allowed-Origin") is None
        return
    assert judgement.refusal is None
    assert not judgement.is_to_be_processed
    assert judgement.handshake is not None
    assert (judgement.handshake.status, header(judgement.handshake, "Allow")) == (200, "POST")
    names = ("WebHook-Allowed-Origin", "WebHook-Allowed-Rate")
    assert tuple(header(judgement.handshake, name) for name in names) == granted


def test_only_a_request_that_asks_is_a_handshake() -> None:
    policy = Policy(handshake_origins=("*",))
    assert answer(judged(policy, request(method="OPTIONS"))) == ("method", 405)
    posted = judged(policy, asking("sender.test", method="POST"))
    assert (posted.handshake, posted.is_to_be_processed) == (None, True)
    # without the switch there are no handshakes
    assert answer(judged(Policy(), asking("sender.test"))) == ("method", 405)


def test_a_handshake_shows_no_secret_and_uses_nothing_up() -> None:
    defences = Defences(full(), clock=Clock())
    granted = defences.judge(asking("sender.test"))
    assert granted.handshake is not None
    assert granted.passed == DEFENCES[: DEFENCES.index("handshake") + 1]
    assert defences.judge(good()).is_to_be_processed
    defences.forget(granted)
    assert not defences.judge(good(target=callback_target(document="d2"))).is_accepted


@pytest.mark.parametrize(
    ("methods", "method", "passes"),
    [
        (("POST",), "POST", True),
        (("POST",), "post", False),
        (("POST",), "GET", False),
        (("POST",), "HEAD", False),
        (("POST",), "PUT", False),
        (("POST",), "POSTS", False),
        (("POST", "PUT"), "PUT", True),
        (("POST", "PUT"), "PATCH", False),
        (None, "PROBE", True),
    ],
)
def test_method(methods: tuple[str, ...] | None, method: str, passes: bool) -> None:
    judgement = judged(Policy(methods=methods), request(method=method))
    assert answer(judgement) == (None if passes else ("method", 405))
    if judgement.refusal is not None:
        assert header(judgement.refusal.reply, "Allow") == ", ".join(methods or ())


# --- content type -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content_type", "extra", "passes"),
    [
        ("application/json", (), True),
        ("Application/JSON ; charset=utf-8", (), True),
        ("application/cloudevents+json", (), True),
        ("application/jso", (), False),
        ("application/json-seq", (), False),
        ("application/feed+json", (), False),
        ("text/html;application/json", (), False),
        ("json", (), False),
        ("", (), False),
        (None, (), False),
        ("application/json", (("content-type", "text/html"),), False),
        ("application/json", (("Content-Encoding", "gzip"),), False),
        ("application/json", (("Content-Encoding", "identity, GZIP"),), False),
        ("application/json", (("Content-Encoding", "identity"), ("Content-Encoding", "br")), False),
        ("application/json", (("Content-Encoding", "Identity"),), True),
    ],
)
def test_content_type(content_type: str | None, extra: Headers, passes: bool) -> None:
    policy = Policy(content_types=("application/json", "application/CloudEvents+json"))
    judgement = judged(policy, request(content_type=content_type, headers=extra))
    assert answer(judgement) == (None if passes else ("content-type", 415))


@pytest.mark.parametrize(
    ("values", "passes"),
    [
        (("new-secret",), True),
        (("old-secret",), True),
        (("grün".encode().decode("latin-1"),), False),
        (("new-secre",), False),
        (("new-secret ",), False),
        (("New-secret",), False),
        (("",), False),
        ((), False),
        (("new-secret", "new-secret"), False),
    ],
)
def test_shared_secret(values: tuple[str, ...], passes: bool) -> None:
    policy = Policy(shared_secrets=("new-secret", "old-secret"), shared_secret_header="X-Token")
    judgement = judged(policy, request(headers=tuple(("x-token", value) for value in values)))
    assert answer(judgement) == (None if passes else ("shared-secret", 401))


def test_a_shared_secret_may_have_any_characters() -> None:
    policy = Policy(shared_secrets=("grün-€",))
    assert answer(judged(policy, request(headers=(("X-Secret", "grün-€".encode().decode("latin-1")),)))) is None
    assert answer(judged(policy, request(headers=(("X-Secret", "grün-?"),)))) == ("shared-secret", 401)
    # senders write them in the one way or the other
    for value in ("grün", "grün".encode().decode("latin-1")):
        assert answer(judged(Policy(shared_secrets=("grün",)), request(headers=(("X-Secret", value),)))) is None


BASE_HEADERS = request().headers
BASE_SIZE = sum(len(name) + len(value) + 4 for name, value in BASE_HEADERS)


@pytest.mark.parametrize(
    ("policy", "one", "status"),
    [
        (Policy(max_body_bytes=10), request(body=b"x" * 10), None),
        (Policy(max_body_bytes=10), request(body=b"x" * 11), 413),
        (Policy(max_body_bytes=0), request(body=b""), None),
        (Policy(max_body_bytes=0), request(body=b"x"), 413),
        (Policy(max_body_bytes=10), request(body=b"", headers=(("Content-Length", "10"),)), None),
        (Policy(max_body_bytes=10), request(body=b"", headers=(("Content-Length", "11"),)), 413),
        (Policy(max_body_bytes=10), request(body=b"", headers=(("Content-Length", "9" * 5000),)), 413),
        (Policy(max_headers=3), request(headers=(("A", ""),)), None),
        (Policy(max_headers=3), request(headers=(("A", ""), ("A", ""))), 431),
        (Policy(max_header_bytes=BASE_SIZE + 9), request(headers=(("Name", "v"),)), None),
        (Policy(max_header_bytes=BASE_SIZE + 8), request(headers=(("Name", "v"),)), 431),
    ],
)
def test_limits(policy: Policy, one: Received, status: int | None) -> None:
    assert answer(judged(policy, one)) == (None if status is None else ("limits", status))


def test_rate() -> None:
    clock = Clock()
    defences = Defences(Policy(rate=0.5, burst=2), clock=clock)
    assert [answer(defences.judge(request())) for _ in range(3)] == [None, None, ("rate", 429)]
    # another address has its own
    assert answer(defences.judge(request(remote="192.0.2.11"))) is None
    refusal = defences.judge(request()).refusal
    assert refusal is not None
    assert header(refusal.reply, "Retry-After") == "2"
    clock.now += 1.99
    assert answer(defences.judge(request())) == ("rate", 429)
    clock.now += 0.01
    assert answer(defences.judge(request())) is None
    # after a long rest, the burst and no more
    clock.now += 1e6
    assert [answer(defences.judge(request())) for _ in range(3)] == [None, None, ("rate", 429)]
    # a clock that is set back
    clock.now -= 1e6
    assert answer(defences.judge(request())) == ("rate", 429)
    clock.now += 2
    assert answer(defences.judge(request())) is None


def test_rate_counts_a_network_of_ipv6_as_one_and_few_addresses() -> None:
    defences = Defences(Policy(rate=1, burst=1, rate_addresses=2), clock=Clock())
    assert answer(defences.judge(request(remote="2001:db8::1"))) is None
    assert answer(defences.judge(request(remote="2001:db8::ffff:1"))) == ("rate", 429)
    assert answer(defences.judge(request(remote="2001:db8:0:1::1"))) is None
    # the one that has rested longest gives way
    assert answer(defences.judge(request(remote="192.0.2.1"))) is None
    assert answer(defences.judge(request(remote="2001:db8:0:1::1"))) == ("rate", 429)
    assert answer(defences.judge(request(remote="2001:db8::1"))) is None


# --- signature, timestamp -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("need", "schemes", "carried", "passes"),
    [
        ("any", ("websub", "standard"), ("websub",), True),
        ("any", ("websub", "standard"), ("standard",), True),
        ("any", ("websub", "standard"), ("timestamped",), False),
        ("all", ("websub", "standard"), ("websub",), False),
        ("all", ("websub", "standard"), ("websub", "standard"), True),
        ("all", ("standard", "rfc9421"), ("standard", "rfc9421"), True),
        ("any", ("rfc9421-ed25519",), ("rfc9421-ed25519",), True),
    ],
)
def test_signature(need: Any, schemes: tuple[str, ...], carried: tuple[str, ...], passes: bool) -> None:
    policy = Policy(signature_schemes=schemes, signatures=need, keys=(OTHER, KEY))
    judgement = judged(policy, signed(*carried))
    assert answer(judgement) == (None if passes else ("signature", 401))
    assert [verdict.scheme for verdict in judgement.verdicts] == list(schemes)
    assert answer(judged(Policy(signature_schemes=schemes, keys=(OTHER,)), signed(*carried))) == ("signature", 401)


def test_the_signature_is_over_the_bytes_as_they_came() -> None:
    policy = Policy(signature_schemes=("websub",), keys=(KEY,))
    one = signed("websub")
    assert answer(judged(policy, one)) is None
    same_value = json.dumps(json.loads(BODY), separators=(",", ":")).encode()
    assert answer(judged(policy, request(headers=one.headers[2:], body=same_value))) == ("signature", 401)


@pytest.mark.parametrize("scheme", ["standard", "rfc9421", "rfc9421-ed25519", "timestamped", "websub"])
@pytest.mark.parametrize(
    ("distance", "passes"), [(0, True), (-300, True), (-301, False), (300, True), (301, False), (-(10**9), False)]
)
def test_timestamp(scheme: str, distance: int, passes: bool) -> None:
    policy = Policy(signature_schemes=(scheme,), keys=(KEY,), tolerance=300)
    judgement = judged(policy, signed(scheme, timestamp=NOW + distance))
    assert answer(judgement) == (None if passes else ("timestamp", 400))


def test_a_part_of_a_second_too_old_is_too_old() -> None:
    one = signed(timestamp=NOW)
    assert answer(judged(Policy(tolerance=300), one, NOW + 300.0)) is None
    assert answer(judged(Policy(tolerance=300), one, NOW + 300.001)) == ("timestamp", 400)
    assert answer(judged(Policy(tolerance=0), one, NOW)) is None
    assert answer(judged(Policy(tolerance=0), one, NOW + 0.001)) == ("timestamp", 400)


@pytest.mark.parametrize("scheme", ["standard", "rfc9421"])
def test_the_signed_time_counts_and_not_the_one_beside_it(scheme: str) -> None:
    policy = Policy(signature_schemes=(scheme, "websub"), keys=(KEY,), tolerance=300)
    old = signed(scheme, timestamp=NOW - 400)
    fresh = tuple((name, str(NOW) if name == "X-Webhook-Timestamp" else value) for name, value in old.headers[2:])
    assert answer(judged(policy, request(headers=fresh))) == ("timestamp", 400)
    # and a time in a signature that does not hold is no signed time
    forged = signed("websub", extra=tuple(signed("standard", key=OTHER, timestamp=NOW - 400).headers[4:]))
    assert answer(judged(Policy(signature_schemes=("websub", "standard"), keys=(KEY,), tolerance=300), forged)) is None


@pytest.mark.parametrize("value", ["", "abc", "-1", "1e9", "1700000000.0", "１７００００００００", "9" * 5000, " "])  # noqa: RUF001 - other digits
def test_what_is_no_time(value: str) -> None:
    headers: Headers = (("X-Webhook-Timestamp", value),)
    assert answer(judged(Policy(tolerance=300), request(headers=headers))) == ("timestamp", 400)
    assert answer(judged(Policy(tolerance=300), request())) == ("timestamp", 400)
    twice: Headers = (("X-Webhook-Timestamp", str(NOW)), ("X-Webhook-Timestamp", str(NOW + 1)))
    assert answer(judged(Policy(tolerance=300), request(headers=twice))) == ("timestamp", 400)


# --- replay -------------------------------------------------------------------------------------------------


def test_a_delivery_passes_once() -> None:
    defences = Defences(Policy(replay="refuse"), clock=Clock())
    assert answer(defences.judge(signed())) is None
    second = defences.judge(signed())
    assert answer(second) == ("replay", 409)
    assert not second.is_repeat
    assert answer(defences.judge(signed(delivery="delivery-2"))) is None


def test_a_quiet_repeat_is_accepted_and_told() -> None:
    defences = Defences(full(replay="quiet"), clock=Clock())
    assert defences.judge(good()).is_repeat is False
    second = defences.judge(good())
    assert (second.refusal, second.is_repeat, second.passed) == (None, True, DEFENCES)
    # a repeat proves itself as the first did
    assert answer(defences.judge(good(key=OTHER))) == ("signature", 401)
    assert answer(defences.judge(good(target="/results/r1/no-token"))) == ("callback", 401)


async def test_of_a_hundred_at_once_one_passes() -> None:
    defences = Defences(Policy(replay="refuse", signature_schemes=("standard",), keys=(KEY,)), clock=Clock())
    one, start = signed("standard"), asyncio.Event()

    async def attempt() -> bool:
        await start.wait()
        return defences.judge(one).is_accepted

    attempts = [asyncio.create_task(attempt()) for _ in range(100)]
    await asyncio.sleep(0)
    start.set()
    assert sum(await asyncio.gather(*attempts)) == 1


@pytest.mark.parametrize("name", [name for name in BAD if name != "replay"])
def test_what_is_refused_marks_no_delivery_as_seen(name: str) -> None:
    defences = Defences(full(), clock=Clock())
    assert answer(defences.judge(BAD[name]())) is not None
    assert answer(defences.judge(good())) is None


def test_what_could_not_be_processed_is_forgotten() -> None:
    defences = Defences(full(), clock=Clock())
    first = defences.judge(good())
    repeat = defences.judge(good())
    defences.forget(repeat)
    assert answer(defences.judge(good())) == ("replay", 409), "a refusal used up nothing"
    defences.forget(first)
    assert defences.judge(good()).is_accepted, "the callback is free again, too"
    defences.forget("delivery-1")
    assert answer(defences.judge(good())) == ("callback", 403)
    defences.forget("never seen")


@pytest.mark.parametrize("tolerance", [10.0, 300.0])
def test_a_delivery_is_remembered_as_long_as_its_time_is_good(tolerance: float) -> None:
    clock = Clock()
    policy = Policy(replay="refuse", tolerance=tolerance, replay_seconds=0, replay_capacity=1)
    defences = Defences(policy, clock=clock)
    # as far ahead as may be
    ahead = signed(timestamp=NOW + int(tolerance))
    assert answer(defences.judge(ahead)) is None
    clock.now += 2 * tolerance
    assert answer(defences.judge(ahead)) == ("replay", 409)
    clock.now += 0.001
    assert answer(defences.judge(ahead)) == ("timestamp", 400)


def test_memory_is_bounded_and_never_lets_a_young_one_go() -> None:
    clock = Clock()
    policy = Policy(replay="refuse", tolerance=300, replay_capacity=2, replay_seconds=86_400)
    defences = Defences(policy, clock=clock)

    def attempt(delivery: str) -> tuple[str, int] | None:
        return answer(defences.judge(signed(delivery=delivery, timestamp=int(clock.now))))

    assert [attempt("1"), attempt("2")] == [None, None]
    refusal = defences.judge(signed(delivery="3")).refusal
    assert refusal is not None
    assert (refusal.reply.status, header(refusal.reply, "Retry-After")) == (503, "601")
    assert attempt("1") == ("replay", 409)
    clock.now += 600
    assert attempt("3") == ("replay", 503)
    # a moment later the oldest may give way; the other stays while there is room
    clock.now += 1
    assert [attempt("3"), attempt("2"), attempt("3")] == [None, ("replay", 409), ("replay", 409)]


@pytest.mark.parametrize(
    ("headers", "delivery"),
    [
        ((("X-Webhook-Delivery", "a"),), "a"),
        ((("webhook-id", "b"),), "b"),
        ((("webhook-id", "b"), ("x-webhook-delivery", "a")), "a"),
        ((("X-Webhook-Delivery", "a"), ("X-Webhook-Delivery", "a")), "a"),
        ((("X-Webhook-Delivery", "a"), ("X-Webhook-Delivery", "b")), None),
        ((("X-Webhook-Delivery", ""),), None),
        ((), None),
    ],
)
def test_which_delivery_it_is(headers: Headers, delivery: str | None) -> None:
    judgement = judged(Policy(replay="refuse"), request(headers=headers))
    assert answer(judgement) == (("replay", 400) if delivery is None else None)
    assert judgement.delivery == delivery


@pytest.mark.parametrize("scheme", ["standard", "standard-ed25519"])
def test_the_signed_id_counts_and_not_the_one_beside_it(scheme: str) -> None:
    defences = Defences(Policy(replay="refuse", signature_schemes=(scheme,), keys=(KEY,)), clock=Clock())
    one = signed(scheme)
    renamed = tuple((name, "other" if name == "X-Webhook-Delivery" else value) for name, value in one.headers[2:])
    assert answer(defences.judge(one)) is None
    assert answer(defences.judge(request(headers=renamed))) == ("replay", 409)


def test_two_signed_ids_are_refused() -> None:
    policy = Policy(replay="refuse", signature_schemes=("standard", "rfc9421"), keys=(KEY,))
    mixed = signed("rfc9421", extra=tuple(signed("standard", delivery="delivery-2").headers[4:]))
    judgement = judged(policy, mixed)
    assert [verdict.is_good for verdict in judgement.verdicts] == [True, True]
    assert answer(judgement) == ("replay", 400)


def test_a_memory_does_not_grow_by_what_it_forgets() -> None:
    memory = Memory(4)
    for turn in range(200):
        assert memory.has_room(0)
        memory.add((str(turn),), now=0, needed=10)
        memory.forget((str(turn),))
    assert len(memory) == 0
    assert len(memory._queue) <= 2 * 4 + 16
    memory.add(("ab", "c"), now=0, needed=10)
    assert memory.has(("ab", "c"), 10)
    assert not memory.has(("a", "bc"), 0)
    assert not memory.has(("ab", "c"), 10.1)


# --- callback, schema ---------------------------------------------------------------------------------------


def test_a_single_use_callback_takes_one_delivery() -> None:
    defences = Defences(full(), clock=Clock())
    assert defences.judge(good()).is_accepted
    assert answer(defences.judge(good(delivery="delivery-2"))) == ("callback", 403)
    other = good(delivery="delivery-2", target=callback_target(document="d2"))
    assert defences.judge(other).is_accepted


@pytest.mark.parametrize("target", ["//[", "*", "", "http://[/", "/results/r1"])
def test_a_target_without_a_token(target: str) -> None:
    policy = Policy(callback=CallbackIssuer(ISSUER_SECRET))
    assert answer(judged(policy, request(target=target))) == ("callback", 401)


@pytest.mark.parametrize(
    ("event", "body", "status", "pointer"),
    [
        (None, BODY, None, None),
        ("order.paid", b'{"amount": 1}', None, None),
        # the header goes before the member
        ("order.paid", b'{"type": "circle", "amount": 1}', None, None),
        ("order.paid", b'{"amount": "12"}', 422, "/amount"),
        ("order.paid", b'{"amount": 12.5}', 422, "/amount"),
        ("order.paid", b"{}", 422, ""),
        ("order.paid", b'{"amount": 1, "lines": [{}, {"a/b": 4711}]}', 422, "/lines/1/a~1b"),
        ("order.paid", b"[]", 422, ""),
        ("order.paid ", b'{"amount": 1}', 422, None),
        (None, b'{"type": "order.pai", "amount": 1}', 422, None),
        (None, b'{"type": ["order.paid"], "amount": 1}', 422, None),
        (None, b'{"amount": 1}', 422, None),
        (None, b"[]", 422, None),
        ("order.paid", b"", 400, None),
        ("order.paid", b'{"amount": NaN}', 400, None),
        ("order.paid", b'{"amount": 1}x', 400, None),
        ("order.paid", b'{"amount": "\xff"}', 400, None),
        ("order.paid", b'{"amount": ' + b"9" * 5000 + b"}", 400, None),
        ("order.paid", b"[" * 100_000, 400, None),
        ("order.paid", '{"amount": 1}'.encode("utf-16"), 400, None),
    ],
)
def test_schema(event: str | None, body: bytes, status: int | None, pointer: str | None) -> None:
    headers: Headers = () if event is None else (("X-Webhook-Event", event),)
    judgement = judged(Policy(schemas=SCHEMAS), request(headers=headers, body=body))
    assert answer(judgement) == (None if status is None else ("schema", status))
    if judgement.refusal is not None:
        assert json.loads(judgement.refusal.reply.body).get("pointer") == pointer


def test_events_without_a_schema_can_pass() -> None:
    policy = Policy(schemas=SCHEMAS, unknown_events="pass")
    assert answer(judged(policy, request(body=b'{"type": "other"}'))) is None
    assert answer(judged(policy, request(body=b"{"))) == ("schema", 400)


def test_a_schema_never_fetches_another(monkeypatch: pytest.MonkeyPatch) -> None:
    def dialled(*_: object, **__: object) -> None:
        pytest.fail("it was fetched")

    monkeypatch.setattr(urllib.request, "urlopen", dialled)
    policy = Policy(schemas={"order.paid": {"$ref": "http://127.0.0.1:9/schema.json"}})
    assert answer(judged(policy, request())) == ("schema", 500)


def test_pointers_are_short_and_printable() -> None:
    policy = Policy(schemas={"e": {"additionalProperties": {"type": "string"}}})
    body = json.dumps({"a\r\nb" + "c" * 5000: 1}).encode()
    refusal = judged(policy, request(headers=(("X-Webhook-Event", "e"),), body=body)).refusal
    assert refusal is not None
    assert refusal.reason.isprintable()
    assert len(refusal.reason) < 300


# --- what is told -------------------------------------------------------------------------------------------

CANARY = "canary4711"
BEARING: dict[str, tuple[dict[str, Any], Received]] = {
    "https": ({"https_only": True}, request(is_tls=False, target=f"/{CANARY}")),
    "allow-list": (
        {
            "allowed_networks": ("192.0.2.1",),
            "forwarded_for_header": "X-F",
            "trusted_proxies": ("192.0.2.10",),
        },
        request(headers=(("X-F", CANARY),)),
    ),
    "handshake": (
        {"handshake_origins": ("other.test",)},
        request(method="OPTIONS", headers=(("WebHook-Request-Origin", CANARY),)),
    ),
    "method": ({}, request(method=CANARY)),
    "content-type": ({"content_types": ("text/plain",)}, request(content_type=f"text/{CANARY}")),
    "content-type: compressed": (
        {"content_types": ("application/json",)},
        request(headers=(("Content-Encoding", CANARY),)),
    ),
    "shared-secret": ({"shared_secrets": ("right-" + CANARY,)}, request(headers=(("X-Secret", CANARY),))),
    "limits": ({"max_body_bytes": 1}, request(body=CANARY.encode())),
    "signature": (
        {"signature_schemes": ("websub", "standard", "rfc9421"), "keys": (Key(secret=CANARY),)},
        request(
            headers=(
                ("X-Hub-Signature", CANARY),
                ("webhook-signature", CANARY),
                ("webhook-id", CANARY),
                ("webhook-timestamp", CANARY),
                ("Signature-Input", CANARY),
                ("Signature", CANARY),
            )
        ),
    ),
    "timestamp": ({"tolerance": 1}, request(headers=(("X-Webhook-Timestamp", CANARY),))),
    "replay": (
        {"replay": "refuse"},
        request(headers=(("X-Webhook-Delivery", CANARY), ("X-Webhook-Delivery", "other"))),
    ),
    "callback": ({"callback": CallbackIssuer(CANARY * 4)}, request(target=f"/{CANARY}/{CANARY}/{CANARY}")),
    "schema": ({"schemas": SCHEMAS}, request(body=json.dumps({"type": "order.paid", "amount": CANARY}).encode())),
    "schema: the type": ({"schemas": SCHEMAS}, request(headers=(("X-Webhook-Event", CANARY),))),
    "schema: no JSON": ({"schemas": SCHEMAS}, request(body=CANARY.encode())),
}


@pytest.mark.parametrize("name", BEARING)
def test_no_value_is_repeated(name: str) -> None:
    chosen, one = BEARING[name]
    policy = Policy(**chosen)
    judgement = judged(policy, one)
    assert judgement.refusal is not None
    assert judgement.refusal.defence == name.partition(":")[0]
    shown = [repr(judgement), judgement.refusal.reason, str(judgement.refusal.reply.headers), repr(policy)]
    shown.append(judgement.refusal.reply.body.decode())
    # an id stands in the log line of each request in any case
    assert not [text for text in shown if CANARY in text]


WIRE_TEXT = st.text(st.characters(max_codepoint=255), max_size=40)
WIRE_NAMES = st.sampled_from(
    [
        "X-F",
        "X-P",
        "X-Secret",
        "Content-Length",
        "Content-Digest",
        "X-Hub-Signature",
        "webhook-id",
        "webhook-timestamp",
        "webhook-signature",
        "X-Webhook-Timestamp",
        "X-Webhook-Delivery",
        "X-Webhook-Event",
        "Signature-Input",
        "Signature",
        "Content-Type",
        "Content-Encoding",
        "WebHook-Request-Origin",
    ]
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    headers=st.lists(st.tuples(WIRE_NAMES, WIRE_TEXT), max_size=8),
    body=st.binary(max_size=60) | st.from_regex(rb'\{"type": "order.paid", "amount": .{0,20}\}', fullmatch=True),
    target=WIRE_TEXT,
    remote=st.sampled_from(["192.0.2.10", "10.0.0.1", "fe80::1%eth0", "", "unix:"]),
    method=st.sampled_from(["POST", "POST", "POST", "OPTIONS", "GET"]),
    up=st.sets(st.sampled_from(DEFENCES)),
)
def test_nothing_from_the_wire_makes_it_raise(
    headers: list[tuple[str, str]], body: bytes, target: str, remote: str, method: str, up: set[str]
) -> None:
    changed = {key: value for name in DEFENCES if name not in up for key, value in SWITCHES[name].items()}
    policy = full(**{"forwarded_for_header": "X-F", "forwarded_proto_header": "X-P", **PROXIES, **changed})
    one = request(headers=tuple(headers), body=body, target=target, remote=remote, method=method)
    judgement = judged(policy, one)
    asked = (*judgement.passed, *([judgement.refusal.defence] if judgement.refusal else []))
    on = tuple(name for name in DEFENCES if name in up)
    is_asked_by_all = judgement.refusal is None and judgement.handshake is None
    assert asked == (on if is_asked_by_all else on[: len(asked)])
    assert set(judgement.off) == set(DEFENCES) - up


# --- settings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chosen", "named"),
    [
        ({"allowed_networks": ()}, "allowed_networks"),
        ({"allowed_networks": ("192.0.2.1/24",)}, "allowed_networks"),
        ({"allowed_networks": ("receiver.test",)}, "allowed_networks"),
        ({"trusted_proxies": ("10.0.0.0/33",)}, "trusted_proxies"),
        ({"forwarded_for_header": "X-Forwarded-For"}, "trusted_proxies"),
        ({"forwarded_proto_header": "X-Forwarded-Proto"}, "trusted_proxies"),
        ({"handshake_origins": ()}, "handshake_origins"),
        ({"handshake_origins": ("https://sender.test",)}, "handshake_origins"),
        ({"handshake_origins": ("sender.test", "")}, "handshake_origins"),
        ({"handshake_origins": ("*",), "handshake_rate": 0}, "handshake_rate"),
        ({"handshake_rate": 60}, "handshake_origins"),
        ({"methods": ()}, "methods"),
        ({"methods": ("POST", "GET, PUT")}, "methods"),
        ({"content_types": ()}, "content_types"),
        ({"content_types": ("json",)}, "content_types"),
        ({"content_types": ("application/json; charset=utf-8",)}, "content_types"),
        ({"shared_secrets": ()}, "shared_secrets"),
        ({"shared_secrets": ("",)}, "shared_secrets"),
        ({"shared_secrets": ("x",), "shared_secret_header": ""}, "shared_secret_header"),
        ({"max_body_bytes": -1}, "max_body_bytes"),
        ({"max_headers": 0}, "max_headers"),
        ({"rate": 0.0}, "rate"),
        ({"rate": float("nan")}, "rate"),
        ({"rate": 1.0, "burst": 0}, "burst"),
        ({"signature_schemes": ()}, "signature_schemes"),
        ({"signature_schemes": ("md5",), "keys": (KEY,)}, "md5"),
        ({"signature_schemes": ("websub",)}, "keys"),
        ({"signatures": "some"}, "signatures"),
        ({"signature_schemes": ("websub",), "keys": (KEY,), "hub_method": "md5"}, "hub_method"),
        ({"tolerance": -1.0}, "tolerance"),
        ({"tolerance": float("inf")}, "tolerance"),
        ({"replay": "loud"}, "replay"),
        ({"replay": "quiet", "delivery_headers": ()}, "delivery_headers"),
        ({"replay_capacity": 0}, "replay_capacity"),
        ({"schemas": {}}, "schemas"),
        ({"schemas": {"order.paid": {"type": "strin"}}}, "order.paid"),
        ({"unknown_events": "maybe"}, "unknown_events"),
    ],
)
def test_wrong_settings_are_named(chosen: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        Policy(**chosen)


UNIQUE = {"a": {"$schema": "https://json-schema.org/draft/2020-12/schema", "properties": {"x": {"uniqueItems": True}}}}


@pytest.mark.parametrize(
    ("items", "is_unique"),
    [
        ("[]", True),
        ("[1, 2]", True),
        ("[1, 1.0]", False),
        ("[1, true, 0, false, null, [], {}]", True),
        ('[1, "1"]', True),
        ("[[1], [1.0]]", False),
        ('[{"a": 1, "b": [true]}, {"b": [true], "a": 1}]', False),
        ('[{"a": 1}, {"a": true}]', True),
        ('["\\ud800", "\\ud801"]', True),
        ("[1e999, 1e999]", False),
        ("[9007199254740993, 9007199254740992.0]", True),
    ],
)
def test_items_that_are_alike(items: str, is_unique: bool) -> None:
    found = judged(Policy(schemas=UNIQUE), request(body=f'{{"type": "a", "x": {items}}}'.encode()))
    assert found.is_accepted is is_unique
    if found.refusal is not None:
        assert json.loads(found.refusal.reply.body)["keyword"] == "uniqueItems"


@pytest.mark.parametrize(
    "schema",
    [
        UNIQUE["a"],
        # one that leads back to itself, and names its draft again there
        {**UNIQUE["a"], "properties": {"x": {"uniqueItems": True}, "y": {"$ref": "#"}}},
    ],
)
def test_many_items_are_compared_in_a_time_in_proportion(schema: dict[str, Any]) -> None:
    items = json.dumps([{"a": number} for number in range(4_000)])
    body = f'{{"type": "a", "x": {items}, "y": {{"x": {items}}}}}'.encode()
    began = time.process_time()
    assert judged(Policy(schemas={"a": schema}), request(body=body)).is_accepted
    assert time.process_time() - began < 3.0


def test_a_rate_of_next_to_nothing_is_told_in_seconds() -> None:
    defences = Defences(Policy(rate=5e-324, burst=1), clock=lambda: NOW)
    assert defences.judge(request()).is_accepted
    refusal = defences.judge(request()).refusal
    assert refusal is not None
    assert ("Retry-After", "31536000") in refusal.reply.headers
