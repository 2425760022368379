"""Two servers that reach PostgreSQL through PgBouncer in transaction mode, with fewer connections than they want."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.conftest import missing
from tests.support import pgbouncer, postgres
from tests.support.pgbouncer import POOL, PgBouncer
from tests.support.receiver import Receiver
from tests.support.server import Server, until
from tests.support.subscribers import subscribe

Start = Callable[..., Server]

SETTINGS = {"pgbouncer": "true", "retry_schedule": "[0.2, 0.2, 0.5]", "send_timeout": "2", "session_ttl": "15"}
TASKS = 100
EVENTS = 40


@pytest.fixture(scope="module")
def bouncer() -> Iterator[PgBouncer]:
    lacks = postgres.lacking() or pgbouncer.lacking()
    if lacks is not None:
        missing(lacks)
    with PgBouncer(postgres.shared()) as bouncer:
        yield bouncer


@pytest.fixture
def database(bouncer: PgBouncer) -> Iterator[str]:
    """The name of a database with nothing in it: the migrations go through PgBouncer, too."""
    cluster = postgres.shared()
    name = cluster.create()
    yield name
    cluster.drop(name)


def reconciled(client: httpx.Client, **counts: int) -> bool:
    found = client.get("/ledger").json()
    assert found["reconciles"], found
    return all(found[state] == number for state, number in counts.items())


def logged(server: Server) -> list[dict[str, str]]:
    return [json.loads(line) for line in server.log.read_text().splitlines()]


def test_two_servers_deliver_through_it(
    start_server: Start, receiver: Receiver, bouncer: PgBouncer, database: str
) -> None:
    # To hear of each other they need a connection that stays theirs.
    settings = SETTINGS | {"listen_url": postgres.shared().url(database)}
    one = start_server("one", settings=settings, database_url=bouncer.url(database))
    shutil.copytree(one.data_dir, one.data_dir.parent / "two")
    two = start_server("two", settings=settings, database_url=bouncer.url(database))
    with one.client() as first, two.client() as second, ThreadPoolExecutor(8) as pool:
        clients = (first, second)
        subscribe(first, f"{receiver.url}/in-order", name="in order", events=["n"], ordering="fifo")

        def task(number: int) -> int:
            body = {"payload": number, "callback_url": f"{receiver.url}/cb/{number}"}
            return clients[number % 2].post("/tasks", json=body).status_code

        def event(number: int) -> int:
            return clients[number % 2].post("/events", json={"type": "n", "payload": number}).status_code

        assert set(pool.map(task, range(TASKS))) == {202}
        # one after the other, by both servers: this is the order in which they have to come
        assert {event(number) for number in range(EVENTS)} == {202}
        until(lambda: reconciled(first, accepted=TASKS + EVENTS, delivered=TASKS + EVENTS))
    targets = Counter(request.target for request in receiver.received)
    assert targets == {f"/cb/{number}": 1 for number in range(TASKS)} | {"/in-order": EVENTS}
    in_order = [json.loads(request.body) for request in receiver.received if request.target == "/in-order"]
    assert in_order == list(range(EVENTS))

    # It was between them: many transactions, on few connections.
    [shared] = [row for row in bouncer.pools() if row["database"] == database]
    assert sum(int(shared[kind]) for kind in ("sv_active", "sv_idle", "sv_used", "sv_tested")) <= POOL
    assert bouncer.transactions(database) > TASKS
    for server in (one, two):
        assert server.stop() == 0
        assert {line["event"] for line in logged(server) if line["level"] in {"error", "warning"}} == {"dev_mode"}
