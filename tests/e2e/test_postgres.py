"""`dispatcher serve` on PostgreSQL: alone, beside others on the same database, and while the database is away."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.conftest import missing
from tests.support import postgres
from tests.support.lost_network import LostNetwork
from tests.support.patience import PATIENCE
from tests.support.receiver import Receiver
from tests.support.server import Server, until

Start = Callable[..., Server]

FAST = {"retry_schedule": "[0.2, 0.2, 0.5]", "send_timeout": "2", "session_ttl": "15"}
TASKS = 200


def task(receiver: Receiver, number: int) -> bytes:
    return b'{"payload": %d, "callback_url": "%s/cb/%d"}' % (number, receiver.url.encode(), number)


def post(client: httpx.Client, receiver: Receiver, number: int, *, key: str | None = None) -> httpx.Response:
    headers = {"Idempotency-Key": key} if key else {}
    return client.post("/tasks", content=task(receiver, number), headers=headers)


def reconciled(client: httpx.Client, **counts: int) -> bool:
    found = client.get("/ledger").json()
    assert found["reconciles"], found
    return all(found[state] == number for state, number in counts.items())


def test_a_task_arrives_and_the_ledger_reconciles(start_server: Start, receiver: Receiver, postgres_url: str) -> None:
    server = start_server(settings=FAST, database_url=postgres_url)
    with server.client() as client:
        assert post(client, receiver, 1).status_code == 202
        [request] = receiver.wait_for(1)
        assert (request.target, request.body) == ("/cb/1", b"1")
        until(lambda: reconciled(client, accepted=1, delivered=1))
    assert server.stop() == 0
    assert not (server.data_dir / "dispatcher.db").exists()


def test_two_servers_deliver_each_task_once(start_server: Start, receiver: Receiver, postgres_url: str) -> None:
    one = start_server("one", settings=FAST, database_url=postgres_url)
    copied = one.data_dir.parent / "two"
    copied.mkdir(mode=0o700)
    shutil.copy(one.data_dir / "keyring.json", copied)
    two = start_server("two", settings=FAST, database_url=postgres_url)
    with one.client() as first, two.client() as second, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: post((first, second)[n % 2], receiver, n), range(TASKS)))
        assert {answer.status_code for answer in answers} == {202}
        until(lambda: reconciled(first, accepted=TASKS, delivered=TASKS))
        # what one has accepted the other knows
        [task_id] = [answers[0].json()["id"]]
        assert second.get(f"/tasks/{task_id}").json()["state"] == "succeeded"
    assert Counter(request.target for request in receiver.received) == {f"/cb/{n}": 1 for n in range(TASKS)}


def test_what_a_dead_server_left_another_delivers(start_server: Start, receiver: Receiver, postgres_url: str) -> None:
    settings = FAST | {"lane_concurrency": "1"}
    one = start_server("one", settings=settings, database_url=postgres_url)
    shutil.copytree(one.data_dir, one.data_dir.parent / "two")
    two = start_server("two", settings=settings, database_url=postgres_url)
    with two.client() as client, one.client() as doomed:
        for number in range(50):
            assert post(doomed, receiver, number).status_code == 202
        one.kill()
        until(lambda: reconciled(client, accepted=50, delivered=50), within=60)
    assert {request.target for request in receiver.received} == {f"/cb/{n}" for n in range(50)}


def test_an_idempotency_key_holds_across_servers(start_server: Start, receiver: Receiver, postgres_url: str) -> None:
    one = start_server("one", settings=FAST, database_url=postgres_url)
    shutil.copytree(one.data_dir, one.data_dir.parent / "two")
    two = start_server("two", settings=FAST, database_url=postgres_url)
    with one.client() as first, two.client() as second, ThreadPoolExecutor(8) as pool:

        def ask(number: int) -> tuple[int, Any]:
            answer = post((first, second)[number % 2], receiver, number // 4, key=f"key-{number // 4}")
            return answer.status_code, answer.json().get("id")

        answers = list(pool.map(ask, range(200)))
        assert {status for status, _ in answers} == {202}
        for group in range(50):
            assert len({id_ for _, id_ in answers[4 * group : 4 * group + 4]}) == 1
        until(lambda: reconciled(first, accepted=50, delivered=50))


def test_without_its_keyring_a_server_does_not_start(start_server: Start, postgres_url: str) -> None:
    start_server("one", settings=FAST, database_url=postgres_url).stop()
    with pytest.raises(AssertionError, match="copy it from another server"):
        start_server("two", settings=FAST, database_url=postgres_url)


@pytest.fixture
def cluster() -> Iterator[postgres.Cluster]:
    """A PostgreSQL that a test may end and start again."""
    lacks = postgres.lacking()
    if lacks is not None:
        missing(lacks)
    cluster = postgres.Cluster()
    cluster.start()
    yield cluster
    cluster.remove()


def test_while_the_database_is_away(start_server: Start, receiver: Receiver, cluster: postgres.Cluster) -> None:
    """Nothing is accepted, callers are told to come back, and it goes on by itself."""
    url = cluster.url(cluster.create())
    server = start_server(settings=FAST, database_url=url)
    with server.client() as client:
        assert post(client, receiver, 1).status_code == 202
        receiver.wait_for(1)
        cluster.stop()
        answer = post(client, receiver, 2)
        assert (answer.status_code, answer.json()["type"]) == (503, "/problems/unavailable")
        assert int(answer.headers["Retry-After"]) > 0
        cluster.start()
        until(lambda: post(client, receiver, 3).status_code == 202)
        receiver.wait_for(2)
        until(lambda: reconciled(client, accepted=2, delivered=2))
        cluster.stop()
        assert server.stop() == 0, "it stops in good order all the same; its session ends by itself"
    assert {request.target for request in receiver.received} == {"/cb/1", "/cb/3"}


def test_while_the_database_is_gone_without_a_word(start_server: Start, receiver: Receiver, postgres_url: str) -> None:
    """Nothing is closed, and no answer comes: callers are told all the same, and it goes on over new connections."""
    name = postgres_url.rpartition("@/")[2].partition("?")[0]
    with LostNetwork(postgres.shared().socket) as network:
        url = f"postgresql://postgres@127.0.0.1:{network.port}/{name}?connect_timeout=2"
        server = start_server(settings=FAST | {"database_timeout": "3"}, database_url=url)
        with server.client() as client:
            accepted = 0

            def ask(number: int) -> int:
                nonlocal accepted
                answer = post(client, receiver, number)
                accepted += answer.status_code == 202
                return answer.status_code

            assert ask(1) == 202
            receiver.wait_for(1)
            network.lose()
            client.timeout = httpx.Timeout(PATIENCE)
            assert ask(2) == 503
            network.restore()
            until(lambda: ask(3) == 202)
            until(lambda: reconciled(client, accepted=accepted, delivered=accepted))
    assert {request.target for request in receiver.received} == {"/cb/1", "/cb/3"}


def test_a_database_that_cannot_be_reached_is_told(start_server: Start) -> None:
    with pytest.raises(AssertionError, match="cannot be reached"):
        start_server(settings=FAST, database_url="postgresql://postgres@/none?host=/nowhere")
