"""Many deliveries sent again at once: which, how far it has got, and whose."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from tests.support.api import MARKER, Json, accept, client_of, delivery, ended, problem
from tests.support.receiver import Received, Receiver, Reply
from tests.support.server import Server, until
from tests.support.subscribers import PATH, publish, subscribe

PLACE = "/deliveries/redeliver"
NOBODY = "0" * 32


@pytest.fixture
def client(server: Server, request: pytest.FixtureRequest) -> Iterator[httpx.Client]:
    """An account for each test."""
    with client_of(server, request.node.name[:60]) as running:
        yield running


class Endpoint:
    """Answers what it is told to."""

    status = 200

    def __call__(self, _request: Received) -> Reply:
        return Reply(status=self.status)


@pytest.fixture
def endpoint() -> Endpoint:
    return Endpoint()


@pytest.fixture
def receiver(endpoint: Endpoint) -> Iterator[Receiver]:
    with Receiver(endpoint) as running:
        yield running


def at(minutes: float) -> str:
    return (datetime.now(UTC) + timedelta(minutes=minutes)).isoformat()


def redeliver(client: httpx.Client, **fields: Any) -> Json:
    """Send again, and wait until that is done."""
    answer = client.post(PLACE, json={"since": at(-5), **fields})
    assert answer.status_code == 202, answer.text
    begun = answer.json()
    assert answer.headers["Location"] == f"/deliveries/redeliveries/{begun['id']}"
    found: Json = until(lambda: (now := client.get(answer.headers["Location"]).json())["state"] == "done" and now)
    assert found["finished_at"]
    return found


def deliveries(client: httpx.Client, **params: Any) -> list[Json]:
    items: list[Json] = client.get("/deliveries", params=params).json()["items"]
    return items


def test_what_is_sent_again(client: httpx.Client, receiver: Receiver, endpoint: Endpoint) -> None:
    one = subscribe(client, f"{receiver.url}/one", events=["a.*"], retry_schedule=[])
    two = subscribe(client, f"{receiver.url}/two", events=["a.*"], retry_schedule=[])
    publish(client, "a.fine")
    receiver.wait_for(2)
    endpoint.status = 500
    publish(client, "a.x")
    publish(client, "a.y")
    task = accept(client, f"{receiver.url}/task")
    until(lambda: len(deliveries(client, state="exhausted")) == 5)
    assert ended(client, task["delivery_id"])["state"] == "exhausted"
    came = len(receiver.received)
    endpoint.status = 200

    # of one subscription and type
    done = redeliver(client, subscription_id=one["id"], type="a.x")
    assert (done["made"], done["subscription_id"], done["type"]) == (1, one["id"], "a.x")
    [again] = receiver.wait_for(came + 1)[came:]
    assert (again.target, again.header("X-Webhook-Event")) == ("/one", "a.x")
    [new] = [item for item in deliveries(client, subscription_id=one["id"]) if item["redelivery_of"]]
    assert (new["wire_id"], new["id"] == new["wire_id"]) == (again.delivery, False)

    # of all that missed something: what was sent again since is left out
    done = redeliver(client)
    assert (done["made"], done["states"]) == (4, ["exhausted", "rejected", "expired"])
    targets = [request.target for request in receiver.wait_for(came + 5)[came + 1 :]]
    assert sorted(targets) == ["/one", "/task", "/two", "/two"]
    until(lambda: not deliveries(client, state="pending"))
    assert redeliver(client)["made"] == 0

    # of what was delivered, where that is asked for
    done = redeliver(client, states=["delivered", "delivered"], subscription_id=two["id"], type="a.fine")
    assert (done["made"], done["states"]) == (1, ["delivered"])
    assert receiver.wait_for(came + 6)[-1].target == "/two"
    # not what was accepted before
    assert redeliver(client, states=["delivered"], since=at(-60), until=at(-30))["seen"] == 0


def test_more_than_one_step(client: httpx.Client, receiver: Receiver) -> None:
    subscribe(client, receiver.url, events=["many"])
    count = 250
    events = [{"type": "many", "payload": {"n": n}} for n in range(count)]
    assert client.post("/events/batch", json={"events": events}).status_code == 202
    until(lambda: client.get("/ledger").json()["delivered"] == count)
    done = redeliver(client, states=["delivered"])
    assert (done["seen"], done["made"]) == (count, count)
    until(lambda: client.get("/ledger").json()["delivered"] == 2 * count)
    assert client.get("/ledger").json()["reconciles"] is True
    assert len(receiver.received) == 2 * count
    assert len({request.delivery for request in receiver.received}) == count


def test_an_idempotency_key(client: httpx.Client) -> None:
    body = {"since": at(-5)}
    first = client.post(PLACE, json=body, headers={"Idempotency-Key": "k"})
    again = client.post(PLACE, json=body, headers={"Idempotency-Key": "k"})
    assert (again.status_code, again.headers["Idempotency-Replayed"]) == (202, "true")
    assert again.headers["Location"] == first.headers["Location"]
    assert again.json()["id"] == first.json()["id"]
    answer = client.post(PLACE, json={**body, "type": "x"}, headers={"Idempotency-Key": "k"})
    problem(answer, 422, "idempotency-mismatch")
    assert len(client.get("/deliveries/redeliveries").json()["items"]) == 1


def test_the_list(server: Server, client: httpx.Client) -> None:
    ids = [redeliver(client)["id"] for _ in range(3)]
    page = client.get("/deliveries/redeliveries", params={"limit": 2}).json()
    assert [item["id"] for item in page["items"]] == [ids[2], ids[1]]
    rest = client.get("/deliveries/redeliveries", params={"limit": 2, "cursor": page["next_cursor"]}).json()
    assert ([item["id"] for item in rest["items"]], rest["next_cursor"]) == ([ids[0]], None)
    with client_of(server, "redeliver-stranger") as stranger:
        assert stranger.get("/deliveries/redeliveries").json()["items"] == []
        for id_ in (ids[0], NOBODY, "nothing"):
            problem(stranger.get(f"/deliveries/redeliveries/{id_}"), 404, "not-found")


def test_it_is_one_accounts_alone(server: Server, client: httpx.Client, receiver: Receiver, endpoint: Endpoint) -> None:
    endpoint.status = 500
    made = subscribe(client, receiver.url, retry_schedule=[])
    publish(client)
    [missed] = until(lambda: deliveries(client, state="exhausted"))
    with client_of(server, "redeliver-thief") as thief:
        assert redeliver(thief)["seen"] == 0
        for id_ in (made["id"], NOBODY, MARKER):
            answer = thief.post(PLACE, json={"since": at(-5), "subscription_id": id_})
            problem(answer, 422, "validation", "/subscription_id")
    assert deliveries(client) == [item for item in deliveries(client) if item["id"] == missed["id"]]
    client.delete(f"{PATH}/{made['id']}")
    answer = client.post(PLACE, json={"since": at(-5), "subscription_id": made["id"]})
    problem(answer, 422, "validation", "/subscription_id")


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"since": ...}, "/since"),
        ({"since": None}, "/since"),
        ({"since": MARKER}, "/since"),
        ({"since": "2025-01-01T00:00:00"}, "/since"),
        ({"since": at(60)}, "/since"),
        ({"since": "9999-12-31T23:59:59-12:00"}, "/since"),
        ({"since": "2025-01-01T00:00:00Z", "until": "2025-01-01T00:00:00Z"}, "/until"),
        ({"until": MARKER}, "/until"),
        ({"states": []}, "/states"),
        ({"states": ["delivered", "pending"]}, "/states/1"),
        ({"states": [MARKER]}, "/states/0"),
        ({"states": ["held"]}, "/states/0"),
        ({"subscription_id": 1}, "/subscription_id"),
        ({"type": 1}, "/type"),
        ({"type": ""}, "/type"),
        ({"type": "x" * 101}, "/type"),
        ({"task_id": MARKER}, "/task_id"),
    ],
)
def test_what_is_refused(server: Server, fields: Json, field: str) -> None:
    body = {name: value for name, value in {"since": "2025-01-01T00:00:00Z", **fields}.items() if value is not ...}
    with client_of(server, "redeliver-refused") as client:
        problem(client.post(PLACE, json=body), 422, "validation", field)
        assert client.get("/deliveries/redeliveries").json()["items"] == []


@pytest.mark.parametrize(
    "fields",
    [
        {"since": "0001-01-01T00:00:00+14:00"},
        {"since": "2025-01-01T00:00:00Z", "until": "2025-01-01T00:00:00.001Z"},
        {"since": "2025-01-01T00:00:00Z", "until": "9999-12-31T23:59:59-12:00"},
        {"states": ["delivered", "exhausted", "rejected", "expired", "cancelled"]},
        {"states": None, "subscription_id": None, "type": None, "until": None},
        {"type": "x" * 100},
    ],
)
def test_what_is_taken(server: Server, fields: Json) -> None:
    with client_of(server, "redeliver-taken") as client:
        assert redeliver(client, **fields)["made"] == 0


def test_scopes(server: Server) -> None:
    body = {"since": at(-5)}
    with client_of(server, "scoped", "deliveries:read", "subscriptions:write") as client:
        problem(client.post(PLACE, json=body), 403, "forbidden")
        assert client.get("/deliveries/redeliveries").status_code == 200
    with client_of(server, "scoped", "deliveries:write") as client:
        answer = client.post(PLACE, json=body)
        assert answer.status_code == 202
        problem(client.get(answer.headers["Location"]), 403, "forbidden")


def test_a_ping_is_not_sent_again(client: httpx.Client, receiver: Receiver) -> None:
    made = subscribe(client, receiver.url)
    ping = client.post(f"{PATH}/{made['id']}/ping").json()
    done = redeliver(client, states=["delivered"])
    assert (done["seen"], done["made"]) == (1, 0)
    problem(client.post(f"/deliveries/{ping['delivery_id']}/redeliver"), 409, "conflict")
    assert delivery(client, ping["delivery_id"])["kind"] == "ping"
    assert json.loads(receiver.received[0].body)["subscription_id"] == made["id"]
