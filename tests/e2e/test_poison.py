"""What ends the process whenever it is tried ends alone, and all that was near it is delivered.

The real dispatcher dies by kill -9 each time that one delivery is sent, or one task is run, and is started again each
time. The waits that keep the guilty one apart are shortened (tests/e2e/crash/poison_launcher.py).
"""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from dispatcher.retry import POISON_AFTER, SUSPECT_AFTER
from tests.conftest import DATABASES
from tests.e2e.crash import books
from tests.e2e.crash.books import LIVE, Books
from tests.e2e.crash.poison_processors import RUNS
from tests.support.receiver import Received, Receiver, Reply
from tests.support.server import Server, until

#: one lane each; results of tasks have one to themselves
HOSTS, HOST_OF_RESULTS = tuple(f"127.0.0.{number}" for number in range(1, 7)), "127.0.0.7"
GUILTY_HOST = "127.0.0.8"
#: deliveries, and tasks, that are only near the guilty one: no more than are leased in one go with it, four of a
#: lane that is new, so that each start takes all of them again
DELIVERIES, TASKS = 4 * len(HOSTS), 16
#: seconds from the submission until every innocent one must have been delivered, after ten starts at the most
INNOCENTS_WITHIN = 120.0
#: seconds that each process waits on PostgreSQL for the session of the dead one to end
SESSION_TTL = 20


@dataclass(kw_only=True)
class Scene:
    """A dispatcher that dies again and again, and receivers."""

    server: Server
    innocent: list[Receiver]
    #: ends the dispatcher whenever a request comes to /deadly
    guilty: Receiver
    runs: Path
    #: attempts at each delivery to the first host that are not answered, so that only a death ends them
    unanswered: int = 0
    deaths: int = 0
    #: when everything was submitted, and when the dispatcher died last, by the monotonic clock
    submitted: float = 0.0
    died: float = 0.0

    def submit_and_live_on(self, guilty: dict[str, Any]) -> list[dict[str, Any]]:
        """Submit everything in one batch, and start the dispatcher until it is at rest. Answers the batch's items."""
        items: list[dict[str, Any]] = []
        for _ in range(POISON_AFTER + 5):
            try:
                self.server.start()
            except AssertionError:
                # It died before it could say that it was ready.
                self._note_death()
                continue
            try:
                with self.server.client() as client:
                    items = items or self._submit(client, guilty)
                    until(lambda: _is_at_rest(client))
            except httpx.TransportError:
                self.server.wait()
                self._note_death()
                continue
            return items
        pytest.fail(f"not at rest after {self.deaths} deaths")

    def _note_death(self) -> None:
        assert self.server.process is not None
        assert self.server.process.returncode == -signal.SIGKILL, self.server.log.read_text()[-2000:]
        self.deaths += 1
        self.died = time.monotonic()

    def _submit(self, client: httpx.Client, guilty: dict[str, Any]) -> list[dict[str, Any]]:
        tasks = [self._innocent(number) for number in range(DELIVERIES + TASKS)]
        tasks.insert(len(tasks) // 2, guilty)
        self.submitted = self.submitted or time.monotonic()
        answer = client.post("/tasks/batch", json={"tasks": tasks}, headers={"Idempotency-Key": "all-at-once"})
        assert answer.status_code == 202, answer.text
        items: list[dict[str, Any]] = [item["task"] for item in answer.json()["items"]]
        return [items.pop(len(tasks) // 2), *items]

    def _innocent(self, number: int) -> dict[str, Any]:
        relayed = number < DELIVERIES
        receiver = self.innocent[number % len(HOSTS) if relayed else -1]
        return {
            "type": "relay" if relayed else "poison.innocent",
            "payload": {"number": number},
            "body": "raw",
            "callback_url": f"{receiver.url}/{number}",
        }


def _is_at_rest(client: httpx.Client) -> bool:
    ledger = client.get("/ledger").json()
    assert ledger["reconciles"], ledger
    return not any(ledger[state] for state in LIVE)


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    """A dispatcher that was not started yet, and receivers on eight hosts."""
    runs = tmp_path / "runs"
    runs.touch()
    monkeypatch.setenv(RUNS, str(runs))
    hurried = {"send_timeout": "5", "session_ttl": str(SESSION_TTL)} if DATABASES[0] == "postgresql" else {}
    server = Server(
        tmp_path / "data",
        settings={"log_level": "warning", **hurried},
        options=("--processors", "tests.e2e.crash.poison_processors"),
        launcher="tests.e2e.crash.poison_launcher",
    )

    def strike(request: Received) -> Reply:
        if request.target != "/deadly":
            return Reply()
        server.signal(signal.SIGKILL)
        return Reply(raw=b"")

    def take(request: Received) -> Reply:
        if f"{HOSTS[0]}:" in (request.header("Host") or "") and request.attempt <= made.unanswered:
            return Reply(hang=True)
        # A while, so that they are under way when another delivery ends the process.
        return Reply(delay=0.05)

    with ExitStack() as stack:
        innocent = [Receiver(take, host=host) for host in (*HOSTS, HOST_OF_RESULTS)]
        made = Scene(
            server=server,
            innocent=[stack.enter_context(receiver) for receiver in innocent],
            guilty=stack.enter_context(Receiver(strike, host=GUILTY_HOST)),
            runs=runs,
        )
        yield made
        if server.running:
            server.kill()


def test_a_delivery_that_ends_the_process_is_given_up_and_no_other(
    scene: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"{scene.guilty.url}/deadly"
    scene.unanswered = SUSPECT_AFTER
    guilty, *others = scene.submit_and_live_on({"payload": 1, "callback_url": url})

    assert scene.deaths == POISON_AFTER
    assert [request.attempt for request in scene.guilty.received] == list(range(1, POISON_AFTER + 1))
    with scene.server.client() as client:
        shown = client.get(f"/deliveries/{guilty['delivery_id']}").json()
        assert (shown["state"], shown["reason"]) == ("exhausted", "poison")
        assert [attempt["outcome"] for attempt in shown["attempts"]] == ["interrupted"] * POISON_AFTER
        figures, deliveries, _ = _check_innocents(client, scene, others)
        ledger = client.get("/ledger").json()
    assert deliveries >= SUSPECT_AFTER, "nothing was near it for long enough to be suspected"
    assert (ledger["accepted"], ledger["delivered"], ledger["exhausted"]) == (len(others) + 1, len(others), 1)
    _stop_and_check_books(scene)
    with capsys.disabled():
        print(f"\na deadly delivery: {figures}")


def test_a_task_that_ends_the_process_fails_and_no_other(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    task = {"type": "poison.deadly", "payload": 1, "body": "raw", "callback_url": f"{scene.guilty.url}/failed"}
    guilty, *others = scene.submit_and_live_on(task)

    assert scene.deaths == POISON_AFTER
    assert len(scene.runs.read_bytes()) == POISON_AFTER
    with scene.server.client() as client:
        shown = client.get(f"/tasks/{guilty['id']}").json()
        # The eleventh time it is only taken to be given up.
        assert (shown["state"], shown["attempt"]) == ("failed", POISON_AFTER + 1)
        figures, _, tasks = _check_innocents(client, scene, others)
        ledger = client.get("/ledger").json()
    assert tasks >= SUSPECT_AFTER, "nothing was near it for long enough to be suspected"
    # Its caller is told.
    assert [request.body for request in scene.guilty.received] == [
        b'{"error":{"message":"the task was interrupted too often"}}'
    ]
    assert (ledger["accepted"], ledger["delivered"]) == (len(others) + 1, len(others) + 1)
    _stop_and_check_books(scene)
    with capsys.disabled():
        print(f"\na deadly task: {figures}")


def _check_innocents(client: httpx.Client, scene: Scene, others: list[dict[str, Any]]) -> tuple[str, int, int]:
    """They were delivered soon. Answers the figures, and the most interruptions of a delivery, and of a task."""
    assert len(others) == DELIVERIES + TASKS
    tasks = {item["id"]: item for item in client.get("/tasks", params={"limit": 200}).json()["items"]}
    assert {(tasks[task["id"]]["state"], tasks[task["id"]]["delivery_state"]) for task in others} == {
        ("succeeded", "delivered")
    }
    last = {request.delivery: request.at for receiver in scene.innocent for request in receiver.received}
    assert last.keys() == {task["delivery_id"] for task in others}
    seconds = max(last.values()) - scene.submitted
    waited = 0 if isinstance(scene.server.place, Path) else SUSPECT_AFTER * SESSION_TTL
    assert seconds <= INNOCENTS_WITHIN + waited

    outcomes = books.outcomes(scene.server.place)
    interrupted = Counter(delivery for (delivery, _), outcome in outcomes.items() if outcome == "interrupted")
    most = max(interrupted[task["delivery_id"]] for task in others)
    found = Books.read(scene.server.place)
    most_of_task = max(found.task_interruptions[task["id"]] for task in others)
    figures = (
        f"{len(others)} others delivered within {seconds:.1f} s, interrupted at most {most} times as deliveries, and "
        f"{most_of_task} as tasks; {scene.deaths} deaths in {scene.died - scene.submitted:.1f} s"
    )
    return figures, most, most_of_task


def _stop_and_check_books(scene: Scene) -> None:
    assert scene.server.stop() == 0
    Books.read(scene.server.place).check()
    assert '"level": "error"' not in scene.server.log.read_text()
