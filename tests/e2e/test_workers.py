"""Several processes on one PostgreSQL: an API alone, workers beside it, and servers that share a socket."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator

import httpx
import pytest

from tests.conftest import missing
from tests.support import postgres
from tests.support.receiver import Received, Receiver, Reply
from tests.support.server import NO_TLS, Server, until

Start = Callable[..., Server]

#: a dead worker's leases are free as soon as settings allow
FAST = {"retry_schedule": "[0.2, 0.2, 0.5]", "send_timeout": "1", "session_ttl": "12"}
PROCESSORS = "tests.support.processors"


def post(client: httpx.Client, receiver: Receiver, number: int, **task: str) -> None:
    answer = client.post("/tasks", json={"payload": {"n": number}, "callback_url": f"{receiver.url}/{number}", **task})
    assert answer.status_code == 202, answer.text


def reconciled(client: httpx.Client, **counts: int) -> bool:
    found = client.get("/ledger").json()
    assert found["reconciles"], found
    return all(found[state] == number for state, number in counts.items())


# --- an API alone, and workers ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """A database that the tests of this module share."""
    lacks = postgres.lacking()
    if lacks is not None:
        missing(lacks)
    cluster = postgres.shared()
    name = cluster.take()
    yield cluster.url(name)
    cluster.give_back(name)


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory, database: str) -> Iterator[Server]:
    """An API alone, with processors whose tasks it accepts."""
    options = ("--role", "api", "--processors", PROCESSORS)
    data_dir = tmp_path_factory.mktemp("workers") / "data"
    with Server(data_dir, settings=FAST, options=options, database_url=database) as running:
        yield running


def test_what_an_api_accepts_waits_until_a_worker_comes(api: Server, receiver: Receiver) -> None:
    with api.client() as client:
        post(client, receiver, 1)
        # There is nobody to lease it.
        assert reconciled(client, pending=1, leased=0, delivered=0)
        with api.worker():
            until(lambda: reconciled(client, pending=0, leased=0))
        assert [request.target for request in receiver.received] == ["/1"]


def test_a_processor_runs_on_a_worker(api: Server, receiver: Receiver) -> None:
    with api.client() as client, api.worker(options=("--processors", PROCESSORS)):
        post(client, receiver, 21, type="double")
        [request] = receiver.wait_for(1)
    assert json.loads(request.body)["result"] == {"twice": 42}


def test_a_worker_tells_how_it_is_and_nothing_else(api: Server) -> None:
    with api.worker() as worker, httpx.Client(base_url=worker.url, trust_env=False, verify=NO_TLS) as client:
        assert client.get("/healthz").json() == {"status": "ok"}
        assert client.get("/readyz").json() == {"status": "ready"}
        metrics = client.get("/metrics", headers=api.authorization)
        assert (metrics.status_code, "dispatcher_attempts_total" in metrics.text) == (200, True)
        assert client.get("/metrics").status_code == 401
        for method, path in (("POST", "/tasks"), ("GET", "/ledger"), ("GET", "/openapi.json"), ("GET", "/docs")):
            answer = client.request(method, path, headers=api.authorization)
            assert (answer.status_code, answer.json()["type"]) == (404, "/problems/not-found")
        assert worker.stop() == 0


def test_what_a_killed_worker_had_in_hand_another_delivers(api: Server) -> None:
    many, arrived = 60, threading.Event()

    def answer(request: Received) -> Reply:
        arrived.set()
        # Slow enough that a worker dies with requests under way.
        return Reply(delay=0.5)

    with Receiver(answer) as receiver, api.client() as client, api.worker("one") as one, api.worker("two"):
        before = client.get("/ledger").json()["delivered"]
        for number in range(many):
            post(client, receiver, number)
        assert arrived.wait(120)
        one.kill()
        until(lambda: reconciled(client, delivered=before + many, pending=0, leased=0))
        counts = Counter(request.target for request in receiver.received)
        assert counts.keys() == {f"/{number}" for number in range(many)}


@pytest.mark.parametrize(("command", "options"), [("worker", ()), ("serve", ("--role", "api"))])
def test_a_role_needs_postgresql(start_server: Start, command: str, options: tuple[str, ...]) -> None:
    with pytest.raises(AssertionError, match="is for one of several processes, and those need PostgreSQL"):
        start_server(command=command, options=options)
