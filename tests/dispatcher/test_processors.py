"""Processors of every kind, through the real server: here in threads and processes, and elsewhere over HTTP."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.api import Json, accept, client_of, ended, outcomes, problem, stored, task, worked
from tests.support.patience import PROMPTLY
from tests.support.processors import HIDDEN
from tests.support.receiver import Receiver, Reply
from tests.support.server import Server, until

#: seconds that the external types are given
SPAN = {"outside": 60, "outside.short": 0.3}
EXTERNAL_TRIES = 5


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    settings = {"retry_schedule": "[0.05, 0.1]", "external_processors": json.dumps(SPAN)}
    options = ["--processors", "tests.support.processors"]
    with Server(tmp_path_factory.mktemp("processors") / "data", settings=settings, options=options) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[httpx.Client]:
    with server.client() as running:
        yield running


def run(client: httpx.Client, receiver: Receiver, name: str, payload: Any) -> tuple[Json, Json]:
    """Have a task worked on; answers with the task at its end and the envelope that was delivered."""
    made = accept(client, receiver.url, type=name, payload=payload)
    assert made["state"] == "queued"
    found = worked(client, made["id"])
    assert ended(client, made["delivery_id"])["state"] == "delivered"
    [request] = [request for request in receiver.received if request.delivery == made["delivery_id"]]
    envelope = json.loads(request.body)
    assert (envelope["task_id"], envelope["type"], envelope["status"]) == (made["id"], name, found["state"])
    assert request.header("X-Webhook-Event") == name
    assert datetime.fromisoformat(envelope["completed_at"]).tzinfo is not None
    return found, envelope


# --- kinds ------------------------------------------------------------------------------------------------


def test_an_async_one_runs_here(client: httpx.Client, receiver: Receiver) -> None:
    found, envelope = run(client, receiver, "double", {"n": 21})
    assert (found["state"], found["attempt"], found["error"]) == ("succeeded", 1, None)
    assert envelope["result"] == {"twice": 42}
    assert "error" not in envelope


def test_a_plain_one_runs_in_a_thread(client: httpx.Client, receiver: Receiver) -> None:
    assert run(client, receiver, "double.thread", {"n": 2})[1]["result"] == {"twice": 4, "main": False}


def test_a_cpu_bound_one_runs_in_a_process(server: Server, client: httpx.Client, receiver: Receiver) -> None:
    result = run(client, receiver, "double.cpu", {"n": 2})[1]["result"]
    here = run(client, receiver, "pid", None)[1]["result"]
    assert server.process is not None
    assert here == server.process.pid
    assert result["twice"] == 4
    assert result["pid"] != here


@pytest.mark.parametrize("name", ["double", "double.thread", "double.cpu"])
def test_sixty_four_at_once(client: httpx.Client, receiver: Receiver, name: str) -> None:
    tasks = [{"type": name, "payload": {"n": n}, "callback_url": receiver.url} for n in range(64)]
    items = client.post("/tasks/batch", json={"tasks": tasks}).json()["items"]
    expected = {item["task"]["delivery_id"]: 2 * n for n, item in enumerate(items)}
    requests = receiver.wait_for(64)
    assert {request.delivery: json.loads(request.body)["result"]["twice"] for request in requests} == expected


@pytest.mark.parametrize(
    ("name", "payload", "result"),
    [
        ("order", {"sku": "a-1", "count": 3}, "3 x a-1"),
        ("unknown.payload", {"any": 1}, "dict"),
        ("unknown.payload", [], "list"),
    ],
)
def test_a_payload_is_decoded_to_the_annotated_type(
    client: httpx.Client, receiver: Receiver, name: str, payload: Any, result: str
) -> None:
    assert run(client, receiver, name, payload)[1]["result"] == result


@pytest.mark.parametrize("payload", [{"sku": 1, "count": 3}, {"sku": HIDDEN}, {"sku": "a", "count": 1, "x": 1}, None])
def test_a_payload_of_another_shape_fails_at_once(client: httpx.Client, receiver: Receiver, payload: Any) -> None:
    found, envelope = run(client, receiver, "order", payload)
    assert (found["state"], found["attempt"]) == ("failed", 1)
    assert envelope["error"] == found["error"] == {"message": "the payload is not what this processor takes"}


# --- failures ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["refuse", "refuse.cpu"])
def test_the_text_of_a_processor_error_is_for_the_caller(client: httpx.Client, receiver: Receiver, name: str) -> None:
    found, envelope = run(client, receiver, name, {"say": "no rate for “XTS”"})
    assert (found["state"], found["attempt"]) == ("failed", 1)
    assert envelope["error"] == found["error"] == {"message": "no rate for “XTS”"}
    assert "result" not in envelope


@pytest.mark.parametrize("name", ["refuse", "refuse.cpu"])
def test_a_processor_error_can_ask_for_more_tries(client: httpx.Client, receiver: Receiver, name: str) -> None:
    found, envelope = run(client, receiver, name, {"say": "busy", "retry": True})
    assert (found["attempt"], envelope["error"]) == (3, {"message": "busy"})


@pytest.mark.parametrize(
    "name",
    ["raise", "raise.thread", "raise.cpu", "own.timeout", "exit", "exit.thread", "cancelled", "unencodable"],
)
def test_the_text_of_any_other_error_stays_here(
    server: Server, client: httpx.Client, receiver: Receiver, name: str
) -> None:
    found, envelope = run(client, receiver, name, {})
    assert (found["state"], found["attempt"]) == ("failed", 1)
    assert envelope["error"] == found["error"] == {"message": "the processor failed"}
    assert HIDDEN not in client.get(f"/tasks/{found['id']}").text
    assert server.running


@pytest.mark.parametrize(("name", "seconds"), [("slow", "0.2"), ("hang.thread", "0.2")])
def test_a_timeout_ends_a_try(client: httpx.Client, receiver: Receiver, name: str, seconds: str) -> None:
    found, envelope = run(client, receiver, name, {})
    assert (found["state"], envelope["error"]) == (
        "failed",
        {"message": f"the processor took longer than {seconds} s"},
    )


def test_a_thread_that_hangs_does_not_hold_up_the_end(start_server: Callable[..., Server], receiver: Receiver) -> None:
    server = start_server(options=["--processors", "tests.support.processors"], settings={"grace": "1"})
    with server.client() as client:
        run(client, receiver, "hang.thread", {})
        # one that is cut off in the middle is tried again by the next process
        cut_off = accept(client, receiver.url, type="gate", payload={"gate": "/nowhere"})
        until(lambda: task(client, cut_off["id"])["state"] == "processing")
    started = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - started < 60, "it hangs for ever"
    server.start()
    with server.client() as client:
        until(lambda: task(client, cut_off["id"])["attempt"] == 2)


def test_a_timeout_kills_the_process(client: httpx.Client, receiver: Receiver, tmp_path: Path) -> None:
    file = tmp_path / "pid"
    found, envelope = run(client, receiver, "slow.cpu", {"pid_file": str(file)})
    assert envelope["error"] == {"message": "the processor took longer than 2 s"}
    pid = int(file.read_text())

    def is_gone() -> bool:
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            os.kill(pid, 0)
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        return True

    until(is_gone, within=PROMPTLY)
    assert found["state"] == "failed"


def test_tries_follow_with_a_backoff(client: httpx.Client, receiver: Receiver, tmp_path: Path) -> None:
    file = tmp_path / "tries"
    found, envelope = run(client, receiver, "flaky", {"tries": str(file)})
    assert (found["state"], found["attempt"], envelope["result"]) == ("succeeded", 3, 3)
    first, second, third = (float(line) for line in file.read_text().splitlines())
    assert second - first >= 0.01
    assert third - second >= 0.02


def test_a_process_that_dies_is_a_failed_try(client: httpx.Client, receiver: Receiver, tmp_path: Path) -> None:
    found, envelope = run(client, receiver, "die.cpu", {"tries": str(tmp_path / "died")})
    assert (found["state"], found["attempt"], envelope["result"]) == ("succeeded", 2, 2)
    # and others go on
    assert run(client, receiver, "double.cpu", {"n": 1})[1]["result"]["twice"] == 2


@pytest.mark.parametrize(
    ("mode", "content"),
    [
        ("raw", b'{"error":{"message":"the processor failed"}}'),
        ("cloudevents-binary", b'{"error":{"message":"the processor failed"}}'),
        ("form", b"payload=%7B%22error%22%3A%7B%22message%22%3A%22the%20processor%20failed%22%7D%7D"),
    ],
)
def test_a_failure_can_be_told_from_a_result_in_every_body(
    client: httpx.Client, receiver: Receiver, mode: str, content: bytes
) -> None:
    accept(client, receiver.url, type="raise", body=mode)
    assert receiver.wait_for(1)[0].body == content


def test_the_result_is_delivered_even_if_the_first_delivery_fails(client: httpx.Client) -> None:
    replies = iter([Reply(status=503)])
    with Receiver(lambda _: next(replies, Reply())) as receiver:
        made = accept(client, receiver.url, type="double", payload={"n": 1})
        found = ended(client, made["delivery_id"])
        assert outcomes(found) == [(1, "http_error", 503), (2, "success", 200)]
        assert task(client, made["id"])["attempt"] == 1
        assert len({request.body for request in receiver.received}) == 1


def test_a_task_can_be_cancelled_while_it_is_worked_on(
    client: httpx.Client, receiver: Receiver, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    made = accept(client, receiver.url, type="gate", payload={"gate": str(gate)})
    until(lambda: task(client, made["id"])["state"] == "processing")
    assert client.post(f"/tasks/{made['id']}/cancel").json()["state"] == "cancelled"
    gate.touch()
    # another one that passes the gate shows that the first had its time, too
    other = accept(client, receiver.url, type="gate", payload={"gate": str(gate)})
    assert worked(client, other["id"])["state"] == "succeeded"
    assert ended(client, other["delivery_id"])["state"] == "delivered"
    assert task(client, made["id"])["state"] == "cancelled"
    assert [request.delivery for request in receiver.received] == [other["delivery_id"]]


def test_what_is_offered_is_listed(client: httpx.Client) -> None:
    items = {item.pop("type"): item for item in client.get("/processors").json()["items"]}
    assert items["relay"] == {"kind": "relay", "timeout": 0.0, "tries": 1}
    assert items["double"] == {"kind": "async", "timeout": 30.0, "tries": 3}
    assert items["hang.thread"] == {"kind": "thread", "timeout": 0.2, "tries": 1}
    assert items["die.cpu"] == {"kind": "process", "timeout": 30.0, "tries": 2}
    assert items["outside"] == {"kind": "external", "timeout": 60.0, "tries": EXTERNAL_TRIES}


# --- processors elsewhere ---------------------------------------------------------------------------------


def lease(client: httpx.Client, *types: str, limit: int = 1) -> list[Json]:
    answer = client.post("/tasks/lease", json={"types": list(types) or ["outside"], "limit": limit})
    assert answer.status_code == 200, answer.text
    items: list[Json] = answer.json()["items"]
    return items


def give(client: httpx.Client, leased: Json, **result: Any) -> httpx.Response:
    return client.post(f"/tasks/{leased['id']}/result", json={"attempt": leased["attempt"], **result})


@pytest.fixture
def worker(server: Server, receiver: Receiver) -> Iterator[httpx.Client]:
    """A client of an account of its own, so that it leases nobody else's tasks."""
    with client_of(server, f"worker-{receiver.port}") as running:
        yield running


def test_lease_renew_result(worker: httpx.Client, receiver: Receiver) -> None:
    content = (
        b'{"type":"outside","payload": {"big": 18446744073709551616, "x": 1e400},"callback_url":"%s/k3yQ9x7Lm2Vb8Rt5"}'
    )
    made = worker.post("/tasks", content=content % receiver.url.encode()).json()
    answer = worker.post("/tasks/lease", json={"types": ["outside"]})
    assert b'"payload":{"big": 18446744073709551616, "x": 1e400}' in answer.content
    assert b"k3yQ9x7Lm2Vb8Rt5" not in answer.content
    assert receiver.url.encode() not in answer.content
    [leased] = json.loads(answer.text.replace("1e400", "1"))["items"]
    assert set(leased) == {"id", "type", "attempt", "payload", "metadata", "lease_until", "created_at"}
    assert (leased["id"], leased["type"], leased["attempt"]) == (made["id"], "outside", 1)
    assert lease(worker) == []
    renewed = worker.post(f"/tasks/{made['id']}/renew", json={"attempt": 1}).json()["lease_until"]
    assert datetime.fromisoformat(renewed) >= datetime.fromisoformat(leased["lease_until"])
    result = b'{"attempt":1,"result": {"exact" : 1e999, "exact":18446744073709551617}}'
    answer = worker.post(f"/tasks/{made['id']}/result", content=result)
    assert (answer.status_code, answer.json()["state"]) == (200, "succeeded")
    [request] = receiver.wait_for(1)
    assert b'"result":{"exact" : 1e999, "exact":18446744073709551617},' in request.body
    # A worker whose answer was lost reports again; the first report stands.
    again = give(worker, leased, result=2)
    assert (again.status_code, again.json()["state"]) == (200, "succeeded")
    problem(worker.post(f"/tasks/{made['id']}/renew", json={"attempt": 1}), 409, "conflict")
    ended(worker, made["delivery_id"])
    assert len(receiver.received) == 1


def test_a_wrong_attempt_changes_nothing(worker: httpx.Client, receiver: Receiver) -> None:
    made = accept(worker, receiver.url, type="outside")
    problem(give(worker, {"id": made["id"], "attempt": 1}, result=1), 409, "conflict")
    [leased] = lease(worker)
    for attempt in (2, 10**9):
        problem(give(worker, {**leased, "attempt": attempt}, result=1), 409, "conflict")
        problem(worker.post(f"/tasks/{made['id']}/renew", json={"attempt": attempt}), 409, "conflict")
    assert task(worker, made["id"])["state"] == "processing"
    assert give(worker, leased, result=1).status_code == 200


def test_a_lease_that_ended_is_lost_and_the_task_is_leased_again(worker: httpx.Client, receiver: Receiver) -> None:
    made = accept(worker, receiver.url, type="outside.short")
    [first] = lease(worker, "outside.short")
    # nobody renews it: it is free again soon after its end
    [second] = until(lambda: lease(worker, "outside.short"))
    assert (second["id"], second["attempt"]) == (made["id"], 2)
    problem(give(worker, first, result="late"), 409, "conflict")
    problem(worker.post(f"/tasks/{made['id']}/renew", json={"attempt": 1}), 409, "conflict")
    answer = give(worker, second, result="in time")
    assert answer.status_code == 200, answer.text
    assert json.loads(receiver.wait_for(1)[0].body)["result"] == "in time"


def test_a_lease_that_is_renewed_is_kept(worker: httpx.Client, receiver: Receiver) -> None:
    made = accept(worker, receiver.url, type="outside.short")
    [leased] = lease(worker, "outside.short")
    ends: list[str] = []

    def renew() -> bool:
        answer = worker.post(f"/tasks/{made['id']}/renew", json={"attempt": 1})
        assert answer.status_code == 200, answer.text
        ends.append(answer.json()["lease_until"])
        spent = datetime.fromisoformat(ends[-1]) - datetime.fromisoformat(leased["lease_until"])
        return spent.total_seconds() > 2 * SPAN["outside.short"]

    until(renew, every=0.05)
    assert ends == sorted(ends)
    assert give(worker, leased, result=1).json()["attempt"] == 1


def test_a_worker_can_ask_for_another_try(worker: httpx.Client, receiver: Receiver) -> None:
    made = accept(worker, receiver.url, type="outside")
    for attempt in range(1, EXTERNAL_TRIES + 1):
        [leased] = lease(worker)
        assert leased["attempt"] == attempt
        answer = give(worker, leased, error={"message": f"busy {attempt}"}, retry=True)
        assert answer.json()["state"] == ("queued" if attempt < EXTERNAL_TRIES else "failed")
    assert lease(worker) == []
    body = json.loads(receiver.wait_for(1)[0].body)
    assert (body["status"], body["error"]) == ("failed", {"message": f"busy {EXTERNAL_TRIES}"})
    assert task(worker, made["id"])["attempt"] == EXTERNAL_TRIES


def test_a_worker_can_give_up(worker: httpx.Client, receiver: Receiver) -> None:
    made = accept(worker, receiver.url, type="outside")
    [leased] = lease(worker)
    assert give(worker, leased, error={"message": "no such film"}).json()["state"] == "failed"
    assert json.loads(receiver.wait_for(1)[0].body)["error"] == {"message": "no such film"}
    assert task(worker, made["id"])["error"] == {"message": "no such film"}


@pytest.mark.parametrize(
    ("result", "status", "slug"),
    [(b"[" * 65 + b"]" * 65, 422, "validation"), (b'"' + b"x" * (256 * 1024 - 1) + b'"', 413, "too-large")],
    ids=["too deep", "too large"],
)
def test_a_result_has_the_limits_of_a_payload(
    worker: httpx.Client, receiver: Receiver, result: bytes, status: int, slug: str
) -> None:
    accept(worker, receiver.url, type="outside")
    [leased] = lease(worker)
    before = stored(worker)
    answer = worker.post(f"/tasks/{leased['id']}/result", content=b'{"attempt":1,"result":%s}' % result)
    problem(answer, status, slug, "/result")
    assert stored(worker) == before
    assert give(worker, leased, result=None).json()["state"] == "succeeded"
    assert json.loads(receiver.wait_for(1)[0].body)["result"] is None


def test_many_are_leased_at_once_each_to_one_worker(worker: httpx.Client, receiver: Receiver) -> None:
    tasks = [{"type": "outside", "payload": n, "callback_url": receiver.url} for n in range(60)]
    worker.post("/tasks/batch", json={"tasks": tasks})
    found: list[Json] = []
    lock = threading.Lock()

    def work() -> None:
        while items := lease(worker, limit=7):
            with lock:
                found.extend(items)

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(work) for _ in range(4)]:
            done.result(timeout=30)
    assert sorted(item["payload"] for item in found) == list(range(60))
    assert len({item["id"] for item in found}) == 60


def test_a_tasks_process_token_works_for_its_account_and_a_processor_for_all(
    server: Server, worker: httpx.Client, receiver: Receiver
) -> None:
    mine = accept(worker, receiver.url, type="outside")
    with client_of(server, "stranger", "tasks:process") as stranger, client_of(server, "ops", "processor") as everyone:
        assert lease(stranger, limit=100) == []
        taken = {item["id"]: item for item in lease(everyone, limit=100)}
        leased = taken[mine["id"]]
        problem(give(stranger, leased, result=1), 404, "not-found")
        problem(stranger.post(f"/tasks/{mine['id']}/renew", json={"attempt": 1}), 404, "not-found")
        assert everyone.post(f"/tasks/{mine['id']}/renew", json={"attempt": 1}).status_code == 200
        answer = give(everyone, leased, result=1)
        assert answer.status_code == 200
        # a processor never sees where the result goes
        for text in (answer.text, json.dumps(leased)):
            assert receiver.url not in text
        problem(everyone.get(f"/tasks/{mine['id']}"), 403, "forbidden")
    receiver.wait_for(1)
