"""kill -9 at every moment: nothing that was answered 202 is lost, and duplicates stay within what was in flight.

The real dispatcher runs as a process of its own. It is killed at random moments, and at each stage of a task's and
a delivery's way (tests/e2e/crash/stages.py), while clients go on to submit. What came out is held against four
witnesses that share no code: what the clients were answered, what the receivers got, what the API says, and what
is read from the database by nothing of ours. On PostgreSQL there are fewer rounds, and all of them with `TESTS_LONG=1`.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

import httpx
import pytest

from tests.conftest import DATABASES, LONG
from tests.e2e.crash import books
from tests.e2e.crash.books import Books, Sending
from tests.e2e.crash.clients import Clients
from tests.e2e.crash.orders import OrderBook, Submission
from tests.e2e.crash.stages import COUNT, FREEZE, GAUGE, STAGE, WITNESS, Gauge, Stage
from tests.support import postgres
from tests.support.ledgers import ask
from tests.support.receiver import Received, Receiver, Reply
from tests.support.server import Server, until
from tests.support.subscribers import subscribe

SEED = 20_260
CLIENTS = 8
#: one lane each
RECEIVERS = ("127.0.0.1", "127.0.0.2", "127.0.0.3")

#: tasks of one round: so many alone, so many in batches
SINGLE, BATCHES, IN_BATCH = 36, 1, 15
#: events of one round, and subscriptions that each goes to, at each receiver
EVENTS, SUBSCRIBERS = 4, 1
#: subscriptions that an event goes to which is fanned out step by step
BIG = 560

#: what each round ends with: the n-th passage of a stage, or (None) a random moment after n requests were received.
#: The next round begins at once, with what the one before left. Ten interruptions in a row, which would end a delivery
#: as poison, take 78 s of waits on average (2, 4, 8, and then 16 s each time), the killing 30 to 45 s on an idle
#: machine; seven were seen, and nine on a busy one.
ROUNDS: tuple[tuple[Stage | None, int], ...] = (
    (Stage.FANNING_OUT, 4),
    (None, 40),
    (Stage.INSERTED, 4),
    (Stage.CONNECTED, 3),
    (Stage.SENT, 25),
    (Stage.FANNED_OUT, 5),
    (None, 60),
    (Stage.ACCEPTED, 20),
    (Stage.ANSWERED, 30),
    (Stage.TASK_LEASED, 1),
    (Stage.SETTLE, 40),
    (None, 20),
    (Stage.SETTLING, 4),
    (Stage.TASK_DONE, 8),
    (Stage.REAPING, 1),
    (Stage.LEASED, 3),
    (None, 80),
    (Stage.SETTLED, 30),
    (Stage.TASK_SETTLING, 2),
    (Stage.COMMITTING, 3),
    (Stage.TASK_SETTLED, 8),
    (None, 30),
    (Stage.COMMITTING, 5),
    (None, 1),
    (Stage.PUBLISHING, 1),
    (Stage.PUBLISHED, 2),
)
#: and on PostgreSQL, where nothing but the commits is different; without those that need hundreds of subscriptions
FEW_ROUNDS: tuple[tuple[Stage | None, int], ...] = (
    (None, 40),
    (Stage.COMMITTING, 3),
    (Stage.SENT, 25),
    (Stage.SETTLING, 4),
    (Stage.COMMITTING, 5),
)
#: seconds that a session lives without a heartbeat there: as few as may be
SESSION_TTL = 20
#: these rounds begin with an event for very many, so that they end in the middle of its fan-out
WITH_BIG = {Stage.FANNING_OUT, Stage.FANNED_OUT}

#: stages that are reached with these requests on the wire, or before they are
ON_THE_WIRE = {Stage.SENT, Stage.ANSWERED, Stage.SETTLE, Stage.SETTLING, Stage.SETTLED}
BEFORE_THE_WIRE = {Stage.LEASED, Stage.CONNECTED}
#: where they stand in the file
STATE_OF_TASKS = {
    Stage.TASK_LEASED: "processing",
    Stage.TASK_DONE: "processing",
    Stage.TASK_SETTLING: "processing",
    Stage.TASK_SETTLED: "succeeded",
}


def status_of(sending: Sending) -> int:
    """What the receiver answers: one in twenty of the first three attempts fails."""
    delivery, attempt = sending
    return 503 if attempt <= 3 and crc32(f"{delivery}/{attempt}".encode()) % 20 == 0 else 200


def _answer(request: Received) -> Reply:
    milliseconds = 2 + crc32(request.body) % 30
    return Reply(status=status_of(_sending(request)), delay=milliseconds / 1000)


def _sending(request: Received) -> Sending:
    return request.delivery, request.attempt


@dataclass(frozen=True, kw_only=True)
class Kill:
    """One kill -9, and what it left."""

    stage: Stage | None
    #: requests that had begun and were not settled, as the process itself counted them
    in_flight: int
    #: leases that ended with this process, whether their request was sent or not
    leased: frozenset[Sending]
    #: tasks and events whose 202 had been read by a client
    answered: int
    #: deliveries that were still to be made
    unmade: int


@dataclass(kw_only=True)
class Scene:
    """A dispatcher that is killed again and again, with its clients and receivers."""

    server: Server
    clients: Clients
    receivers: list[Receiver]
    witness: Path
    gauge: Path
    monkeypatch: pytest.MonkeyPatch
    #: where each subscription's endpoint is
    endpoints: dict[str, str] = field(default_factory=dict)
    #: the first process's token; the later ones must take it, too
    authorization: dict[str, str] = field(default_factory=dict)
    kills: list[Kill] = field(default_factory=list)
    most_interruptions: int = 0

    def received(self) -> list[Received]:
        return [request for receiver in self.receivers for request in list(receiver.received)]

    def start(self, stage: Stage | None = None, count: int = 1) -> None:
        self.witness.unlink(missing_ok=True)
        self.monkeypatch.setenv(STAGE, stage or "")
        self.monkeypatch.setenv(COUNT, str(count))
        if stage is Stage.REAPING:
            with pytest.raises(AssertionError, match="did not start"):
                self.server.start()
            return
        self.server.start()
        self.authorization = self.authorization or self.server.authorization
        self.clients.connect(self.server.url, self.authorization)

    def subscribe(self, *, big: int) -> None:
        """Subscriptions to the events of all rounds; so many to those for very many."""
        self.start()
        places = [("few.*", f"{one.url}/few/{number}") for one in self.receivers for number in range(SUBSCRIBERS)]
        places += [("big.*", f"{self.receivers[n % len(self.receivers)].url}/big/{n}") for n in range(big)]
        with self.server.client() as client, ThreadPoolExecutor(CLIENTS) as pool:
            made = pool.map(lambda place: subscribe(client, place[1], events=[place[0]])["id"], places)
            self.endpoints = dict(zip(made, (url for _, url in places), strict=True))
        self.clients.disconnect()
        assert self.server.stop() == 0

    def come_to_rest(self) -> dict[str, Any]:
        """Let everything be answered and delivered. Answers the ledger."""
        if not self.server.running:
            self.start()
        self.clients.wait_until_answered()
        with self.server.client() as client:

            def at_rest() -> dict[str, Any] | None:
                ledger: dict[str, Any] = client.get("/ledger").json()
                assert ledger["reconciles"], ledger
                if any(ledger[state] for state in books.LIVE):
                    return None
                # Between two steps of a fan-out all that was made may have been delivered.
                return None if ask(self.server.place, "SELECT 1 FROM fan_outs") else ledger

            ledger: dict[str, Any] = until(at_rest, every=0.2)
        # Those that were killed while nothing was leased to them leave a session, for a while.
        until(lambda: ask(self.server.place, "SELECT count(*) FROM sessions") == [(1,)], every=0.5)
        return ledger

    def kill_at_random(self, work: list[Submission], received: int, chance: random.Random) -> None:
        """kill -9 from outside, a moment after so many requests more were received."""
        self.start()
        before = len(self.received())
        self.clients.submit(work)
        until(lambda: len(self.received()) >= before + received)
        time.sleep(chance.uniform(0, 0.05))
        assert self.server.running
        self.server.kill()
        self._take_stock(None, {})

    def kill_at(self, work: list[Submission], stage: Stage, count: int) -> None:
        """Let the process end itself at this passage of this stage."""
        self.clients.submit(work)
        self.start(stage, count)
        try:
            until(lambda: not self.server.running)
        except AssertionError:
            pytest.fail(f"passage {count} of {stage!r} was not reached")
        self.server.wait()
        witness = json.loads(self.witness.read_text())
        assert witness["stage"] == stage
        self._take_stock(stage, witness)

    def _take_stock(self, stage: Stage | None, witness: dict[str, Any]) -> None:
        assert self.server.process is not None
        assert self.server.process.returncode == -signal.SIGKILL
        self.clients.disconnect()
        self._wait_for_the_database()
        promised = list(self.clients.accepted.values())
        published = list(self.clients.published)
        found = Books.read(self.server.place)
        found.check()
        assert found.events.keys() >= set(published), f"events that were answered 202 are not on disk: {stage}"
        lost = [accepted.task_id for accepted in promised if accepted.task_id not in found.tasks]
        assert not lost, f"answered 202, and not on disk after a kill {stage}: {lost}"
        if stage is not None:
            self._check_stage(stage, witness, found)
        earlier = frozenset[Sending]().union(*(kill.leased for kill in self.kills))
        self.kills.append(
            Kill(
                stage=stage,
                in_flight=Gauge.read(self.gauge),
                leased=found.leased - earlier,
                answered=len(promised) + len(published),
                unmade=sum(found.unmade.values()),
            )
        )
        self.most_interruptions = max(self.most_interruptions, found.most_interruptions)

    def _wait_for_the_database(self) -> None:
        """A COMMIT that was on its way to another process is carried out there, though we are gone."""
        place = self.server.place
        if isinstance(place, str):
            until(lambda: not postgres.others_at(place))

    def _check_stage(self, stage: Stage, witness: dict[str, Any], found: Books) -> None:
        """The process died where it was meant to: the file and the receivers say so."""
        tasks = witness.get("tasks", [])
        sendings = {(delivery, attempt) for delivery, attempt in witness.get("deliveries", [])}
        stored = [task in found.tasks for task in tasks]
        if stage is Stage.INSERTED:
            assert not any(stored)
        elif stage is Stage.COMMITTING:
            assert len(set(stored)) == 1, "half a batch was committed"
        elif stage is Stage.ACCEPTED:
            assert all(stored)
        elif stage is Stage.PUBLISHING:
            assert not found.events.keys() & set(witness["events"])
        elif stage is Stage.PUBLISHED:
            assert found.events.keys() >= set(witness["events"])
        elif stage in WITH_BIG:
            assert found.unmade, "the fan-out was over before it was killed"
        if stage in STATE_OF_TASKS:
            assert {found.tasks[task] for task in tasks} == {STATE_OF_TASKS[stage]}
        if stage in ON_THE_WIRE:
            until(lambda: sendings <= {_sending(request) for request in self.received()})
        elif stage in BEFORE_THE_WIRE:
            assert not sendings & {_sending(request) for request in self.received()}
        if stage is Stage.SETTLED:
            assert not sendings & found.leased
        else:
            assert sendings <= found.leased


def _on(database: str, request: pytest.FixtureRequest) -> str | None:
    """The URL of a new database of this kind; none for a file."""
    return request.getfixturevalue("postgres_url") if database == "postgresql" else None


@pytest.fixture(params=DATABASES)
def scene(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    """A dispatcher that was not started yet, three receivers, and clients with nothing to do."""
    witness, gauge = tmp_path / "witness.json", tmp_path / "in-flight"
    monkeypatch.setenv(WITNESS, str(witness))
    monkeypatch.setenv(GAUGE, str(gauge))
    with ExitStack() as stack:
        scene = Scene(
            server=Server(
                tmp_path / "data",
                settings={
                    "retry_schedule": "[0.2, 0.5, 1, 1, 1, 1, 1, 1]",
                    "send_timeout": "5",
                    "log_level": "warning",
                    # whose steps the launcher knows
                    "transport": "http1",
                    "session_ttl": str(SESSION_TTL),
                },
                database_url=_on(request.param, request),
                options=("--processors", "tests.e2e.crash.processors"),
                launcher="tests.e2e.crash.launcher",
            ),
            clients=stack.enter_context(Clients(CLIENTS)),
            receivers=[stack.enter_context(Receiver(_answer, host=host)) for host in RECEIVERS],
            witness=witness,
            gauge=gauge,
            monkeypatch=monkeypatch,
        )
        yield scene
        if scene.server.running:
            scene.server.kill()


@pytest.mark.timeout(900)
def test_kill_9_loses_nothing(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    started = time.monotonic()
    chance = random.Random(SEED)
    rounds = ROUNDS if LONG or isinstance(scene.server.place, Path) else FEW_ROUNDS
    assert {stage for stage, _ in ROUNDS} == {None, *Stage} - {Stage.KEYRING, Stage.INSTALLING}
    orders = OrderBook(SEED, [receiver.url for receiver in scene.receivers])

    big = sum(stage in WITH_BIG for stage, _ in rounds)
    scene.subscribe(big=BIG if big else 0)
    few = SUBSCRIBERS * len(RECEIVERS)
    for stage, count in rounds:
        work = orders.submissions(single=SINGLE, batches=BATCHES, in_batch=IN_BATCH)
        for event in orders.happenings("few.things", EVENTS, subscribers=few):
            work.insert(chance.randrange(len(work) + 1), event)
        if stage in WITH_BIG:
            work[:0] = orders.happenings("big.news", 1, subscribers=BIG)
        if stage is None:
            scene.kill_at_random(work, count, chance)
        else:
            scene.kill_at(work, stage, count)
    killing = time.monotonic() - started
    ledger = scene.come_to_rest()
    tasks = len(rounds) * (SINGLE + BATCHES * IN_BATCH)
    messages = len(rounds) * EVENTS * few + big * BIG
    assert len(scene.clients.published) == len(rounds) * EVENTS + big
    assert {name: value for name, value in ledger.items() if value} == {
        "accepted": tasks + messages,
        "delivered": tasks + messages,
        "reconciles": True,
    }
    with scene.server.client() as client:
        _check_api(client, scene)
    assert scene.server.stop() == 0

    figures = _check_everything(scene, tasks, messages)
    figures["seconds"] = (
        f"{time.monotonic() - started:>6.0f}   {killing:.0f} of them killing, then until all was delivered"
    )
    with capsys.disabled():
        print("\n" + _table(scene, figures))


def _check_api(client: httpx.Client, scene: Scene) -> None:
    """The fate of every task can be asked for: the lists have each of them once, and no other."""
    accepted = scene.clients.accepted
    deliveries = list(_pages(client, "/deliveries"))
    answers = [item["id"] for item in deliveries if item["task_id"] is not None]
    assert sorted(answers) == sorted(accepted)
    messages = Counter(item["event_id"] for item in deliveries if item["task_id"] is None)
    assert messages == {id_: one.subscribers for id_, one in scene.clients.published.items()}
    events = {item["id"]: item for item in _pages(client, "/events")}
    assert {id_: item["deliveries"] for id_, item in events.items()} == messages
    assert {item["fan_out"] for item in events.values()} == {"complete"}
    assert {item["state"] for item in deliveries} == {"delivered"}
    tasks = {item["id"]: item for item in _pages(client, "/tasks")}
    assert tasks.keys() == {entry.task_id for entry in accepted.values()}
    assert {item["state"] for item in tasks.values()} == {"succeeded"}
    for entry in list(accepted.values())[::50]:
        assert tasks[entry.task_id]["delivery_id"] == entry.delivery_id
        shown = client.get(f"/deliveries/{entry.delivery_id}").json()
        assert shown["task_id"] == entry.task_id
        assert shown["attempts"][-1]["outcome"] == "success"


def _pages(client: httpx.Client, route: str) -> Iterator[dict[str, Any]]:
    cursor: str | None = None
    for _ in range(1_000):
        page = client.get(route, params={"limit": 200, **({"cursor": cursor} if cursor else {})}).json()
        yield from page["items"]
        cursor = page["next_cursor"]
        if cursor is None:
            return
    pytest.fail(f"{route} has no last page")


def _check_everything(scene: Scene, tasks: int, messages: int) -> dict[str, object]:
    """Hold clients, receivers and the file against each other. Answers the figures."""
    accepted = scene.clients.accepted
    received = scene.received()
    found = Books.read(scene.server.place)
    found.check()
    assert found.counted == {"accepted": tasks + messages, "delivered": tasks + messages}
    assert found.deliveries.keys() - found.messages.keys() == accepted.keys()
    assert found.events == {id_: one.subscribers for id_, one in scene.clients.published.items()}
    assert not any(books.remains(scene.server.place).values()), books.remains(scene.server.place)
    assert found.failed_tries == 0, "an interruption was counted as a failed try"
    assert '"level": "error"' not in scene.server.log.read_text()

    bodies: dict[str, set[bytes]] = {}
    for request in received:
        bodies.setdefault(request.delivery, set()).add(request.body)
        url = f"http://{request.header('Host')}{request.target}"
        if request.delivery in found.messages:
            event, subscription = found.messages[request.delivery]
            assert url == scene.endpoints[subscription]
            assert request.body == scene.clients.published[event].payload.encode()
            continue
        entry = accepted.get(request.delivery)
        assert entry is not None, "a delivery that nobody was promised"
        assert url == entry.order.origin + entry.order.path
        assert entry.order.is_answered_by(request.body, entry.task_id), request.body[:200]
    assert bodies.keys() == found.deliveries.keys()
    assert {len(variants) for variants in bodies.values()} == {1}, "a repetition has other bytes"

    outcomes = books.outcomes(scene.server.place)
    _check_attempts([_sending(request) for request in received], outcomes, found)
    arrived = {_sending(request) for request in received if status_of(_sending(request)) == 200}
    settled = {sending for sending, outcome in outcomes.items() if outcome == "success"}
    assert sorted(delivery for delivery, _ in settled) == sorted(found.deliveries), "settled as delivered once each"
    if any(kill.stage in WITH_BIG for kill in scene.kills):
        assert sum(bool(kill.unmade) for kill in scene.kills) >= 3, "few kills met a fan-out"
    repeated = arrived - settled
    # A fencing token is given once, so a repetition belongs to the one kill that ended its lease.
    by_kill = [len(repeated & kill.leased) for kill in scene.kills]
    assert sum(by_kill) == len(repeated), "a repetition that no kill explains"
    for kill, duplicates in zip(scene.kills, by_kill, strict=True):
        assert duplicates <= kill.in_flight, kill
    return {
        "tasks": len(accepted),
        "events": len(scene.clients.published),
        "messages": messages,
        "unmade": [kill.unmade for kill in scene.kills if kill.unmade],
        "requests": scene.clients.requests,
        "broken off": scene.clients.unanswered,
        "replayed": scene.clients.replayed,
        "kills": len(scene.kills),
        "received": len(received),
        "failed": sum(status_of(_sending(request)) != 200 for request in received),
        "interrupted": sum(outcome == "interrupted" for outcome in outcomes.values()),
        "in flight": sum(kill.in_flight for kill in scene.kills),
        "duplicates": len(repeated),
        "by kill": by_kill,
        "lost": tasks + messages - len(settled),
        "task interruptions": max(found.task_interruptions.values()),
    }


def _check_attempts(received: list[Sending], outcomes: dict[Sending, str], found: Books) -> None:
    """Each request was one attempt, and each attempt is on record."""
    arrived = set(received)
    assert len(received) == len(arrived), "one attempt was sent twice"
    assert arrived <= outcomes.keys()
    for sending, outcome in outcomes.items():
        answered = "success" if status_of(sending) == 200 else "http_error"
        assert outcome in ({"interrupted", answered} if sending in arrived else {"interrupted"}), sending
    assert Counter(delivery for delivery, _ in outcomes) == found.attempts
    assert all(1 <= number <= found.attempts[delivery] for delivery, number in outcomes)


def _table(scene: Scene, figures: dict[str, Any]) -> str:
    """The figures, as docs/reliability.md shows them."""
    lines = ["kill -9 at            kills  in flight  leases ended  duplicates"]
    rows: dict[str, Counter[str]] = {}
    for kill, duplicates in zip(scene.kills, figures["by kill"], strict=True):
        row = rows.setdefault(kill.stage or "a random moment", Counter())
        row.update(kills=1, flying=kill.in_flight, leases=len(kill.leased), duplicates=duplicates)
    rows["all"] = Counter()
    for row in [row for name, row in rows.items() if name != "all"]:
        rows["all"].update(row)
    for name, row in rows.items():
        lines.append(f"{name:<22}{row['kills']:>5}{row['flying']:>11}{row['leases']:>14}{row['duplicates']:>12}")
    lines += [
        "",
        f"tasks accepted         {figures['tasks']:>6}   and {figures['events']} events for {figures['messages']} "
        f"deliveries, by {figures['requests']} requests of {CLIENTS} clients;",
        f"                                {figures['broken off']} broke off unanswered, {figures['replayed']} of them "
        "had been stored",
        f"deliveries delivered   {figures['tasks'] + figures['messages'] - figures['lost']:>6}   "
        f"lost: {figures['lost']}",
        f"fan-outs killed        {len(figures['unmade']):>6}   with {max(figures['unmade'], default=0)} to "
        f"{min(figures['unmade'], default=0)} of {BIG} deliveries still to be made",
        f"requests received      {figures['received']:>6}   {figures['failed']} answered 503 on purpose, "
        f"{figures['duplicates']} duplicates",
        f"attempts interrupted   {figures['interrupted']:>6}   at most {scene.most_interruptions} in a row for one "
        f"delivery, and {figures['task interruptions']} for one task",
        f"seconds                {figures['seconds']}",
    ]
    return "\n".join(lines)


@pytest.mark.parametrize("scene", ["postgresql"], indirect=True)
def test_a_transaction_that_outlives_its_process_holds_up_nothing_but_its_own(scene: Scene) -> None:
    """PostgreSQL's process keeps the locks of one that was killed, until it notices."""
    orders = OrderBook(SEED, [receiver.url for receiver in scene.receivers])
    scene.clients.submit(orders.submissions(single=SINGLE, batches=0, in_batch=0))
    scene.monkeypatch.setenv(FREEZE, "1")
    scene.start(Stage.SETTLING, 1)
    until(lambda: not scene.server.running)
    scene.server.wait()
    scene.monkeypatch.delenv(FREEZE)
    witness = json.loads(scene.witness.read_text())
    scene.clients.disconnect()
    try:
        # Others are accepted meanwhile, whoever settles must wait for.
        scene.clients.submit(orders.submissions(single=SINGLE, batches=0, in_batch=0))
        scene.start()
        scene.clients.wait_until_answered()
        settling = {(delivery, attempt) for delivery, attempt in witness["deliveries"]}
        assert settling <= Books.read(scene.server.place).leased
    finally:
        os.kill(witness["backend"], signal.SIGCONT)
    ledger = scene.come_to_rest()
    assert (ledger["accepted"], ledger["delivered"]) == (2 * SINGLE, 2 * SINGLE)
    assert scene.server.stop() == 0
    found = books.outcomes(scene.server.place)
    # What was written, and not committed, counts for nothing: it is sent again.
    assert {found[sending] for sending in settling} == {"interrupted"}
    Books.read(scene.server.place).check()


@pytest.mark.parametrize("database", DATABASES)
@pytest.mark.parametrize("stage", [Stage.KEYRING, Stage.INSTALLING])
def test_a_first_start_that_was_killed_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, stage: Stage, database: str
) -> None:
    monkeypatch.setenv(WITNESS, str(tmp_path / "witness.json"))
    monkeypatch.setenv(GAUGE, str(tmp_path / "in-flight"))
    monkeypatch.setenv(STAGE, stage)
    url = request.getfixturevalue("bare_postgres_url") if database == "postgresql" else None
    server = Server(tmp_path / "data", launcher="tests.e2e.crash.launcher", database_url=url)
    with pytest.raises(AssertionError, match="did not start"):
        server.start()
    assert json.loads((tmp_path / "witness.json").read_text())["stage"] == stage

    monkeypatch.setenv(STAGE, "")
    with server, server.client() as client:
        assert client.get("/ledger").json()["reconciles"]
