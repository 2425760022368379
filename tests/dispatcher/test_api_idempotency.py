"""Idempotency keys: the same request is carried out once, whoever sends it however often."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.support.api import accept, client_of, ended, jwt, problem, stored
from tests.support.receiver import Receiver, Reply
from tests.support.server import Server, until


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[httpx.Client]:
    with client_of(server, "acme") as running:
        yield running


def body(receiver: Receiver, **fields: Any) -> bytes:
    return json.dumps({"payload": {"n": 1}, "callback_url": receiver.url, **fields}).encode()


def keyed(client: httpx.Client, path: str, content: bytes, key: str) -> httpx.Response:
    return client.post(path, content=content, headers={"Idempotency-Key": key})


def test_the_same_key_and_body_give_the_same_answer_and_one_delivery(client: httpx.Client, receiver: Receiver) -> None:
    before = stored(client)["accepted"]
    first = keyed(client, "/tasks", body(receiver), "same")
    ended(client, first.json()["delivery_id"])
    again = [keyed(client, "/tasks", body(receiver), "same") for _ in range(3)]
    assert first.status_code == 202
    assert "Idempotency-Replayed" not in first.headers
    for answer in again:
        assert (answer.status_code, answer.content) == (202, first.content)
        assert answer.headers["Idempotency-Replayed"] == "true"
        assert answer.headers["Location"] == first.headers["Location"]
    assert stored(client)["accepted"] == before + 1
    assert len(receiver.received) == 1


@pytest.mark.parametrize("change", [{"payload": {"n": 2}}, {"metadata": {}}, {"secret": "another one"}])
def test_another_body_under_the_same_key_is_refused(client: httpx.Client, receiver: Receiver, change: Any) -> None:
    key = f"other {change}".replace(" ", "-")
    keyed(client, "/tasks", body(receiver), key)
    before = stored(client)
    problem(keyed(client, "/tasks", body(receiver, **change), key), 422, "idempotency-mismatch")
    # the same JSON in other bytes is another body, too
    problem(keyed(client, "/tasks", body(receiver) + b" ", key), 422, "idempotency-mismatch")
    assert stored(client) == before


def test_a_refused_request_does_not_use_its_key_up(client: httpx.Client, receiver: Receiver) -> None:
    problem(keyed(client, "/tasks", b"{}", "second chance"[:6]), 422, "validation", "/payload")
    answer = keyed(client, "/tasks", body(receiver), "second")
    assert (answer.status_code, "Idempotency-Replayed" in answer.headers) == (202, False)


def test_what_was_accepted_is_replayed_though_it_could_not_be_accepted_now(
    client: httpx.Client, receiver: Receiver
) -> None:
    path = jwt(exp=int(time.time()) + 12)
    content = body(receiver, callback_url=f"{receiver.url}/{path}")
    first = keyed(client, "/tasks", content, "expiring")
    until(lambda: client.post("/tasks", content=content).status_code == 422, every=0.1)
    again = keyed(client, "/tasks", content, "expiring")
    assert (again.status_code, again.content, again.headers["Idempotency-Replayed"]) == (202, first.content, "true")
    problem(keyed(client, "/tasks", content + b" ", "expiring"), 422, "idempotency-mismatch")
    problem(keyed(client, "/tasks", content, "fresh"), 422, "token-expired", "/callback_url")


async def test_fifty_equal_requests_at_once_make_one_task(server: Server, receiver: Receiver) -> None:
    content = body(receiver)
    async with server.async_client(limits=httpx.Limits(max_connections=50)) as client:
        before = (await client.get("/ledger")).json()["accepted"]
        answers = await asyncio.gather(
            *(client.post("/tasks", content=content, headers={"Idempotency-Key": "at-once"}) for _ in range(50))
        )
        after = (await client.get("/ledger")).json()["accepted"]
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.content for answer in answers}) == 1
    assert sum("Idempotency-Replayed" not in answer.headers for answer in answers) == 1
    assert after == before + 1
    receiver.wait_for(1)
    assert len(receiver.received) == 1


async def test_of_fifty_different_requests_at_once_one_wins(server: Server, receiver: Receiver) -> None:
    async with server.async_client(limits=httpx.Limits(max_connections=50)) as client:
        answers = await asyncio.gather(
            *(
                client.post("/tasks", content=body(receiver, metadata={"n": n}), headers={"Idempotency-Key": "race"})
                for n in range(50)
            )
        )
    assert sorted(answer.status_code for answer in answers) == [202] + [422] * 49


def test_a_key_holds_for_its_account_and_route_only(server: Server, client: httpx.Client, receiver: Receiver) -> None:
    first = keyed(client, "/tasks", body(receiver), "scoped").json()
    with client_of(server, "other") as other:
        theirs = keyed(other, "/tasks", body(receiver), "scoped")
        assert "Idempotency-Replayed" not in theirs.headers
        assert theirs.json()["id"] != first["id"]
    batch = json.dumps({"tasks": [json.loads(body(receiver))]}).encode()
    assert "Idempotency-Replayed" not in keyed(client, "/tasks/batch", batch, "scoped").headers


def test_it_works_for_batches(client: httpx.Client, receiver: Receiver) -> None:
    # one good, one bad: the whole answer is kept
    content = json.dumps({"tasks": [json.loads(body(receiver)), {"payload": 1}]}).encode()
    before = stored(client)["accepted"]
    first = keyed(client, "/tasks/batch", content, "batch")
    again = keyed(client, "/tasks/batch", content, "batch")
    assert [item["status"] for item in first.json()["items"]] == [202, 422]
    assert (again.content, again.headers["Idempotency-Replayed"]) == (first.content, "true")
    problem(keyed(client, "/tasks/batch", content + b" ", "batch"), 422, "idempotency-mismatch")
    nothing = b'{"tasks": [1]}'
    for _ in range(2):
        assert keyed(client, "/tasks/batch", nothing, "all-bad").json()["items"][0]["status"] == 422
    assert stored(client)["accepted"] == before + 1


def test_an_event_id_that_was_used_for_another_event_is_named(client: httpx.Client) -> None:
    first = {"type": "order.paid", "id": "order-1", "payload": {"n": 1}}
    other = first | {"payload": {"n": 2}}
    assert client.post("/events", json=first).status_code == 202
    assert client.post("/events", json=first).headers["Idempotency-Replayed"] == "true"
    answer = client.post("/events", json=other)
    problem(answer, 422, "idempotency-mismatch", "/id")
    assert "Idempotency-Key" not in answer.text
    [_, item] = client.post("/events/batch", json={"events": [first, other]}).json()["items"]
    assert item["problem"]["errors"][0]["field"] == "/events/1/id"


def test_it_works_for_redeliveries(client: httpx.Client) -> None:
    answers = iter([410])
    with Receiver(lambda _: Reply(status=next(answers, 200))) as receiver:
        first = accept(client, receiver.url)
        assert ended(client, first["delivery_id"])["state"] == "rejected"
        path = f"/deliveries/{first['delivery_id']}/redeliver"
        made, again = keyed(client, path, b"", "redeliver"), keyed(client, path, b"", "redeliver")
        assert made.status_code == again.status_code == 202
        assert made.json()["id"] == again.json()["id"] != first["delivery_id"]
        assert again.headers["Idempotency-Replayed"] == "true"
        assert again.headers["Location"] == made.headers["Location"]
        assert ended(client, made.json()["id"])["state"] == "delivered"
        # even when it is over, the key still answers with it
        assert keyed(client, path, b"", "redeliver").json()["id"] == made.json()["id"]
        problem(keyed(client, path, b"", "new-key"), 409, "callback-wiped")
        assert len(receiver.received) == 2


@pytest.mark.parametrize("key", ["k" * 256, "", "with space", "caf\xe9", "tab\tkey"])
@pytest.mark.parametrize("path", ["/tasks", "/tasks/batch"])
def test_a_bad_key_is_refused(client: httpx.Client, receiver: Receiver, path: str, key: str) -> None:
    content = body(receiver) if path == "/tasks" else b'{"tasks": [%s]}' % body(receiver)
    before = stored(client)
    answer = client.post(path, content=content, headers={b"Idempotency-Key": key.encode("latin-1")})
    problem(answer, 422, "validation", "/Idempotency-Key")
    assert stored(client) == before


def test_a_key_of_255_characters_is_taken(client: httpx.Client, receiver: Receiver) -> None:
    first = keyed(client, "/tasks", body(receiver), "k" * 255)
    assert keyed(client, "/tasks", body(receiver), "k" * 255).content == first.content


def test_reading_knows_no_keys(client: httpx.Client, receiver: Receiver) -> None:
    accepted = accept(client, receiver.url)
    headers = {"Idempotency-Key": "read"}
    before = client.get("/ledger", headers=headers).json()
    accept(client, receiver.url)
    assert client.get("/ledger", headers=headers).json()["accepted"] == before["accepted"] + 1
    until(lambda: client.get(f"/deliveries/{accepted['delivery_id']}", headers=headers).json()["state"] == "delivered")


def test_without_a_key_equal_requests_are_two_tasks(client: httpx.Client, receiver: Receiver) -> None:
    assert accept(client, receiver.url)["id"] != accept(client, receiver.url)["id"]
