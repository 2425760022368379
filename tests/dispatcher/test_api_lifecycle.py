"""What callers can do to tasks and deliveries after they were accepted, at every stage they can be in."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.support.api import (
    Json,
    accept,
    client_of,
    delivery,
    ended,
    in_state,
    outcomes,
    problem,
    stored,
    task,
    worked,
)
from tests.support.receiver import Received, Receiver, Reply
from tests.support.server import Server, until

LATER = Reply(status=503, headers=(("Retry-After", "600"),))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A dispatcher with fast retries, and a task type that is worked on elsewhere."""
    settings = {
        "retry_schedule": "[0.05, 0.1]",
        "send_timeout": "5",
        "external_processors": json.dumps({"outside": 60}),
    }
    with Server(tmp_path_factory.mktemp("lifecycle") / "data", settings=settings) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[httpx.Client]:
    with server.client() as running:
        yield running


class Gate:
    """Holds requests until it is opened, then answers them with `reply`."""

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self._open = threading.Event()

    async def __call__(self, _request: Received) -> Reply:
        assert await asyncio.to_thread(self._open.wait, 10)
        return self._reply

    def open(self) -> None:
        self._open.set()


def lease(client: httpx.Client, task_id: str) -> Json:
    """Lease an external task."""
    items = client.post("/tasks/lease", json={"types": ["outside"], "limit": 100}).json()["items"]
    [leased] = [item for item in items if item["id"] == task_id]
    found: Json = leased
    return found


def give_result(client: httpx.Client, leased: Json, **result: Any) -> httpx.Response:
    return client.post(
        f"/tasks/{leased['id']}/result", json={"attempt": leased["attempt"], **(result or {"result": 1})}
    )


def cancel(client: httpx.Client, task_id: str) -> httpx.Response:
    return client.post(f"/tasks/{task_id}/cancel")


def retarget(client: httpx.Client, task_id: str, url: str, **fields: Any) -> httpx.Response:
    return client.put(f"/tasks/{task_id}/callback", json={"callback_url": url, **fields})


def redeliver(client: httpx.Client, delivery_id: str) -> httpx.Response:
    return client.post(f"/deliveries/{delivery_id}/redeliver")


# --- cancel -----------------------------------------------------------------------------------------------


def test_cancel_while_queued(client: httpx.Client, receiver: Receiver) -> None:
    made = accept(client, receiver.url, type="outside")
    assert made["state"] == "queued"
    answer = cancel(client, made["id"])
    assert (answer.status_code, answer.json()["state"]) == (200, "cancelled")
    found = delivery(client, made["delivery_id"])
    assert (found["state"], found["reason"], found["attempts"], found["body"]) == ("cancelled", "cancelled", [], None)
    assert made["id"] not in {
        item["id"] for item in client.post("/tasks/lease", json={"types": ["outside"]}).json()["items"]
    }
    # once more changes nothing, and there is nothing to deliver any more
    before = stored(client)
    assert cancel(client, made["id"]).json()["state"] == "cancelled"
    problem(retarget(client, made["id"], receiver.url), 409, "conflict")
    problem(redeliver(client, made["delivery_id"]), 409, "conflict")
    assert stored(client) == before
    assert receiver.received == []


def test_cancel_while_processing(client: httpx.Client, receiver: Receiver) -> None:
    made = accept(client, receiver.url, type="outside")
    leased = lease(client, made["id"])
    assert task(client, made["id"])["state"] == "processing"
    assert cancel(client, made["id"]).json()["state"] == "cancelled"
    problem(give_result(client, leased), 409, "conflict")
    assert delivery(client, made["delivery_id"])["state"] == "cancelled"
    assert receiver.received == []


def test_cancel_while_pending(client: httpx.Client) -> None:
    with Receiver(lambda _: LATER) as receiver:
        made = accept(client, receiver.url)
        in_state(client, made["delivery_id"], "pending")
        # the task was done; what is withdrawn is its delivery
        assert cancel(client, made["id"]).json()["state"] == "succeeded"
        found = delivery(client, made["delivery_id"])
        assert (found["state"], found["due_at"]) == ("cancelled", None)
        assert cancel(client, made["id"]).status_code == 200
        assert len(receiver.received) == 1


@pytest.mark.parametrize(
    ("reply", "state", "outcome"),
    [
        (Reply(), "delivered", (1, "success", 200)),
        (Reply(status=500), "cancelled", (1, "http_error", 500)),
        (Reply(status=410), "cancelled", (1, "http_error", 410)),
        (Reply(raw=b""), "cancelled", (1, "connection_error", None)),
    ],
    ids=["2xx counts", "5xx", "410", "reset"],
)
def test_cancel_while_leased(
    client: httpx.Client, reply: Reply, state: str, outcome: tuple[int, str, int | None]
) -> None:
    gate = Gate(reply)
    with Receiver(gate) as receiver:
        made = accept(client, receiver.url)
        in_state(client, made["delivery_id"], "leased")
        assert cancel(client, made["id"]).status_code == 200
        assert delivery(client, made["delivery_id"])["state"] == "leased"
        gate.open()
        found = ended(client, made["delivery_id"])
        assert (found["state"], outcomes(found)) == (state, [outcome])
    assert client.get("/ledger").json()["reconciles"]


@pytest.mark.parametrize("status", [200, 410, 500], ids=["delivered", "rejected", "exhausted"])
def test_what_has_ended_cannot_be_cancelled(client: httpx.Client, status: int) -> None:
    with Receiver(lambda _: Reply(status=status)) as receiver:
        made = accept(client, receiver.url)
        ended(client, made["delivery_id"])
        before = stored(client)
        problem(cancel(client, made["id"]), 409, "conflict")
        assert stored(client) == before


# --- another callback -------------------------------------------------------------------------------------


def test_a_new_callback_while_queued(client: httpx.Client, receiver: Receiver) -> None:
    with Receiver() as other:
        made = accept(client, receiver.url, type="outside")
        answer = retarget(client, made["id"], f"{other.url}/new", secret="a new secret", headers={"X-Key": "abc"})
        assert (answer.status_code, answer.json()["state"]) == (200, "queued")
        assert answer.json()["callback"]["host"] == other.url.removeprefix("http://")
        assert give_result(client, lease(client, made["id"])).status_code == 200
        [request] = other.wait_for(1)
        assert (request.target, request.header("X-Key")) == ("/new", "abc")
        assert request.header("X-Hub-Signature")
        assert ended(client, made["delivery_id"])["state"] == "delivered"
    assert receiver.received == []


def test_a_new_callback_while_pending_is_tried_at_once(client: httpx.Client, receiver: Receiver) -> None:
    with Receiver(lambda _: LATER) as old:
        made = accept(client, old.url)
        in_state(client, made["delivery_id"], "pending")
        answer = retarget(client, made["id"], receiver.url)
        assert answer.json()["delivery_id"] == made["delivery_id"]
        [request] = receiver.wait_for(1)
        assert (request.delivery, request.attempt) == (made["delivery_id"], 2)
        found = ended(client, made["delivery_id"])
        assert outcomes(found) == [(1, "http_error", 503), (2, "success", 200)]
        assert found["host"] == receiver.url.removeprefix("http://")
        assert len(old.received) == 1


@pytest.mark.parametrize("status", [500, 404, 410])
def test_a_new_callback_while_leased_is_used_if_the_old_one_fails(
    client: httpx.Client, receiver: Receiver, status: int
) -> None:
    gate = Gate(Reply(status=status))
    with Receiver(gate) as old:
        made = accept(client, old.url)
        in_state(client, made["delivery_id"], "leased")
        assert retarget(client, made["id"], receiver.url).status_code == 200
        gate.open()
        [request] = receiver.wait_for(1)
        assert (request.delivery, request.attempt) == (made["delivery_id"], 2)
        found = ended(client, made["delivery_id"])
        assert (found["state"], outcomes(found)) == (
            "delivered",
            [(1, "http_error", status), (2, "success", 200)],
        )


def test_a_new_callback_while_leased_is_not_needed_if_the_old_one_answers(
    client: httpx.Client, receiver: Receiver
) -> None:
    gate = Gate(Reply(status=204))
    with Receiver(gate) as old:
        made = accept(client, old.url)
        in_state(client, made["delivery_id"], "leased")
        retarget(client, made["id"], receiver.url)
        gate.open()
        found = ended(client, made["delivery_id"])
    assert (found["state"], outcomes(found)) == ("delivered", [(1, "success", 204)])
    assert receiver.received == []
    assert task(client, made["id"])["callback"]["wiped"] is True


@pytest.mark.parametrize("status", [200, 410, 500], ids=["delivered", "rejected", "exhausted"])
def test_a_new_callback_after_the_end_makes_a_new_delivery(
    client: httpx.Client, receiver: Receiver, status: int
) -> None:
    with Receiver(lambda _: Reply(status=status)) as old:
        made = accept(client, old.url, payload={"exact": [1, 2]})
        first = ended(client, made["delivery_id"])
        before = stored(client)["accepted"]
        new_id = retarget(client, made["id"], receiver.url).json()["delivery_id"]
        assert new_id != made["delivery_id"]
        [request] = receiver.wait_for(1)
        second = ended(client, new_id)
        assert (second["state"], second["redelivery_of"], second["wire_id"]) == ("delivered", first["id"], first["id"])
        assert (request.delivery, request.attempt, request.body) == (first["id"], 1, old.received[0].body)
        assert delivery(client, first["id"]) == first
        assert stored(client)["accepted"] == before + 1


def test_a_new_callback_is_vetted_like_the_first(client: httpx.Client, receiver: Receiver) -> None:
    made = accept(client, receiver.url, type="outside")
    before = task(client, made["id"])
    problem(retarget(client, made["id"], "http://10.0.0.1/"), 422, "egress", "/callback_url")
    problem(retarget(client, made["id"], receiver.url, secret="short"), 422, "validation", "/secret")
    # there is work to do yet, and it is given 60 s
    too_soon = "2001-01-01T00:00:00Z"
    problem(
        retarget(client, made["id"], receiver.url, deliver_before=too_soon), 422, "token-expired", "/deliver_before"
    )
    assert task(client, made["id"]) == before
    cancel(client, made["id"])


# --- send again -------------------------------------------------------------------------------------------


def test_a_delivered_one_cannot_be_sent_again_until_it_has_a_callback(client: httpx.Client, receiver: Receiver) -> None:
    made = accept(client, f"{receiver.url}/secret-path")
    ended(client, made["delivery_id"])
    assert task(client, made["id"])["callback"]["wiped"] is True
    before = stored(client)
    problem(redeliver(client, made["delivery_id"]), 409, "callback-wiped")
    assert stored(client) == before


def test_an_exhausted_one_is_sent_again_as_a_new_one(client: httpx.Client) -> None:
    replies = iter([Reply(status=500)] * 3)
    with Receiver(lambda _: next(replies, Reply())) as receiver:
        made = accept(client, receiver.url)
        first = ended(client, made["delivery_id"])
        assert (first["state"], first["reason"], len(first["attempts"])) == ("exhausted", "schedule", 3)
        answer = redeliver(client, first["id"])
        assert (answer.status_code, answer.headers["Location"]) == (202, f"/deliveries/{answer.json()['id']}")
        second = ended(client, answer.json()["id"])
        assert (second["state"], second["wire_id"], second["redelivery_of"]) == ("delivered", first["id"], first["id"])
        assert outcomes(second) == [(1, "success", 200)]
        assert {request.delivery for request in receiver.received} == {first["id"]}
        assert [request.attempt for request in receiver.received] == [1, 2, 3, 1]
        assert len({request.body for request in receiver.received}) == 1
        problem(redeliver(client, first["id"]), 409, "callback-wiped")


def test_one_that_is_under_way_cannot_be_sent_again(client: httpx.Client) -> None:
    with Receiver(lambda request: LATER if request.target == "/later" else Reply(status=410)) as receiver:
        waiting = accept(client, f"{receiver.url}/later")
        in_state(client, waiting["delivery_id"], "pending")
        problem(redeliver(client, waiting["delivery_id"]), 409, "conflict")
        cancel(client, waiting["id"])
    with Receiver(lambda _: LATER) as slow, Receiver(lambda _: Reply(status=410)) as gone:
        made = accept(client, gone.url)
        ended(client, made["delivery_id"])
        again = retarget(client, made["id"], slow.url).json()["delivery_id"]
        in_state(client, again, "pending")
        problem(redeliver(client, made["delivery_id"]), 409, "conflict")
        # the new one counts for the task from now on
        assert cancel(client, made["id"]).status_code == 200
        assert delivery(client, again)["state"] == "cancelled"
        answer = redeliver(client, made["delivery_id"])
        assert (answer.status_code, answer.json()["redelivery_of"]) == (202, made["delivery_id"])
        cancel(client, made["id"])


def test_a_failed_tasks_error_is_delivered_and_can_be_sent_again(client: httpx.Client) -> None:
    replies = iter([Reply(status=404)])
    with Receiver(lambda _: next(replies, Reply())) as receiver:
        made = accept(client, receiver.url, type="outside")
        give_result(client, lease(client, made["id"]), error={"message": "no such film"})
        assert worked(client, made["id"])["error"] == {"message": "no such film"}
        assert ended(client, made["delivery_id"])["state"] == "rejected"
        again = redeliver(client, made["delivery_id"]).json()
        assert ended(client, again["id"])["state"] == "delivered"
        first, second = receiver.received
        assert first.body == second.body
        assert json.loads(first.body)["status"] == "failed"


# --- lists ------------------------------------------------------------------------------------------------


def pages(client: httpx.Client, path: str, **params: Any) -> list[list[str]]:
    """Every page of a list, as ids."""
    found: list[list[str]] = []
    cursor: str | None = None
    for _ in range(50):
        page = client.get(path, params={**params, **({"cursor": cursor} if cursor else {})}).json()
        found.append([item["id"] for item in page["items"]])
        cursor = page["next_cursor"]
        if cursor is None:
            return found
    raise AssertionError("the pages do not end")


@pytest.fixture(scope="module")
def listed(server: Server) -> Iterator[tuple[httpx.Client, list[Json]]]:
    """An account with 20 relayed tasks that are delivered, and 5 external ones that are queued."""
    with Receiver() as receiver, client_of(server, "pager") as client:
        tasks = [{"payload": n, "callback_url": receiver.url} for n in range(20)]
        tasks[10:10] = [{"payload": n, "callback_url": receiver.url, "type": "outside"} for n in range(5)]
        items = client.post("/tasks/batch", json={"tasks": tasks}).json()["items"]
        until(lambda: client.get("/ledger").json()["delivered"] == 20)
        yield client, [item["task"] for item in items]


@pytest.mark.parametrize(
    ("path", "key", "params", "expected"),
    [
        ("/tasks", "id", {}, range(25)),
        ("/tasks", "id", {"state": "queued"}, range(10, 15)),
        ("/tasks", "id", {"state": "succeeded"}, [*range(10), *range(15, 25)]),
        ("/tasks", "id", {"type": "outside"}, range(10, 15)),
        ("/tasks", "id", {"type": "outside", "state": "succeeded"}, []),
        ("/tasks", "id", {"type": "nothing"}, []),
        ("/deliveries", "delivery_id", {}, range(25)),
        ("/deliveries", "delivery_id", {"state": "delivered"}, [*range(10), *range(15, 25)]),
        ("/deliveries", "delivery_id", {"state": "pending"}, range(10, 15)),
        ("/deliveries", "delivery_id", {"state": "held"}, []),
    ],
)
@pytest.mark.parametrize("limit", [1, 5, 7, 25, 200])
def test_lists_page_through_everything_once_newest_first(
    listed: tuple[httpx.Client, list[Json]],
    path: str,
    key: str,
    params: dict[str, str],
    expected: list[int],
    limit: int,
) -> None:
    client, made = listed
    found = pages(client, path, limit=limit, **params)
    assert [item for page in found for item in page] == [made[n][key] for n in reversed(expected)]
    assert all(len(page) == limit for page in found[:-1])


def test_a_list_of_deliveries_can_be_one_tasks(listed: tuple[httpx.Client, list[Json]]) -> None:
    client, made = listed
    assert pages(client, "/deliveries", task_id=made[3]["id"]) == [[made[3]["delivery_id"]]]
    assert pages(client, "/deliveries", task_id="0" * 32) == [[]]


def test_a_list_shows_no_attempts_and_no_callback(listed: tuple[httpx.Client, list[Json]]) -> None:
    client, _ = listed
    assert all("attempts" not in item for item in client.get("/deliveries").json()["items"])
    assert all("url" not in json.dumps(item) for item in client.get("/tasks").json()["items"])


def test_new_tasks_do_not_disturb_paging(server: Server, receiver: Receiver) -> None:
    with client_of(server, "busy") as client:
        old = [accept(client, receiver.url)["id"] for _ in range(4)]
        first = client.get("/tasks", params={"limit": 2}).json()
        accept(client, receiver.url)
        second = client.get("/tasks", params={"limit": 2, "cursor": first["next_cursor"]}).json()
        assert [item["id"] for item in first["items"] + second["items"]] == old[::-1]


# --- what a task shows ------------------------------------------------------------------------------------


def test_a_task_shows_what_it_was_given_and_not_where_it_goes(client: httpx.Client, receiver: Receiver) -> None:
    url = f"{receiver.url}/results/k3yQ9x7Lm2Vb8Rt5?sig=q8Wz3"
    content = b'{"payload":1,"callback_url":"%s","metadata":{"big": 18446744073709551616 , "a":1,"a":2}}' % url.encode()
    made = client.post("/tasks", content=content).json()
    ended(client, made["delivery_id"])
    answer = client.get(f"/tasks/{made['id']}")
    assert b'"metadata":{"big": 18446744073709551616 , "a":1,"a":2}' in answer.content
    shown = answer.text + client.get(f"/deliveries/{made['delivery_id']}").text
    for part in ("k3yQ9x7Lm2Vb8Rt5", "q8Wz3", "results"):
        assert part not in shown
    assert answer.json()["callback"]["token"] == "opaque"
