"""The hot routes do for themselves what the framework does elsewhere: headers, bodies in any pieces, and answers."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from dispatcher import metrics, tokens
from dispatcher.api.acceptance import Acceptance, Parcel
from dispatcher.api.auth import Authenticator
from dispatcher.api.hot import accepted
from dispatcher.api.intake import Intake
from dispatcher.api.reading import header, read_body
from dispatcher.api.services import Services
from dispatcher.config import Settings
from dispatcher.errors import Problem, StoreUnavailable
from dispatcher.installation import Installation, open_installation
from dispatcher.models import lane_of
from dispatcher.store import accounts
from dispatcher.store.records import Callback, Endpoint, LeasedDelivery, NewTask, Replayed
from tests.support.api import client_of, stored
from tests.support.receiver import Receiver
from tests.support.server import Server, until
from tests.support.stores import new_task

NAMES = [b"authorization", b"idempotency-key", b"traceparent", b"content-length"]


def request(headers: Iterable[tuple[bytes, bytes]] = (), messages: Iterable[dict[str, Any]] = ()) -> Request:
    waiting = iter(messages)

    async def receive() -> dict[str, Any]:
        return next(waiting)

    return Request({"type": "http", "method": "POST", "path": "/tasks", "headers": list(headers)}, receive)


# --- headers ----------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.sampled_from([*NAMES, b"host"]), st.binary(max_size=8)), max_size=8))
def test_headers_are_read_as_starlette_reads_them(headers: list[tuple[bytes, bytes]]) -> None:
    one = request(headers)
    for name in NAMES:
        assert header(one, name) == one.headers.get(name.decode())


# --- bodies -----------------------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=5), max_size=6), st.integers(0, 30))
async def test_a_body_is_read_whole_or_not_beyond_its_limit(pieces: list[bytes], limit: int) -> None:
    messages = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    messages.append({"type": "http.request"})
    read = 0

    def counted() -> Iterator[dict[str, Any]]:
        nonlocal read
        for message in messages:
            read += 1
            yield message

    one = request(messages=counted())
    if len(b"".join(pieces)) <= limit:
        assert await read_body(one, limit=limit) == b"".join(pieces)
        return
    with pytest.raises(Problem) as caught:
        await read_body(one, limit=limit)
    assert caught.value.slug == "too-large"
    assert len(b"".join(pieces[: read - 1])) <= limit


async def test_a_length_that_is_too_much_is_refused_unread() -> None:
    with pytest.raises(Problem) as caught:
        await read_body(request([(b"content-length", b"11")], messages=[]), limit=10)
    assert caught.value.slug == "too-large"


async def test_a_caller_that_goes_away_is_no_end_of_a_body() -> None:
    half = {"type": "http.request", "body": b"{", "more_body": True}
    with pytest.raises(ClientDisconnect):
        await read_body(request(messages=[half, {"type": "http.disconnect"}]), limit=10)


# --- on the wire ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[httpx.Client]:
    with client_of(server, "hot") as running:
        yield running


def head_of(client: httpx.Client, request: str, *headers: bytes, version: str = "HTTP/1.1") -> bytes:
    """The head of a request, as it is written."""
    head = f"{request} {version}\r\nHost: x\r\nAuthorization: {client.headers['Authorization']}\r\n".encode()
    return head + b"".join(line + b"\r\n" for line in headers) + b"\r\n"


class Line:
    """A connection on which a request is written byte for byte."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client
        self._socket = socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=20)

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def post(self, path: str, *headers: bytes) -> None:
        self._socket.sendall(head_of(self._client, f"POST {path}", *headers))

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def heard(self, enough: bytes) -> bytes:
        """What came, up to and with `enough`."""
        found = b""
        while enough not in found:
            piece = self._socket.recv(65_536)
            assert piece, found
            found += piece
        return found

    def heard_to_the_end(self) -> bytes:
        """What came until the other side closed."""
        return b"".join(iter(lambda: self._socket.recv(65_536), b""))


def body_of(receiver: Receiver, **fields: Any) -> bytes:
    return json.dumps({"payload": {"n": 1}, "callback_url": receiver.url, **fields}).encode()


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_a_body_in_chunks_is_taken(client: httpx.Client, receiver: Receiver, size: int) -> None:
    body = body_of(receiver)
    with Line(client) as line:
        line.post("/tasks", b"Transfer-Encoding: chunked")
        for at in range(0, len(body), size):
            piece = body[at : at + size]
            line.send(b"%x\r\n%s\r\n" % (len(piece), piece))
        line.send(b"0\r\n\r\n")
        assert line.heard(b"}}").startswith(b"HTTP/1.1 202 ")
    assert until(lambda: receiver.received)[0].body == b'{"n": 1}'


def test_a_caller_that_asks_first_is_told_to_go_on(client: httpx.Client, receiver: Receiver) -> None:
    body = body_of(receiver)
    with Line(client) as line:
        line.post("/tasks", b"Expect: 100-continue", b"Content-Length: %d" % len(body))
        assert line.heard(b"\r\n\r\n").startswith(b"HTTP/1.1 100 ")
        line.send(body)
        assert line.heard(b"}}").startswith(b"HTTP/1.1 202 ")


@pytest.mark.parametrize("path", ["/tasks", "/tasks/batch", "/events", "/events/batch"])
def test_a_caller_that_asks_first_is_not_asked_for_too_much(client: httpx.Client, path: str) -> None:
    with Line(client) as line:
        line.post(path, b"Expect: 100-continue", b"Content-Length: 99999999")
        assert line.heard(b"}]}").startswith(b"HTTP/1.1 413 ")


def test_a_request_that_breaks_off_stores_nothing(client: httpx.Client, receiver: Receiver) -> None:
    untouched, body = stored(client), body_of(receiver)
    with Line(client) as line:
        line.post("/tasks", b"Content-Length: %d" % (len(body) + 1))
        line.send(body)
    assert client.post("/tasks", content=b"{}").status_code == 422
    assert stored(client) == untouched


def test_of_two_keys_the_first_one_counts(client: httpx.Client, receiver: Receiver) -> None:
    body = body_of(receiver)
    with Line(client) as line:
        line.post("/tasks", b"Idempotency-Key: one", b"Idempotency-Key: two", b"Content-Length: %d" % len(body))
        line.send(body)
        assert line.heard(b"}}").startswith(b"HTTP/1.1 202 ")
    replayed = [
        client.post("/tasks", content=body, headers={"Idempotency-Key": key}).headers.get("idempotency-replayed")
        for key in ("one", "two")
    ]
    assert replayed == ["true", None]


def test_requests_that_come_together_are_answered_in_their_order(client: httpx.Client, receiver: Receiver) -> None:
    body = body_of(receiver)
    task = head_of(client, "POST /tasks", b"Content-Length: %d" % len(body)) + body
    broken = head_of(client, "POST /events", b"Content-Length: 1") + b"{"
    account = head_of(client, "GET /account")
    with Line(client) as line:
        line.send(task + account + broken + task + head_of(client, "GET /healthz", b"Connection: close"))
        statuses = [head[:3] for head in line.heard_to_the_end().split(b"HTTP/1.1 ")[1:]]
    assert statuses == [b"202", b"200", b"422", b"202", b"200"]


def test_a_task_is_answered_as_one_whatever_follows_it(client: httpx.Client, receiver: Receiver) -> None:
    body, before = body_of(receiver), stored(client)["accepted"]
    task = head_of(client, "POST /tasks", b"Content-Length: %d" % len(body)) + body
    chunked = head_of(client, "POST /tasks", b"Transfer-Encoding: chunked") + b"%x\r\n%s\r\n" % (len(body), body)
    upgrade = head_of(client, "POST /tasks", b"Connection: upgrade", b"Upgrade: h2c", b"Content-Length: %d" % len(task))
    for rest in (b"\x00\r\n\r\n", chunked + b"no length\r\n", upgrade + task):
        with Line(client) as line:
            line.send(task + rest)
            assert [head[:3] for head in line.heard_to_the_end().split(b"HTTP/1.1 ")[1:]] == [b"202"]
    assert stored(client)["accepted"] == before + 3


def test_each_of_many_that_come_together_has_its_own_answer(client: httpx.Client, receiver: Receiver) -> None:
    good = body_of(receiver)
    same = (b"Idempotency-Key: together",)
    cases: list[tuple[bytes, tuple[bytes, ...], bytes]] = [
        (good, (), b"202"),
        (b"{", (), b"422"),
        (b"[" * 100_000, (), b"422"),
        (b'{"callback_url": "https://user@x.example/", "payload": 1}', (), b"422"),
        (good, (b"Authorization: Basic eDp5",), b"401"),
        (good, (b"Authorization: Bearer eyJ",), b"401"),
        (good, (b"Idempotency-Key: \xff",), b"422"),
        *[(good, same, b"202")] * 3,
        (b"{", same, b"422"),
    ] * 3
    with ExitStack() as stack:
        lines = [stack.enter_context(Line(client)) for _ in cases]
        for line, (body, headers, _) in zip(lines, cases, strict=True):
            length = b"Content-Length: %d\r\n" % len(body)
            own = b"".join(header + b"\r\n" for header in headers)
            # of two headers the first one counts
            line.send(b"POST /tasks HTTP/1.1\r\n" + own + length + head_of(client, "").partition(b"\r\n")[2] + body)
        heads = [line.heard(b"\r\n\r\n") for line in lines]
    assert [head[9:12] for head in heads] == [status for _, _, status in cases]
    keyed = [head for head, case in zip(heads, cases, strict=True) if case[1:] == (same, b"202")]
    assert [b"\r\nidempotency-replayed: true" in head for head in keyed].count(False) == 1


@pytest.mark.parametrize(("version", "header"), [("HTTP/1.1", b"Connection: close"), ("HTTP/1.0", b"Accept: */*")])
def test_a_line_is_closed_when_the_caller_wants_that(
    client: httpx.Client, receiver: Receiver, version: str, header: bytes
) -> None:
    body = body_of(receiver)
    with Line(client) as line:
        line.send(head_of(client, "POST /tasks", header, b"Content-Length: %d" % len(body), version=version) + body)
        head, _, answer = line.heard_to_the_end().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 202 Accepted\r\n")
    assert head.lower().count(b"\r\nconnection: close") == 1
    assert json.loads(answer)["id"]


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("path", ["/tasks", "/tasks/batch", "/events", "/events/batch"])
def test_other_methods_are_not_taken(client: httpx.Client, path: str, method: str) -> None:
    answer = client.request(method, path)
    assert (answer.status_code, answer.headers["content-type"]) == (405, "application/problem+json")


def test_an_answer_has_the_headers_of_any_other(client: httpx.Client, receiver: Receiver) -> None:
    body, key = body_of(receiver), {"Idempotency-Key": "headers"}
    first, again = (client.post("/tasks", content=body, headers=key) for _ in range(2))
    for answer in (first, again):
        assert answer.status_code == 202
        assert answer.headers["content-type"] == client.get("/account").headers["content-type"] == "application/json"
        assert answer.headers["location"] == f"/tasks/{first.json()['id']}"
        assert int(answer.headers["content-length"]) == len(answer.content)
        assert "date" in answer.headers
    assert (first.headers.get("idempotency-replayed"), again.headers["idempotency-replayed"]) == (None, "true")


def test_an_answer_to_many_has_no_place() -> None:
    found = accepted(b'{"items":[]}', replayed=True)
    assert "location" not in found.headers
    assert found.headers["idempotency-replayed"] == "true"


# --- tokens -----------------------------------------------------------------------------------------------


@pytest.fixture
async def installation(tmp_path: Path) -> Any:
    opened = await open_installation(Settings(data_dir=tmp_path / "data"))
    yield opened
    await opened.database.close()


async def bearing(installation: Installation) -> Request:
    token = await tokens.issue(installation, account="acme", scopes=["tasks:write"], actor="test")
    return request([(b"authorization", f"Bearer {token}".encode())])


async def test_those_that_wait_share_one_look(installation: Installation) -> None:
    auth, one = Authenticator(installation), await bearing(installation)
    first, *others = await asyncio.gather(*(auth.caller(one, scope="tasks:write") for _ in range(20)))
    assert first.account == "acme"
    assert all(other is first for other in others)
    assert await auth.caller(one) is first


async def test_one_that_goes_away_leaves_the_look_to_the_others(installation: Installation) -> None:
    auth, one = Authenticator(installation), await bearing(installation)
    impatient, patient = (asyncio.create_task(auth.caller(one)) for _ in range(2))
    await asyncio.sleep(0)
    impatient.cancel()
    assert (await patient).account == "acme"
    with pytest.raises(asyncio.CancelledError):
        await impatient


async def test_all_that_wait_are_refused_together(installation: Installation) -> None:
    auth, one = Authenticator(installation), await bearing(installation)
    caller = await auth.caller(one)
    await accounts.revoke_token(installation.database, caller.jti, actor="test")
    fresh = Authenticator(installation)
    for _ in range(2):
        answers = await asyncio.gather(*(fresh.caller(one) for _ in range(5)), return_exceptions=True)
        assert [getattr(answer, "slug", None) for answer in answers] == ["unauthorized"] * 5


# --- faults of ours ---------------------------------------------------------------------------------------


class Faulty:
    """Stands for who delivers and who stores, and fails where it is told to. What it stores is on disk at once."""

    session = "here"

    def __init__(self, *broken: str) -> None:
        self.broken = broken
        self.lanes: list[str] = []
        self.handed_off: list[str] = []
        self.expected = 0

    @property
    def services(self) -> Services:
        return cast("Services", SimpleNamespace(engine=self, store=self, settings=Settings()))

    def _try(self, step: str) -> None:
        if step in self.broken:
            raise RuntimeError(step)

    def reserve(self, lane: str, _size: int) -> bool:
        self._try(f"reserve {lane}")
        self.lanes.append(lane)
        return True

    def cancel_reservation(self, lane: str, _size: int) -> None:
        self.lanes.remove(lane)
        self._try(f"cancel {lane}")

    def hand_off(self, deliveries: Sequence[LeasedDelivery]) -> None:
        self._try("hand_off")
        for delivery in deliveries:
            self.lanes.remove(delivery.lane)
            self.handed_off.append(delivery.lane)

    def expect(self, count: int) -> None:
        self._try("expect")
        self.expected += count

    def accept(self, parcels: Sequence[Parcel], *, then: Callable[[Parcel, Replayed | Exception | None], None]) -> None:
        for parcel in parcels:
            then(parcel, StoreUnavailable("full") if f"store {parcel.answer.decode()}" in self.broken else None)


def origin(name: str) -> str:
    return f"https://{name}.example"


def lane(name: str) -> str:
    return lane_of("acme", origin(name))


async def submitted(faulty: Faulty, *parcels: str) -> list[str]:
    """What each is told; each letter of a parcel is a task of its."""
    told: dict[str, str] = {}

    def parcel(names: str) -> Parcel:
        tasks: list[NewTask] = [new_task(account="acme", origin=origin(name)) for name in names]
        return Parcel(
            tasks=tasks,
            key=None,
            answer=names.encode(),
            reply=lambda result: told.update({names: "stored" if result is None else type(result).__qualname__}),
        )

    Acceptance(faulty.services).submit([parcel(names) for names in parcels])
    await asyncio.sleep(0)
    return [told.get(names, "nothing") for names in parcels]


@pytest.mark.parametrize("step", ["hand_off", "expect", "inc", "of_callback"])
async def test_what_is_on_disk_is_answered_whatever_fails_then(monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError(step)

    if step == "inc":
        monkeypatch.setattr(metrics.tasks_accepted, step, fails)
    if step == "of_callback":
        monkeypatch.setattr(Endpoint, step, fails)
    faulty = Faulty(step)
    assert await submitted(faulty, "a", "bc") == ["stored", "stored"]
    if step != "hand_off":
        assert faulty.lanes == [], "places are filled or given back"


async def test_one_that_cannot_be_handed_off_is_no_matter_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Endpoint.of_callback

    def half_broken(callback: Callback, *, account: str) -> Endpoint:
        if callback.origin == origin("c"):
            raise RuntimeError
        return whole(callback, account=account)

    monkeypatch.setattr(Endpoint, "of_callback", half_broken)
    faulty = Faulty()
    assert await submitted(faulty, "a", "bc", "d") == ["stored"] * 3
    assert (faulty.handed_off, faulty.lanes) == ([lane("a"), lane("d")], [])


async def test_a_place_is_given_back_when_a_later_one_cannot_be_had() -> None:
    faulty = Faulty(f"reserve {lane('d')}")
    assert await submitted(faulty, "a", "bcd", "e") == ["stored", "RuntimeError", "stored"]
    assert (faulty.handed_off, faulty.lanes) == ([lane("a"), lane("e")], [])


async def test_every_place_is_given_back_though_one_of_them_fails() -> None:
    faulty = Faulty("store bcd", f"cancel {lane('b')}")
    assert await submitted(faulty, "a", "bcd") == ["stored", "StoreUnavailable"]
    assert (faulty.handed_off, faulty.lanes) == ([lane("a")], [])


class Asking:
    """A request without a token, whose connection takes no answer if it is broken."""

    def __init__(self, *, broken: bool) -> None:
        self.scope: dict[str, Any] = {"method": "POST", "headers": []}
        self.statuses: list[int] = []
        self._broken = broken

    def whole_body(self) -> bytes | None:
        return b""

    def wait(self) -> None:
        self.statuses.append(0)

    def answer(self, response: Response) -> None:
        if self._broken:
            raise RuntimeError
        self.statuses.append(response.status_code)


async def test_one_that_cannot_be_answered_is_no_matter_of_the_others(installation: Installation) -> None:
    services = cast("Services", SimpleNamespace(**vars(Faulty().services), auth=Authenticator(installation)))
    intake, visits = Intake(services), [Asking(broken=broken) for broken in (False, True, False)]
    for visit in visits:
        intake.take(visit)
    await asyncio.sleep(0)
    assert [visit.statuses for visit in visits] == [[401], [], [401]]
