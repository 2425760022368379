"""What one process leaves to be done, others hear of: real processes on a real PostgreSQL, none of which looks around.

Their looks for work that nobody told them of come once an hour (`unhurried_launcher`), and at the start.
"""

from __future__ import annotations

import asyncio
import itertools
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import asyncpg
import httpx
import pytest

from tests.conftest import missing
from tests.support import postgres
from tests.support.patience import PATIENCE
from tests.support.receiver import Received, Receiver, Reply
from tests.support.server import Server, until

LAUNCHER = "tests.support.unhurried_launcher"
#: a role that the processes hear by, and nothing else
EAR = "ear"
FAST = {"retry_schedule": "[0.2, 0.2, 0.5]", "send_timeout": "2", "session_ttl": "15"}

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def cluster() -> postgres.Cluster:
    lacks = postgres.lacking()
    if lacks is not None:
        missing(lacks)
    return postgres.shared()


@pytest.fixture(scope="module")
def database(cluster: postgres.Cluster) -> Iterator[str]:
    """The name of a database that the processes of this module share."""
    name = cluster.take()
    cluster.execute(f"CREATE ROLE {EAR} LOGIN")
    yield name
    cluster.give_back(name)
    cluster.execute(f"DROP ROLE {EAR}")


@pytest.fixture(scope="module")
def settings(cluster: postgres.Cluster, database: str) -> dict[str, str]:
    """Where what others tell is heard over a connection of another user."""
    url = cluster.url(database).replace(f"{postgres.SUPERUSER}@", f"{EAR}@")
    return FAST | {"listen_url": url}


@pytest.fixture(scope="module")
def pair(
    tmp_path_factory: pytest.TempPathFactory, cluster: postgres.Cluster, database: str, settings: dict[str, str]
) -> Iterator[tuple[Server, Server]]:
    """An API alone, and a worker that is all it has."""
    folder = tmp_path_factory.mktemp("wakeup")
    options = ("--processors", "tests.support.processors")
    common = {"settings": settings, "launcher": LAUNCHER, "database_url": cluster.url(database)}
    with ExitStack() as stack:
        api = stack.enter_context(Server(folder / "api", options=("--role", "api", *options), **common))  # type: ignore[arg-type]  # passed through
        shutil.copytree(folder / "api", folder / "worker")
        worker = Server(folder / "worker", command="worker", options=options, **common)  # type: ignore[arg-type]  # as above
        yield api, stack.enter_context(worker)


@pytest.fixture
def client(pair: tuple[Server, Server]) -> Iterator[httpx.Client]:
    with pair[0].client() as client:
        yield client


def post(client: httpx.Client, url: str, **task: str) -> None:
    """Submit a task whose callback has a path of its own."""
    callback = f"{url}/{next(_numbers)}"
    answer = client.post("/tasks", json={"payload": {"n": 1}, "callback_url": callback, **task})
    assert answer.status_code == 202, answer.text


# --- one that accepts, and one that works -----------------------------------------------------------------


def test_a_worker_hears_of_each_task(client: httpx.Client, receiver: Receiver) -> None:
    for number in range(1, 6):
        post(client, receiver.url)
        # one after the other: none is found by a look for another
        receiver.wait_for(number)


def test_and_of_work_for_its_processors(client: httpx.Client, receiver: Receiver) -> None:
    for number in range(1, 3):
        post(client, receiver.url, type="double", payload="x")
        receiver.wait_for(number)


def test_and_of_events_in_order(client: httpx.Client, receiver: Receiver) -> None:
    config = {"url": f"{receiver.url}/fifo"}
    made = client.post(
        "/webhooks/subscriptions", json={"name": "s", "events": ["wake.*"], "config": config, "ordering": "fifo"}
    )
    assert made.status_code == 201, made.text
    for number in range(1, 4):
        answer = client.post("/events", json={"type": "wake.up", "payload": {"n": number}})
        assert (answer.status_code, answer.json()["deliveries"]) == (202, 1)
    assert [request.body for request in receiver.wait_for(3)] == [b'{"n":%d}' % number for number in (1, 2, 3)]
    assert client.delete(made.headers["Location"]).status_code == 204


def test_and_of_steps_to_take(client: httpx.Client) -> None:
    """A refusal disables; enabling sends a ping and releases what was held, and all may be sent again at once."""
    refused = threading.Event()

    def answer(_request: Received) -> Reply:
        return Reply(status=200 if refused.is_set() else 404)

    with Receiver(answer) as receiver:
        made = client.post(
            "/webhooks/subscriptions",
            json={"name": "s", "events": ["wake.*"], "config": {"url": f"{receiver.url}/steps"}},
        )
        where = made.headers["Location"]
        for _ in range(3):
            client.post("/events", json={"type": "wake.up", "payload": {}})
        until(lambda: client.get("/ledger").json()["held"] == 3)
        refused.set()
        assert client.post(f"{where}/enable", json={}).json()["is_active"]
        until(lambda: client.get("/ledger").json()["held"] == 0)
        until(lambda: client.get("/ledger").json()["pending"] + client.get("/ledger").json()["leased"] == 0)
        before = len(receiver.received)
        assert client.post("/deliveries/redeliver", json={"states": ["delivered"], "since": EPOCH}).status_code == 202
        receiver.wait_for(before + 3)
        assert client.delete(where).status_code == 204


#: before any test
EPOCH = "2020-01-01T00:00:00Z"


# --- an ear that is cut off -------------------------------------------------------------------------------


def cut(cluster: postgres.Cluster) -> None:
    """End the connections by which the processes hear."""
    cluster.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{EAR}'")


def count(log: Path, event: str) -> int:
    return log.read_text().count(f'"{event}"')


def test_an_ear_that_was_cut_off_comes_back(
    pair: tuple[Server, Server], client: httpx.Client, cluster: postgres.Cluster, receiver: Receiver
) -> None:
    """What is accepted meanwhile is found by looking, and afterwards everything is heard of again."""
    _, worker = pair
    before = [count(worker.log, event) for event in ("hearing_lost", "hearing_again")]
    cluster.execute(f"ALTER ROLE {EAR} NOLOGIN")
    cut(cluster)
    until(lambda: count(worker.log, "hearing_lost") == before[0] + 1)
    post(client, receiver.url)
    receiver.wait_for(1)
    cluster.execute(f"ALTER ROLE {EAR} LOGIN")
    until(lambda: count(worker.log, "hearing_again") == before[1] + 1)
    for number in range(2, 4):
        post(client, receiver.url)
        receiver.wait_for(number)
    # it was said once, however often it was tried
    assert count(worker.log, "hearing_lost") == before[0] + 1


def test_it_is_not_missed_for_a_moment(client: httpx.Client, cluster: postgres.Cluster, receiver: Receiver) -> None:
    """It is cut off and everything is accepted at once: nobody can have heard of it."""
    for number in range(1, 4):
        cut(cluster)
        post(client, receiver.url)
        receiver.wait_for(number)


# --- servers that do all, side by side --------------------------------------------------------------------


@pytest.fixture
def own_database(cluster: postgres.Cluster) -> Iterator[str]:
    """The URL of a database for one test."""
    name = cluster.take()
    yield cluster.url(name)
    cluster.drop(name)


@pytest.fixture
def side_by_side(start_server: Callable[..., Server], own_database: str, tmp_path: Path) -> Callable[..., Server]:
    """Starts servers on one database."""

    def start(name: str, **settings: str) -> Server:
        first = next(tmp_path.glob("*/keyring.json"), None)
        if first is not None:
            shutil.copytree(first.parent, tmp_path / name)
        return start_server(name, settings=FAST | settings, launcher=LAUNCHER, database_url=own_database)

    return start


@pytest.fixture
def holder(own_database: str) -> Callable[[], int]:
    """Asks for the process that holds the pace."""

    async def ask() -> int:
        connection = await asyncpg.connect(own_database)
        try:
            return int(await connection.fetchval("SELECT pid FROM sessions JOIN paces ON paces.session = sessions.id"))
        finally:
            await connection.close()

    return lambda: asyncio.run(ask())


def test_what_one_has_no_room_for_another_delivers(side_by_side: Callable[..., Server]) -> None:
    """All of its memory is taken by one request without an answer; what it accepts then is pending."""
    answering = threading.Event()

    async def answer(request: Received) -> Reply:
        return Reply(hang=request.body == b'"hang"' and not answering.is_set())

    full = side_by_side("one", queue_bytes="1", send_timeout="50", session_ttl="120")
    with Receiver(answer) as slow, Receiver() as receiver, full.client() as client:
        post(client, slow.url, payload="hang")
        slow.wait_for(1)
        side_by_side("two")
        for number in range(1, 4):
            post(client, receiver.url)
            receiver.wait_for(number)
        full.kill()


def test_what_one_leaves_behind_when_it_stops_another_delivers(side_by_side: Callable[..., Server]) -> None:
    """A long line in order: only the one that sent the first of it knows that the next one has its turn."""
    sent = threading.Event()

    def answer(_request: Received) -> Reply:
        sent.set()
        return Reply(delay=0.02)

    one = side_by_side("one")
    two = side_by_side("two")
    with Receiver(answer) as receiver, one.client() as client, two.client() as other:
        config = {"url": receiver.url}
        client.post(
            "/webhooks/subscriptions", json={"name": "s", "events": ["x"], "config": config, "ordering": "fifo"}
        )
        events = [{"type": "x", "payload": {"n": number}} for number in range(60)]
        assert client.post("/events/batch", json={"events": events}).status_code == 202
        assert sent.wait(PATIENCE)
        one.signal(signal.SIGTERM)
        until(lambda: other.get("/ledger").json()["delivered"] == 60)
        one.wait()
    bodies = [request.body for request in receiver.received]
    assert list(dict.fromkeys(bodies)) == [b'{"n":%d}' % number for number in range(60)]


# --- a pace that several keep -----------------------------------------------------------------------------

RATE = 20


def publish_at_both(clients: tuple[httpx.Client, httpx.Client], url: str, count: int) -> None:
    """So many events for a subscription at a pace, half of them at each server."""
    made = clients[0].post(
        "/webhooks/subscriptions",
        json={"name": "paced", "events": ["x"], "config": {"url": url}, "rate_limit": RATE},
    )
    assert made.status_code == 201, made.text
    for client, first in zip(clients, (0, count // 2), strict=True):
        events = [{"type": "x", "payload": {"n": number}} for number in range(first, first + count // 2)]
        assert client.post("/events/batch", json={"events": events}).status_code == 202


def check_pace(received: list[Received]) -> None:
    """All took at least two thirds of their time; two servers that each keep the pace for itself take half of it."""
    times = [request.at for request in received]
    assert max(times) - min(times) >= 2 / 3 * (len(times) - 1) / RATE


def test_two_keep_a_pace_as_one_does(side_by_side: Callable[..., Server], receiver: Receiver) -> None:
    count = 120
    one, two = side_by_side("one"), side_by_side("two")
    with one.client() as first, two.client() as second:
        publish_at_both((first, second), receiver.url, count)
        until(lambda: first.get("/ledger").json()["delivered"] == count)
    assert len(receiver.received) == count
    check_pace(receiver.received)


def test_when_one_is_killed_the_other_goes_on_at_the_pace(
    side_by_side: Callable[..., Server], holder: Callable[[], int], receiver: Receiver
) -> None:
    """It does not wait until the session of the dead is over, and is no faster for it."""
    count = 120
    one, two = side_by_side("one"), side_by_side("two")
    servers = {server.process.pid: server for server in (one, two) if server.process is not None}
    with one.client() as first, two.client() as second:
        publish_at_both((first, second), receiver.url, count)
        receiver.wait_for(15)
        pid = holder()
        servers[pid].kill()
        left = second if servers[pid] is one else first
        seen = len(receiver.received)
        receiver.wait_for(seen + 15)
        until(lambda: left.get("/ledger").json()["delivered"] == count)
    check_pace(receiver.received)
    assert {request.body for request in receiver.received} == {b'{"n":%d}' % number for number in range(count)}
