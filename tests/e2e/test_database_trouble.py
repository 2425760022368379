"""Trouble around the database: a full disk, a lock, a second server, signals. What was answered 202 is never lost.

And what could not be stored was never answered 202: each test compares the answers with what is in the database.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from tests.conftest import missing, of_the_file
from tests.support import postgres
from tests.support.ledgers import ask
from tests.support.patience import PATIENCE, PROMPTLY
from tests.support.receiver import Received, Receiver, Reply
from tests.support.server import Server, until

Start = Callable[..., Server]

FAST = {"retry_schedule": "[0.2, 0.2, 0.5, 1, 1]", "send_timeout": "5", "session_ttl": "20"}
MIB = 1 << 20


def post(client: httpx.Client, url: str, payload: str = '"x"', *, key: str | None = None) -> httpx.Response:
    body = f'{{"payload": {payload}, "callback_url": "{url}"}}'
    return client.post("/tasks", content=body.encode(), headers={"Idempotency-Key": key} if key else {})


def assert_unavailable(answer: httpx.Response) -> None:
    """The one honest answer of a server that cannot store anything now."""
    assert answer.status_code == 503, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json()["type"] == "/problems/unavailable"
    assert int(answer.headers["Retry-After"]) > 0


def ledger(client: httpx.Client) -> dict[str, int]:
    found: dict[str, int] = client.get("/ledger").json()
    assert found["reconciles"], found
    return found


def all_items(client: httpx.Client, path: str) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    cursor: str | None = None
    for _ in range(100):
        page = client.get(path, params={"limit": 200} | ({"cursor": cursor} if cursor else {})).json()
        items += page["items"]
        cursor = page["next_cursor"]
        if cursor is None:
            return items
    raise AssertionError("more pages than there can be")


def wait_delivered(client: httpx.Client, count: int, *, within: float = PATIENCE) -> None:
    until(lambda: (found := ledger(client))["delivered"] == found["accepted"] == count, within=within, every=0.1)


# --- a full disk ------------------------------------------------------------------------------------------


@contextmanager
def small_disk(folder: Path, *, size: int) -> Iterator[tuple[str, ...]]:
    """How to start a process whose `folder` is a small disk of its own, which no other process sees."""
    if os.geteuid() != 0:
        missing("root, to mount a small disk")
    if not (shutil.which("unshare") and shutil.which("mount")):
        missing("unshare and mount")
    mount = f'mount -t tmpfs -o size={size} none "{folder}" && exec "$0" "$@"'
    # In a chroot whose root is no mount of its own, mounts cannot be made private; there they must be so already.
    ways = [("unshare", "-m"), ("unshare", "-m", "--propagation", "unchanged")]
    for way in ways[: 1 if "shared:" in Path("/proc/self/mountinfo").read_text() else 2]:
        prefix = (*way, "sh", "-c", mount)
        if subprocess.run([*prefix, "true"], capture_output=True, check=False, timeout=10).returncode == 0:
            break
    else:
        missing("the right to mount a small disk")
    yield prefix


def fill(folder: Path) -> Path:
    """Take every free byte of a disk."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        for chunk in (MIB, 65536, 4096, 1):
            try:
                for _ in range(64):
                    file.write(b"\0" * chunk)
            except OSError:
                continue
    return filler


@of_the_file
def test_a_full_disk_takes_no_tasks_and_loses_none(tmp_path: Path, start_server: Start) -> None:
    data = tmp_path / "data"
    data.mkdir()
    payload = '"' + "x" * 50_000 + '"'
    with Receiver() as receiver, small_disk(data, size=24 * MIB) as prefix:
        server = start_server(settings=FAST, prefix=prefix)
        assert server.process is not None
        disk = Path(f"/proc/{server.process.pid}/root") / data.relative_to("/")
        with server.client() as client:
            accepted = [post(client, f"{receiver.url}/before").json()["delivery_id"]]
            refusals = 0

            def submit(worker: int) -> tuple[list[str], list[httpx.Response]]:
                taken, refused = [], []
                with server.client() as own:
                    for n in range(200):
                        answer = post(own, f"{receiver.url}/{worker}/{n}", payload, key=f"{worker}-{n}")
                        if answer.status_code == 202:
                            taken.append(str(answer.json()["delivery_id"]))
                        else:
                            refused.append(answer)
                            if len(refused) >= 3:
                                break
                return taken, refused

            # The disk becomes full by the tasks themselves, while they are coming in and going out.
            reserve = disk / "reserve"
            reserve.write_bytes(b"\0" * (8 * MIB))
            with ThreadPoolExecutor(4) as pool:
                for taken, refused in pool.map(submit, range(4)):
                    accepted += taken
                    refusals += len(refused)
                    for answer in refused:
                        assert_unavailable(answer)
            assert refusals >= 4, "the disk was not full"
            # Then it is full to the last byte. What fits into the log that is there may still be taken.
            filler = fill(disk)
            in_a_row = 0
            for n in range(300):
                answer = post(client, f"{receiver.url}/full/{n}", payload)
                if answer.status_code == 202:
                    accepted.append(answer.json()["delivery_id"])
                    in_a_row = 0
                    continue
                assert_unavailable(answer)
                in_a_row += 1
                if in_a_row == 5:
                    break
            assert in_a_row == 5, "the disk was not full"
            # Reading goes on.
            assert client.get("/tasks").status_code == 200
            assert client.get("/healthz").status_code == 200

            filler.unlink()
            reserve.unlink()
            freed = time.monotonic()
            answer = until(lambda: (a := post(client, f"{receiver.url}/after")).status_code == 202 and a)
            recovered = time.monotonic() - freed
            accepted.append(answer.json()["delivery_id"])
            wait_delivered(client, len(accepted))
            stored = {item["id"] for item in all_items(client, "/deliveries")}
        assert stored == set(accepted), "answers and database differ"
        arrived = Counter(request.delivery for request in receiver.received)
        assert set(arrived) == set(accepted)
        assert server.stop() == 0
        print(
            f"\nfull disk: {len(accepted)} accepted = delivered, {refusals} + 5 refused with 503, "
            f"taking again {recovered:.2f} s after space was freed, {sum(arrived.values()) - len(arrived)} duplicates"
        )


# --- a lock -----------------------------------------------------------------------------------------------


@contextmanager
def lock(server: Server) -> Iterator[None]:
    """Another process's lock on the database, for as long as the block runs."""
    if server.database_url is not None:
        with postgres.shared().locked("deliveries", database=postgres.name_of(server.database_url)):
            yield
        return
    with closing(sqlite3.connect(server.data_dir / "dispatcher.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        yield
        other.execute("ROLLBACK")


def slow_or_not(request: Received) -> Reply:
    return Reply(delay=0.4 if request.target.startswith("/slow") else 0.0)


def test_a_short_lock_only_slows_down(start_server: Start) -> None:
    with Receiver(slow_or_not) as receiver, ThreadPoolExecutor(20) as pool:
        server = start_server(settings=FAST)
        with server.client() as client:
            assert [post(client, f"{receiver.url}/slow/{n}").status_code for n in range(2)] == [202] * 2
            receiver.wait_for(2)
            with lock(server):
                during = [pool.submit(post, client, f"{receiver.url}/{n}") for n in range(40)]
                time.sleep(1.5)
                assert not any(answer.done() for answer in during)
            assert [answer.result(20).status_code for answer in during] == [202] * 40
            wait_delivered(client, 42)
        arrived = Counter(request.delivery for request in receiver.received)
        assert len(arrived) == sum(arrived.values()) == 42, "nothing was sent twice"


@of_the_file
def test_a_long_lock_takes_no_tasks_and_loses_none(start_server: Start) -> None:
    """Longer than the busy timeout, and longer than the session of the server lives without a heartbeat."""
    with Receiver(slow_or_not) as receiver, ThreadPoolExecutor(9) as pool:
        server = start_server(settings=FAST | {"send_timeout": "0.5", "session_ttl": "11"})
        with server.client() as client:
            in_flight = {post(client, f"{receiver.url}/slow/{n}").json()["delivery_id"] for n in range(2)}
            receiver.wait_for(2)
            with lock(server):
                began = time.monotonic()
                tasks = {"tasks": [{"payload": 1, "callback_url": f"{receiver.url}/never"}] * 5}
                refused = [pool.submit(client.post, "/tasks/batch", json=tasks)]
                refused += [pool.submit(post, client, f"{receiver.url}/{n}", key=f"k{n}") for n in range(8)]
                for answer in refused:
                    assert_unavailable(answer.result(30))
                slowest = max(answer.result().elapsed.total_seconds() for answer in refused)
                # Reading goes on meanwhile, and says that nothing was stored.
                assert ledger(client)["accepted"] == 2
                assert {item["id"] for item in all_items(client, "/deliveries")} == in_flight
                assert {item["state"] for item in all_items(client, "/deliveries")} == {"leased"}
                time.sleep(max(0.0, began + 12.5 - time.monotonic()))
            freed = time.monotonic()
            again = [post(client, f"{receiver.url}/{n}", key=f"k{n}") for n in range(8)]
            recovered = time.monotonic() - freed
            assert [answer.status_code for answer in again] == [202] * 8
            assert not [answer for answer in again if "Idempotency-Replayed" in answer.headers]
            wait_delivered(client, 10)
            settled = time.monotonic() - freed
        arrived = Counter(request.delivery for request in receiver.received)
        assert len(arrived) == 10
        assert {delivery for delivery, times in arrived.items() if times > 1} <= in_flight
        assert max(arrived.values()) <= 2, "sent once more at most"
    print(
        f"\nlocked for 12.5 s: 9 refused, the slowest after {slowest:.1f} s; taken {recovered:.2f} s after the lock, "
        f"all delivered after {settled:.1f} s, {sum(arrived.values()) - 10} twice"
    )


def begun(server: Server, url: str) -> socket.socket:
    """A request for a task that the server is at."""
    address = urlsplit(server.url)
    body = json.dumps({"payload": 1, "callback_url": url})
    head = {**server.authorization, "Host": "x", "Content-Length": len(body), "Expect": "100-continue"}
    lines = ["POST /tasks HTTP/1.1", *(f"{name}: {value}" for name, value in head.items())]
    connection = socket.create_connection((address.hostname, address.port), PATIENCE)
    connection.sendall("\r\n".join([*lines, "", ""]).encode())
    assert b" 100 " in connection.recv(1024)
    connection.sendall(body.encode())
    return connection


def test_what_a_stop_does_not_wait_for_is_told_to_ask_again(start_server: Start, receiver: Receiver) -> None:
    """A lock outlasts the grace; a 500 would say that to ask again is of no use."""
    server = start_server(settings=FAST | {"grace": "1"})
    with lock(server), begun(server, receiver.url) as connection:
        server.signal(signal.SIGTERM)
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after: " in answer.lower()
    server.wait()


# --- one server, and commands beside it -------------------------------------------------------------------


@of_the_file
def test_a_second_server_on_the_same_data_refuses(start_server: Start, receiver: Receiver) -> None:
    first = start_server()
    second = first.cli("serve", "--port", "0", check=False)
    assert second.returncode == 2
    assert second.stdout == ""
    assert second.stderr.splitlines() == [
        f"dispatcher: another process serves {first.data_dir}; stop it first, or give this one its own --data-dir"
    ]
    with first.client() as client:
        assert post(client, receiver.url).status_code == 202
        wait_delivered(client, 1)
    first.kill()
    with start_server().client() as client:
        assert client.get("/healthz").status_code == 200


def test_tokens_are_made_listed_and_revoked_while_the_server_runs(start_server: Start, receiver: Receiver) -> None:
    server = start_server()
    made = server.cli("token", "create", "--account", "shop", "--scope", "tasks:write", "--scope", "tasks:read")
    token = made.stdout.strip()
    assert made.stdout == f"{token}\n"
    assert token.count(".") == 2
    with httpx.Client(
        base_url=server.url, headers={"Authorization": f"Bearer {token}"}, timeout=10, trust_env=False
    ) as client:
        assert post(client, receiver.url).status_code == 202
        listed = server.cli("token", "list", "--account", "shop", "--json").stdout
        assert token not in listed
        jti = listed.partition('"id": "')[2].partition('"')[0]
        assert len(jti) == 32
        revoked = server.cli("token", "revoke", jti)
        at = time.monotonic()
        assert revoked.stdout == ""
        refused = until(lambda: (a := client.get("/tasks")).status_code == 401 and a, within=PROMPTLY)
        took = time.monotonic() - at
        assert refused.headers["WWW-Authenticate"] == "Bearer"
        assert post(client, receiver.url).status_code == 401
        assert server.cli("token", "revoke", "0" * 32, check=False).returncode == 2
    print(f"\nrevoked token refused after {took:.2f} s")


# --- signals ----------------------------------------------------------------------------------------------


def test_sigterm_finishes_what_is_in_flight_and_gives_the_rest_back(start_server: Start) -> None:
    with Receiver(lambda _request: Reply(delay=0.25)) as receiver:
        server = start_server(settings=FAST | {"lane_concurrency": "4"})
        with server.client() as client:
            answer = client.post(
                "/tasks/batch",
                json={"tasks": [{"payload": n, "callback_url": f"{receiver.url}/{n}"} for n in range(40)]},
            )
            assert answer.status_code == 202
        receiver.wait_for(6)
        began = time.monotonic()
        assert server.stop() == 0
        took = time.monotonic() - began
        sent = len(receiver.received)
        states = dict(ask(server.place, "SELECT state, count(*) FROM deliveries GROUP BY state"))
        outcomes = dict(ask(server.place, "SELECT outcome, count(*) FROM attempts GROUP BY outcome"))
        [counted] = ask(server.place, "SELECT max(attempt) FROM deliveries WHERE state = 'pending'")
        [callbacks] = ask(server.place, "SELECT count(*) FROM tasks WHERE callback_url IS NULL")
        assert outcomes == {"success": sent}, "a lease given back is no attempt"
        assert states == {"delivered": sent, "pending": 40 - sent}
        assert counted == (0,)
        assert callbacks == (sent,)
        assert sent < 40, "it is over before all was sent"

        with server.start().client() as client:
            wait_delivered(client, 40)
            attempts = {item["attempt"] for item in all_items(client, "/deliveries")}
        assert attempts == {1}
        assert len(receiver.received) == len({request.delivery for request in receiver.received}) == 40
    print(f"\nSIGTERM: {sent} of 40 sent, stopped in {took:.2f} s, the rest sent once by the second start")


def test_sigterm_at_any_moment_counts_no_attempt_that_was_not_made(start_server: Start) -> None:
    """Stops while leases are being taken all the time: from the database, in batches, over many lanes."""
    receivers = [Receiver(), *(Receiver(host=f"127.0.2.{n}") for n in range(1, 8))]
    for receiver in receivers:
        receiver.__enter__()
    try:
        server = start_server(settings=FAST)
        total = 0
        for round_ in range(3):
            with server.client() as client:
                tasks = [{"payload": n, "callback_url": f"{receivers[n % 8].url}/{round_}/{n}"} for n in range(600)]
                assert client.post("/tasks/batch", json={"tasks": tasks}).status_code == 202
            total += 600
            time.sleep(0.05 + 0.04 * round_)
            assert server.stop() == 0
            outcomes = dict(ask(server.place, "SELECT outcome, count(*) FROM attempts GROUP BY outcome"))
            states = dict(ask(server.place, "SELECT state, count(*) FROM deliveries GROUP BY state"))
            assert set(outcomes) <= {"success"}, outcomes
            assert set(states) <= {"delivered", "pending"}, states
            server.start()
        with server.client() as client:
            wait_delivered(client, total)
        assert sum(len(receiver.received) for receiver in receivers) == total
    finally:
        for receiver in receivers:
            receiver.__exit__(None, None, None)


def test_sigterm_lets_a_request_in_flight_finish(start_server: Start, receiver: Receiver) -> None:
    server = start_server(settings=FAST)
    address = httpx.URL(server.url)
    body = f'{{"payload": 1, "callback_url": "{receiver.url}/x"}}'.encode()
    with closing(socket.create_connection((address.host, address.port), 10)) as connection:
        head = f"POST /tasks HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.token}\r\n"
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[:20])
        time.sleep(0.2)
        server.signal(signal.SIGTERM)
        time.sleep(0.5)
        assert server.running
        connection.sendall(body[20:])
        answer = connection.recv(65536)
        assert answer.startswith(b"HTTP/1.1 202 "), answer
    assert server.stop() == 0
    with server.start().client() as client:
        wait_delivered(client, 1)


def test_what_hangs_delays_a_stop_by_the_grace_time_only(start_server: Start) -> None:
    with Receiver(lambda _request: Reply(hang=True)) as receiver:
        server = start_server(settings=FAST | {"grace": "1", "send_timeout": "60", "session_ttl": "150"})
        address = httpx.URL(server.url)
        with server.client() as client:
            delivery = post(client, f"{receiver.url}/x").json()["delivery_id"]
        receiver.wait_for(1)
        with closing(socket.create_connection((address.host, address.port), 10)) as connection:
            connection.sendall(f"POST /tasks HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.token}\r\n".encode())
            connection.sendall(b"Content-Length: 100\r\n\r\n{")
            time.sleep(0.2)
            began = time.monotonic()
            assert server.stop() == 0
            took = time.monotonic() - began
    with Receiver(port=receiver.port) as second, server.start().client() as client:
        wait_delivered(client, 1)
        found = client.get(f"/deliveries/{delivery}").json()
        assert [attempt["outcome"] for attempt in found["attempts"]] == ["interrupted", "success"]
        assert len(second.received) == 1
    print(f"\na stop with a hanging caller and a hanging receiver took {took:.1f} s at a grace time of 1 s")
    # uvicorn and the engine each take the grace time; see the report. The request that hangs would take a minute.
    assert took < 40


def test_a_process_that_was_stopped_for_a_moment_goes_on(start_server: Start, receiver: Receiver) -> None:
    server = start_server(settings=FAST)
    with server.client() as client, ThreadPoolExecutor(4) as pool:
        before = [post(client, f"{receiver.url}/{n}").status_code for n in range(20)]
        server.signal(signal.SIGSTOP)
        during = [pool.submit(post, client, f"{receiver.url}/during/{n}") for n in range(20)]
        time.sleep(2)
        assert not any(future.done() for future in during)
        server.signal(signal.SIGCONT)
        assert before + [future.result(20).status_code for future in during] == [202] * 40
        wait_delivered(client, 40)
        assert {item["attempt"] for item in all_items(client, "/deliveries")} == {1}
