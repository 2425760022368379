from __future__ import annotations

import asyncio
import base64
import logging
import socket
import warnings
from collections.abc import AsyncIterator, MutableMapping
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount

from dispatcher.conformance.receiver.asgi import MAX_BODY, Protected, protected
from dispatcher.conformance.receiver.defences import DEFENCES, Judgement, Policy
from dispatcher.conformance.signatures.schemes import Key, sign
from dispatcher.conformance.wire.requests import Received
from dispatcher.errors import ConfigError

NOW = 1_700_000_000
KEY = Key(secret="whsec_" + base64.b64encode(b"k" * 24).decode())
BODY = b'{"type": "ping"}'
#: seconds after which something that should come is missing
SOON = 5.0


class Work:
    """What processes, as tests want it."""

    def __init__(self, *, fails: int = 0) -> None:
        self.requests: list[Received] = []
        self.fails = fails

    async def __call__(self, request: Received) -> None:
        self.requests.append(request)
        if self.fails:
            self.fails -= 1
            raise RuntimeError(f"cannot: {request.body!r}")


class Slow(Work):
    """Begins, and waits to be let go."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.go = asyncio.Event(), asyncio.Event()

    async def __call__(self, request: Received) -> None:
        self.begun.set()
        await self.go.wait()
        await super().__call__(request)


def signed(delivery: str = "d1", body: bytes = BODY) -> dict[str, str]:
    made = sign(
        "standard",
        KEY,
        method="POST",
        url="https://receiver.test/hooks",
        headers=(),
        body=body,
        message_id=delivery,
        timestamp=NOW,
    )
    return {"Content-Type": "application/json", "X-Webhook-Delivery": delivery, **dict(made)}


def policy(**changed: Any) -> Policy:
    values: dict[str, Any] = {
        "signature_schemes": ("standard",),
        "keys": (KEY,),
        "tolerance": 300,
        "replay": "refuse",
        "max_body_bytes": 64,
    }
    return Policy(**{**values, **changed})


def guarded(work: Work, settings: Policy | None = None, **changed: Any) -> Protected:
    return protected(work, settings or policy(), clock=lambda: NOW, **changed)


def client(app: Any, **settings: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app, **settings), base_url="https://receiver.test")


def counts(app: Protected) -> dict[str, int]:
    names = ("accepted", "repeats", "refused", "processed", "failures", "pending")
    return {name: value for name in names if (value := getattr(app, name))}


async def test_what_is_accepted_is_processed_once() -> None:
    work, told = Work(), list[tuple[Received, Judgement]]()
    app = guarded(work, on_judgement=lambda request, judgement: told.append((request, judgement)))
    async with client(app) as http:
        first = await http.post("/hooks?x=1", content=BODY, headers=signed())
        second = await http.post("/hooks?x=1", content=BODY, headers=signed())
        forged = await http.post("/hooks", content=BODY, headers={**signed("d2"), "webhook-signature": "v1,AAAA"})
    assert [answer.status_code for answer in (first, second, forged)] == [202, 409, 401]
    assert forged.headers["content-type"] == "application/problem+json"
    assert forged.json()["defence"] == "signature"
    assert first.headers["content-length"] == "0"
    assert counts(app) == {"accepted": 1, "refused": 2, "processed": 1}
    assert [request.number for request, _ in told] == [1, 2, 3]
    assert told[0][1].passed == ("method", "limits", "signature", "timestamp", "replay")
    assert set(told[0][1].passed + told[0][1].off) == set(DEFENCES)
    assert [request.number for request in work.requests] == [1]


async def test_a_handshake_is_answered_and_not_processed() -> None:
    work = Work()
    app = guarded(
        work, policy(handshake_origins=("sender.test",), handshake_rate=60, content_types=("application/json",))
    )
    asked = {"WebHook-Request-Origin": "sender.test", "WebHook-Request-Rate": "120"}
    async with client(app) as http:
        granted = await http.options("/hooks", headers=asked)
        denied = await http.options("/hooks", headers={"WebHook-Request-Origin": "other.test"})
        other = await http.get("/hooks")
        typed = await http.post("/hooks", content=BODY, headers={**signed(), "Content-Type": "text/plain"})
        taken = await http.post("/hooks", content=BODY, headers=signed())
    assert [one.status_code for one in (granted, denied, other, typed, taken)] == [200, 403, 405, 415, 202]
    names = ("allow", "webhook-allowed-origin", "webhook-allowed-rate")
    assert [granted.headers[name] for name in names] == ["POST", "sender.test", "60"]
    assert "webhook-allowed-origin" not in denied.headers
    assert other.headers["allow"] == "POST"
    assert counts(app) == {"accepted": 1, "refused": 3, "processed": 1}


async def test_what_a_request_looks_like() -> None:
    work = Work()
    async with client(protected(work, Policy()), client=("192.0.2.7", 4711)) as http:
        url = "https://receiver.test/a%2Fb/ü?x=%20&y"
        headers = [(b"X-One", b"1"), (b"X-Two", b"\xfc"), (b"x-one", b" 2 ")]
        await http.send(httpx.Request("POST", url, content=BODY, headers=headers))
    [one] = work.requests
    assert (one.method, one.target, one.remote, one.is_tls) == ("POST", "/a%2Fb/%C3%BC?x=%20&y", "192.0.2.7", True)
    assert (one.values("x-one"), one.header("X-TWO")) == (["1", "2"], "ü")
    assert [name.lower() for name, _ in one.headers if name.lower().startswith("x-")] == ["x-one", "x-two", "x-one"]
    assert (one.body, one.is_complete) == (BODY, True)
    head, _, body = one.raw.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert lines[0] == b"POST /a%2Fb/%C3%BC?x=%20&y HTTP/1.1"
    assert len(lines) == 1 + len(one.headers)
    assert body == BODY


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


@pytest.mark.parametrize(
    ("settings", "size", "is_chunked", "status"),
    [
        (Policy(max_body_bytes=8), 8, False, 202),
        (Policy(max_body_bytes=8), 9, False, 413),
        (Policy(max_body_bytes=8), 8, True, 202),
        (Policy(max_body_bytes=8), 9, True, 413),
        (Policy(), MAX_BODY, False, 202),
        (Policy(), MAX_BODY + 1, False, 413),
        (Policy(), MAX_BODY + 1, True, 413),
    ],
)
async def test_bodies_are_bounded(settings: Policy, size: int, is_chunked: bool, status: int) -> None:
    work = Work()
    app = protected(work, settings)
    half = size // 2
    async with client(app) as http:
        content = chunks(b"x" * half, b"x" * (size - half)) if is_chunked else b"x" * size
        answer = await http.post("/", content=content)
    assert answer.status_code == status
    assert len(work.requests) == (status == 202)
    if status == 413:
        assert answer.json()["defence"] == "limits"
        assert answer.headers["connection"] == "close"
        assert counts(app) == {"refused": 1}


async def test_of_a_body_that_is_announced_too_large_nothing_is_read() -> None:
    sent: list[MutableMapping[str, Any]] = []

    async def receive() -> MutableMapping[str, Any]:
        pytest.fail("it was read")

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    await guarded(Work())(
        {"type": "http", "method": "POST", "path": "/", "headers": [(b"content-length", b"65")]}, receive, send
    )
    assert sent[0]["status"] == 413


async def test_a_client_that_leaves_amid_its_body_is_not_judged() -> None:
    messages: list[MutableMapping[str, Any]] = [
        {"type": "http.request", "body": b"{", "more_body": True},
        {"type": "http.disconnect"},
    ]

    async def receive() -> MutableMapping[str, Any]:
        return messages.pop(0)

    async def send(message: MutableMapping[str, Any]) -> None:
        pytest.fail("it was answered")

    work = Work()
    app = protected(work, Policy())
    await app({"type": "http", "method": "POST", "path": "/", "headers": []}, receive, send)
    assert (counts(app), work.requests) == ({}, [])


async def test_a_failure_is_counted_and_the_next_attempt_is_a_first(caplog: pytest.LogCaptureFixture) -> None:
    work = Work(fails=1)
    app = guarded(work)
    with caplog.at_level(logging.DEBUG):
        async with client(app) as http:
            statuses = [(await http.post("/", content=BODY, headers=signed())).status_code for _ in range(3)]
    assert statuses == [202, 202, 409]
    assert counts(app) == {"accepted": 2, "refused": 1, "processed": 1, "failures": 1}
    assert "RuntimeError" in caplog.text
    assert "ping" not in caplog.text


async def test_a_hundred_at_once_are_processed_once() -> None:
    work = Work()
    app = guarded(work, policy(replay="quiet"))
    async with client(app) as http:
        answers = await asyncio.gather(*(http.post("/", content=BODY, headers=signed()) for _ in range(100)))
    assert {answer.status_code for answer in answers} == {202}
    assert counts(app) == {"accepted": 100, "repeats": 99, "processed": 1}
    assert len(work.requests) == 1


class Lifespan:
    """Runs an application's lifespan, as a server does."""

    def __init__(self, app: Protected) -> None:
        self._app = app
        self._in: asyncio.Queue[MutableMapping[str, Any]] = asyncio.Queue()
        self._out: asyncio.Queue[MutableMapping[str, Any]] = asyncio.Queue()

    async def __aenter__(self) -> Lifespan:
        self._task = asyncio.create_task(self._app({"type": "lifespan"}, self._in.get, self._out.put))
        await self._in.put({"type": "lifespan.startup"})
        assert (await asyncio.wait_for(self._out.get(), SOON))["type"] == "lifespan.startup.complete"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._in.put({"type": "lifespan.shutdown"})
        assert (await asyncio.wait_for(self._out.get(), SOON))["type"] == "lifespan.shutdown.complete"
        await asyncio.wait_for(self._task, SOON)


async def test_with_a_lifespan_the_answer_does_not_wait() -> None:
    work = Slow()
    app = guarded(work, max_pending=1)
    async with client(app) as http, Lifespan(app):
        answer = await asyncio.wait_for(http.post("/", content=BODY, headers=signed()), SOON)
        assert answer.status_code == 202
        await asyncio.wait_for(work.begun.wait(), SOON)
        assert counts(app) == {"accepted": 1, "pending": 1}
        # what there is no room for is not taken, and not remembered either
        full = await http.post("/", content=BODY, headers=signed("d2"))
        assert (full.status_code, full.headers["retry-after"]) == (503, "1")
        work.go.set()
        await asyncio.wait_for(app.drain(SOON), SOON)
        assert (await http.post("/", content=BODY, headers=signed("d2"))).status_code == 202
    assert counts(app) == {"accepted": 2, "refused": 1, "processed": 2}


async def test_the_end_waits_and_then_cuts_off() -> None:
    work = Slow()
    app = guarded(work, grace=0.05)
    async with client(app) as http, Lifespan(app):
        assert (await http.post("/", content=BODY, headers=signed())).status_code == 202
    assert counts(app) == {"accepted": 1, "failures": 1}


async def test_without_a_lifespan_processing_is_through_when_the_call_is() -> None:
    work = Slow()
    work.go.set()
    app = guarded(work)
    async with client(app) as http:
        await http.post("/", content=BODY, headers=signed())
        assert counts(app) == {"accepted": 1, "processed": 1}


def test_with_starlettes_client() -> None:
    with warnings.catch_warnings():
        # it would rather have httpx2
        warnings.simplefilter("ignore")
        from starlette.testclient import TestClient  # noqa: PLC0415 - it warns when it is imported

    work = Work()
    app = guarded(work)
    # without a lifespan, and below a prefix
    outer = TestClient(Starlette(routes=[Mount("/in", app=app)]))
    assert outer.post("/in/hooks", content=BODY, headers=signed()).status_code == 202
    assert [request.target for request in work.requests] == ["/in/hooks"]
    with TestClient(app) as inner:
        assert inner.post("/hooks?a=b", content=BODY, headers=signed("d2")).status_code == 202
        assert inner.post("/hooks?a=b", content=BODY, headers=signed("d2")).status_code == 409
    assert [request.target for request in work.requests] == ["/in/hooks", "/hooks?a=b"]
    assert counts(app) == {"accepted": 2, "refused": 1, "processed": 2}


async def test_websockets_are_turned_away() -> None:
    sent: list[MutableMapping[str, Any]] = []

    async def receive() -> MutableMapping[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    await guarded(Work())({"type": "websocket"}, receive, send)
    assert sent == [{"type": "websocket.close", "code": 1008}]


async def test_under_uvicorn() -> None:
    work = Slow()
    app = guarded(work, policy(allowed_networks=("127.0.0.1",)))
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, access_log=False, log_level="critical", lifespan="on"))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=SOON) as http:
            assert (await http.post("/a%2Fb?c", content=BODY, headers=signed())).status_code == 202
            assert (await http.post("/a%2Fb?c", content=BODY, headers=signed())).status_code == 409
            large = await http.post("/", content=b"x" * 65, headers=signed("d2"))
            assert large.status_code == 413
            chunked = await http.post("/", content=chunks(b"x" * 33, b"x" * 33), headers=signed("d2"))
            assert chunked.status_code == 413
        await asyncio.wait_for(work.begun.wait(), SOON)
        assert app.pending == 1
        work.go.set()
    finally:
        server.should_exit = True
        await asyncio.wait_for(serving, SOON)
        listener.close()
    assert [(one.target, one.remote, one.is_tls) for one in work.requests] == [("/a%2Fb?c", "127.0.0.1", False)]
    assert counts(app) == {"accepted": 1, "refused": 3, "processed": 1}


@pytest.mark.parametrize("settings", [{"max_pending": 0}, {"grace": -1}])
def test_wrong_settings(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        protected(Work(), Policy(), **settings)
