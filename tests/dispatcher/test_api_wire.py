"""What goes over the wire: bodies, headers, signatures, and the account's defaults for them."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any
from urllib.parse import parse_qs

import httpx
import pytest
from standardwebhooks import Webhook

from tests.support.api import Json, accept, client_of, delivery, ended, outcomes
from tests.support.patience import PROMPTLY
from tests.support.receiver import Received, Receiver, Reply
from tests.support.server import Server, until

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLw4V"
PLAIN = "not base64 at all!"
PAYLOAD = b'{"a" : 1e400, "a":\t18446744073709551616, "s":"\\u00e9\\/&=%"}'
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

Sent = Callable[..., tuple[Json, Received]]


@pytest.fixture
def sent(server: Server, receiver: Receiver) -> Iterator[Sent]:
    """Sends a relay task of an account of its own, and answers with the task and the request that came of it."""
    with client_of(server, f"wire-{receiver.port}") as client:

        def send(trace: str | None = None, **fields: Any) -> tuple[Json, Received]:
            more = b"".join(b',"%s":%s' % (name.encode(), json.dumps(value).encode()) for name, value in fields.items())
            content = b'{"payload": %s,"callback_url":"%s/cb"%s}' % (PAYLOAD, receiver.url.encode(), more)
            answer = client.post("/tasks", content=content, headers={"traceparent": trace} if trace else {})
            assert answer.status_code == 202, answer.text
            ended(client, answer.json()["delivery_id"])
            return answer.json(), receiver.received[-1]

        send.client = client  # type: ignore[attr-defined]  # for the tests that change the account
        yield send


def hub(secret: str, request: Received) -> str:
    return "sha256=" + hmac.new(secret.encode(), request.body, hashlib.sha256).hexdigest()


def members(request: Received) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(request.body)
    return found


# --- headers ----------------------------------------------------------------------------------------------


def test_the_headers_of_every_delivery(sent: Sent) -> None:
    made, request = sent()
    names = [name.lower() for name, _ in request.headers]
    assert sorted(names) == sorted(set(names))
    assert request.method == "POST"
    assert request.header("X-Webhook-Delivery") == made["delivery_id"]
    assert request.header("X-Webhook-Attempt") == "1"
    assert request.header("X-Webhook-Event") == "relay"
    assert abs(int(request.header("X-Webhook-Timestamp") or 0) - time.time()) < 10
    assert request.header("Content-Type") == "application/json"
    assert (request.header("User-Agent") or "").startswith("webhook-dispatcher/")
    assert request.header("Content-Length") == str(len(request.body))
    for absent in ("X-Hub-Signature", "webhook-signature", "webhook-id", "traceparent", "Cookie", "Authorization"):
        assert request.header(absent) is None


def test_custom_headers_and_the_trace_are_passed_on(sent: Sent) -> None:
    _, request = sent(TRACE, headers={"X-Secret": "s3cr3t", "Authorization": "Bearer abc", "X-A": ""})
    assert request.header("X-Secret") == "s3cr3t"
    assert request.header("Authorization") == "Bearer abc"
    assert request.header("X-A") == ""
    assert request.header("traceparent") == TRACE


@pytest.mark.parametrize("trace", ["garbage", TRACE.upper(), TRACE[:-1], "00-" + "0" * 32 + TRACE[35:], TRACE + "-x"])
def test_a_trace_that_is_not_valid_is_left_out(sent: Sent, trace: str) -> None:
    assert sent(trace)[1].header("traceparent") is None


# --- bodies -----------------------------------------------------------------------------------------------


def test_raw_is_the_default_and_is_the_payload(sent: Sent) -> None:
    assert sent()[1].body == sent(body="raw")[1].body == PAYLOAD


def test_envelope(sent: Sent) -> None:
    made, request = sent(body="envelope")
    assert b'"result":' + PAYLOAD + b"," in request.body
    found = members(request)
    assert list(found) == ["task_id", "type", "status", "result", "completed_at"]
    assert (found["task_id"], found["type"], found["status"]) == (made["id"], "relay", "succeeded")
    assert abs(datetime.fromisoformat(found["completed_at"]).timestamp() - time.time()) < 10


def test_cloudevents_binary(sent: Sent) -> None:
    made, request = sent(body="cloudevents-binary")
    assert request.body == PAYLOAD
    assert request.header("Content-Type") == "application/json"
    assert request.header("ce-specversion") == "1.0"
    assert request.header("ce-id") == made["delivery_id"]
    assert request.header("ce-type") == "relay"
    assert request.header("ce-source") == "/dispatcher"
    assert datetime.fromisoformat(request.header("ce-time") or "").tzinfo is not None


def test_cloudevents_structured(sent: Sent) -> None:
    made, request = sent(body="cloudevents-structured")
    assert request.header("Content-Type") == "application/cloudevents+json"
    assert b'"data":' + PAYLOAD in request.body
    found = members(request)
    assert (found["specversion"], found["id"], found["type"]) == ("1.0", made["delivery_id"], "relay")
    assert found["datacontenttype"] == "application/json"


def test_form(sent: Sent) -> None:
    _, request = sent(body="form")
    assert request.header("Content-Type") == "application/x-www-form-urlencoded"
    assert parse_qs(request.body.decode(), strict_parsing=True) == {"payload": [PAYLOAD.decode()]}


@pytest.mark.parametrize("mode", ["raw", "envelope", "cloudevents-binary", "cloudevents-structured", "form"])
def test_every_body_is_signed_as_it_is_sent(sent: Sent, mode: str) -> None:
    _, request = sent(body=mode, secret=SECRET)
    assert request.header("X-Hub-Signature") == hub(SECRET, request)
    standard = {name.lower(): value for name, value in request.headers}
    key = base64.b64decode(SECRET.removeprefix("whsec_"))
    text = f"{standard['webhook-id']}.{standard['webhook-timestamp']}.".encode() + request.body
    assert standard["webhook-signature"] == "v1," + base64.b64encode(hmac.digest(key, text, "sha256")).decode()
    if mode == "raw":
        Webhook(SECRET).verify(request.body, standard)


@pytest.mark.parametrize("mode", ["raw", "envelope", "form"])
def test_every_try_sends_the_same_bytes(server: Server, mode: str) -> None:
    replies = iter([Reply(status=500), Reply(status=503)])
    with Receiver(lambda _: next(replies, Reply())) as receiver, server.client() as client:
        made = accept(client, receiver.url, body=mode, secret=SECRET)
        found = ended(client, made["delivery_id"])
        requests = receiver.received
    assert outcomes(found) == [(1, "http_error", 500), (2, "http_error", 503), (3, "success", 200)]
    assert len({request.body for request in requests}) == 1
    assert found["body"] == {
        "content_type": requests[0].header("Content-Type"),
        "size": len(requests[0].body),
    }
    for request in requests:
        assert request.header("webhook-id") == made["delivery_id"]


# --- schemes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("secret", "schemes", "websub", "standard"),
    [
        (SECRET, None, True, True),
        (SECRET.removeprefix("whsec_"), None, True, True),
        (PLAIN, None, True, False),
        (SECRET, ["websub"], True, False),
        (SECRET, ["standard"], False, True),
        (SECRET, ["standard", "websub"], True, True),
        (PLAIN, ["websub"], True, False),
        (None, ["standard", "websub"], False, False),
    ],
)
def test_schemes(sent: Sent, secret: str | None, schemes: list[str] | None, websub: bool, standard: bool) -> None:
    _, request = sent(secret=secret, schemes=schemes)
    assert request.header("X-Hub-Signature") == (hub(secret, request) if secret and websub else None)
    assert (request.header("webhook-signature") is not None) is standard
    if standard:
        Webhook(secret or "").verify(request.body, {name.lower(): value for name, value in request.headers})


def test_the_secret_of_the_websub_scheme_is_its_text_in_utf_8(sent: Sent) -> None:
    _, request = sent(secret="schlüssel-ß-鍵")
    assert request.header("X-Hub-Signature") == hub("schlüssel-ß-鍵", request)


# --- the account's defaults -------------------------------------------------------------------------------


def test_the_accounts_secret_signs_what_brings_none(sent: Sent) -> None:
    client: httpx.Client = sent.client  # type: ignore[attr-defined]  # see the fixture
    assert sent()[1].header("X-Hub-Signature") is None
    changed = client.patch("/account", json={"default_secret": SECRET})
    assert (changed.status_code, changed.json()["has_default_secret"]) == (200, True)
    assert SECRET not in changed.text
    request = until(lambda: (r := sent()[1]).header("X-Hub-Signature") and r, within=PROMPTLY)
    assert request.header("X-Hub-Signature") == hub(SECRET, request)
    assert request.header("webhook-signature") is not None
    # a task's own secret comes first
    _, own = sent(secret=PLAIN)
    assert own.header("X-Hub-Signature") == hub(PLAIN, own)
    assert client.patch("/account", json={"schemes": ["websub"]}).json()["schemes"] == ["websub"]
    until(lambda: sent()[1].header("webhook-signature") is None, within=PROMPTLY)
    gone = client.patch("/account", json={"default_secret": None, "schemes": None}).json()
    assert (gone["has_default_secret"], gone["schemes"]) == (False, None)
    until(lambda: sent()[1].header("X-Hub-Signature") is None, within=PROMPTLY)


def test_the_accounts_schedule_takes_effect_within_seconds(server: Server) -> None:
    with Receiver(lambda _: Reply(status=500)) as receiver, client_of(server, "scheduled") as client:
        default = client.get("/account").json()["retry_schedule"]
        for schedule, tries in [([], 1), ([0.05], 2), (None, len(default) + 1)]:
            shown = client.patch("/account", json={"retry_schedule": schedule}).json()["retry_schedule"]
            assert (
                shown == client.get("/account").json()["retry_schedule"] == (default if schedule is None else schedule)
            )
            found = ended(client, accept(client, receiver.url)["delivery_id"])
            assert len(found["attempts"]) == tries
            assert (found["state"], found["reason"]) == ("exhausted", "schedule")
        client.patch("/account", json={"retry_schedule": [600]})
        waiting = accept(client, receiver.url)
        found = until(lambda: (now := delivery(client, waiting["delivery_id"]))["attempts"] and now)
        due = datetime.fromisoformat(found["due_at"]).timestamp()
        assert 600 * 0.8 - 10 < due - time.time() < 600 * 1.2 + 10


def test_an_accounts_defaults_are_its_own(server: Server, sent: Sent) -> None:
    client: httpx.Client = sent.client  # type: ignore[attr-defined]  # see the fixture
    with client_of(server, "neighbour") as neighbour:
        neighbour.patch("/account", json={"default_secret": SECRET, "retry_schedule": [1]})
        assert client.get("/account").json()["has_default_secret"] is False
    assert sent()[1].header("X-Hub-Signature") is None


def test_what_is_left_out_of_a_change_stays(server: Server) -> None:
    with client_of(server, "patched") as client:
        client.patch("/account", json={"default_secret": SECRET, "schemes": ["standard"], "retry_schedule": [1, 2]})
        before = client.get("/account").json()
        assert client.patch("/account", json={}).json() == before
        assert client.patch("/account", json={"retry_schedule": [3]}).json() == {**before, "retry_schedule": [3.0]}
        # `standard` stays, so a secret that cannot serve it is refused
        refused = client.patch("/account", json={"default_secret": PLAIN})
        assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "/schemes")
        assert client.get("/account").json()["has_default_secret"] is True
