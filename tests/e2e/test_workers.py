"""Several processes on one PostgreSQL: an API alone, workers beside it, and servers that share a socket."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import missing
from tests.support import forking, postgres
from tests.support.patience import PATIENCE
from tests.support.receiver import Receiver, Reply
from tests.support.server import NO_TLS, Server, until

Start = Callable[..., Server]

#: a dead worker's leases are free as soon as settings allow
FAST = {"retry_schedule": "[0.2, 0.2, 0.5]", "send_timeout": "1", "session_ttl": "12"}
#: the variable that names the files in which processes count together
METRICS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
PROCESSORS = ("--processors", "tests.support.processors")


@contextmanager
def database() -> Iterator[tuple[postgres.Cluster, str]]:
    """A database, and where it is."""
    lacks = postgres.lacking()
    if lacks is not None:
        missing(lacks)
    cluster = postgres.shared()
    name = cluster.take()
    yield cluster, name
    cluster.give_back(name)


def post(client: httpx.Client, receiver: Receiver, number: int, **task: str) -> None:
    answer = client.post("/tasks", json={"payload": {"n": number}, "callback_url": f"{receiver.url}/{number}", **task})
    assert answer.status_code == 202, answer.text


def reconciled(client: httpx.Client, **counts: int) -> bool:
    found = client.get("/ledger").json()
    assert found["reconciles"], found
    return all(found[state] == number for state, number in counts.items())


def workers(client: httpx.Client, role: str) -> list[dict[str, Any]]:
    """The processes of this role, by the API."""
    return [one for one in client.get("/workers").json()["items"] if one["role"] == role]


# --- an API alone, and workers ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def theirs() -> Iterator[tuple[postgres.Cluster, str]]:
    """The database of the API and its workers."""
    with database() as found:
        yield found


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory, theirs: tuple[postgres.Cluster, str]) -> Iterator[Server]:
    """An API alone, with processors whose tasks it accepts."""
    cluster, name = theirs
    data_dir, options = tmp_path_factory.mktemp("api") / "data", ("--role", "api", *PROCESSORS)
    with Server(data_dir, settings=FAST, options=options, database_url=cluster.url(name)) as running:
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
    with api.client() as client, api.worker(options=PROCESSORS):
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
        for method, path in (("POST", "/tasks"), ("GET", "/ledger"), ("GET", "/workers"), ("GET", "/openapi.json")):
            answer = client.request(method, path, headers=api.authorization)
            assert (answer.status_code, answer.json()["type"]) == (404, "/problems/not-found")
        assert worker.stop() == 0


def test_what_a_killed_worker_had_in_hand_another_delivers(api: Server) -> None:
    # Slow enough that a worker dies with requests under way.
    with (
        Receiver(lambda _request: Reply(delay=0.5)) as receiver,
        api.client() as client,
        api.worker("one") as one,
        api.worker("two"),
    ):
        before, numbers = client.get("/ledger").json()["delivered"], itertools.count()
        doomed = one.process
        assert doomed is not None

        def has_some_in_hand(pid: int) -> bool:
            post(client, receiver, next(numbers))
            return any(worker["pid"] == pid and worker["deliveries"] for worker in workers(client, "worker"))

        until(lambda: has_some_in_hand(doomed.pid))
        one.kill()
        posted = next(numbers)
        until(lambda: reconciled(client, delivered=before + posted, pending=0, leased=0))
        assert {request.target for request in receiver.received} == {f"/{number}" for number in range(posted)}


def test_an_api_whose_session_was_ended_goes_on(api: Server, theirs: tuple[postgres.Cluster, str]) -> None:
    cluster, name = theirs
    with api.client() as client:
        [before] = workers(client, "api")
        # As a worker does when the API has not been heard of for too long.
        cluster.execute("DELETE FROM sessions WHERE role = 'api'", database=name)
        event = {"type": "nobody.wants", "payload": 1}
        until(lambda: client.post("/events", json=event).status_code == 202)
        [after] = workers(client, "api")
        assert (after["pid"], after["id"] != before["id"]) == (before["pid"], True)


def test_the_registry_lists_every_process(api: Server) -> None:
    with api.client() as client, api.worker() as worker:
        assert api.process is not None
        assert worker.process is not None
        listed = {one["pid"]: one for one in client.get("/workers").json()["items"]}
        assert listed[api.process.pid]["role"] == "api"
        mine = listed[worker.process.pid]
        assert (mine["role"], mine["state"], mine["deliveries"], mine["tasks"]) == ("worker", "live", 0, 0)
        assert mine["heartbeat_age"] >= 0
        # by the command line the same
        by_command = {one["pid"]: one for one in json.loads(api.cli("workers", "--json").stdout)}
        assert by_command.keys() == listed.keys()
        assert by_command[worker.process.pid]["id"] == mine["id"]
        assert str(worker.process.pid) in api.cli("workers").stdout
        # and for operators only
        token = api.cli("token", "create", "--account", "acme", "--scope", "tasks:read").stdout.strip()
        assert client.get("/workers", headers={"Authorization": f"Bearer {token}"}).status_code == 403


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("worker",), "the role worker is for one of several processes, and those need PostgreSQL"),
        (("serve", "--role", "api"), "the role api is for one of several processes, and those need PostgreSQL"),
        (("serve", "--workers", "2"), "several workers need PostgreSQL"),
    ],
)
def test_several_processes_need_postgresql(tmp_path: Path, arguments: tuple[str, ...], says: str) -> None:
    done = forking.run(*arguments, "--port", "0", "--data-dir", str(tmp_path / "data"))
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr
    assert not (tmp_path / "data").exists()


# --- servers that share a socket --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two servers on one port, and their parent."""
    data_dir = tmp_path_factory.mktemp("several") / "data"
    with database() as (cluster, name):
        server = Server(data_dir, settings=FAST, options=("--workers", "2"), database_url=cluster.url(name))
        yield server
        if server.running:
            server.stop()


@pytest.fixture
def several(lasting: Server) -> Server:
    """The same, running: a test may have ended it."""
    return lasting if lasting.running else lasting.start()


def children(several: Server) -> set[int]:
    """The processes that take requests."""
    with several.client() as client:
        return {one["pid"] for one in workers(client, "all") if is_running(one["pid"])}


def registered(several: Server) -> set[int]:
    """The processes that have a session, whether they run or not."""
    return {one["pid"] for one in json.loads(several.cli("workers", "--json").stdout)}


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    """A process that does nothing until the end of the block."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def is_running(pid: int) -> bool:
    """Whether a process has not ended, even if nobody has asked for its status yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_each_of_them_serves_the_port(several: Server, receiver: Receiver) -> None:
    pids = children(several)
    assert len(pids) == 2
    for number, pid in enumerate(pids):
        # A new connection: the other one takes it.
        with frozen(pid), several.client() as client:
            post(client, receiver, number)
    receiver.wait_for(2)
    # Whichever is asked tells of both.
    with several.client() as client:
        metrics = client.get("/metrics").text
    assert re.findall(r"^dispatcher_tasks_accepted_total (\S+)$", metrics, re.MULTILINE) == ["2.0"]


def test_one_that_is_killed_is_started_anew(several: Server) -> None:
    before = children(several)
    doomed = min(before)
    os.kill(doomed, signal.SIGKILL)
    until(lambda: not is_running(doomed))
    after = until(lambda: len(found := children(several)) == 2 and found)
    [other] = before - {doomed}
    assert other in after
    with frozen(other):
        assert httpx.get(f"{several.url}/healthz", trust_env=False, verify=NO_TLS, timeout=PATIENCE).status_code == 200


def test_told_to_stop_all_of_them_end(several: Server) -> None:
    pids = children(several)
    assert several.stop() == 0
    assert not any(map(is_running, pids))
    assert not pids & registered(several)


def test_without_their_parent_they_stop(several: Server) -> None:
    pids = children(several)
    assert len(pids) == 2
    variables = Path(f"/proc/{min(pids)}/environ").read_text().split("\0")
    [folder] = [Path(value) for name, _, value in (one.partition("=") for one in variables) if name == METRICS_FOLDER]
    assert folder.is_dir()
    several.kill()
    until(lambda: not any(map(is_running, pids)))
    assert not folder.exists()
    # They have ended their sessions themselves: it was no crash.
    assert not pids & registered(several)
