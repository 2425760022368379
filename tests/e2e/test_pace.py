"""Rate limits as smooth pacing: no bursts, nothing bounced, and nobody else waits.

Times are taken at the receiver. A machine that stalls makes requests late and lets some of them arrive together, so
spans are counted with a little room; that none comes too early in the long run is checked strictly.
"""

from __future__ import annotations

import json
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from itertools import pairwise

import httpx
import pytest

from tests.support.api import Json, client_of
from tests.support.ledgers import ask
from tests.support.patience import PROMPTLY
from tests.support.receiver import Received, Receiver, Reply
from tests.support.server import Server, until
from tests.support.subscribers import PATH, publish, subscribe
from tests.support.subscriptions import at_rest, deliveries, disable, enable, ledger, messages, publish_many


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    settings = {"retry_schedule": "[0.05, 0.1]", "release_rate": "2000", "log_level": "warning"}
    with Server(tmp_path_factory.mktemp("pace") / "data", settings=settings) as running:
        yield running


@pytest.fixture
def client(server: Server, request: pytest.FixtureRequest) -> Iterator[httpx.Client]:
    """An account for each test."""
    name = "".join(letter for letter in request.node.name if letter.isalnum())[-40:]
    with client_of(server, name) as running:
        yield running


def numbered(count: int, type_: str = "order.paid", **fields: object) -> list[Json]:
    return [{"type": type_, "payload": {"n": n}, **fields} for n in range(count)]


def numbers(requests: list[Received]) -> list[int]:
    return [json.loads(request.body)["n"] for request in requests]


def check_pace(came: list[Received], rate: float) -> None:
    """No second has more than the rate and two, no two follow at once but after a stall, and all take their time."""
    times = [request.at for request in came]
    assert times == sorted(times)
    # two for the ends of the span, and one for each tenth second's stall
    most = max(bisect_left(times, at + 1.0) - number for number, at in enumerate(times))
    assert most <= rate + 4, f"{most} within a second"
    assert times[-1] - times[0] >= (len(times) - 1) / rate - 0.5
    gaps = sorted(after - before for before, after in pairwise(times))
    assert gaps[len(gaps) // 2] >= 0.6 / rate, "half of them come in bursts"


@pytest.mark.parametrize("ordering", ["none", "fifo", "fifo-by-key"])
def test_a_steady_pace(client: httpx.Client, receiver: Receiver, ordering: str) -> None:
    """Twenty a second, of sixty that come at once: as smooth as the machine lets it be, and each is sent once."""
    rate, count = 20, 60
    made = subscribe(client, receiver.url, rate_limit=rate, ordering=ordering)
    publish_many(client, numbered(count, ordering_key="k"))
    counts = at_rest(client)
    assert counts["delivered"] == counts["accepted"] == count
    assert sorted(numbers(receiver.received)) == list(range(count))
    check_pace(receiver.received, rate)
    assert receiver.received[-1].at - receiver.received[0].at <= 3 * count / rate
    # nothing was bounced: each was leased once, and sent at its first attempt
    assert {item["attempt"] for item in deliveries(client, made["id"])} == {1}
    if ordering != "none":
        assert numbers(receiver.received) == list(range(count))


def test_a_pause_earns_no_burst(client: httpx.Client, receiver: Receiver) -> None:
    """Whoever was quiet for a while may not make up for it."""
    rate = 10
    subscribe(client, receiver.url, rate_limit=rate)
    publish(client, payload={"n": -1})
    receiver.wait_for(1)
    time.sleep(1.5)
    publish_many(client, numbered(20))
    at_rest(client)
    check_pace(receiver.received[1:], rate)


def test_what_is_published_one_by_one_is_paced_as_well(client: httpx.Client, receiver: Receiver) -> None:
    rate, count = 20, 40
    subscribe(client, receiver.url, rate_limit=rate)
    for number in range(count):
        publish(client, payload={"n": number})
    at_rest(client)
    check_pace(receiver.received, rate)
    assert sorted(numbers(receiver.received)) == list(range(count))


def test_retries_keep_the_pace(client: httpx.Client) -> None:
    """A request that fails counts like any other, and so does its repetition."""
    rate, count = 20, 20

    def answer(request: Received) -> Reply:
        return Reply(status=503 if request.attempt == 1 and numbers([request])[0] % 2 else 200)

    with Receiver(answer) as receiver:
        subscribe(client, receiver.url, rate_limit=rate)
        publish_many(client, numbered(count))
        counts = at_rest(client)
    assert counts["delivered"] == count
    assert len(receiver.received) == count + count // 2
    check_pace(receiver.received, rate)


def test_what_was_held_is_released_at_the_pace(client: httpx.Client, receiver: Receiver) -> None:
    rate, count = 20, 40
    made = subscribe(client, receiver.url, rate_limit=rate)
    disable(client, made["id"])
    publish_many(client, numbered(count))
    assert enable(client, made["id"]).json()["is_active"] is True
    at_rest(client)
    check_pace(messages(receiver.received), rate)


#: messages to those without a pace: few enough for a busy machine to send them while a slow one waits for its third
OTHERS = 80


def test_a_slow_pace_keeps_nobody_waiting(server: Server, client: httpx.Client, receiver: Receiver) -> None:
    """One every two seconds: it holds next to no leases, while others get all of theirs."""
    slow = subscribe(client, f"{receiver.url}/slow", rate_limit=0.5)["id"]
    slowest = subscribe(client, f"{receiver.url}/slowest", rate_limit=0.01)["id"]
    subscribe(client, f"{receiver.url}/other")
    publish_many(client, numbered(OTHERS))
    leased: list[dict[str, int]] = []

    def others_have_theirs() -> bool:
        rows = ask(
            server.place,
            "SELECT subscription_id, count(*) FROM deliveries WHERE state = 'leased' AND subscription_id IN (?, ?) "
            "GROUP BY subscription_id",
            slow,
            slowest,
        )
        leased.append(dict(rows))
        return len(messages(receiver.received, "/other")) == OTHERS

    until(others_have_theirs)
    until(lambda: others_have_theirs() and len(messages(receiver.received, "/slow")) >= 3)
    # what was leased before the pace was known is given back; later on, one is leased when its time comes near, which
    # at two seconds is as soon as the one before it is on its way
    later = leased[len(leased) // 2 :]
    assert max(held.get(slow, 0) for held in later) <= 2
    assert max(held.get(slowest, 0) for held in later) == 0
    came = messages(receiver.received, "/slow")
    assert len(messages(receiver.received, "/slowest")) == 1
    for before, after in pairwise(came):
        assert after.at - before.at >= 1.9
    others = messages(receiver.received, "/other")
    assert others[-1].at < came[2].at
    assert ledger(client)["delivered"] >= OTHERS + 3


def test_another_rate_takes_effect(client: httpx.Client, receiver: Receiver) -> None:
    """From slow to fast, and from fast to slow, while a line waits."""
    made = subscribe(client, receiver.url, rate_limit=0.5)

    def change(rate: float | None) -> None:
        answer = client.patch(f"{PATH}/{made['id']}", json={"rate_limit": rate})
        assert (answer.status_code, answer.json()["rate_limit"]) == (200, rate)

    publish_many(client, numbered(60))
    receiver.wait_for(2)
    change(50.0)
    # what was leased at the old rate may still keep it
    receiver.wait_for(40, within=PROMPTLY)
    change(1.0)
    seen = len(receiver.received)
    settled = time.monotonic() + 2.5
    receiver.wait_for(min(60, seen + 1))
    until(lambda: time.monotonic() > settled)
    late = [request.at for request in receiver.received if request.at > settled - 1.5]
    assert len(late) <= 4, "it is no slower"
    change(None)
    counts = at_rest(client)
    assert counts["delivered"] == 60
    assert sorted(numbers(receiver.received)) == list(range(60))


def test_the_pace_is_kept_across_a_restart(start_server: Callable[..., Server], receiver: Receiver) -> None:
    """Nothing is lost, and the line goes on at its pace."""
    rate, count = 20, 50
    server = start_server(settings={"log_level": "warning"})
    with server.client() as client:
        subscribe(client, receiver.url, rate_limit=rate)
        publish_many(client, numbered(count))
        receiver.wait_for(10)
        server.kill()
    killed = time.monotonic()
    server.start()
    with server.client() as client:
        counts = at_rest(client)
    assert counts["delivered"] == count
    assert set(numbers(receiver.received)) == set(range(count))
    check_pace([request for request in receiver.received if request.at > killed], rate)
