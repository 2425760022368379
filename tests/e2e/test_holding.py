"""A disabled subscription misses nothing: what is held, what comes of it, and what its owner is told.

Real processes, real sockets. Each test has an account of its own.
"""

from __future__ import annotations

import json
import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import httpx
import pytest
import standardwebhooks

from tests.support.api import Json, client_of, delivery, in_state, outcomes, problem
from tests.support.ledgers import ask, change
from tests.support.receiver import Received, Receiver, Reply
from tests.support.server import Server, until
from tests.support.subscribers import PATH, publish, subscribe, subscription
from tests.support.subscriptions import (
    NO_BYTE,
    Script,
    at_rest,
    deliveries,
    disable,
    disabled,
    enable,
    is_ping,
    ledger,
    messages,
    publish_many,
    reason_of,
)

Start = Callable[..., Server]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A dispatcher that releases fast, so that no test waits for it."""
    settings = {"retry_schedule": "[0.05]", "send_timeout": "2", "release_rate": "2000", "log_level": "warning"}
    with Server(tmp_path_factory.mktemp("holding") / "data", settings=settings) as running:
        yield running


@pytest.fixture
def client(server: Server, request: pytest.FixtureRequest) -> Iterator[httpx.Client]:
    """An account for each test."""
    name = "".join(letter for letter in request.node.name if letter.isalnum())[-40:]
    with client_of(server, name) as running:
        yield running


class Endpoint:
    """Answers what it is told to, pings and messages alike."""

    def __init__(self, status: int = 200) -> None:
        self.reply = Reply(status=status)

    def __call__(self, _request: Received) -> Reply:
        return self.reply


def now(seconds: float = 0.0) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()


def numbers(requests: list[Received], path: str | None = None) -> list[int]:
    """The numbers that messages carry, as they came."""
    return [json.loads(request.body)["n"] for request in messages(requests, path)]


def numbered(type_: str, count: int, first: int = 0) -> list[Json]:
    return [{"type": type_, "payload": {"n": n}} for n in range(first, first + count)]


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """Subscriptions by name whose deliveries are held, and what those are."""

    server: Server
    receiver: Receiver
    subscriptions: dict[str, str]
    deliveries: dict[str, list[str]]


@pytest.fixture(scope="module", autouse=True)
def waiting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Waiting]:
    """Held briefly. What is over is looked for ten seconds after a start, and then every thirty: others go first."""
    settings = {"retry_schedule": "[0.05]", "log_level": "warning"}
    with (
        Receiver() as receiver,
        Server(tmp_path_factory.mktemp("expiring") / "data", settings=settings) as server,
        server.client() as client,
    ):
        made = {
            name: subscribe(client, f"{receiver.url}/{name}", is_active=False, **fields)["id"]
            for name, fields in (
                ("briefly", {"hold_for": 0.2}),
                ("briefly-in-order", {"hold_for": 0.2, "ordering": "fifo"}),
                ("for-an-hour", {"hold_for": 3600}),
            )
        }
        publish_many(client, numbered("order.paid", 5))
        ids = {name: [item["id"] for item in deliveries(client, id_)] for name, id_ in made.items()}
        yield Waiting(server=server, receiver=receiver, subscriptions=made, deliveries=ids)


# --- disable, fix, enable ---------------------------------------------------------------------------------


def test_nothing_is_missed(client: httpx.Client) -> None:
    """Disabled by a 401; a thousand are published; it is put right and enabled: all 1,001 arrive, fifo in order."""
    endpoint = Endpoint(401)
    with Receiver(endpoint) as receiver:
        made = {name: subscribe(client, f"{receiver.url}/{name}", ordering=name) for name in ("none", "fifo")}
        publish_many(client, numbered("order.paid", 1))
        for one in made.values():
            assert reason_of(disabled(client, one["id"])) == "rejected"
        # of so many as in the last batch, some are made right after the answer
        for first, count in ((1, 250), (251, 250), (501, 200), (701, 300)):
            publish_many(client, numbered("order.paid", count, first=first))
        until(lambda: {subscription(client, one["id"])["held"] for one in made.values()} == {1001})
        assert ledger(client)["held"] == 2002
        assert len(receiver.received) == 2

        # it is not put right yet: the ping is refused, and nothing else is sent
        for one in made.values():
            problem(enable(client, one["id"]), 409, "conflict")
        assert [is_ping(request) for request in receiver.received[2:]] == [True, True]
        assert {subscription(client, one["id"])["held"] for one in made.values()} == {1001}
        assert {reason_of(subscription(client, one["id"])) for one in made.values()} == {"rejected"}

        endpoint.reply = Reply()
        before = len(receiver.received)
        for one in made.values():
            answer = enable(client, one["id"])
            assert (answer.status_code, answer.json()["is_active"]) == (200, True), answer.text
        counts = at_rest(client)
        after = receiver.received[before:]
    # the two pings of each, and all messages
    assert {state: count for state, count in counts.items() if count} == {
        "accepted": 2 * 1001 + 4,
        "delivered": 2 * 1001 + 2,
        "rejected": 2,
    }
    for name, one in made.items():
        came = [request for request in after if request.target == f"/{name}"]
        assert [is_ping(request) for request in came] == [True] + [False] * 1001
        hook = standardwebhooks.Webhook(one["config"]["secret"])
        for request in (came[0], came[1], came[-1]):
            hook.verify(request.body, dict(request.headers))
        assert sorted(numbers(came)) == list(range(1001)), "each arrives once"
        assert {request.attempt for request in came[1:]} == {1, 2}
        assert sum(request.attempt == 2 for request in came[1:]) == 1, "the one that was refused"
    assert numbers(after, "/fifo") == list(range(1001))


@pytest.mark.parametrize("ordering", ["none", "fifo"])
def test_what_was_held_can_be_discarded(client: httpx.Client, ordering: str) -> None:
    endpoint = Endpoint(401)
    with Receiver(endpoint) as receiver:
        made = subscribe(client, receiver.url, ordering=ordering)
        publish_many(client, numbered("order.paid", 1))
        disabled(client, made["id"])
        publish_many(client, numbered("order.paid", 300, first=1))
        endpoint.reply = Reply()
        assert enable(client, made["id"], held="discard").json()["is_active"] is True
        until(lambda: ledger(client)["cancelled"] == 301)
        publish_many(client, numbered("order.paid", 3, first=1000))
        counts = at_rest(client)
        found = deliveries(client, made["id"], state="cancelled")
    assert (counts["delivered"], counts["cancelled"]) == (3 + 1, 301)
    assert {item["reason"] for item in found} == {"discarded"}
    assert subscription(client, made["id"])["held"] == 0
    assert [is_ping(request) for request in receiver.received] == [False, True, False, False, False]
    assert sorted(numbers(receiver.received)) == [0, 1000, 1001, 1002]


@pytest.mark.parametrize(
    ("reply", "outcome", "status"),
    [
        (Reply(status=401), "http_error", 401),
        (Reply(status=410), "http_error", 410),
        (Reply(status=500), "http_error", 500),
        (Reply(status=302, headers=(("Location", "/"),)), "http_error", 302),
        (Reply(status=429, headers=(("Retry-After", "1"),)), "http_error", 429),
        (NO_BYTE, "connection_error", None),
        (Reply(hang=True), "timeout", None),
    ],
    ids=["401", "410", "500", "302", "429", "reset", "timeout"],
)
def test_a_ping_that_fails_enables_nothing(
    client: httpx.Client, reply: Reply, outcome: str, status: int | None
) -> None:
    endpoint = Endpoint(403)
    with Receiver(endpoint) as receiver:
        made = subscribe(client, receiver.url)
        publish_many(client, numbered("order.paid", 3))
        disabled(client, made["id"])
        before = len(receiver.received)
        publish_many(client, numbered("order.paid", 3, first=3))
        endpoint.reply = reply
        details = problem(enable(client, made["id"]), 409, "conflict")
        assert (details["ping"]["outcome"], details["ping"]["status"]) == (outcome, status)
        standing = subscription(client, made["id"])
        assert (reason_of(standing), standing["held"], standing["verifying"]) == ("rejected", 6, None)
        # A ping is tried once. Its connection is the one of the refusal; only if that breaks is it replaced.
        [attempt] = delivery(client, details["ping"]["delivery_id"])["attempts"]
        assert attempt["timing"]["reconnected"] is (reply == NO_BYTE)
        assert [is_ping(request) for request in receiver.received[before:]] == [True] * (2 if reply == NO_BYTE else 1)
        endpoint.reply = Reply(status=204, body=b"")
        assert enable(client, made["id"]).status_code == 200
        counts = at_rest(client)
    assert (counts["delivered"], counts["exhausted"] + counts["rejected"]) == (6 + 1, 1)
    assert Counter(numbers(receiver.received[before:])) == Counter(range(6))


@pytest.mark.parametrize("ordering", ["none", "fifo"])
def test_disabling_amid_traffic_loses_nothing(client: httpx.Client, ordering: str) -> None:
    """Events come in all the time while their subscription is disabled and enabled by hand."""
    total, turns = 240, 3

    def answer(_request: Received) -> Reply:
        return Reply(delay=0.002)

    with Receiver(answer) as receiver, ThreadPoolExecutor(1) as pool:
        made = subscribe(client, receiver.url, ordering=ordering)
        accepted = threading.Semaphore(0)

        def produce() -> None:
            for number in range(total):
                publish(client, payload={"n": number})
                accepted.release()

        producing = pool.submit(produce)
        for _ in range(turns):
            for _ in range(total // (2 * turns)):
                assert accepted.acquire(timeout=30)
            disable(client, made["id"])
            assert reason_of(subscription(client, made["id"])) == "manual"
            for _ in range(total // (4 * turns)):
                assert accepted.acquire(timeout=30)
            assert enable(client, made["id"]).json()["is_active"] is True
        producing.result(60)
        counts = at_rest(client)
    assert {state: count for state, count in counts.items() if count} == {
        "accepted": total + turns,
        "delivered": total + turns,
    }
    came = numbers(receiver.received)
    assert sorted(came) == list(range(total))
    if ordering == "fifo":
        assert came == sorted(came)
    assert sum(map(is_ping, receiver.received)) == turns


def test_nothing_is_sent_while_it_is_disabled(client: httpx.Client, receiver: Receiver) -> None:
    """Another subscription gets what this one does not."""
    quiet = subscribe(client, f"{receiver.url}/quiet")
    subscribe(client, f"{receiver.url}/other")
    disable(client, quiet["id"])
    publish_many(client, numbered("order.paid", 50))
    until(lambda: len(messages(receiver.received, "/other")) == 50)
    assert {item["state"] for item in deliveries(client, quiet["id"])} == {"held"}
    assert messages(receiver.received, "/quiet") == []
    # a ping can be asked for at any time, and changes nothing
    answer = client.post(f"{PATH}/{quiet['id']}/ping")
    assert (answer.status_code, answer.json()["state"]) == (200, "delivered")
    assert reason_of(subscription(client, quiet["id"])) == "manual"
    assert messages(receiver.received, "/quiet") == []


def test_deleting_cancels_what_waits(client: httpx.Client) -> None:
    """What is held, and what waits for another try; one that is being sent and arrives is delivered all the same."""
    script = Script()
    with Receiver(script) as receiver:
        script.write("/held", Reply(status=401))
        script.write("/late", Reply(status=500))
        script.write("/slow", Reply(delay=1.0))
        paths = ("held", "late", "slow")
        made = {
            path: subscribe(client, f"{receiver.url}/{path}", events=[path], retry_schedule=[3600])["id"]
            for path in paths
        }
        client.patch(f"{PATH}/{made['slow']}", json={"rate_limit": 2}).raise_for_status()
        # at that rate they take half a minute: more than the others need to be where they should be
        wanted = {"held": 20, "late": 20, "slow": 60}
        for path, count in wanted.items():
            publish_many(client, numbered(path, count))
        disabled(client, made["held"])
        until(lambda: len(messages(receiver.received, "/slow")) >= 2)
        until(lambda: all(item["attempt"] for item in deliveries(client, made["late"])))
        for path in paths:
            assert client.delete(f"{PATH}/{made[path]}").status_code == 204
        counts = at_rest(client)
        slow = len(messages(receiver.received, "/slow"))
    assert counts["delivered"] == slow < wanted["slow"]
    assert counts["cancelled"] == 100 - slow
    assert publish(client, "held")["deliveries"] == 0
    reasons = Counter(item["reason"] for item in client.get("/deliveries", params={"limit": 200}).json()["items"])
    assert reasons == {"deleted": 100 - slow, None: slow}


# --- time -------------------------------------------------------------------------------------------------


def test_a_release_is_gentle(start_server: Start, receiver: Receiver) -> None:
    """So many a second, whatever waits; of a line the next goes when the one before it is in. Nobody else waits."""
    rate, count = 20, 80
    server = start_server(settings={"release_rate": str(rate), "log_level": "warning"})
    with server.client() as client:
        made = {
            name: subscribe(client, f"{receiver.url}/{name}", is_active=False, ordering=name)["id"]
            for name in ("none", "fifo-by-key", "fifo")
        }
        events = [{**event, "ordering_key": str(number)} for number, event in enumerate(numbered("order.paid", count))]
        publish_many(client, events)
        for id_ in made.values():
            assert enable(client, id_).json()["is_active"] is True
        active = subscribe(client, f"{receiver.url}/active", events=["other"])
        publish_many(client, numbered("other", 200))
        at_rest(client)
        assert {item["state"] for item in deliveries(client, active["id"])} == {"delivered"}
    others = messages(receiver.received, "/active")
    for name in made:
        came = messages(receiver.received, f"/{name}")
        assert sorted(numbers(came)) == list(range(count))
        if name != "fifo":
            check_rate([request.at for request in came], rate, burst=rate / 4 + 3)
            assert max(request.at for request in others) < came[-1].at
    assert numbers(receiver.received, "/fifo") == list(range(count))


def check_rate(times: list[float], rate: float, *, burst: float) -> None:
    """No span of one or of three seconds has more than the rate allows, and a burst; nor has the whole."""
    assert times == sorted(times)
    for span in (1.0, 3.0):
        # what was late by a stall of the machine arrives together with what was not
        most = max(bisect_left(times, at + span) - number for number, at in enumerate(times))
        assert most <= rate * span * 1.25 + burst, f"{most} within {span} s"
    assert times[-1] - times[0] >= 0.8 * (len(times) - burst) / rate


# --- sending again ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("ordering", ["none", "fifo"])
def test_recovering_what_was_missed(client: httpx.Client, ordering: str) -> None:
    """What was exhausted or rejected since a moment is sent again, under its first id; not what came before."""
    script = Script()
    with Receiver(script) as receiver:
        fields = {"disable_after_4xx": 0, "on_exhausted": "skip", "retry_schedule": []}
        made = subscribe(client, f"{receiver.url}/r", ordering=ordering, **fields)
        script.write("/r", Reply(status=500))
        publish_many(client, numbered("order.paid", 3))
        until(lambda: ledger(client)["exhausted"] == 3)
        # moments are in milliseconds
        since = until(lambda: (then := now()) > deliveries(client, made["id"])[-1]["finished_at"] and then)
        publish_many(client, numbered("order.paid", 3, first=3))
        until(lambda: ledger(client)["exhausted"] == 6)
        script.write("/r", Reply(status=422))
        publish_many(client, numbered("order.paid", 3, first=6))
        until(lambda: ledger(client)["rejected"] == 3)
        script.write("/r", Reply())
        publish_many(client, numbered("order.paid", 3, first=9))
        until(lambda: ledger(client)["delivered"] == 3)

        before = len(receiver.received)
        answer = client.post(f"{PATH}/{made['id']}/recover", json={"since": since})
        assert answer.status_code == 202, answer.text
        done = until(lambda: (d := client.get(answer.headers["Location"]).json())["state"] == "done" and d)
        assert (done["seen"], done["made"]) == (9, 6)
        counts = at_rest(client)
    assert (counts["delivered"], counts["exhausted"], counts["rejected"]) == (9, 6, 3)
    came = receiver.received[before:]
    assert sorted(numbers(came)) == [3, 4, 5, 6, 7, 8]
    if ordering == "fifo":
        assert numbers(came) == [3, 4, 5, 6, 7, 8]
    first = {request.delivery: request.body for request in receiver.received[:before]}
    assert all(first[request.delivery] == request.body for request in came)
    assert {request.attempt for request in came} == {1}


def test_many_are_sent_again_in_spite_of_a_kill(start_server: Start) -> None:
    """A redelivery of many goes on where it was, and makes each one once."""
    endpoint = Endpoint(422)
    count = 350
    with Receiver(endpoint) as receiver:
        server = start_server(settings={"retry_schedule": "[]", "log_level": "warning"})
        with server.client() as client:
            made = subscribe(client, receiver.url, disable_after_4xx=0)
            publish_many(client, numbered("order.paid", count))
            # of so many, some are made right after the answer
            until(lambda: ledger(client)["rejected"] == count)
            endpoint.reply = Reply()
            answer = client.post("/deliveries/redeliver", json={"since": now(-600), "subscription_id": made["id"]})
            assert answer.status_code == 202, answer.text
            place = answer.headers["Location"]
            seen = [until(lambda: (d := client.get(place).json())["seen"] and d)]
            server.kill()
        server.start()
        with server.client() as client:
            while seen[-1]["state"] == "running":
                seen.append(client.get(place).json())
                assert seen[-1]["seen"] >= seen[-2]["seen"]
                time.sleep(0.01)
            counts = at_rest(client)
            again = deliveries(client, made["id"], state="delivered")
        assert (seen[-1]["seen"], seen[-1]["made"]) == (count, count)
        assert seen[-1]["finished_at"]
        assert {state: number for state, number in counts.items() if number} == {
            "accepted": 2 * count,
            "rejected": count,
            "delivered": count,
        }
        origins = ask(server.place, "SELECT redelivery_of FROM deliveries WHERE state='delivered'")
        assert len({origin for (origin,) in origins}) == count
        assert all(item["redelivery_of"] for item in again)


# --- what the owner is told -------------------------------------------------------------------------------


def listen(client: httpx.Client, url: str, **fields: object) -> Json:
    """Set the account's operational endpoint; how it is shown."""
    answer = client.patch("/account", json={"operational_endpoint": {"url": url, **fields}})
    assert answer.status_code == 200, answer.text
    shown: Json = answer.json()["operational_endpoint"]
    return shown


def told(receiver: Receiver, path: str = "/operator") -> list[Json]:
    """What an operational endpoint was told, as it came; without repetitions."""
    requests = {request.delivery: request for request in messages(receiver.received, path)}
    return [json.loads(request.body) for request in requests.values()]


def test_an_owner_is_told(start_server: Start) -> None:
    """Of each kind the first at once, what follows within a minute together after it; signed like any other."""
    script = Script()
    count = 12
    with Receiver(script) as receiver:
        server = start_server(settings={"retry_schedule": "[]", "log_level": "warning"})
        with server.client() as client:
            operator = listen(client, f"{receiver.url}/operator")
            assert operator["is_active"] is True
            hook = standardwebhooks.Webhook(operator["secret"])

            script.write("/refusing", Reply(status=403))
            refusing = subscribe(client, f"{receiver.url}/refusing", name="refusing", events=["a"])
            publish(client, "a")
            [first] = until(lambda: told(receiver))
            assert (first["type"], first["count"]) == ("subscription.disabled", 1)
            assert (first["reason"], first["status"]) == ("rejected", 403)
            host = receiver.url.removeprefix("http://")
            assert first["subscription"] == {"id": refusing["id"], "name": "refusing", "host": host}
            script.write("/refusing", Reply())
            assert enable(client, refusing["id"]).status_code == 200
            until(lambda: [notice["type"] for notice in told(receiver)][1:] == ["subscription.enabled"])

            script.write("/failing", Reply(status=500))
            failing = subscribe(client, f"{receiver.url}/failing", name="failing", events=["b"])
            publish_many(client, numbered("b", count))
            until(lambda: ledger(client)["exhausted"] == count)
            until(lambda: len(told(receiver)) == 4)
            assert {notice["type"] for notice in told(receiver)[2:]} == {"delivery.exhausted", "subscription.failing"}
            for request in messages(receiver.received, "/operator"):
                hook.verify(request.body, dict(request.headers))
                assert request.header("X-Webhook-Event") == json.loads(request.body)["type"]
            # its events are not for anybody else, and it is no subscription for events
            assert subscription(client, operator["subscription_id"])["operational"] is True
            assert len(deliveries(client, operator["subscription_id"])) == 4
        assert server.stop() == 0
        # the minute passes
        assert change(server.place, "UPDATE notices SET due_at = 0 WHERE count > 0") == 1
        server.start()
        with server.client() as client:
            until(lambda: len(told(receiver)) == 5)
            at_rest(client)
        exhausted = [notice for notice in told(receiver) if notice["type"] == "delivery.exhausted"]
        assert len(exhausted) == 2
        assert {notice["subscription"]["id"] for notice in exhausted} == {failing["id"]}
        assert sum(notice["count"] for notice in exhausted) == count
        assert exhausted[1]["first_at"] <= exhausted[1]["last_at"]


def test_an_operational_endpoint_that_fails_is_told_of_nothing(start_server: Start) -> None:
    """Its own refusals and exhausted deliveries raise nothing; what it missed waits for it."""
    script = Script()
    with Receiver(script) as receiver:
        server = start_server(settings={"retry_schedule": "[]", "log_level": "warning", "release_rate": "1000"})
        with server.client() as client:
            operator = listen(client, f"{receiver.url}/operator", secret="an-operators-secret")
            assert "secret" not in operator
            id_ = operator["subscription_id"]
            script.write("/operator", *[Reply(status=500)] * 2, Reply(status=401))
            script.write("/refusing", Reply(status=403))
            made = [subscribe(client, f"{receiver.url}/refusing", events=[f"e{n}"])["id"] for n in range(5)]
            for number in range(3):
                publish(client, f"e{number}")
                until(lambda n=number: len(messages(receiver.received, "/operator")) == n + 1)
            until(lambda: client.get("/account").json()["operational_endpoint"]["is_active"] is False)
            assert reason_of(subscription(client, id_)) == "rejected"
            assert Counter(item["state"] for item in deliveries(client, id_)) == {"exhausted": 2, "held": 1}
            # two more are noted, and held for it
            for number in (3, 4):
                publish(client, f"e{number}")
            until(lambda: subscription(client, id_)["held"] == 3)
            assert ask(server.place, "SELECT count(*) FROM notices WHERE subscription_id = ?", id_) == [(0,)]

            script.write("/operator", Reply())
            assert enable(client, id_).json()["is_active"] is True
            # what is held is released step by step
            until(lambda: Counter(item["state"] for item in deliveries(client, id_))["delivered"] == 3)
            notices = told(receiver)
            assert ask(server.place, "SELECT count(*) FROM notices WHERE subscription_id = ?", id_) == [(0,)]
            delivered = [item for item in deliveries(client, id_) if item["state"] == "delivered"]
            assert outcomes(delivery(client, delivered[0]["id"])) == [(1, "http_error", 401), (2, "success", 200)]
    assert [notice["type"] for notice in notices] == ["subscription.disabled"] * 5
    assert {notice["subscription"]["id"] for notice in notices} == set(made)


# --- and in the end: the others gave it the time -----------------------------------------------------------


def test_what_is_held_for_too_long_expires(waiting: Waiting) -> None:
    made, receiver = waiting.subscriptions, waiting.receiver
    with waiting.server.client() as client:
        for name in ("briefly", "briefly-in-order"):
            for id_ in waiting.deliveries[name]:
                assert in_state(client, id_, "expired")["reason"] == "hold"
        assert {item["state"] for item in deliveries(client, made["for-an-hour"])} == {"held"}
        counts = ledger(client)
        assert (counts["expired"], counts["held"]) == (10, 5)
        assert [subscription(client, id_)["held"] for id_ in made.values()] == [0, 0, 5]
        assert receiver.received == []
        # what has expired is over; what was held goes out
        for id_ in made.values():
            assert enable(client, id_).json()["is_active"] is True
        publish_many(client, numbered("order.paid", 1, first=5))
        at_rest(client)
        assert sorted(numbers(receiver.received, "/for-an-hour")) == list(range(6))
        assert numbers(receiver.received, "/briefly") == numbers(receiver.received, "/briefly-in-order") == [5]
        # and can be sent again by hand
        again = client.post(f"{PATH}/{made['briefly-in-order']}/recover", json={"since": now(-600)})
        assert again.status_code == 202, again.text
        until(lambda: client.get(again.headers["Location"]).json()["state"] == "done")
        counts = at_rest(client)
        # with three pings
        assert (counts["expired"], counts["delivered"]) == (10, 3 + 1 + 1 + 6 + 5)
        assert numbers(receiver.received, "/briefly-in-order") == [5, 0, 1, 2, 3, 4]
