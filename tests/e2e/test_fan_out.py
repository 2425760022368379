"""An event for very many: fanned out step by step, completely, once to each, whatever happens meanwhile."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx

from tests.support.ledgers import ask, reconciles
from tests.support.receiver import Receiver
from tests.support.server import Server, until
from tests.support.subscribers import PATH, body_of, subscribe

#: subscriptions to one event, of which more than 500 are fanned out step by step
SUBSCRIBERS = 700
#: of them, deleted while the event is fanned out
DELETED = 40
#: deliveries that are made before the process is killed
BEFORE_KILL = 200
#: in a batch; more than have their deliveries made at once, and as many of which each makes two
EVENTS, PAIRS = 540, 270


def subscribe_many(client: httpx.Client, origin: str, number: int) -> list[str]:
    """So many subscriptions, each with a path of its own; their ids."""

    def make(serial: int) -> str:
        body = body_of(f"{origin}/{serial}", name=str(serial), events=["big.*"], schemes=["websub"])
        answer = client.post(PATH, json=body)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(make, range(number)))


def test_an_event_for_hundreds_is_fanned_out_once_to_each_through_a_kill(start_server: Callable[..., Server]) -> None:
    server = start_server(settings={"retry_schedule": "[0.1, 0.5, 1, 1, 1]"})
    with Receiver() as receiver:
        with server.client() as client:
            ids = subscribe_many(client, receiver.url, SUBSCRIBERS)
            answer = client.post("/events", json={"type": "big.news", "payload": {"n": 1}})
            assert answer.status_code == 202
            told = answer.json()
            assert (told["deliveries"], told["fan_out"], told["skipped"]) == (SUBSCRIBERS, "in_progress", [])
            # Those made last get theirs last: ids rise with time.
            deleted = sorted(ids)[-DELETED:]
            for id_ in deleted:
                assert client.delete(f"{PATH}/{id_}").status_code == 204
            late = subscribe(client, f"{receiver.url}/late", events=["big.*"])["id"]
            until(lambda: done_of(server) is None or (done_of(server) or 0) >= BEFORE_KILL, every=0.005)
            server.kill()
        done = done_of(server)
        assert done is not None, "the fan-out was over before the process was killed"
        assert BEFORE_KILL <= done < SUBSCRIBERS - DELETED
        made = ask(server.place, "SELECT subscription_id FROM deliveries WHERE source_id = ?", told["id"])
        assert [id_ for (id_,) in sorted(made)] == sorted(ids)[:done], "what was made is not what is noted as made"
        assert reconciles(server.place)["accepted"] == done

        server.start()
        with server.client() as client:

            def is_complete() -> bool:
                shown = client.get(f"/events/{told['id']}").json()
                assert shown["deliveries"] == SUBSCRIBERS
                return bool(shown["fan_out"] == "complete")

            until(is_complete)
            until(lambda: not any(client.get("/ledger").json()[s] for s in ("pending", "leased")))
            ledger = client.get("/ledger").json()
            assert ledger["reconciles"]
            # One that comes after the end of it all: only those that are there now get it.
            again = client.post("/events", json={"type": "big.again", "payload": {"n": 2}}).json()
            assert again["deliveries"] == SUBSCRIBERS - DELETED + 1
            until(lambda: client.get(f"/events/{again['id']}").json()["fan_out"] == "complete")
            until(lambda: not any(client.get("/ledger").json()[s] for s in ("pending", "leased")))
        assert server.stop() == 0

        question = "SELECT subscription_id, state, id FROM deliveries WHERE source_id = ?"
        rows = ask(server.place, question, told["id"])
        states = {row[0]: row[1] for row in rows}
        assert len(rows) == len(states) == SUBSCRIBERS, "somebody has none, or two"
        assert states.keys() == set(ids)
        assert late not in states
        assert {id_ for id_, state in states.items() if state == "cancelled"} == set(deleted)
        assert {state for id_, state in states.items() if id_ not in deleted} == {"delivered"}
        assert {row[0] for row in ask(server.place, question, again["id"])} == {*ids, late} - set(deleted)
        total = 2 * SUBSCRIBERS - DELETED + 1
        assert reconciles(server.place) == {
            "accepted": total,
            "delivered": total - DELETED,
            "cancelled": DELETED,
        }
        assert ask(server.place, "SELECT 1 FROM fan_outs") == []

        # What came in: once by each attempt, twice only what was under way at the kill, nothing for the others.
        first = [request for request in receiver.received if json.loads(request.body) == {"n": 1}]
        came = Counter((request.delivery, request.attempt) for request in first)
        assert max(came.values()) == 1
        delivery_of = {row[0]: row[2] for row in rows}
        assert {request.delivery for request in first} == {delivery_of[id_] for id_ in ids if id_ not in deleted}
        interrupted = {row[0] for row in ask(server.place, "SELECT delivery_id FROM attempts WHERE number > 1")}
        assert {delivery for delivery, attempt in came if attempt > 1} == interrupted
        paths = Counter(request.target for request in receiver.received)
        assert paths["/late"] == 1
        print(f"\n{done} of {SUBSCRIBERS} were made before the kill; {len(interrupted)} were sent a second time")


def done_of(server: Server) -> int | None:
    """How many deliveries of the event that is being fanned out were made; None if none is."""
    rows = ask(server.place, "SELECT done FROM fan_outs")
    return int(rows[0][0]) if rows else None


def test_many_events_for_few_are_fanned_out_by_the_batch_too(start_server: Callable[..., Server]) -> None:
    """A batch makes more deliveries than are made at once; those that keep an order are made with its own commit."""
    with Receiver() as receiver, start_server().client() as client:
        plain = subscribe(client, f"{receiver.url}/plain", events=["many.*"])["id"]
        ordered = subscribe(client, f"{receiver.url}/ordered", events=["many.*"], ordering="fifo")["id"]
        alone = subscribe(client, f"{receiver.url}/alone", events=["few.*"], ordering="fifo")["id"]
        batch = {"events": [{"type": "many.x", "payload": number} for number in range(PAIRS)]}
        told = client.post("/events/batch", json=batch).json()["items"]
        assert {item["event"]["deliveries"] for item in told} == {2}
        assert [item["event"]["fan_out"] for item in told] == sorted(item["event"]["fan_out"] for item in told)
        assert {item["event"]["fan_out"] for item in told} == {"complete", "in_progress"}
        last = told[-1]["event"]["id"]
        until(lambda: client.get(f"/events/{last}").json()["fan_out"] == "complete")

        batch = {"events": [{"type": "few.x", "payload": number} for number in range(EVENTS)]}
        told = client.post("/events/batch", json=batch).json()["items"]
        assert {item["event"]["fan_out"] for item in told} == {"complete"}, "nothing of them is left to be made"

        until(lambda: client.get("/ledger").json()["delivered"] == 2 * PAIRS + EVENTS)
        came = [(request.target, json.loads(request.body)) for request in receiver.received]
    assert sorted(number for target, number in came if target == "/plain") == list(range(PAIRS))
    for path, count in (("/ordered", PAIRS), ("/alone", EVENTS)):
        assert [number for target, number in came if target == path] == list(range(count))
    assert len({plain, ordered, alone}) == 3
