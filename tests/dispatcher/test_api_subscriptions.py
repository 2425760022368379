"""Subscriptions over HTTP: what is taken and refused, what is shown, and how endpoints prove themselves."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.support.api import MARKER, Json, client_of, delivery, problem
from tests.support.leaks import kept_by
from tests.support.receiver import Received, Receiver, Reply
from tests.support.server import NO_TLS, Server, until
from tests.support.subscribers import PATH, body_of, other, post, publish, subscribe, subscription

DAY = 86_400
#: session_ttl / 2 - 5 s, as it is by default
LONGEST_SEND = 25
NOT_BASE64 = f"{MARKER}-no-base64!"
NOBODY = "0" * 32


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A dispatcher with fast retries, that handshakes can be granted at later."""
    settings = {"retry_schedule": "[0.05]", "send_timeout": "5", "public_url": "https://hooks.example.com/base/"}
    with Server(tmp_path_factory.mktemp("subscriptions") / "data", settings=settings) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[httpx.Client]:
    with server.client() as running:
        yield running


class Endpoint:
    """What a receiver answers, changed as the test goes on; by path first, then by method."""

    def __init__(self) -> None:
        self.replies: dict[str, Reply] = {}

    def __call__(self, request: Received) -> Reply:
        return self.replies.get(request.target) or self.replies.get(request.method) or Reply()


@pytest.fixture
def endpoint() -> Endpoint:
    return Endpoint()


@pytest.fixture
def receiver(endpoint: Endpoint) -> Iterator[Receiver]:
    with Receiver(endpoint) as running:
        yield running


def at(minutes: float) -> str:
    """A moment some minutes from now."""
    return (datetime.now(UTC) + timedelta(minutes=minutes)).isoformat()


# --- what is taken ----------------------------------------------------------------------------------------

TAKEN: dict[str, Json] = {
    "the least": {},
    "a name of one character": {"name": "x"},
    "the longest name": {"name": "ü" * 200},
    "one event": {"events": ["order.paid"]},
    "fifty events": {"events": [f"a{n}" for n in range(50)]},
    "every event": {"events": ["**"]},
    "the longest pattern": {"events": ["x" * 100]},
    "stars": {"events": ["*.paid", "order.*", "order.**"]},
    "the shortest secret": {"config": {"secret": "12345678"}},
    "the longest secret": {"config": {"secret": "x" * 255}},
    "a null secret": {"config": {"secret": None}},
    "JSON": {"config": {"content_type": "application/json"}},
    "JSON in another spelling": {"config": {"contentType": "application/json"}},
    "a content type that agrees": {"config": {"content_type": "application/json"}, "body": "envelope"},
    "active in another spelling": {"isActive": True},
    "every HMAC scheme that goes together": {"schemes": ["websub", "standard", "timestamped", "rfc9421"]},
    "Ed25519": {"schemes": ["standard-ed25519", "rfc9421-ed25519"]},
    "both of Standard Webhooks": {"schemes": ["standard", "standard-ed25519"]},
    "servicestack": {"schemes": ["servicestack"]},
    "a secret that is not base64": {"config": {"secret": NOT_BASE64}, "schemes": ["websub", "timestamped"]},
    "sha512": {"hub_method": "sha512"},
    "twenty headers": {"headers": {f"X-{n}": "v" for n in range(20)}},
    "a header's largest size": {"headers": {"X-Secret": "v" * (4096 - len("X-Secret"))}},
    "an empty header": {"headers": {"X-Secret": ""}},
    "a filter": {"filter": "amount > `100` && contains(currency, 'EUR')"},
    "the longest filter": {"filter": "a" * 1000},
    "fifo": {"ordering": "fifo", "on_exhausted": "skip"},
    "fifo by key": {"ordering": "fifo-by-key"},
    "the slowest": {"rate_limit": 0.001},
    "the fastest": {"rate_limit": 10_000},
    "no retries": {"retry_schedule": []},
    "fifty retries": {"retry_schedule": [0.5] * 50},
    "the longest delay": {"retry_schedule": [7 * DAY]},
    "a short timeout": {"timeout": 0.001},
    "the longest timeout": {"timeout": LONGEST_SEND},
    "never disabled by 4xx": {"disable_after_4xx": 0},
    "by the thousandth": {"disable_after_4xx": 1000},
    "by what speaks of the endpoint": {"disable_on": "endpoint"},
    "after a minute": {"disable_after": 60},
    "after a month": {"disable_after": 30 * DAY},
    "hardly held": {"hold_for": 0.001},
    "held for a month": {"hold_for": 30 * DAY},
    "the longest description": {"description": "line\n\ttwo" + "ü" * 991},
    "metadata": {"metadata": {"a": [1, None]}},
    "null wherever there is a default": dict.fromkeys(
        (
            *("description", "metadata", "schemes", "hub_method", "headers", "body", "filter", "ordering"),
            *("on_exhausted", "rate_limit", "retry_schedule", "timeout", "disable_after_4xx", "disable_on"),
            *("disable_after", "hold_for", "verification"),
        )
    ),
}


@pytest.fixture(scope="module")
def taker(server: Server) -> Iterator[httpx.Client]:
    """An account whose subscriptions get no events."""
    with client_of(server, "taker") as running:
        yield running


@pytest.mark.parametrize("fields", TAKEN.values(), ids=TAKEN.keys())
def test_what_is_taken(taker: httpx.Client, fields: Json) -> None:
    made = subscribe(taker, other("http://127.0.0.1:9"), **fields)
    for name, value in fields.items():
        if name in {"config", "isActive"} or value is None:
            continue
        assert made[name] == (list(value) if name == "headers" else value)
    assert made["is_active"] is True
    # nothing is taken twice, and what is shown of it is the same
    secret = made["config"].pop("secret")
    assert secret == fields.get("config", {}).get("secret") or secret.startswith("whsec_")
    found = subscription(taker, made["id"])
    assert found.pop("recent") == []
    assert found == made


def test_the_defaults(client: httpx.Client) -> None:
    made = subscribe(client, other("http://127.0.0.1:9"))
    for volatile in ("id", "created_at", "updated_at"):
        assert made.pop(volatile)
    config = made.pop("config")
    assert config.pop("secret").startswith("whsec_")
    assert config.pop("public_key").startswith("whpk_")
    assert len(config.pop("fingerprint")) == 16
    assert config == {"url": "http://127.0.0.1:9", "content_type": "application/json"}
    assert made == {
        "name": "shop",
        "description": None,
        "events": ["order.*"],
        "is_active": True,
        "disabled": None,
        "operational": False,
        "metadata": None,
        "schemes": None,
        "hub_method": "sha256",
        "headers": [],
        "body": "raw",
        "filter": None,
        "ordering": "none",
        "on_exhausted": "block",
        "rate_limit": None,
        "retry_schedule": None,
        "timeout": None,
        "disable_after_4xx": 1,
        "disable_on": "any",
        "disable_after": 5 * DAY,
        "hold_for": 14 * DAY,
        "verification": "none",
        "verifying": None,
        "held": 0,
        "refusals": 0,
        "failures": 0,
        "failing_since": None,
    }


@pytest.mark.parametrize(
    ("config", "body", "shown"),
    [
        ({}, ..., ("raw", "application/json")),
        ({"content_type": "application/json"}, ..., ("raw", "application/json")),
        ({"contentType": "application/x-www-form-urlencoded"}, ..., ("form", "application/x-www-form-urlencoded")),
        (
            {"content_type": "application/cloudevents+json"},
            ...,
            ("cloudevents-structured", "application/cloudevents+json"),
        ),
        ({}, "cloudevents-binary", ("cloudevents-binary", "application/json")),
        ({}, "form", ("form", "application/x-www-form-urlencoded")),
        ({"content_type": None}, "form", ("form", "application/x-www-form-urlencoded")),
    ],
)
def test_a_content_type_is_a_body(client: httpx.Client, config: Json, body: Any, shown: tuple[str, str]) -> None:
    made = subscribe(client, other("http://127.0.0.1:9"), config=config, body=body)
    assert (made["body"], made["config"]["content_type"]) == shown


# --- what is refused --------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[Json, str]] = {
    "no name": ({"name": ...}, "/name"),
    "an empty name": ({"name": ""}, "/name"),
    "a name that is too long": ({"name": "x" * 201}, "/name"),
    "a name with NUL": ({"name": f"{MARKER}\0"}, "/name"),
    "a name with a line end": ({"name": f"{MARKER}\n"}, "/name"),
    "a name with DEL": ({"name": f"{MARKER}\x7f"}, "/name"),
    "a name that is a number": ({"name": 1}, "/name"),
    "a null name": ({"name": None}, "/name"),
    "no events": ({"events": ...}, "/events"),
    "an empty list of events": ({"events": []}, "/events"),
    "fifty-one events": ({"events": [f"a{n}" for n in range(51)]}, "/events"),
    "events as text": ({"events": MARKER}, "/events"),
    "a pattern that is too long": ({"events": ["a", "x" * 101]}, "/events/1"),
    "a pattern with a space": ({"events": [f"{MARKER} x"]}, "/events/0"),
    "an empty pattern": ({"events": ["a", "b", ""]}, "/events/2"),
    "half a star": ({"events": [f"{MARKER}.pa*"]}, "/events/0"),
    "stars before the end": ({"events": [f"{MARKER}.**.x"]}, "/events/0"),
    "a pattern that is a number": ({"events": ["a", 1]}, "/events/1"),
    "no config": ({"config": {"url": ...}}, "/config/url"),
    "an empty URL": ({"config": {"url": ""}}, "/config/url"),
    "a secret that is too short": ({"config": {"secret": "1234567"}}, "/config/secret"),
    "a secret that is too long": ({"config": {"secret": "x" * 256}}, "/config/secret"),
    "a secret with a line end": ({"config": {"secret": f"{MARKER}\n"}}, "/config/secret"),
    "an unknown content type": ({"config": {"content_type": f"text/{MARKER}"}}, "/config/content_type"),
    "an unknown content type in another spelling": ({"config": {"contentType": MARKER}}, "/config/contentType"),
    "two spellings of the content type": (
        {"config": {"contentType": "application/json", "content_type": "application/json"}},
        "/config/contentType",
    ),
    "a content type that contradicts the body": (
        {"config": {"content_type": "application/json"}, "body": "form"},
        "/config/content_type",
    ),
    "a body that contradicts the content type": (
        {"config": {"contentType": "application/cloudevents+json"}, "body": "cloudevents-binary"},
        "/config/content_type",
    ),
    "two spellings of active": ({"isActive": True, "is_active": True}, "/isActive"),
    "active as text": ({"is_active": "true"}, "/is_active"),
    "active as null": ({"is_active": None}, "/is_active"),
    "an unknown field": ({"enabled": MARKER}, "/enabled"),
    "an unknown field of config": ({"config": {"uri": MARKER}}, "/config/uri"),
    "no schemes at all": ({"schemes": []}, "/schemes"),
    "an unknown scheme": ({"schemes": ["websub", MARKER]}, "/schemes/1"),
    "a scheme twice": ({"schemes": ["websub", "websub"]}, "/schemes"),
    "websub and github": ({"schemes": ["websub", "github"]}, "/schemes"),
    "websub and servicestack": ({"schemes": ["websub", "standard", "servicestack"]}, "/schemes"),
    "github and servicestack": ({"schemes": ["github", "servicestack"]}, "/schemes"),
    "both of RFC 9421": ({"schemes": ["rfc9421", "rfc9421-ed25519"]}, "/schemes"),
    "standard without base64": ({"schemes": ["standard"], "config": {"secret": NOT_BASE64}}, "/schemes"),
    "an unknown hub method": ({"hub_method": "md5"}, "/hub_method"),
    "twenty-one headers": ({"headers": {f"X-{n}": "v" for n in range(21)}}, "/headers"),
    "a header of ours": ({"headers": {"X-Webhook-Event": MARKER}}, "/headers/X-Webhook-Event"),
    "a signature of ours": ({"headers": {"x-hub-signature-256": MARKER}}, "/headers/x-hub-signature-256"),
    "a header with a line end": ({"headers": {"X-Secret": f"{MARKER}\r\nX: y"}}, "/headers/X-Secret"),
    "a header beyond ASCII": ({"headers": {"X-Secret": f"{MARKER}ü"}}, "/headers/X-Secret"),
    "a header's name with a space": ({"headers": {f"X {MARKER}": "v"}}, "/headers"),
    "a filter that does not compile": ({"filter": f"'{MARKER}' =="}, "/filter"),
    "a filter that calls nothing": ({"filter": "nothing(@)"}, "/filter"),
    "an empty filter": ({"filter": " "}, "/filter"),
    "a filter that is too long": ({"filter": "a" * 1001}, "/filter"),
    "an unknown ordering": ({"ordering": "lifo"}, "/ordering"),
    "an unknown end": ({"on_exhausted": "drop"}, "/on_exhausted"),
    "too slow": ({"rate_limit": 0.00099}, "/rate_limit"),
    "too fast": ({"rate_limit": 10_000.1}, "/rate_limit"),
    "a rate of text": ({"rate_limit": "10"}, "/rate_limit"),
    "fifty-one retries": ({"retry_schedule": [1] * 51}, "/retry_schedule"),
    "no delay": ({"retry_schedule": [1, 0]}, "/retry_schedule/1"),
    "a delay that is too long": ({"retry_schedule": [7 * DAY + 1]}, "/retry_schedule/0"),
    "no time": ({"timeout": 0}, "/timeout"),
    "too much time": ({"timeout": LONGEST_SEND + 0.001}, "/timeout"),
    "fewer than no refusals": ({"disable_after_4xx": -1}, "/disable_after_4xx"),
    "too many refusals": ({"disable_after_4xx": 1001}, "/disable_after_4xx"),
    "half a refusal": ({"disable_after_4xx": 1.5}, "/disable_after_4xx"),
    "an unknown policy": ({"disable_on": "all"}, "/disable_on"),
    "disabled too soon": ({"disable_after": 59.9}, "/disable_after"),
    "disabled too late": ({"disable_after": 30 * DAY + 1}, "/disable_after"),
    "not held": ({"hold_for": 0}, "/hold_for"),
    "held too long": ({"hold_for": 30 * DAY + 1}, "/hold_for"),
    "a description that is too long": ({"description": "x" * 1001}, "/description"),
    "a description with NUL": ({"description": f"{MARKER}\0"}, "/description"),
    "metadata that is a list": ({"metadata": [MARKER]}, "/metadata"),
    "an unknown verification": ({"verification": "email"}, "/verification"),
    "an unknown body": ({"body": "xml"}, "/body"),
}


@pytest.mark.parametrize(("fields", "field"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_refused(client: httpx.Client, fields: Json, field: str) -> None:
    before = client.get(PATH, params={"limit": 1}).json()["items"]
    problem(post(client, other("http://127.0.0.1:9"), **fields), 422, "validation", field)
    assert client.get(PATH, params={"limit": 1}).json()["items"] == before


#: what is left out of a change stays
REFUSED_CHANGES = {
    name: (fields, field)
    for name, (fields, field) in REFUSED.items()
    if ... not in {**fields, **fields.get("config", {})}.values()
}


@pytest.mark.parametrize(("fields", "field"), REFUSED_CHANGES.values(), ids=REFUSED_CHANGES.keys())
def test_a_change_is_refused_alike(client: httpx.Client, fields: Json, field: str) -> None:
    made = changeable(client)
    if "secret" in fields.get("config", {}):
        # a secret is rotated, not changed
        field = "/config/secret"
    problem(client.patch(f"{PATH}/{made['id']}", json=fields), 422, "validation", field)
    assert subscription(client, made["id"]) == made


def changeable(client: httpx.Client) -> Json:
    """A subscription to try changes on that are refused, its newest one."""
    made = subscribe(client, other("http://127.0.0.1:9"))
    return subscription(client, made["id"])


def test_sizes(client: httpx.Client) -> None:
    url = "http://127.0.0.1:9/".ljust(8192, "u")
    subscribe(client, url)
    problem(post(client, url + "u"), 413, "too-large", "/config/url")
    subscribe(client, other("http://127.0.0.1:9"), metadata={"a": "x" * (16 * 1024 - 8)})
    problem(
        post(client, other("http://127.0.0.1:9"), metadata={"a": "x" * (16 * 1024 - 7)}), 413, "too-large", "/metadata"
    )
    headers = {"X-Secret": "v" * (4097 - len("X-Secret"))}
    problem(post(client, other("http://127.0.0.1:9"), headers=headers), 413, "too-large", "/headers/X-Secret")


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/x", "http://169.254.169.254/", "https://a:b@example.com/", "nothing"])
def test_a_url_that_we_do_not_send_to(client: httpx.Client, url: str) -> None:
    problem(post(client, f"{url}#{MARKER}"), 422, "egress", "/config/url")
    made = subscribe(client, other("http://127.0.0.1:9"))
    answer = client.patch(f"{PATH}/{made['id']}", json={"config": {"url": f"{url}#{MARKER}"}})
    problem(answer, 422, "egress", "/config/url")


def test_broken_json(client: httpx.Client) -> None:
    for method, path in (("POST", PATH), ("PATCH", f"{PATH}/{changeable(client)['id']}")):
        problem(client.request(method, path, content=b'{"name": '), 422, "invalid-json")
        problem(client.request(method, path, content=b'{"rate_limit": NaN}'), 422, "invalid-json")
        problem(client.request(method, path, content=b"[]"), 422, "validation", "")
        problem(client.request(method, path, content=b"\xff"), 422, "invalid-json")


def test_the_accounts_schemes_hold_where_none_are_named(server: Server) -> None:
    with client_of(server, "standard-only") as client:
        assert client.patch("/account", json={"schemes": ["standard"]}).status_code == 200
        until(lambda: post_is_refused(client))
        secret = {"secret": NOT_BASE64}
        made = subscribe(client, other("http://127.0.0.1:9"), config=secret, schemes=["websub"])
        answer = client.patch(f"{PATH}/{made['id']}", json={"schemes": None})
        problem(answer, 422, "validation", "/schemes")
        rotated = subscribe(client, other("http://127.0.0.1:9"))
        answer = client.post(f"{PATH}/{rotated['id']}/secrets", json=secret)
        problem(answer, 422, "validation", "/secret")


def post_is_refused(client: httpx.Client) -> bool:
    """Whether the account's schemes refuse a secret; they are read again within two seconds."""
    answer = post(client, other("http://127.0.0.1:9"), config={"secret": NOT_BASE64})
    if answer.status_code == 201:
        return False
    problem(answer, 422, "validation", "/config/secret")
    return True


# --- secrets and URLs are not shown -----------------------------------------------------------------------


def test_a_secret_is_shown_once(server: Server, client: httpx.Client, receiver: Receiver) -> None:
    url = f"{receiver.url}/{MARKER}?token={MARKER}"
    fields: Json = {"config": {"secret": f"{MARKER}-secret"}, "headers": {"X-Secret": f"{MARKER}-header"}}
    answer = post(client, url, key="once", **fields)
    made = answer.json()
    assert made["config"]["secret"] == f"{MARKER}-secret"
    assert (made["config"]["url"], made["headers"]) == (receiver.url, ["X-Secret"])
    assert answer.text.count(MARKER) == 1
    own = f"{PATH}/{made['id']}"
    again = post(client, url, key="once", **fields)
    answers = [
        again,
        client.get(own),
        client.get(PATH),
        client.patch(own, json={"name": "another"}),
        client.post(f"{own}/ping"),
        client.get(f"{own}/secrets"),
        client.get(f"{own}/deliveries"),
        client.post(f"{own}/disable"),
        client.post(f"{own}/enable"),
        post(client, url, **fields),
    ]
    assert [one.status_code for one in answers] == [201, 200, 200, 200, 200, 200, 200, 200, 200, 409]
    assert MARKER not in "".join(one.text for one in answers)
    rotated = client.post(f"{own}/secrets", json={"secret": f"{MARKER}-second"}, headers={"Idempotency-Key": "r"})
    assert (rotated.status_code, rotated.json()["secret"]) == (201, f"{MARKER}-second")
    replayed = client.post(f"{own}/secrets", json={"secret": f"{MARKER}-second"}, headers={"Idempotency-Key": "r"})
    assert replayed.headers["Idempotency-Replayed"] == "true"
    assert replayed.json() == {name: value for name, value in rotated.json().items() if name != "secret"}
    assert MARKER not in server.log.read_text()
    stored = kept_by(server)
    assert MARKER.encode() not in stored
    assert made["id"].encode() in stored
    # but it is what signs, and what is sent
    signed = receiver.received[-1]
    digest = hmac.digest(f"{MARKER}-secret".encode(), signed.body, hashlib.sha256).hex()
    assert signed.header("X-Hub-Signature") == f"sha256={digest}"
    assert (signed.target, signed.header("X-Secret")) == (f"/{MARKER}?token={MARKER}", f"{MARKER}-header")


def test_a_generated_secret_signs(client: httpx.Client, receiver: Receiver) -> None:
    made = subscribe(client, receiver.url, events=["signed.it"], schemes=["standard"])
    publish(client, "signed.it")
    [request] = receiver.wait_for(1)
    key = base64.b64decode(made["config"]["secret"].removeprefix("whsec_"))
    content = f"{request.header('webhook-id')}.{request.header('webhook-timestamp')}.".encode() + request.body
    expected = base64.b64encode(hmac.digest(key, content, hashlib.sha256)).decode()
    assert request.header("webhook-signature") == f"v1,{expected}"


def test_an_idempotency_key(client: httpx.Client) -> None:
    url = other("http://127.0.0.1:9")
    first = post(client, url, key="same")
    again = post(client, url, key="same")
    assert "Idempotency-Replayed" not in first.headers
    assert (again.status_code, again.headers["Idempotency-Replayed"]) == (201, "true")
    assert again.headers["Location"] == first.headers["Location"]
    shown = first.json()
    assert shown["config"].pop("secret")
    assert again.json() == shown
    problem(post(client, url, key="same", name="other"), 422, "idempotency-mismatch")
    # what was refused is not kept
    problem(post(client, url, key="twin"), 409, "conflict", "/config/url")
    assert post(client, other("http://127.0.0.1:9"), key="twin").status_code == 201
    assert client.delete(f"{PATH}/{shown['id']}").status_code == 204
    problem(post(client, url, key="same"), 404, "not-found")


def test_one_key_at_the_same_time_makes_one(server: Server, client: httpx.Client) -> None:
    url = other("http://127.0.0.1:9")

    async def all_at_once() -> list[httpx.Response]:
        async with server.async_client() as many:
            calls = [many.post(PATH, json=body_of(url), headers={"Idempotency-Key": "crowd"}) for _ in range(20)]
            return await asyncio.gather(*calls)

    answers = asyncio.run(all_at_once())
    assert {one.status_code for one in answers} == {201}
    assert len({one.json()["id"] for one in answers}) == 1
    assert sum("secret" in one.json()["config"] for one in answers) == 1


# --- duplicates and accounts ------------------------------------------------------------------------------


def test_a_duplicate_is_refused(server: Server, client: httpx.Client) -> None:
    url = other("http://127.0.0.1:9")
    made = subscribe(client, url, events=["a", "b.*"])
    for events in (["a", "b.*"], ["b.*", "a"], ["a", "b.*", "a"]):
        details = problem(post(client, url, events=events, name="x", body="form"), 409, "conflict", "/config/url")
        assert details["subscription_id"] == made["id"]
    # the nearest that are no duplicates
    for events in (["a"], ["a", "b.**"], ["a", "b.*", "c"]):
        subscribe(client, url, events=events)
    subscribe(client, url + "/", events=["a", "b.*"])
    with client_of(server, "other") as stranger:
        subscribe(stranger, url, events=["a", "b.*"])


def test_a_change_to_a_duplicate_is_refused(client: httpx.Client) -> None:
    url, elsewhere = other("http://127.0.0.1:9"), other("http://127.0.0.1:9")
    first, second = subscribe(client, url, events=["a"]), subscribe(client, elsewhere, events=["a"])
    answer = client.patch(f"{PATH}/{second['id']}", json={"config": {"url": url}})
    assert problem(answer, 409, "conflict", "/config/url")["subscription_id"] == first["id"]
    assert client.patch(f"{PATH}/{second['id']}", json={"config": {"url": url}, "events": ["b"]}).status_code == 200
    problem(client.patch(f"{PATH}/{second['id']}", json={"events": ["a"]}), 409, "conflict", "/config/url")
    # once the other is gone, it is none
    assert client.delete(f"{PATH}/{first['id']}").status_code == 204
    assert client.patch(f"{PATH}/{second['id']}", json={"events": ["a"]}).status_code == 200


def calls_on(subscription_id: str, secret_id: str) -> list[tuple[str, str, Any]]:
    own = f"{PATH}/{subscription_id}"
    return [
        ("GET", own, None),
        ("PATCH", own, {"name": "stolen"}),
        ("GET", f"{own}/secrets", None),
        ("POST", f"{own}/secrets", {}),
        ("DELETE", f"{own}/secrets/{secret_id}", None),
        ("POST", f"{own}/ping", None),
        ("POST", f"{own}/enable", None),
        ("POST", f"{own}/disable", None),
        ("POST", f"{own}/recover", {"since": at(-60)}),
        ("GET", f"{own}/deliveries", None),
        ("DELETE", own, None),
    ]


def test_anothers_subscription_is_not_there(server: Server, client: httpx.Client) -> None:
    made = subscribe(client, other("http://127.0.0.1:9"))
    [secret] = client.get(f"{PATH}/{made['id']}/secrets").json()["items"]
    before = subscription(client, made["id"])
    with client_of(server, "stranger") as stranger:
        for id_ in (made["id"], NOBODY, "nothing", made["id"].upper()):
            for method, path, body in calls_on(id_, secret["id"]):
                problem(stranger.request(method, path, json=body), 404, "not-found")
        assert stranger.get(PATH).json() == {"items": [], "next_cursor": None}
        assert stranger.get("/deliveries", params={"subscription_id": made["id"]}).json()["items"] == []
        answer = stranger.post("/deliveries/redeliver", json={"since": at(-60), "subscription_id": made["id"]})
        problem(answer, 422, "validation", "/subscription_id")
    assert subscription(client, made["id"]) == before


def test_scopes(server: Server, client: httpx.Client) -> None:
    made = subscribe(client, other("http://127.0.0.1:9"))
    with client_of(server, "dev", "subscriptions:read") as reader, client_of(server, "dev", "tasks:read") as nobody:
        for method, path, body in [("POST", PATH, {}), ("GET", PATH, None), *calls_on(made["id"], NOBODY)]:
            problem(nobody.request(method, path, json=body), 403, "forbidden")
            if method == "GET":
                assert reader.request(method, path).status_code == 200
            else:
                problem(reader.request(method, path, json=body), 403, "forbidden")


# --- list and read ----------------------------------------------------------------------------------------


def test_the_list(server: Server) -> None:
    with client_of(server, "lister") as client:
        made = [subscribe(client, other("http://127.0.0.1:9"))["id"] for _ in range(5)]
        client.post(f"{PATH}/{made[1]}/disable")
        client.delete(f"{PATH}/{made[2]}")

        def ids(**params: Any) -> list[str]:
            return [item["id"] for item in client.get(PATH, params=params).json()["items"]]

        newest_first = [made[4], made[3], made[1], made[0]]
        assert ids() == newest_first
        assert ids(is_active="true") == [made[4], made[3], made[0]]
        assert ids(is_active="false") == [made[1]]
        first = client.get(PATH, params={"limit": 3}).json()
        assert [item["id"] for item in first["items"]] == newest_first[:3]
        rest = client.get(PATH, params={"limit": 3, "cursor": first["next_cursor"]}).json()
        assert ([item["id"] for item in rest["items"]], rest["next_cursor"]) == ([made[0]], None)
        problem(client.get(PATH, params={"limit": 201}), 422, "validation", "/limit")
        problem(client.get(PATH, params={"cursor": "x"}), 422, "validation", "/cursor")
        problem(client.get(PATH, params={"is_active": "perhaps"}), 422, "validation", "/is_active")


def test_recent_history(client: httpx.Client, receiver: Receiver, endpoint: Endpoint) -> None:
    made = subscribe(client, receiver.url, events=["seen.*"])
    for _ in range(22):
        publish(client, "seen.often")
    receiver.wait_for(22)
    endpoint.replies["POST"] = Reply(status=403)
    last = publish(client, "seen.last")
    found = until(lambda: (now := subscription(client, made["id"]))["disabled"] and now)
    assert found["disabled"]["reason"] == "rejected"
    assert (found["held"], found["refusals"], found["failures"]) == (1, 1, 1)
    assert found["failing_since"]
    assert [one["event"] for one in found["recent"]] == ["seen.last", *["seen.often"] * 19]
    newest = found["recent"][0]
    assert (newest["state"], newest["attempts"], newest["outcome"], newest["status"]) == ("held", 1, "http_error", 403)
    assert found["recent"][1]["state"] == "delivered"
    items = client.get(f"{PATH}/{made['id']}/deliveries", params={"limit": 3}).json()
    assert (items["items"][0]["event_id"], items["items"][0]["id"]) == (last["id"], newest["id"])
    params = {"limit": 30, "cursor": items["next_cursor"]}
    assert len(client.get(f"{PATH}/{made['id']}/deliveries", params=params).json()["items"]) == 20
    held = client.get(f"{PATH}/{made['id']}/deliveries", params={"state": "held"}).json()["items"]
    assert [one["id"] for one in held] == [newest["id"]]
    whole = client.get("/deliveries", params={"subscription_id": made["id"], "state": "held"}).json()["items"]
    assert whole == held


# --- change and delete ------------------------------------------------------------------------------------


def test_a_change(client: httpx.Client) -> None:
    made = subscribe(
        client,
        other("http://127.0.0.1:9"),
        description="before",
        metadata={"a": 1},
        headers={"X-Secret": "a"},
        filter="a",
        rate_limit=5,
        timeout=3,
        retry_schedule=[1, 2],
        schemes=["websub"],
        body="envelope",
        disable_after_4xx=3,
        hold_for=60,
    )
    own = f"{PATH}/{made['id']}"
    changed = client.patch(own, json={"name": "new", "events": ["x", "y"], "ordering": "fifo", "timeout": 4}).json()
    expected = made | {"name": "new", "events": ["x", "y"], "ordering": "fifo", "timeout": 4}
    expected["config"].pop("secret")
    expected["updated_at"] = changed["updated_at"]
    assert changed == expected
    reset = dict.fromkeys(
        (
            *("description", "metadata", "headers", "filter", "rate_limit", "timeout", "retry_schedule", "schemes"),
            *("body", "disable_after_4xx", "hold_for", "ordering"),
        )
    )
    plain = client.patch(own, json=reset).json()
    assert (plain["description"], plain["metadata"], plain["headers"], plain["filter"]) == (None, None, [], None)
    assert (plain["rate_limit"], plain["timeout"], plain["retry_schedule"], plain["schemes"]) == (None,) * 4
    assert (plain["body"], plain["disable_after_4xx"], plain["hold_for"]) == ("raw", 1, 14 * DAY)
    assert plain["ordering"] == "none"
    # nothing at all changes nothing
    assert client.patch(own, json={}).json() == plain
    assert client.patch(own, json={"config": {}}).json() == plain
    moved = client.patch(own, json={"config": {"url": other("http://127.0.0.1:10")}}).json()
    assert moved["config"]["url"] == "http://127.0.0.1:10"
    assert moved["config"]["fingerprint"] != plain["config"]["fingerprint"]
    form = client.patch(own, json={"config": {"contentType": "application/x-www-form-urlencoded"}}).json()
    assert (form["body"], form["config"]["fingerprint"]) == ("form", moved["config"]["fingerprint"])
    assert client.patch(own, json={"body": "envelope"}).json()["config"]["content_type"] == "application/json"
    # an envelope is JSON already
    assert client.patch(own, json={"config": {"content_type": "application/json"}}).json()["body"] == "envelope"


def test_a_change_takes_effect(client: httpx.Client, receiver: Receiver) -> None:
    made = subscribe(client, f"{receiver.url}/old", events=["moved"], filter="n == `1`")
    publish(client, "moved")
    change = {"config": {"url": f"{receiver.url}/new"}, "filter": None, "headers": {"X-A": "b"}, "body": "envelope"}
    receiver.wait_for(1)
    assert client.patch(f"{PATH}/{made['id']}", json=change).status_code == 200
    publish(client, "moved", {"n": 2})
    [first, second] = receiver.wait_for(2)
    assert (first.target, second.target, second.header("X-A")) == ("/old", "/new", "b")
    assert json.loads(second.body)["data"] == {"n": 2}


def test_active_and_not(client: httpx.Client, receiver: Receiver, endpoint: Endpoint) -> None:
    made = subscribe(client, receiver.url, events=["switched"], isActive=False)
    own = f"{PATH}/{made['id']}"
    assert (made["is_active"], made["disabled"]["reason"]) == (False, "manual")
    assert publish(client, "switched")["deliveries"] == 1
    endpoint.replies["POST"] = Reply(status=500)
    details = problem(client.patch(own, json={"is_active": True, "name": "stored"}), 409, "conflict")
    assert (details["ping"]["status"], details["ping"]["outcome"]) == (500, "http_error")
    assert "is stored" in details["detail"]
    assert subscription(client, made["id"])["name"] == "stored"
    endpoint.replies.clear()
    enabled = client.patch(own, json={"isActive": True})
    assert (enabled.status_code, enabled.json()["is_active"]) == (200, True)
    assert enabled.json()["ping"]["state"] == "delivered"
    # the first ping, the second, and what was held
    assert [request.header("X-Webhook-Event") for request in receiver.wait_for(3)] == [
        "webhook.ping",
        "webhook.ping",
        "switched",
    ]
    assert "ping" not in client.patch(own, json={"is_active": True}).json()
    disabled = client.patch(own, json={"is_active": False, "description": "off"}).json()
    assert (disabled["is_active"], disabled["disabled"]["reason"]) == (False, "manual")
    assert disabled["description"] == "off"


def test_delete(client: httpx.Client, receiver: Receiver) -> None:
    made = subscribe(client, receiver.url, events=["deleted"], is_active=False)
    published = publish(client, "deleted")
    [held] = client.get("/deliveries", params={"event_id": published["id"]}).json()["items"]
    assert held["state"] == "held"
    answer = client.delete(f"{PATH}/{made['id']}")
    assert (answer.status_code, answer.content) == (204, b"")
    for method, path, body in calls_on(made["id"], NOBODY):
        problem(client.request(method, path, json=body), 404, "not-found")
    until(lambda: delivery(client, held["id"])["state"] == "cancelled")
    assert publish(client, "deleted")["deliveries"] == 0
    # its deliveries can still be seen
    assert client.get("/deliveries", params={"subscription_id": made["id"]}).json()["items"][0]["id"] == held["id"]
    subscribe(client, receiver.url, events=["deleted"])


# --- ping, enable, disable --------------------------------------------------------------------------------


def test_ping(client: httpx.Client, receiver: Receiver, endpoint: Endpoint) -> None:
    made = subscribe(client, f"{receiver.url}/p", is_active=False)
    own = f"{PATH}/{made['id']}"
    answer = client.post(f"{own}/ping")
    ping = answer.json()
    assert (answer.status_code, ping["state"], ping["outcome"], ping["status"]) == (200, "delivered", "success", 200)
    assert (ping["kind"], ping["error"]) == ("ping", None)
    assert ping["duration_ms"] >= 0
    [request] = receiver.received
    assert (request.header("X-Webhook-Event"), request.header("X-Webhook-Delivery")) == (
        "webhook.ping",
        ping["delivery_id"],
    )
    assert request.header("X-Hub-Signature")
    for reply, state, outcome, status in (
        (Reply(status=500), "exhausted", "http_error", 500),
        (Reply(status=404), "rejected", "http_error", 404),
        (Reply(status=302), "exhausted", "http_error", 302),
    ):
        endpoint.replies["/p"] = reply
        ping = client.post(f"{own}/ping", json={}).json()
        assert (ping["state"], ping["outcome"], ping["status"]) == (state, outcome, status)
        assert delivery(client, ping["delivery_id"])["state"] == state
    # a ping alone changes nothing
    assert subscription(client, made["id"])["disabled"]["reason"] == "manual"
    problem(client.post(f"{own}/ping", json={"a": 1}), 422, "validation", "")
    problem(client.post(f"{own}/disable", json={"a": 1}), 422, "validation", "")


def test_enable_releases_what_is_held(client: httpx.Client, receiver: Receiver, endpoint: Endpoint) -> None:
    made = subscribe(client, f"{receiver.url}/e", events=["held.up"])
    own = f"{PATH}/{made['id']}"
    assert client.post(f"{own}/disable").json()["disabled"]["reason"] == "manual"
    for n in range(3):
        publish(client, "held.up", {"n": n})
    assert subscription(client, made["id"])["held"] == 3
    endpoint.replies["/e"] = Reply(status=401)
    details = problem(client.post(f"{own}/enable"), 409, "conflict")
    assert (details["ping"]["status"], details["ping"]["state"]) == (401, "rejected")
    assert "401" in details["detail"]
    endpoint.replies.clear()
    answer = client.post(f"{own}/enable", json={"held": "release"})
    assert (answer.status_code, answer.json()["is_active"], answer.json()["disabled"]) == (200, True, None)
    bodies = [request.body for request in receiver.wait_for(5)[2:]]
    assert sorted(json.loads(body)["n"] for body in bodies) == [0, 1, 2]
    # again changes nothing
    assert client.post(f"{own}/enable").json()["is_active"] is True
    assert len(receiver.received) == 5


def test_enable_discards_what_is_held(client: httpx.Client, receiver: Receiver) -> None:
    made = subscribe(client, receiver.url, events=["thrown.away"], is_active=False)
    own = f"{PATH}/{made['id']}"
    published = publish(client, "thrown.away")
    problem(client.post(f"{own}/enable", json={"held": "keep"}), 422, "validation", "/held")
    problem(client.post(f"{own}/enable", json={"discard": True}), 422, "validation", "/discard")
    assert client.post(f"{own}/enable", json={"held": "discard"}).status_code == 200
    params = {"event_id": published["id"]}
    until(lambda: client.get("/deliveries", params=params).json()["items"][0]["state"] == "cancelled")
    publish(client, "thrown.away")
    assert [request.header("X-Webhook-Event") for request in receiver.wait_for(2)] == ["webhook.ping", "thrown.away"]


class Gate:
    """Holds requests until it is opened, then answers 200."""

    def __init__(self) -> None:
        self._open = threading.Event()

    async def __call__(self, _request: Received) -> Reply:
        assert await asyncio.to_thread(self._open.wait, 30)
        return Reply()

    def open(self) -> None:
        self._open.set()


def test_disabling_outruns_an_answer_that_is_awaited(server: Server, client: httpx.Client) -> None:
    gate = Gate()
    with Receiver(gate) as slow:
        made = subscribe(client, slow.url, is_active=False)
        own = f"{PATH}/{made['id']}"
        answers: list[httpx.Response] = []

        def enable() -> None:
            with server.client() as another:
                answers.append(another.post(f"{own}/enable"))

        waiting = threading.Thread(target=enable)
        waiting.start()
        verifying = until(lambda: subscription(client, made["id"])["verifying"])
        assert client.post(f"{own}/disable").json()["verifying"] is None
        gate.open()
        waiting.join(20)
        details = problem(answers[0], 409, "conflict")
        assert (details["ping"]["delivery_id"], details["ping"]["state"]) == (verifying, "delivered")
        assert "disabled since" in details["detail"]
        assert subscription(client, made["id"])["is_active"] is False


def test_a_ping_is_tried_with_the_older_secret_too(client: httpx.Client) -> None:
    known: list[str] = []

    def answer(request: Received) -> Reply:
        digests = {hmac.digest(secret.encode(), request.body, hashlib.sha256).hex() for secret in known}
        return Reply(status=200 if (request.header("X-Hub-Signature") or "")[7:] in digests else 403)

    with Receiver(answer) as behind:
        made = subscribe(client, behind.url, is_active=False, schemes=["websub"])
        known.append(made["config"]["secret"])
        rotate(client, made["id"])
        assert client.post(f"{PATH}/{made['id']}/enable").json()["is_active"] is True
        assert [request.attempt for request in behind.received] == [1, 2]
        client.post(f"{PATH}/{made['id']}/disable")
        known.clear()
        details = problem(client.post(f"{PATH}/{made['id']}/enable"), 409, "conflict")
        assert (details["ping"]["state"], details["ping"]["status"]) == ("rejected", 403)


def test_an_answer_does_not_wait_for_ever(client: httpx.Client) -> None:
    with Receiver(lambda _request: Reply(hang=True)) as mute:
        made = subscribe(client, mute.url, is_active=False, timeout=0.2)
        ping = client.post(f"{PATH}/{made['id']}/ping").json()
        assert (ping["state"], ping["outcome"], ping["status"]) == ("exhausted", "timeout", None)


# --- verification -----------------------------------------------------------------------------------------


def test_verified_by_a_ping(client: httpx.Client, receiver: Receiver) -> None:
    made = subscribe(client, receiver.url, verification="ping")
    assert (made["is_active"], made["verification"], made["disabled"]) == (True, "ping", None)
    assert (made["ping"]["kind"], made["ping"]["state"], made["ping"]["status"]) == ("ping", "delivered", 200)
    assert made["config"]["secret"].startswith("whsec_")
    assert "ping" not in subscription(client, made["id"])
    [request] = receiver.received
    assert (request.method, request.header("X-Webhook-Delivery")) == ("POST", made["ping"]["delivery_id"])


def test_not_verified_by_a_ping(client: httpx.Client, receiver: Receiver, endpoint: Endpoint) -> None:
    endpoint.replies["POST"] = Reply(status=404)
    made = subscribe(client, receiver.url, events=["unverified"], verification="ping")
    assert (made["is_active"], made["disabled"]["reason"]) == (False, "unverified")
    assert (made["ping"]["state"], made["ping"]["outcome"], made["ping"]["status"]) == ("rejected", "http_error", 404)
    assert made["config"]["secret"]
    # nothing is lost meanwhile
    publish(client, "unverified")
    endpoint.replies.clear()
    assert client.post(f"{PATH}/{made['id']}/enable").json()["is_active"] is True
    assert [request.header("X-Webhook-Event") for request in receiver.wait_for(3)][2] == "unverified"


def test_the_account_says_how_to_verify(server: Server, receiver: Receiver) -> None:
    with client_of(server, "verifier") as client:
        assert client.patch("/account", json={"verification": "ping"}).json()["verification"] == "ping"
        until(lambda: subscribe(client, other(receiver.url))["verification"] == "ping")
        assert subscribe(client, other(receiver.url), verification="none")["verification"] == "none"
        made = subscribe(client, other(receiver.url), verification="none")
        changed = client.patch(f"{PATH}/{made['id']}", json={"verification": None}).json()
        assert changed["verification"] == "ping"
        assert client.patch("/account", json={"verification": None}).json()["verification"] == "none"


def test_a_new_url_is_verified_anew(client: httpx.Client, receiver: Receiver, endpoint: Endpoint) -> None:
    made = subscribe(client, f"{receiver.url}/one", verification="ping")
    own = f"{PATH}/{made['id']}"
    moved = client.patch(own, json={"config": {"url": f"{receiver.url}/two"}})
    assert (moved.status_code, moved.json()["is_active"], moved.json()["ping"]["status"]) == (200, True, 200)
    endpoint.replies["/three"] = Reply(status=500)
    moved = client.patch(own, json={"config": {"url": f"{receiver.url}/three"}})
    assert (moved.status_code, moved.json()["is_active"]) == (200, False)
    assert (moved.json()["disabled"]["reason"], moved.json()["ping"]["status"]) == ("unverified", 500)
    assert [request.target for request in receiver.received] == ["/one", "/two", "/three"]
    # any other change asks nothing
    client.patch(own, json={"name": "x"})
    assert len(receiver.received) == 3


GRANTED = (("WebHook-Allowed-Origin", "hooks.example.com"), ("WebHook-Allowed-Rate", "120"))


def test_a_handshake_granted_at_once(client: httpx.Client, receiver: Receiver, endpoint: Endpoint) -> None:
    endpoint.replies["OPTIONS"] = Reply(headers=GRANTED)
    made = subscribe(client, receiver.url, verification="handshake", rate_limit=5)
    assert (made["is_active"], made["ping"]["kind"], made["ping"]["state"]) == (True, "handshake", "delivered")
    assert made["rate_limit"] == 2
    [request] = receiver.received
    assert (request.method, request.body) == ("OPTIONS", b"")
    assert request.header("WebHook-Request-Origin") == "hooks.example.com"
    assert request.header("WebHook-Request-Rate") == "300"
    # what was granted cannot be granted again
    problem(grant(client, request), 404, "not-found")


def callback_of(request: Received) -> str:
    """The path of the URL that a handshake names for a later grant."""
    url = urlsplit(request.header("WebHook-Request-Callback") or "")
    assert f"{url.scheme}://{url.netloc}" == "https://hooks.example.com"
    return url.path.removeprefix("/base")


def grant(client: httpx.Client, request: Received, method: str = "GET", **options: Any) -> httpx.Response:
    return httpx.request(method, f"{client.base_url}{callback_of(request)}", trust_env=False, verify=NO_TLS, **options)


@pytest.mark.parametrize(
    ("method", "options", "rate"),
    [
        ("GET", {}, None),
        ("POST", {}, None),
        ("POST", {"content": b"anything"}, None),
        ("GET", {"params": {"rate": "60"}}, 1),
        ("POST", {"headers": {"WebHook-Allowed-Rate": "30"}}, 0.5),
        ("POST", {"headers": {"WebHook-Allowed-Rate": "*"}}, None),
        ("POST", {"headers": {"WebHook-Allowed-Rate": "30"}, "params": {"rate": "60"}}, 0.5),
    ],
)
def test_a_handshake_granted_later(
    server: Server, client: httpx.Client, receiver: Receiver, method: str, options: Json, rate: float | None
) -> None:
    made = subscribe(client, receiver.url, events=["granted.later"], verification="handshake")
    assert (made["is_active"], made["disabled"]["reason"]) == (False, "unverified")
    assert (made["ping"]["state"], made["ping"]["status"]) == ("exhausted", 200)
    publish(client, "granted.later")
    [request] = receiver.received
    path = callback_of(request)
    *_, delivery_id, token = path.split("/")
    for wrong in (
        f"/webhooks/handshakes/{delivery_id}/{token[:-1]}",
        f"/webhooks/handshakes/{delivery_id}/{token[:-1]}{'0' if token[-1] != '0' else '1'}",
        f"/webhooks/handshakes/{delivery_id}/x{token}",
        f"/webhooks/handshakes/{delivery_id}/.",
        f"/webhooks/handshakes/{NOBODY}/{token}",
        f"/webhooks/handshakes/nothing/{token}",
        f"/webhooks/handshakes/{delivery_id}/%C3%BC",
    ):
        problem(httpx.request(method, f"{client.base_url}{wrong}", trust_env=False, verify=NO_TLS), 404, "not-found")
    assert subscription(client, made["id"])["is_active"] is False
    answer = grant(client, request, method, **options)
    assert (answer.status_code, answer.json()) == (200, {"status": "granted"})
    assert answer.headers["Cache-Control"] == "no-store"
    found = subscription(client, made["id"])
    assert (found["is_active"], found["rate_limit"]) == (True, rate)
    assert receiver.wait_for(2)[1].header("X-Webhook-Event") == "granted.later"
    # once only
    problem(grant(client, request, method), 404, "not-found")
    assert token not in server.log.read_text()
    assert httpx.request("DELETE", f"{client.base_url}{path}", trust_env=False, verify=NO_TLS).status_code == 405


def test_a_grant_is_good_for_the_url_that_was_asked(client: httpx.Client, receiver: Receiver) -> None:
    made = subscribe(client, f"{receiver.url}/mine", verification="handshake")
    [asked] = receiver.received
    client.patch(f"{PATH}/{made['id']}", json={"config": {"url": f"{receiver.url}/victim"}})
    problem(grant(client, asked), 404, "not-found")
    assert subscription(client, made["id"])["is_active"] is False


def test_a_grant_does_not_undo_disabling(client: httpx.Client, receiver: Receiver) -> None:
    made = subscribe(client, receiver.url, verification="handshake")
    client.post(f"{PATH}/{made['id']}/disable")
    problem(grant(client, receiver.received[0]), 404, "not-found")
    deleted = subscribe(client, other(receiver.url), verification="handshake")
    client.delete(f"{PATH}/{deleted['id']}")
    problem(grant(client, receiver.received[1]), 404, "not-found")


@pytest.mark.parametrize(
    ("origin", "is_granted"),
    [
        ("*", True),
        ("hooks.example.com", True),
        ("HOOKS.example.COM", True),
        ("other.example.com, hooks.example.com", True),
        ("example.com", False),
        ("hooks.example.com.evil.test", False),
        ("", False),
    ],
)
def test_whom_a_handshake_names(
    client: httpx.Client, receiver: Receiver, endpoint: Endpoint, origin: str, is_granted: bool
) -> None:
    endpoint.replies["OPTIONS"] = Reply(headers=(("WebHook-Allowed-Origin", origin),))
    made = subscribe(client, receiver.url, verification="handshake")
    assert made["is_active"] is is_granted


# --- secrets ----------------------------------------------------------------------------------------------


def secrets(client: httpx.Client, subscription_id: str) -> list[Json]:
    items: list[Json] = client.get(f"{PATH}/{subscription_id}/secrets").json()["items"]
    return items


def rotate(client: httpx.Client, subscription_id: str, **fields: Any) -> Json:
    answer = client.post(f"{PATH}/{subscription_id}/secrets", json=fields)
    assert answer.status_code == 201, answer.text
    made: Json = answer.json()
    return made


def seconds_between(earlier: str, later: str) -> float:
    return (datetime.fromisoformat(later) - datetime.fromisoformat(earlier)).total_seconds()


def test_rotation(client: httpx.Client, receiver: Receiver) -> None:
    made = subscribe(client, receiver.url, events=["rotated"], schemes=["standard"])
    [first] = secrets(client, made["id"])
    assert (first["state"], first["valid_until"]) == ("current", None)
    assert first["public_key"] == made["config"]["public_key"]
    second = rotate(client, made["id"])
    assert second["secret"].startswith("whsec_")
    assert second["secret"] != made["config"]["secret"]
    assert second["public_key"] != first["public_key"]
    listed = secrets(client, made["id"])
    assert [(one["id"], one["state"]) for one in listed] == [(second["id"], "current"), (first["id"], "previous")]
    assert seconds_between(second["valid_from"], listed[1]["valid_until"]) == DAY
    assert subscription(client, made["id"])["config"]["public_key"] == second["public_key"]
    publish(client, "rotated")
    [request] = receiver.wait_for(1)
    assert len((request.header("webhook-signature") or "").split(" ")) == 2
    # revoke the older
    assert client.delete(f"{PATH}/{made['id']}/secrets/{first['id']}").status_code == 204
    assert [one["id"] for one in secrets(client, made["id"])] == [second["id"]]
    problem(client.delete(f"{PATH}/{made['id']}/secrets/{first['id']}"), 404, "not-found")
    problem(client.delete(f"{PATH}/{made['id']}/secrets/nothing"), 404, "not-found")
    problem(client.delete(f"{PATH}/{made['id']}/secrets/{second['id']}"), 409, "conflict")
    publish(client, "rotated")
    assert " " not in (receiver.wait_for(2)[1].header("webhook-signature") or "")


def test_rotation_at_once(client: httpx.Client) -> None:
    made = subscribe(client, other("http://127.0.0.1:9"))
    for fields in ({"revoke_now": True}, {"overlap": 0}, {"revoke_now": True, "overlap": 0}):
        new = rotate(client, made["id"], **fields)
        assert [one["id"] for one in secrets(client, made["id"])] == [new["id"]]


def test_a_secret_for_later(client: httpx.Client) -> None:
    made = subscribe(client, other("http://127.0.0.1:9"))
    [first] = secrets(client, made["id"])
    later = rotate(client, made["id"], valid_from=at(60), overlap=60, valid_until=at(120))
    assert later["state"] == "future"
    listed = secrets(client, made["id"])
    assert [(one["id"], one["state"]) for one in listed] == [(later["id"], "future"), (first["id"], "current")]
    assert seconds_between(listed[0]["valid_from"], listed[1]["valid_until"]) == 60
    # the one that signs now cannot be revoked, though there will be another
    problem(client.delete(f"{PATH}/{made['id']}/secrets/{first['id']}"), 409, "conflict")
    assert client.delete(f"{PATH}/{made['id']}/secrets/{later['id']}").status_code == 204


def test_limits_of_rotation(client: httpx.Client) -> None:
    made = subscribe(client, other("http://127.0.0.1:9"), schemes=["standard"])
    own = f"{PATH}/{made['id']}/secrets"
    cases: dict[str, tuple[Json, str]] = {
        "too short": ({"secret": "1234567"}, "/secret"),
        "too long": ({"secret": MARKER * 20}, "/secret"),
        "not for these schemes": ({"secret": NOT_BASE64}, "/secret"),
        "a negative overlap": ({"overlap": -0.1}, "/overlap"),
        "a long overlap": ({"overlap": 30 * DAY + 1}, "/overlap"),
        "two wishes": ({"overlap": 1, "revoke_now": True}, "/revoke_now"),
        "now and later": ({"valid_from": at(1), "revoke_now": True}, "/revoke_now"),
        "over before it begins": ({"valid_from": at(2), "valid_until": at(1)}, "/valid_until"),
        "over": ({"valid_until": at(-1)}, "/valid_until"),
        "no offset": ({"valid_from": "2030-01-01T00:00:00"}, "/valid_from"),
        "no time": ({"valid_until": MARKER}, "/valid_until"),
        "unknown": ({"validUntil": at(1)}, "/validUntil"),
    }
    for fields, field in cases.values():
        problem(client.post(own, json=fields), 422, "validation", field)
    assert len(secrets(client, made["id"])) == 1
    rotate(client, made["id"], overlap=30 * DAY)
    far = rotate(client, made["id"], valid_until="9999-12-31T23:59:59-12:00", valid_from="0001-01-01T00:00:00+12:00")
    assert far["state"] == "current"
    same = "whsec_" + base64.b64encode(b"k" * 24).decode()
    rotate(client, made["id"], secret=same)
    problem(client.post(own, json={"secret": same}), 409, "conflict")
    rotate(client, made["id"])
    problem(client.post(own, json={}), 409, "conflict")
    # an empty body is enough
    assert client.post(own, content=b"", headers={"Idempotency-Key": "e"}).status_code == 409
    rotate(client, made["id"], revoke_now=True)
    assert client.post(own, content=b"", headers={"Idempotency-Key": "e"}).status_code == 201


def test_schemes_must_suit_every_secret_that_will_sign(client: httpx.Client) -> None:
    made = subscribe(client, other("http://127.0.0.1:9"), schemes=["websub"])
    own = f"{PATH}/{made['id']}"
    rotate(client, made["id"], secret=NOT_BASE64, valid_from=at(60))
    problem(client.patch(own, json={"schemes": ["standard"]}), 422, "validation", "/schemes")
    rotate(client, made["id"], revoke_now=True)
    assert client.patch(own, json={"schemes": ["standard", "standard-ed25519"]}).status_code == 200


# --- recover ----------------------------------------------------------------------------------------------


def test_recover(client: httpx.Client, receiver: Receiver, endpoint: Endpoint) -> None:
    endpoint.replies["POST"] = Reply(status=500)
    made = subscribe(client, receiver.url, events=["missed.*"], retry_schedule=[])
    own = f"{PATH}/{made['id']}"
    for n in range(3):
        publish(client, "missed.it", {"n": n})
    until(lambda: len(client.get(f"{own}/deliveries", params={"state": "exhausted"}).json()["items"]) == 3)
    endpoint.replies.clear()
    answer = client.post(f"{own}/recover", json={"since": at(-5)}, headers={"Idempotency-Key": "recover"})
    begun = answer.json()
    assert (answer.status_code, begun["subscription_id"]) == (202, made["id"])
    assert begun["states"] == ["exhausted", "rejected", "expired"]
    location = answer.headers["Location"]
    assert location == f"/deliveries/redeliveries/{begun['id']}"
    done = until(lambda: (now := client.get(location).json())["state"] == "done" and now)
    assert (done["made"], done["seen"]) == (3, 3)
    assert sorted(json.loads(request.body)["n"] for request in receiver.wait_for(6)[3:]) == [0, 1, 2]
    again = client.post(
        f"{own}/recover", json=json.loads(answer.request.content), headers={"Idempotency-Key": "recover"}
    )
    assert (again.headers["Idempotency-Replayed"], again.json()["id"]) == ("true", begun["id"])
    problem(client.post(f"{own}/recover", json={}), 422, "validation", "/since")
    problem(client.post(f"{own}/recover", json={"since": at(1)}), 422, "validation", "/since")
    problem(client.post(f"{own}/recover", json={"since": at(-1), "until": at(-2)}), 422, "validation", "/until")
    problem(
        client.post(f"{own}/recover", json={"since": at(-1), "states": ["delivered"]}), 422, "validation", "/states"
    )


# --- ServiceStack's spelling ------------------------------------------------------------------------------


def test_servicestack_spells_it_like_this(client: httpx.Client, receiver: Receiver) -> None:
    answer = client.post(
        PATH,
        json={
            "name": "My Webhook",
            "events": ["stacked"],
            "config": {"url": receiver.url, "secret": "ABCDEFGHIJ==", "contentType": "application/json"},
            "isActive": True,
            "schemes": ["servicestack"],
        },
    )
    assert answer.status_code == 201
    publish(client, "stacked")
    [request] = receiver.wait_for(1)
    digest = hmac.digest(b"ABCDEFGHIJ==", request.body, hashlib.sha256).hex()
    assert request.header("X-Hub-Signature") == f"sha1={digest}"
