"""Faults, judged byte by byte by a plain socket and by the dispatcher's own transport; and scripts."""

from __future__ import annotations

import asyncio
import base64
import email.utils
import gzip
import hmac
import re
import time
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dispatcher.conformance.faults import FAULTS, Script
from dispatcher.conformance.faults import script as scripts
from dispatcher.conformance.wire.exchange import Exchange
from dispatcher.conformance.wire.requests import Received, Reply
from dispatcher.conformance.wire.server import WireServer
from dispatcher.delivery.http1_transport import Http1Transport
from dispatcher.delivery.httpx_transport import HttpxTransport
from dispatcher.delivery.resolver import Resolver
from dispatcher.delivery.transport import MAX_BODY_BYTES, Request, Response, Timing, Transport
from dispatcher.egress import EgressPolicy, parse
from dispatcher.errors import ConfigError, SendError
from dispatcher.models import Outcome

REQUEST = b"POST /a HTTP/1.1\r\nHost: x\r\n\r\n"
WELL = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: keep-alive\r\n\r\n"


class Endpoint:
    """A server that does what its script says."""

    def __init__(self, server: WireServer) -> None:
        self.server = server
        self.requests: list[Received] = []
        #: exchanges that are not over
        self.open = 0


@asynccontextmanager
async def endpoint(script: str) -> AsyncIterator[Endpoint]:
    parsed = Script.parse(script)
    escaped: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: escaped.append(context))

    async def handle(exchange: Exchange) -> None:
        served.requests.append(exchange.request)
        behaviour = parsed.next(exchange.request)
        served.open += 1
        try:
            await (exchange.reply(Reply()) if behaviour is None else behaviour(exchange))
        finally:
            served.open -= 1

    served = Endpoint(WireServer(handle))
    await served.server.start()
    try:
        yield served
    finally:
        await served.server.close()
        assert served.open == 0
        assert escaped == []


async def ask(served: Endpoint, *, most: int = -1, request: bytes = REQUEST) -> bytes:
    """One request; all that comes, or the first `most` bytes of it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", served.server.port)
    try:
        writer.write(request)
        async with asyncio.timeout(3):
            if most >= 0:
                return await reader.readexactly(most)
            return await reader.read()
    finally:
        writer.transport.abort()
        await asyncio.sleep(0)


def received(delivery: str = "", *, path: str = "/a", name: str = "X-Webhook-Delivery") -> Received:
    headers = ((name, delivery),) if delivery else ()
    return Received(
        number=1,
        at=0.0,
        clock=0.0,
        connection=1,
        remote="127.0.0.1",
        method="POST",
        target=path,
        headers=headers,
        body=b"",
        raw=b"",
    )


def names(script: Script, count: int, request: Received | None = None) -> list[str]:
    """What the next requests are answered."""
    steps = [script.next(request or received()) for _ in range(count)]
    return ["ok" if step is None else step.name for step in steps]


# what a plain socket sees

GARBAGE = b"SSH-2.0-OpenSSH_9.7\r\n\x00\x01\x02\xfe\xff\r\n\r\n"
HEAD = b"HTTP/1.1 200 OK\r\n"

#: answers after which the connection is closed
CLOSED = [
    ("close", b""),
    ("hang;for=0.02", b""),
    ("cut", HEAD + b"Content-Length: 1000\r\n\r\n" + b"." * 500),
    ("cut;status=500", b"HTTP/1.1 500 \r\nContent-Length: 1000\r\n\r\n" + b"." * 500),
    ("slow-headers;every=0.0001", HEAD + b"Content-Length: 2\r\nConnection: close\r\n\r\nok"),
    ("slow-headers;every=3;for=0.02", b"H"),
    ("drip;every=3;for=0.02", HEAD + b"Content-Type: text/plain\r\nConnection: close\r\n\r\n"),
    ("huge;size=200000", HEAD + b"Content-Length: 200000\r\n\r\n" + b"." * 200_000),
    ("wrong-length", HEAD + b"Content-Length: 15\r\n\r\n" + b"." * 10),
    ("wrong-length;by=-5", HEAD + b"Content-Length: 10\r\n\r\n" + b"." * 15),
    ("chunked-junk", HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\nZZZ\r\nnot a chunk\r\n0\r\n\r\n"),
    ("interim-flood;size=6600", b"HTTP/1.1 103 \r\n\r\n" * 388 + b"HTTP"),
    ("garbage;for=0.02", GARBAGE),
    ("http09;for=0.02", b"<html>ok</html>\r\n\r\n"),
    ("odd-version;for=0.02", b"HTTP/2 200 OK\r\nContent-Length: 2\r\n\r\nok"),
    ("odd-version;version=7.3;for=0.02", b"HTTP/7.3 200 OK\r\nContent-Length: 2\r\n\r\nok"),
    ("two-lengths;for=0.02", HEAD + b"Content-Length: 2\r\nContent-Length: 40\r\n\r\nok"),
    ("199", b"HTTP/1.1 199 \r\n\r\n"),
    (
        "second-answer;for=0.02",
        HEAD + b"Content-Length: 2\r\n\r\nokHTTP/1.1 500 \r\nContent-Length: 6\r\n\r\nsecond",
    ),
]

#: answers in good HTTP, whatever they say: status line and headers
GOOD = [
    ("204", b"HTTP/1.1 204 No Content\r\n", b""),
    ("503;retry-after=2;body=no", b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 2\r\n", b"no"),
    ("429;retry-after-raw=soon", b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: soon\r\n", b""),
    ("redirect", b"HTTP/1.1 302 Found\r\nLocation: /redirected\r\n", b""),
    (
        'redirect;status=308;to="http://127.0.0.1/a;b,c?d=e"',
        b"HTTP/1.1 308 Permanent Redirect\r\nLocation: http://127.0.0.1/a;b,c?d=e\r\n",
        b"",
    ),
    ("set-cookie", HEAD + b"Set-Cookie: conformance=kept; Path=/; Max-Age=3600\r\n", b""),
    ("disable", b"HTTP/1.1 500 Internal Server Error\r\nwebhook-delivery: disable\r\n", b""),
    ("abort-message;status=400", b"HTTP/1.1 400 Bad Request\r\nwebhook-delivery: abort-message\r\n", b""),
    ("late;after=0.01;status=201", b"HTTP/1.1 201 Created\r\n", b""),
    ("flap;up=0", b"HTTP/1.1 503 Service Unavailable\r\n", b""),
    ("random;among=502", b"HTTP/1.1 502 Bad Gateway\r\n", b""),
    ("until-rotated;secret=new", b"HTTP/1.1 401 Unauthorized\r\n", b""),
    ("until-rotated;secret=new;status=403", b"HTTP/1.1 403 Forbidden\r\n", b""),
]

#: settings that a fault cannot do without
NEEDED = {"until-rotated": ";secret=new"}


@pytest.mark.parametrize(("script", "expected"), CLOSED)
async def test_the_bytes_of_a_fault(script: str, expected: bytes) -> None:
    async with endpoint(script) as served:
        assert await ask(served) == expected


async def test_a_torn_answer_comes_as_a_whole_before_the_reset() -> None:
    async with endpoint("torn;status=201") as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.server.port)
        try:
            writer.write(REQUEST)
            whole = b"HTTP/1.1 201 \r\nContent-Length: 2\r\n\r\nok"
            assert await reader.readexactly(len(whole)) == whole
            with pytest.raises(ConnectionResetError):
                await reader.read()
        finally:
            writer.transport.abort()


@pytest.mark.parametrize(("script", "head", "body"), GOOD)
async def test_the_bytes_of_a_good_answer(script: str, head: bytes, body: bytes) -> None:
    length = b"" if b" 204 " in head else b"Content-Length: %d\r\n" % len(body)
    expected = head + length + b"Connection: keep-alive\r\n\r\n" + body
    async with endpoint(script) as served:
        assert await ask(served, most=len(expected)) == expected


def test_every_fault_is_looked_at() -> None:
    scripts = [script for script, _ in CLOSED] + [script for script, _, _ in GOOD]
    faults_seen = [Script.parse(script).steps[0].fault for script in scripts]
    elsewhere = {"reset", "torn", "endless-headers", "gzip-bomb"}
    assert set(FAULTS) == {fault.name for fault in faults_seen if fault} | elsewhere
    words = {outcome.value for outcome in Outcome} | {""}
    for name, fault in FAULTS.items():
        assert fault.name == name
        assert fault.title.endswith(".")
        assert fault.expects in words
        assert ("for" in fault.settings) <= ("60" in fault.settings.get("for", ""))


async def test_a_reset() -> None:
    async with endpoint("reset") as served:
        with pytest.raises(ConnectionResetError):
            await ask(served)


async def test_headers_without_end() -> None:
    async with endpoint("endless-headers;size=200000") as served:
        answer = await ask(served)
    lines = b"".join(b"X-Header-%04d: %s\r\n" % (n % 1_000, b"a" * 40) for n in range(4_000))
    assert answer == HEAD + lines[:200_000]


async def test_a_body_that_unpacks_to_a_huge_one() -> None:
    async with endpoint("gzip-bomb") as served:
        answer = await ask(served)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head + b"\r\n" == HEAD + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n" % len(body)
    assert len(body) < 20_000
    assert gzip.decompress(body) == bytes(10 * 1024 * 1024)


async def test_a_body_drop_by_drop() -> None:
    async with endpoint("drip;every=0.001") as served:
        head = HEAD + b"Content-Type: text/plain\r\nConnection: close\r\n\r\n"
        assert await ask(served, most=len(head) + 5) == head + b"....."


@pytest.mark.parametrize("ahead", [3, -3600])
async def test_a_date_to_come_back_at(ahead: int) -> None:
    async with endpoint(f"429;retry-after-date={ahead}") as served:
        answer = await ask(served, most=120)
        at = served.requests[0].at
    match = re.search(rb"Retry-After: ([^\r]*GMT)\r\n", answer)
    assert match is not None
    date = email.utils.parsedate_to_datetime(match[1].decode()).timestamp()
    assert ahead <= date - at < ahead + 1.5


@pytest.mark.parametrize(
    "script",
    ["hang", "drip;every=30", "slow-headers;every=30", "huge", "endless-headers", "interim-flood", "second-answer"],
)
async def test_a_fault_ends_with_its_connection(script: str) -> None:
    async with endpoint(script) as served:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await ask(served)
        async with asyncio.timeout(1):
            while served.open or served.server.open_connections:  # noqa: ASYNC110 - nobody tells us
                await asyncio.sleep(0.005)
        assert len(served.requests) == 1


OLD = "whsec_" + base64.b64encode(b"o" * 24).decode()
NEW = "whsec_" + base64.b64encode(b"n" * 24).decode()
PAIRS = {name: Ed25519PrivateKey.from_private_bytes(name[:1] * 32) for name in (b"old", b"new")}
NEW_PUBLIC = "whpk_" + base64.b64encode(PAIRS[b"new"].public_key().public_bytes_raw()).decode()


def signed_by(scheme: str, *secrets: str, body: bytes = b"{}") -> bytes:
    """A request with a signature by each of these secrets; written here, and not by the kit."""
    moment = str(int(time.time()))
    content = b"msg_1." + moment.encode() + b"." + body
    seconds = [("webhook-id", "msg_1"), ("webhook-timestamp", moment)]
    match scheme:
        case "standard":
            made = [base64.b64encode(hmac.digest(base64.b64decode(one[6:]), content, "sha256")) for one in secrets]
            headers = [*seconds, ("webhook-signature", " ".join("v1," + one.decode() for one in made))]
        case "standard-ed25519":
            made = [base64.b64encode(PAIRS[one.encode()].sign(content)) for one in secrets]
            headers = [*seconds, ("webhook-signature", " ".join("v1a," + one.decode() for one in made))]
        case _:
            headers = [("X-Hub-Signature", "sha256=" + hmac.new(secrets[0].encode(), body, "sha256").hexdigest())]
    lines = [f"{name}: {value}\r\n".encode() for name, value in headers]
    return b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n%s\r\n%s" % (len(body), b"".join(lines), body)


@pytest.mark.parametrize(
    ("script", "request_bytes", "status"),
    [
        (f"until-rotated;secret={NEW}", signed_by("standard", NEW), 200),
        (f"until-rotated;secret={NEW}", signed_by("standard", OLD), 401),
        (f"until-rotated;secret={NEW}", signed_by("standard", OLD, NEW), 200),
        (f"until-rotated;secret={NEW}", signed_by("websub", NEW), 401),
        (f"until-rotated;secret={NEW}", signed_by("standard", NEW)[:-1] + b"]", 401),
        (f"until-rotated;scheme=websub;secret={NEW}", signed_by("websub", NEW), 200),
        (f"until-rotated;scheme=websub;secret={NEW}", signed_by("websub", OLD), 401),
        ('until-rotated;scheme=websub;secret="a;b,c"', signed_by("websub", "a;b,c"), 200),
        (f"until-rotated;scheme=standard-ed25519;secret={NEW_PUBLIC}", signed_by("standard-ed25519", "new"), 200),
        (f"until-rotated;scheme=standard-ed25519;secret={NEW_PUBLIC}", signed_by("standard-ed25519", "old"), 401),
    ],
)
async def test_an_endpoint_that_knows_one_secret(script: str, request_bytes: bytes, status: int) -> None:
    async with endpoint(script) as served:
        assert await ask(served, most=12, request=request_bytes) == b"HTTP/1.1 %d" % status


async def test_an_endpoint_goes_on_to_know_one_secret() -> None:
    """Each request is judged by itself: a good one does not open the door for a bad one."""
    async with endpoint(f"path:until-rotated;secret={NEW}") as served:
        requests = [signed_by("standard", secret) for secret in (OLD, NEW, OLD)]
        answers = [await ask(served, most=12, request=one) for one in requests]
    assert answers == [b"HTTP/1.1 401", b"HTTP/1.1 200", b"HTTP/1.1 401"]


# what the dispatcher makes of them


@pytest.fixture(params=[Http1Transport, HttpxTransport])
async def transport(request: pytest.FixtureRequest) -> AsyncIterator[Transport]:
    """Either of them."""
    # addresses only: no name is looked up
    resolver = Resolver(nameservers=["127.0.0.1:1"], timeout=1)
    made: Transport = request.param(resolver=resolver, policy=EgressPolicy.dev())
    try:
        yield made
    finally:
        await made.aclose()
        await resolver.aclose()


async def post(transport: Transport, served: Endpoint, *, deadline: float) -> Response:
    target = parse(f"http://127.0.0.1:{served.server.port}/a")
    return await transport.send(Request(target=target, headers=(), body=b"{}", deadline=deadline), Timing())


@pytest.mark.parametrize("name", [name for name, fault in FAULTS.items() if fault.expects])
async def test_our_transport_makes_of_it_what_a_good_sender_does(transport: Transport, name: str) -> None:
    fault = FAULTS[name]
    is_slow = fault.expects == "timeout" or name == "drip"
    async with endpoint(name + NEEDED.get(name, "")) as served:
        deadline = 0.15 if is_slow else 15.0
        if fault.expects in {"success", "http_error"}:
            response = await post(transport, served, deadline=deadline)
            assert (response.status < 300) == (fault.expects == "success")
            assert len(response.body) <= MAX_BODY_BYTES
            assert response.complete == (name not in {"cut", "drip", "huge", "wrong-length", "chunked-junk"})
        else:
            with pytest.raises(SendError) as caught:
                await post(transport, served, deadline=deadline)
            assert caught.value.outcome.value == fault.expects, caught.value.detail
        assert len(served.requests) == 1
        assert served.requests[0].body == b"{}"


async def test_our_transport_does_not_take_the_second_answer_for_the_next_request(transport: Transport) -> None:
    async with endpoint("path:second-answer,201") as served:
        assert (await post(transport, served, deadline=3.0)).body == b"ok"
        assert (await post(transport, served, deadline=3.0)).status == 201
    assert [request.connection for request in served.requests] == [1, 2]


@pytest.mark.parametrize("name", ["huge", "gzip-bomb", "endless-headers", "interim-flood"])
async def test_our_transport_reads_within_bounds(transport: Transport, name: str) -> None:
    async with endpoint(name) as served:
        tracemalloc.start()
        try:
            with suppress(SendError):
                await post(transport, served, deadline=1.0)
            # the server is in here, too; what is sent is 100 MiB, and what it unpacks to 10 MiB
            assert tracemalloc.get_traced_memory()[1] < 9_000_000
        finally:
            tracemalloc.stop()


# scripts


async def test_a_script_over_the_wire() -> None:
    async with endpoint("500,close,ok") as served:
        assert (await ask(served, most=12)) == b"HTTP/1.1 500"
        assert (await ask(served)) == b""
        for _ in range(2):
            assert (await ask(served, most=len(WELL))) == WELL


def test_each_delivery_has_a_script_of_its_own() -> None:
    script = Script.parse("500, 502 ,200")
    assert names(script, 4, received("one")) == ["500", "502", "ok", "ok"]
    assert names(script, 2, received("two")) == ["500", "502"]
    assert names(script, 1, received("two", path="/b")) == ["ok"]
    assert names(script, 1, received("three", name="webhook-id")) == ["500"]
    assert names(script, 1, received("three", name="x-webhook-DELIVERY")) == ["502"]
    # without an id: by path
    assert names(script, 2, received(path="/a?x=1")) == ["500", "502"]
    assert names(script, 1, received(path="/a?x=2")) == ["ok"]
    assert names(script, 1, received("/a")) == ["500"]


def test_a_script_counted_by_path() -> None:
    script = Script.parse("path: 500,502,ok")
    assert names(script, 1, received("one")) + names(script, 1, received("two")) == ["500", "502"]
    assert names(script, 1, received("one", path="/b")) == ["500"]


def test_deliveries_are_forgotten_when_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scripts, "_MAX_COUNTED", 2)
    script = Script.parse("500,ok")
    for delivery in ("one", "two", "one", "three" * 10_000):
        names(script, 1, received(delivery))
    assert names(script, 1, received("one")) == ["ok"]
    assert names(script, 1, received("two")) == ["500"]


def test_a_bare_200_is_an_endpoint_in_good_health() -> None:
    assert names(Script.parse("200"), 1) == ["ok"]
    assert names(Script.parse("200;body=x"), 1) == ["200"]
    assert names(Script.parse("202"), 1) == ["202"]


def test_up_and_down_in_turn_whoever_asks() -> None:
    script = Script.parse("flap;up=2;down=1;status=500")
    drawn = [names(script, 1, received(f"{n}"))[0] for n in range(7)]
    assert drawn == ["ok", "ok", "500", "ok", "ok", "500", "ok"]


def test_lots_are_drawn_alike_for_the_same_seed() -> None:
    drawn = [names(Script.parse(f"random;seed={seed}"), 60) for seed in (7, 7, 8)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert set(drawn[0]) > {"ok", "500", "reset"}
    assert set(names(Script.parse("random;among=ok/drip"), 30)) == {"ok", "drip"}


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "the script is empty; it names statuses and faults, such as 500,500,200"),
        ("path:", "the script is empty; it names statuses and faults, such as 500,500,200"),
        ("500,,200", "step 2 of the script: there is no fault ''; there are status, late, redirect,"),
        (",500", "step 1 of the script: there is no fault ''"),
        ("500,dripp", "step 2 of the script: there is no fault 'dripp'; did you mean drip?"),
        ("50", "step 1 of the script: there is no fault '50'; there are"),
        ("1000", "step 1 of the script: there is no fault '1000'; there are"),
        ("\x1b[2J", r"step 1 of the script: there is no fault '\x1b[2J'; there are"),
        ("drip;often=1", "step 1 of the script: drip: there is no setting 'often'; it has every, status, for"),
        ("reset;x=1", "step 1 of the script: reset: there is no setting 'x'; it has none"),
        ("drip;every", "step 1 of the script: a setting is written as name=value"),
        ("drip;", "step 1 of the script: a setting is written as name=value"),
        ("drip;every=1;every=2", "step 1 of the script: the setting 'every' stands there twice"),
        ("drip;every=-0.1", "step 1 of the script: drip: 'every' has to be a number from 0 to 3600"),
        ("drip;every=nan", "step 1 of the script: drip: 'every' has to be a number from 0 to 3600"),
        ("hang;for=3601", "step 1 of the script: hang: 'for' has to be a number from 0 to 3600"),
        ("429;retry-after=1.5", "step 1 of the script: 429: 'retry-after' has to be a whole number from 0 to"),
        ("429;retry-after=1;retry-after-raw=x", "step 1 of the script: 429: only one of 'retry-after',"),
        ("429;code=500", "step 1 of the script: 429: the status is said twice"),
        ("status;code=99", "step 1 of the script: status: 'code' has to be a whole number from 100 to 999"),
        ("redirect;status=304", "step 1 of the script: redirect: 'status' has to be one of 301, 302, 303, 307, 308"),
        ("redirect;to=s3cret\r\nX: y", "step 1 of the script: redirect: 'to' has to be printable ASCII"),
        ('redirect;to="s3cret', "the script has a double quote that is not closed"),
        ('redirect;to=s3"c"ret', "step 1 of the script: the value of 'to' has a double quote within"),
        ("interim-flood;status=101", "step 1 of the script: interim-flood: 'status' has to be an interim one, 101"),
        ("until-rotated", "step 1 of the script: until-rotated: 'secret' has to be there: the one that the endpoint"),
        ("until-rotated;secret=", "step 1 of the script: until-rotated: 'secret' has to be there"),
        ("until-rotated;secret=s3cr\u00e9t", "step 1 of the script: until-rotated: 'secret' has to be printable ASCII"),
        ("until-rotated;secret=s3cret;scheme=rot13", "step 1 of the script: until-rotated: 'scheme' has to be one of"),
        ("until-rotated;secret=s3cret;scheme=s3cret", "step 1 of the script: until-rotated: 'scheme' has to be one of"),
        ("until-rotated;secret=s3cret;status=200", "step 1 of the script: until-rotated: 'status' has to be a whole"),
        (
            "until-rotated;secret=s3cret;scheme=standard-ed25519",
            "step 1 of the script: until-rotated: 'secret': a public key is `whpk_` and the base64 of 32 bytes",
        ),
        ("until-rotated;secrets=s3cret", "step 1 of the script: until-rotated: there is no setting 'secrets'; it has"),
        ("flap;up=0;down=0", "step 1 of the script: flap: 'up' and 'down' cannot both be 0"),
        ("random;among=ok/x", "step 1 of the script: random: 'among': there is no fault 'x'; there are"),
        ("random;among=flap", "step 1 of the script: random: 'among' cannot have what draws itself"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_script(text: str, error: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Script.parse(text)
    assert str(caught.value).startswith(error)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "script",
    ["until-rotated;secret=hid,den", "until-rotated;secret=hid,ok,den;every=1", "until-rotated;secret=hid;den=1"],
)
def test_half_a_secret_is_not_shown(script: str) -> None:
    """Without quotes a comma makes a step of the rest of it, and a semicolon a setting."""
    with pytest.raises(ConfigError, match=r"a secret with a (comma|semicolon) stands in double quotes") as caught:
        Script.parse(script)
    assert "den" not in str(caught.value)


def test_a_script_shows_no_values() -> None:
    script = Script.parse("redirect;to=/s3cret,429;retry-after=1")
    assert repr(script) == "Script(redirect, 429)"
    assert "s3cret" not in repr(script.steps)
    script = Script.parse("until-rotated;secret=s3cret")
    assert "s3cret" not in repr((script, script.steps, script.steps[0].behaviour))
