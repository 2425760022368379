"""Order: first in, first out, whatever happens in between.

Two producers publish at once while receivers fail at random, the dispatcher is killed, and the subscriptions are
disabled and enabled. The order that counts is the one in which the store accepted the events: their places, read from
the database itself.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import httpx
import pytest

from tests.conftest import DATABASES, LONG
from tests.e2e.crash.books import Books
from tests.support.api import Json, client_of
from tests.support.ledgers import ask
from tests.support.producers import Producers
from tests.support.receiver import Received, Receiver, Reply
from tests.support.server import Server, until
from tests.support.subscribers import PATH, subscribe, subscription
from tests.support.subscriptions import (
    Script,
    at_rest,
    deliveries,
    disabled,
    enable,
    is_ping,
    ledger,
    messages,
    publish_many,
    reason_of,
)

SEED = 20_261
PRODUCERS = 2
EVENTS = 100
KEYS = 4
KILLS = 4
#: of them, those before which each subscription is refused for good, so that it is disabled
REFUSED = (1, 3)
#: subscriptions, by path
ORDERINGS = ("fifo", "fifo-by-key", "none")
#: of all requests, so many fail
FAILING = 0.12


class Unreliable:
    """Fails at random, but by a seed; and once refuses for good. It remembers which requests it accepted."""

    def __init__(self) -> None:
        self._chance = random.Random(SEED)
        #: paths whose next message is answered 401
        self.refuse: set[str] = set()
        #: what came to each path, in order: the number of the message, and whether it was accepted
        self.seen: dict[str, list[tuple[str, bool]]] = {f"/{ordering}": [] for ordering in ORDERINGS}

    def __call__(self, request: Received) -> Reply:
        if is_ping(request):
            return Reply()
        reply = self._reply(request.target)
        self.seen[request.target].append((request.delivery, reply.status == 200 and reply.raw is None))
        return reply

    def _reply(self, path: str) -> Reply:
        if path in self.refuse:
            self.refuse.discard(path)
            return Reply(status=401)
        fate = self._chance.random()
        if fate < FAILING / 2:
            return Reply(status=500)
        return Reply(raw=b"") if fate < FAILING else Reply()


@dataclass(frozen=True, kw_only=True)
class Place:
    """A delivery as the database has it."""

    seq: int
    key: str
    payload: Json
    attempts: int
    interrupted: int


def places(server: Server, subscription_id: str) -> dict[str, Place]:
    """Deliveries of a subscription by their wire id; without an order their place is their number."""
    rows = ask(
        server.place,
        "SELECT d.wire_id, coalesce(d.seq, 0), coalesce(d.order_key, ''), b.content, d.attempt, "
        "(SELECT count(*) FROM attempts a WHERE a.delivery_id = d.id AND a.outcome = 'interrupted') "
        "FROM deliveries d JOIN bodies b ON b.id = d.body_id WHERE d.subscription_id = ? AND d.kind = 'message'",
        subscription_id,
    )
    return {
        wire_id: Place(seq=seq, key=key, payload=json.loads(content), attempts=attempt, interrupted=interrupted)
        for wire_id, seq, key, content, attempt, interrupted in rows
    }


# On PostgreSQL it takes minutes: each time, the first in line waits until the dead process's session is over.
@pytest.mark.parametrize("database", DATABASES if LONG else DATABASES[:1])
def test_order_holds_through_all_of_it(
    start_server: Callable[..., Server], request: pytest.FixtureRequest, database: str
) -> None:
    url = request.getfixturevalue("postgres_url") if database == "postgresql" else None
    chance = random.Random(SEED)
    endpoint = Unreliable()
    settings = {
        # a head that is interrupted, or fails, is never given up within this test
        "retry_schedule": str([0.02] * 30),
        "release_rate": "2000",
        "log_level": "warning",
        "send_timeout": "5",
        "session_ttl": "20",
    }
    work = [
        [
            {
                "type": "order.paid",
                "id": f"{producer}-{number}",
                "payload": {"producer": producer, "n": number, "key": str(number % KEYS)},
                "ordering_key": str(number % KEYS),
            }
            for number in range(EVENTS)
        ]
        for producer in range(PRODUCERS)
    ]
    total = PRODUCERS * EVENTS
    with Receiver(endpoint) as receiver:
        server = start_server(settings=settings, database_url=url)
        with server.client() as client:
            made = {path: subscribe(client, f"{receiver.url}/{path}", ordering=path)["id"] for path in ORDERINGS}
        authorization = dict(server.authorization)

        def reconnected() -> httpx.Client:
            return httpx.Client(base_url=server.url, headers=authorization, timeout=30, trust_env=False)

        with Producers(server, work, pause=0.01) as producers:
            for turn in range(KILLS):
                goal = len(receiver.received) + 50
                until(lambda goal=goal: len(receiver.received) >= goal)
                if turn in REFUSED:
                    # refused for good in the midst of it, and enabled after the next start
                    endpoint.refuse |= {f"/{ordering}" for ordering in ORDERINGS}
                    with reconnected() as client:
                        for id_ in made.values():
                            until(lambda id_=id_: not subscription(client, id_)["is_active"])
                until(lambda: chance.random() < 0.2, every=0.005)
                server.kill()
                Books.read(server.place).check()
                server.start()
                if turn in REFUSED:
                    with reconnected() as client:
                        for id_ in made.values():
                            assert reason_of(subscription(client, id_)) == "rejected"
                            assert enable(client, id_).json()["is_active"] is True
            producers.join()
        with reconnected() as client:
            counts = at_rest(client)
        assert server.stop() == 0

    accepted = [id_ for ids in producers.accepted for id_ in ids]
    assert len(set(accepted)) == len(accepted) == total
    # nothing is lost, and nothing was made twice; but for pings, which may themselves have been interrupted
    pings = len(made) * sum(turn in REFUSED for turn in range(KILLS))
    assert {state: count for state, count in counts.items() if count} == {
        "accepted": 3 * total + pings,
        "delivered": 3 * total + pings,
    }
    Books.read(server.place).check()
    for path, id_ in made.items():
        found = places(server, id_)
        assert len(found) == total
        seen = endpoint.seen[f"/{path}"]
        assert {delivery for delivery, _ in seen} == {delivery for delivery, ok in seen if ok} == found.keys()
        check_repetitions(seen, found)
        if path == "fifo":
            assert sorted(place.seq for place in found.values()) == list(range(total))
            check_order(seen, found)
            check_producers(seen, found)
        elif path == "fifo-by-key":
            for key in map(str, range(KEYS)):
                group = {delivery: place for delivery, place in found.items() if place.key == key}
                assert {place.payload["key"] for place in group.values()} == {key}
                in_group = [(delivery, ok) for delivery, ok in seen if delivery in group]
                check_order(in_group, group)
                check_producers(in_group, group)


def check_order(seen: list[tuple[str, bool]], found: dict[str, Place]) -> None:
    """No request overtakes another, and none is sent before the one before it was accepted."""
    assert all(found[before].seq <= found[after].seq for (before, _), (after, _) in pairwise(seen))
    firsts = list(dict.fromkeys(delivery for delivery, ok in seen if ok))
    assert firsts == sorted(found, key=lambda delivery: found[delivery].seq)
    done: set[str] = set()
    expected = iter(firsts)
    head = next(expected)
    for delivery, ok in seen:
        if delivery != head:
            assert head in done, "one was sent although the one before it had not arrived"
            head = next(expected)
            assert delivery == head
        if ok:
            done.add(delivery)


def check_producers(seen: list[tuple[str, bool]], found: dict[str, Place]) -> None:
    """What one producer published after the other arrives after it."""
    firsts = dict.fromkeys(delivery for delivery, ok in seen if ok)
    for producer in range(PRODUCERS):
        payloads = [found[delivery].payload for delivery in firsts]
        own = [payload["n"] for payload in payloads if payload["producer"] == producer]
        assert own == sorted(own)


def check_repetitions(seen: list[tuple[str, bool]], found: dict[str, Place]) -> None:
    """What arrived more than once was being sent when the dispatcher was killed."""
    arrivals = Counter(delivery for delivery, ok in seen if ok)
    for delivery, count in arrivals.items():
        assert count - 1 <= found[delivery].interrupted, found[delivery]


# --- stuck, exhausted -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, a_database: str | None) -> Iterator[Server]:
    settings = {"retry_schedule": str([0.05] * 8), "release_rate": "2000", "log_level": "warning"}
    folder = tmp_path_factory.mktemp("order") / "data"
    with Server(folder, settings=settings, database_url=a_database) as running:
        yield running


@pytest.fixture
def client(server: Server, request: pytest.FixtureRequest) -> Iterator[httpx.Client]:
    """An account for each test."""
    name = "".join(letter for letter in request.node.name if letter.isalnum())[-40:]
    with client_of(server, name) as running:
        yield running


def keyed(key: str | None, number: int) -> Json:
    event: Json = {"type": "order.paid", "payload": {"key": key, "n": number}}
    return event if key is None else {**event, "ordering_key": key}


def pairs(requests: list[Received]) -> list[tuple[str | None, int]]:
    payloads: list[Any] = [json.loads(request.body) for request in messages(requests)]
    return [(payload["key"], payload["n"]) for payload in payloads]


class StuckAt:
    """One message is answered 503 until it is let go."""

    def __init__(self, key: str | None, number: int) -> None:
        self.payload: Json | None = {"key": key, "n": number}

    def __call__(self, request: Received) -> Reply:
        stuck = not is_ping(request) and json.loads(request.body) == self.payload
        return Reply(status=503 if stuck else 200)


def test_other_keys_overtake_a_stuck_one(client: httpx.Client) -> None:
    endpoint = StuckAt("a", 0)
    with Receiver(endpoint) as receiver:
        made = subscribe(client, receiver.url, ordering="fifo-by-key", retry_schedule=[0.2] * 40)
        publish_many(client, [keyed(key, number) for number in range(20) for key in ("a", "b", "c", None)])
        until(lambda: sum(pair[0] != "a" for pair in pairs(receiver.received)) == 60)
        came = pairs(receiver.received)
        assert {pair for pair in came if pair[0] == "a"} == {("a", 0)}
        until(lambda: ledger(client)["delivered"] == 60)
        assert len(deliveries(client, made["id"], state="pending")) >= 19
        endpoint.payload = None
        counts = at_rest(client)
    assert counts["delivered"] == 80
    came = list(dict.fromkeys(pairs(receiver.received)))
    for key in ("a", "b", "c"):
        assert [number for pair, number in came if pair == key] == list(range(20))
    assert sorted(number for pair, number in came if pair is None) == list(range(20))


def test_a_stuck_head_stops_the_whole_line(client: httpx.Client) -> None:
    """With plain fifo the key says nothing."""
    endpoint = StuckAt("a", 0)
    with Receiver(endpoint) as receiver:
        subscribe(client, receiver.url, ordering="fifo", retry_schedule=[0.05] * 40)
        publish_many(client, [keyed(key, number) for number in range(5) for key in ("a", "b", None)])
        until(lambda: len(receiver.received) >= 4)
        assert set(pairs(receiver.received)) == {("a", 0)}
        endpoint.payload = None
        assert at_rest(client)["delivered"] == 15
    came = list(dict.fromkeys(pairs(receiver.received)))
    assert came == [(key, number) for number in range(5) for key in ("a", "b", None)]


@pytest.mark.parametrize("ordering", ["fifo", "fifo-by-key"])
def test_an_exhausted_head_blocks_the_line(client: httpx.Client, ordering: str) -> None:
    """The subscription is disabled, and the rest held; what was lost can be put back in its place before it goes on."""
    endpoint = StuckAt("k", 2)
    with Receiver(endpoint) as receiver:
        made = subscribe(client, receiver.url, ordering=ordering, retry_schedule=[0.05])
        publish_many(client, [keyed("k", number) for number in range(6)])
        assert reason_of(disabled(client, made["id"])) == "blocked"
        found = deliveries(client, made["id"])
        assert [item["state"] for item in found] == ["delivered", "delivered", "exhausted", "held", "held", "held"]
        assert found[2]["reason"] == "schedule"
        assert [number for _, number in pairs(receiver.received)] == [0, 1, 2, 2]
        # sent again while it is held, it goes before those that came after it
        endpoint.payload = None
        answer = client.post(f"/deliveries/{found[2]['id']}/redeliver")
        assert (answer.status_code, answer.json()["state"]) == (202, "held")
        assert enable(client, made["id"]).json()["is_active"] is True
        publish_many(client, [keyed("k", 6)])
        counts = at_rest(client)
    assert (counts["delivered"], counts["exhausted"]) == (7 + 1, 1)
    assert [number for _, number in pairs(receiver.received)] == [0, 1, 2, 2, 2, 3, 4, 5, 6]


def test_without_that_one_the_line_goes_on(client: httpx.Client) -> None:
    endpoint = StuckAt("k", 0)
    with Receiver(endpoint) as receiver:
        made = subscribe(client, receiver.url, ordering="fifo", retry_schedule=[])
        publish_many(client, [keyed("k", number) for number in range(4)])
        assert reason_of(disabled(client, made["id"])) == "blocked"
        # the ping is answered, so it is enabled; what was exhausted stays so
        assert enable(client, made["id"]).json()["is_active"] is True
        counts = at_rest(client)
    assert (counts["delivered"], counts["exhausted"]) == (3 + 1, 1)
    assert [number for _, number in pairs(receiver.received)] == [0, 1, 2, 3]


@pytest.mark.parametrize("ordering", ["fifo", "fifo-by-key"])
def test_an_exhausted_head_is_skipped(client: httpx.Client, ordering: str) -> None:
    endpoint = StuckAt("k", 2)
    with Receiver(endpoint) as receiver:
        fields = {"ordering": ordering, "on_exhausted": "skip", "retry_schedule": [0.05]}
        made = subscribe(client, receiver.url, **fields)
        publish_many(client, [keyed("k", number) for number in range(6)])
        counts = at_rest(client)
        assert (counts["delivered"], counts["exhausted"]) == (5, 1)
        assert subscription(client, made["id"])["is_active"] is True
    assert [number for _, number in pairs(receiver.received)] == [0, 1, 2, 2, 3, 4, 5]


def test_a_rejected_head_lets_the_line_go_on(client: httpx.Client) -> None:
    """What is refused for good is over, by policy or because the endpoint says so."""
    script = Script()
    with Receiver(script) as receiver:
        aborted = Reply(status=500, headers=(("webhook-delivery", "abort-message"),))
        script.write("/line", Reply(), Reply(status=422), Reply(), aborted, Reply())
        made = subscribe(client, f"{receiver.url}/line", ordering="fifo", disable_after_4xx=0)
        publish_many(client, [keyed(None, number) for number in range(6)])
        counts = at_rest(client)
        states = [item["state"] for item in deliveries(client, made["id"])]
    assert (counts["delivered"], counts["rejected"]) == (4, 2)
    assert states == ["delivered", "rejected", "delivered", "rejected", "delivered", "delivered"]
    assert [number for _, number in pairs(receiver.received)] == [0, 1, 2, 3, 4, 5]


def test_order_in_the_file_is_order_of_acceptance(server: Server, client: httpx.Client, receiver: Receiver) -> None:
    """Of one batch: the order in it. Of batches that follow each other: the order of their answers."""
    made = subscribe(client, receiver.url, ordering="fifo")
    for start in (0, 40, 80):
        publish_many(client, [keyed(None, number) for number in range(start, start + 40)])
    at_rest(client)
    rows = sorted(places(server, made["id"]).values(), key=lambda place: place.seq)
    assert [place.payload["n"] for place in rows] == list(range(120))
    assert [number for _, number in pairs(receiver.received)] == list(range(120))


def test_a_deleted_line_is_over(client: httpx.Client) -> None:
    endpoint = StuckAt("k", 1)
    with Receiver(endpoint) as receiver:
        made = subscribe(client, receiver.url, ordering="fifo", retry_schedule=[0.05] * 40)
        publish_many(client, [keyed("k", number) for number in range(5)])
        until(lambda: len(receiver.received) >= 3)
        assert client.delete(f"{PATH}/{made['id']}").status_code == 204
        counts = at_rest(client)
    assert (counts["delivered"], counts["cancelled"]) == (1, 4)
    assert set(pairs(receiver.received)) == {("k", 0), ("k", 1)}
