"""What an account says of its subscriptions: how they verify themselves, and which endpoint is told of them."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import pytest

from tests.support.api import MARKER, Json, client_of, problem
from tests.support.receiver import Received, Receiver, Reply
from tests.support.server import Server, until
from tests.support.subscribers import PATH, other, publish, subscribe, subscription

NOTICES = [
    "subscription.disabled",
    "subscription.enabled",
    "subscription.failing",
    "delivery.exhausted",
    "secret.expiring",
    "outbox.refused",
]


@pytest.fixture
def client(server: Server, request: pytest.FixtureRequest) -> Iterator[httpx.Client]:
    """An account for each test."""
    with client_of(server, request.node.name[:60].replace("[", "-").rstrip("]").replace("/", "-")) as running:
        yield running


def account(client: httpx.Client, **change: object) -> Json:
    """Change the account."""
    answer = client.patch("/account", json=change)
    assert answer.status_code == 200, answer.text
    found: Json = answer.json()
    return found


def test_the_defaults(client: httpx.Client) -> None:
    found = client.get("/account").json()
    assert (found["verification"], found["operational_endpoint"]) == ("none", None)


def test_verification(client: httpx.Client) -> None:
    for wanted in ("ping", "handshake", "none"):
        assert account(client, verification=wanted)["verification"] == wanted
        # what else is changed leaves it alone
        assert account(client, retry_schedule=[1])["verification"] == wanted
        assert client.get("/account").json()["verification"] == wanted
    account(client, verification="ping")
    assert account(client, verification=None)["verification"] == "none"
    problem(client.patch("/account", json={"verification": MARKER}), 422, "validation", "/verification")


def test_an_operational_endpoint(client: httpx.Client, receiver: Receiver) -> None:
    url = f"{receiver.url}/{MARKER}?token={MARKER}"
    made = account(client, operational_endpoint={"url": url, "headers": {"X-Secret": MARKER}})["operational_endpoint"]
    host = receiver.url.removeprefix("http://")
    secret = made.pop("secret")
    assert secret.startswith("whsec_")
    assert made == {"subscription_id": made["subscription_id"], "host": host, "is_active": True}
    # shown once, and never again
    answers = [
        client.get("/account"),
        client.get(f"{PATH}/{made['subscription_id']}"),
        client.patch("/account", json={}),
    ]
    assert all(secret not in answer.text and MARKER not in answer.text for answer in answers)
    assert answers[0].json()["operational_endpoint"] == made
    # it is a subscription that no list shows
    found = answers[1].json()
    assert (found["operational"], found["events"], found["headers"]) == (True, NOTICES, ["X-Secret"])
    assert client.get(PATH).json()["items"] == []
    assert publish(client, "subscription.disabled")["deliveries"] == 0
    # and its sub-resources work
    assert client.post(f"{PATH}/{found['id']}/ping").json()["state"] == "delivered"
    assert client.post(f"{PATH}/{found['id']}/secrets", json={}).status_code == 201
    assert len(client.get(f"{PATH}/{found['id']}/secrets").json()["items"]) == 2
    assert client.post(f"{PATH}/{found['id']}/disable").json()["is_active"] is False
    assert client.get("/account").json()["operational_endpoint"]["is_active"] is False
    assert client.post(f"{PATH}/{found['id']}/enable").json()["is_active"] is True


def test_it_is_told_what_happens(client: httpx.Client) -> None:
    def answer(request: Received) -> Reply:
        return Reply(status=401 if request.target == "/refusing" else 200)

    with Receiver(answer) as receiver:
        account(client, operational_endpoint={"url": f"{receiver.url}/told"})
        made = subscribe(client, f"{receiver.url}/refusing", name="tells")
        publish(client)
        told = until(lambda: [request for request in receiver.received if request.target == "/told"])[0]
        assert told.header("X-Webhook-Event") == "subscription.disabled"
        assert told.header("X-Hub-Signature")
        payload = json.loads(told.body)
        assert (payload["subscription"]["id"], payload["subscription"]["name"]) == (made["id"], "tells")
        assert (payload["reason"], payload["status"]) == ("rejected", 401)


def test_another_takes_its_place(client: httpx.Client) -> None:
    def put(name: str, **fields: object) -> Json:
        url = f"http://127.0.0.1:9/{name}"
        found: Json = account(client, operational_endpoint={"url": url, **fields})["operational_endpoint"]
        return found

    first = put("one")
    second = put("two", secret="given-by-us", schemes=["websub"])
    assert "secret" not in second
    assert second["subscription_id"] != first["subscription_id"]
    problem(client.get(f"{PATH}/{first['subscription_id']}"), 404, "not-found")
    assert subscription(client, second["subscription_id"])["schemes"] == ["websub"]
    # the same again, in case the first answer was lost
    third = put("two")
    assert "secret" in third
    assert account(client, operational_endpoint=None)["operational_endpoint"] is None
    problem(client.get(f"{PATH}/{third['subscription_id']}"), 404, "not-found")
    assert account(client, operational_endpoint=None)["operational_endpoint"] is None
    fourth = put("three")
    assert client.delete(f"{PATH}/{fourth['subscription_id']}").status_code == 204
    assert client.get("/account").json()["operational_endpoint"] is None
    put("three")
    # a published subscription at the same URL is another matter
    subscribe(client, "http://127.0.0.1:9/three", events=NOTICES)


@pytest.mark.parametrize(
    ("change", "status", "slug", "field"),
    [
        ({"operational_endpoint": {}}, 422, "validation", "/operational_endpoint/url"),
        ({"operational_endpoint": MARKER}, 422, "validation", "/operational_endpoint"),
        ({"operational_endpoint": {"url": f"ftp://{MARKER}"}}, 422, "egress", "/operational_endpoint/url"),
        ({"operational_endpoint": {"url": "http://127.0.0.1/", "secret": "1234567"}}, 422, "validation", "/secret"),
        ({"operational_endpoint": {"url": "http://127.0.0.1/", "events": ["a"]}}, 422, "validation", "/events"),
        (
            {"operational_endpoint": {"url": "http://127.0.0.1/", "schemes": ["websub", "github"]}},
            422,
            "validation",
            "/schemes",
        ),
        (
            {
                "operational_endpoint": {
                    "url": "http://127.0.0.1/",
                    "schemes": ["standard"],
                    "secret": f"{MARKER}-no-base64",
                }
            },
            422,
            "validation",
            "/schemes",
        ),
        (
            {
                "operational_endpoint": {"url": "http://127.0.0.1/", "secret": f"{MARKER}-no-base64"},
                "schemes": ["standard"],
            },
            422,
            "validation",
            "/secret",
        ),
        (
            {"operational_endpoint": {"url": "http://127.0.0.1/", "headers": {"Host": MARKER}}},
            422,
            "validation",
            "/headers/Host",
        ),
        ({"operational_endpoint": None, "schemes": ["websub", "github"]}, 422, "validation", "-/schemes"),
    ],
)
def test_what_is_refused_changes_nothing(
    client: httpx.Client, change: Json, status: int, slug: str, field: str
) -> None:
    before = account(
        client, operational_endpoint={"url": other("http://127.0.0.1:9"), "secret": "given-by-us"}, verification="ping"
    )
    if field.startswith("-"):
        field = field[1:]
    elif not field.startswith("/operational_endpoint"):
        field = f"/operational_endpoint{field}"
    problem(
        client.patch("/account", json={"verification": "none", "retry_schedule": [9], **change}), status, slug, field
    )
    assert client.get("/account").json() == before


def test_it_needs_the_scope(server: Server) -> None:
    with client_of(server, "scoped", "subscriptions:write") as client:
        problem(client.patch("/account", json={"operational_endpoint": None}), 403, "forbidden")
