"""Rotation of the keyring: everything that is sealed goes over to the new key, beside others that write."""

from __future__ import annotations

import hmac
import itertools
import json
import signal
import sqlite3
import subprocess
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa

from dispatcher import tokens
from dispatcher.config import Settings
from dispatcher.errors import StoreUnavailable
from dispatcher.ids import ACCOUNT_NAME, new_id
from dispatcher.installation import Installation, open_installation
from dispatcher.store import accounts as account_store
from dispatcher.store import outbox_keys, rekeying, sealing
from dispatcher.store.database import Database
from dispatcher.store.records import Callback
from dispatcher.store.rekeying import Batch, SealedTable, Unopened
from dispatcher.store.tables import accounts, tasks
from subscriptions import secrets as secret_maker
from subscriptions import store as subscription_store
from subscriptions.keyring import Keyring, KeyringError
from subscriptions.models import Subscription, SubscriptionState, ValidKey
from subscriptions.schema import Sealed, metadata
from subscriptions.secrets import Secret, SigningKey
from tests.support import forking
from tests.support.receiver import Received, Receiver, Reply
from tests.support.server import Server, until

ROOT = Path(__file__).parents[2]
ACCOUNT = "acme"
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLw4V"
#: of one task, or of one account and its subscription with its secret
TASK_VALUES = 3


# --- an installation with something in each column --------------------------------------------------------


@asynccontextmanager
async def opened(data_dir: Path) -> AsyncIterator[Installation]:
    found = await open_installation(Settings(data_dir=data_dir))
    try:
        yield found
    finally:
        await found.database.close()


def callback(number: int = 0) -> Callback:
    return Callback(
        url=Secret(f"https://api.example.com/results/{number}/s3cr3t"),
        secret=Secret(SECRET),
        headers=(("X-Secret", f"value {number}"),),
        schemes=None,
        origin="https://api.example.com",
        fingerprint="0" * 16,
        token="opaque",
        window_end=None,
    )


async def add_tasks(database: Database, keyring: Keyring, count: int) -> list[str]:
    """Tasks that have ended, each with all three values, as the store seals them. Returns their ids."""
    ids = [new_id() for _ in range(count)]
    rows = [
        {
            "id": task_id,
            "account": ACCOUNT,
            "type": "relay",
            "state": "succeeded",
            "body_mode": "raw",
            "delivery_id": new_id(),
            "attempt": 0,
            "failures": 0,
            "interruptions": 0,
            "created_at": 1,
            **sealing.seal_callback(keyring, callback(number), account=ACCOUNT, task_id=task_id),
        }
        for number, task_id in enumerate(ids)
    ]
    async with database.write() as connection:
        await connection.execute(sa.insert(tasks), rows)
    return ids


async def add_others(database: Database, keyring: Keyring) -> str:
    """An account with a secret, and its subscription. Returns the subscription's id."""
    await account_store.change_account(
        database, keyring, ACCOUNT, lambda account: replace(account, default_secret=Secret(SECRET)), actor="test"
    )
    key = SigningKey(secret=secret_maker.generate(), seed=secret_maker.generate_seed())
    subscription = Subscription(
        id=new_id(),
        account=ACCOUNT,
        version=1,
        state=SubscriptionState.ACTIVE,
        created_at=1,
        updated_at=1,
        name="all",
        events=("*",),
        url=Secret("https://api.example.com/hooks/s3cr3t"),
        origin="https://api.example.com",
        fingerprint="0" * 16,
        headers=(("X-Secret", "value"),),
        keys=(ValidKey(id=new_id(), key=key, valid_from=1, valid_until=None, created_at=1),),
    )
    async with database.write() as connection:
        await subscription_store.insert(connection, keyring, subscription)
        await outbox_keys.ensure(connection, keyring)
    return subscription.id


async def all_open(database: Database, keyring: Keyring, ids: Sequence[str], subscription: str | None = None) -> None:
    """Everything is read back as the rest of the program reads it."""
    async with database.read() as connection:
        rows = {row["id"]: row for row in (await connection.execute(sa.select(tasks))).mappings()}
        found = await subscription_store.find(connection, keyring, [subscription] if subscription else [])
        pairs = await outbox_keys.opened(connection, keyring)
        for key in await outbox_keys.stored(connection):
            assert pairs.open(key.public.seal(b"a callback", b"its row"), b"its row") == b"a callback"
    for number, task_id in enumerate(ids):
        read = sealing.open_callback(keyring, rows[task_id], account=ACCOUNT, task_id=task_id)
        assert (read.url, read.secret, read.headers) == (
            callback(number).url,
            callback(number).secret,
            callback(number).headers,
        )
    if subscription:
        assert found[subscription].url.reveal() == "https://api.example.com/hooks/s3cr3t"
        assert found[subscription].headers == (("X-Secret", "value"),)
        assert found[subscription].keys[0].key.public_key
        account = await account_store.read_account(database, keyring, ACCOUNT)
        assert account.default_secret == Secret(SECRET)


def older(path: Path, *, seconds: float = 3600) -> None:
    """Make all keys of a file older: their rotation is long over."""
    content = json.loads(path.read_text())
    for key in content["keys"]:
        created = datetime.fromisoformat(key["created"])
        key["created"] = (created - timedelta(seconds=seconds)).isoformat()
    path.write_text(json.dumps(content))


@dataclass(kw_only=True)
class Rotated:
    """An installation whose rotation is over, but for the re-encryption."""

    installation: Installation
    old: Keyring
    ring: Keyring
    ids: list[str]
    subscription: str

    @property
    def database(self) -> Database:
        return self.installation.database


@pytest.fixture
async def rotated(tmp_path: Path) -> AsyncIterator[Rotated]:
    async with opened(tmp_path / "data") as installation:
        ids = await add_tasks(installation.database, installation.keyring, 50)
        subscription = await add_others(installation.database, installation.keyring)
        path = tmp_path / "data" / "keyring.json"
        old = Keyring.load(path)
        old = Keyring([old._known.by_id[old._known.first]])  # in memory: it stays as it is
        Keyring.rotate(path)
        older(path)
        yield Rotated(installation=installation, old=old, ring=Keyring.load(path), ids=ids, subscription=subscription)


def kids(data_dir: Path, column: str = "callback_url") -> Counter[str]:
    """How many tasks each key seals, as sqlite3 sees it."""
    with closing(sqlite3.connect(data_dir / "dispatcher.db", timeout=10)) as file:
        query = f"SELECT lower(hex(substr({column}, 2, 4))) FROM tasks WHERE {column} IS NOT NULL"
        return Counter(f"k-{kid}" for (kid,) in file.execute(query))


# --- places -----------------------------------------------------------------------------------------------


def test_every_sealed_column_is_known() -> None:
    declared = {column for table in metadata.tables.values() for column in table.c if column.type is Sealed}
    assert declared == {table.table.c[column] for table in rekeying.SEALED for column in table.columns}
    assert all([column.name for column in table.table.primary_key] == ["id"] for table in rekeying.SEALED)


# --- re-encrypting ----------------------------------------------------------------------------------------


async def test_everything_goes_over_to_the_new_key(rotated: Rotated) -> None:
    summary = await rekeying.reseal_all(rotated.database, rotated.ring)
    assert summary.complete
    assert summary.passes == 2
    assert summary.kid == rotated.ring.kids[0]
    assert +summary.resealed == {
        "installation": 1,
        "accounts": 1,
        "outbox_keys": 1,
        "subscriptions": 2,
        "secrets": 2,
        "tasks": 150,
    }

    counted = await rekeying.count_values(rotated.database, rotated.ring.kids)
    assert {table: +keys for table, keys in counted.items()} == {
        table: {summary.kid: count} for table, count in summary.resealed.items()
    }
    only_new = Keyring([rotated.ring._known.by_id[rotated.ring._known.first]])
    await all_open(rotated.database, only_new, rotated.ids, rotated.subscription)

    again = await rekeying.reseal_all(rotated.database, rotated.ring)
    assert (again.complete, again.passes, again.resealed.total()) == (True, 1, 0)


async def test_the_installation_opens_without_the_old_key(rotated: Rotated, tmp_path: Path) -> None:
    await rekeying.reseal_all(rotated.database, rotated.ring)
    path = tmp_path / "data" / "keyring.json"
    Keyring.retire(path, rotated.old.kids[0], change_fingerprints=True)
    async with opened(tmp_path / "data") as again:
        await all_open(again.database, again.keyring, rotated.ids, rotated.subscription)


@pytest.mark.parametrize(("batch", "window"), [(1, 1), (7, 20), (20, 7), (50, 50), (51, 49)])
async def test_batches_and_windows_of_any_size_leave_nothing_out(
    rotated: Rotated, monkeypatch: pytest.MonkeyPatch, batch: int, window: int
) -> None:
    monkeypatch.setattr(rekeying, "BATCH", batch)
    monkeypatch.setattr(rekeying, "WINDOW", window)
    async with rotated.database.write() as connection:  # half of them are wiped, some only in part
        for number, task_id in enumerate(rotated.ids[::2]):
            gone = {"callback_url": None, "callback_secret": None, **({"callback_headers": None} if number % 2 else {})}
            await connection.execute(sa.update(tasks).where(tasks.c.id == task_id).values(gone))
    before = await rekeying.count_values(rotated.database, rotated.ring.kids)
    seen: list[Batch] = []
    summary = await rekeying.reseal_all(
        rotated.database, rotated.ring, report=lambda table, done: seen.append(done) if table == "tasks" else None
    )
    assert summary.resealed["tasks"] == before["tasks"][rotated.old.kids[0]]
    assert max(done.resealed for done in seen) <= batch * TASK_VALUES
    after = await rekeying.count_values(rotated.database, rotated.ring.kids)
    assert after["tasks"] == Counter({rotated.ring.kids[0]: before["tasks"].total()})
    async with rotated.database.read() as connection:
        assert await connection.scalar(sa.select(sa.func.count()).where(tasks.c.callback_url.is_(None))) == 25


async def test_what_changes_meanwhile_is_not_overwritten(rotated: Rotated, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the reading and the writing of a batch a URL is wiped, a secret replaced, a task deleted."""
    wiped, changed, deleted = rotated.ids[:3]
    other = msgspec.structs.replace(callback(), secret=Secret("another secret"))
    columns = sealing.seal_callback(rotated.old, other, account=ACCOUNT, task_id=changed)
    reseal = rekeying._reseal
    rounds: list[str] = []

    def and_meanwhile(ring: Keyring, table: SealedTable, rows: Sequence[sa.RowMapping]) -> Any:
        made = reseal(ring, table, rows)
        if table.table is tasks and not rounds:
            rounds.append("one")
            with closing(sqlite3.connect(rotated.database.url.removeprefix("sqlite+aiosqlite:///"))) as file, file:
                file.execute("UPDATE tasks SET callback_url = NULL WHERE id = ?", [wiped])
                file.execute("UPDATE tasks SET callback_secret = ? WHERE id = ?", [columns["callback_secret"], changed])
                file.execute("DELETE FROM tasks WHERE id = ?", [deleted])
        return made

    monkeypatch.setattr(rekeying, "_reseal", and_meanwhile)
    assert (await rekeying.reseal_all(rotated.database, rotated.ring)).complete
    async with rotated.database.read() as connection:
        rows = {row["id"]: row for row in (await connection.execute(sa.select(tasks))).mappings()}
    assert rows[wiped]["callback_url"] is None
    assert deleted not in rows
    read = sealing.open_callback(rotated.ring, rows[changed], account=ACCOUNT, task_id=changed)
    assert read.secret == other.secret
    assert rotated.ring.is_current(rows[changed]["callback_secret"])


async def test_what_no_key_opens_is_named_and_left(rotated: Rotated) -> None:
    lost = Keyring.generate()
    unknown, damaged = rotated.ids[10], rotated.ids[20]
    values = sealing.seal_callback(lost, callback(), account=ACCOUNT, task_id=unknown)
    async with rotated.database.write() as connection:
        await connection.execute(sa.update(tasks).where(tasks.c.id == unknown).values(values))
        bad = await connection.scalar(sa.select(tasks.c.callback_headers).where(tasks.c.id == damaged))
        assert isinstance(bad, bytes)
        bad = bad[:-1] + bytes([bad[-1] ^ 1])
        await connection.execute(sa.update(tasks).where(tasks.c.id == damaged).values(callback_headers=bad))
        await connection.execute(sa.update(accounts).values(default_secret=b"short"))
    summary = await rekeying.reseal_all(rotated.database, rotated.ring)
    assert (summary.finished, summary.complete) == (True, False)
    assert summary.unopened == {"tasks": 4, "accounts": 1}
    assert {(value.id, value.column) for value in summary.named} == {
        (unknown, "callback_url"),
        (unknown, "callback_secret"),
        (unknown, "callback_headers"),
        (damaged, "callback_headers"),
        (ACCOUNT, "default_secret"),
    }
    assert Unopened(table="accounts", id=ACCOUNT, column="default_secret") in summary.named
    assert summary.resealed["tasks"] == 150 - 4
    async with rotated.database.read() as connection:
        row = (await connection.execute(sa.select(tasks).where(tasks.c.id == unknown))).mappings().one()
        assert row["callback_url"] == values["callback_url"]
        assert await connection.scalar(sa.select(tasks.c.callback_headers).where(tasks.c.id == damaged)) == bad
    counted = await rekeying.count_values(rotated.database, rotated.ring.kids)
    assert counted["tasks"][None] == 3
    assert counted["accounts"][None] == 1


async def test_after_a_rotation_it_waits_for_what_servers_still_seal(
    rotated: Rotated, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Keyring.rotate(tmp_path / "data" / "keyring.json")
    ring = Keyring.load(tmp_path / "data" / "keyring.json")
    assert 0 < rekeying.settles_in(ring) <= rekeying.SETTLES_WITHIN
    await rekeying.reseal_all(rotated.database, rotated.ring)  # nothing is left for the first pass but what comes late
    monkeypatch.setattr(rekeying, "SETTLES_WITHIN", 0.3)
    late = sealing.seal_account_secret(rotated.old, Secret(SECRET), account=ACCOUNT)

    def report(table: str, _batch: Batch) -> None:
        if table == "tasks" and rekeying.settles_in(ring):
            with closing(sqlite3.connect(tmp_path / "data" / "dispatcher.db")) as file, file:
                file.execute("UPDATE accounts SET default_secret = ?", [late])

    summary = await rekeying.reseal_all(rotated.database, ring, report=report)
    assert summary.complete
    assert rekeying.settles_in(ring) == 0.0
    counted = await rekeying.count_values(rotated.database, ring.kids)
    assert +counted["accounts"] == {ring.kids[0]: 1}


async def test_a_server_that_goes_on_with_the_old_key_ends_it(rotated: Rotated, tmp_path: Path) -> None:
    def report(table: str, _batch: Batch) -> None:
        if table == "tasks":
            late = sealing.seal_account_secret(rotated.old, Secret(SECRET), account=ACCOUNT)
            with closing(sqlite3.connect(tmp_path / "data" / "dispatcher.db")) as file, file:
                file.execute("UPDATE accounts SET default_secret = ?", [late])

    summary = await rekeying.reseal_all(rotated.database, rotated.ring, report=report)
    assert (summary.finished, summary.complete, summary.passes) == (False, False, rekeying.PASSES)


async def test_a_database_that_is_busy_is_asked_again(rotated: Rotated, monkeypatch: pytest.MonkeyPatch) -> None:
    batch, calls = rekeying.reseal_batch, itertools.count()

    async def busy_at_times(*arguments: Any) -> Batch:
        if next(calls) % 2 == 0:
            raise StoreUnavailable("busy")
        return await batch(*arguments)

    monkeypatch.setattr(rekeying, "RETRIES", (0.0,))
    monkeypatch.setattr(rekeying, "reseal_batch", busy_at_times)
    assert (await rekeying.reseal_all(rotated.database, rotated.ring)).complete

    async def always_busy(*_arguments: Any) -> Batch:
        raise StoreUnavailable("busy")

    monkeypatch.setattr(rekeying, "reseal_batch", always_busy)
    with pytest.raises(StoreUnavailable):
        await rekeying.reseal_all(rotated.database, rotated.ring)


async def test_every_statement_walks_an_index_and_sorts_nothing(
    rotated: Rotated, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rekeying, "BATCH", 7)
    monkeypatch.setattr(rekeying, "WINDOW", 20)
    seen: dict[str, Any] = {}

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, many: bool) -> None:
        if statement.startswith(("SELECT", "UPDATE")):
            seen.setdefault(statement, parameters[0] if many else parameters)

    sa.event.listen(sa.Engine, "before_cursor_execute", note)
    try:
        await rekeying.reseal_all(rotated.database, rotated.ring)
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", note)
    assert len([statement for statement in seen if "tasks" in statement]) >= 6
    async with rotated.database.read() as connection:
        for statement, parameters in seen.items():
            plan = [
                row.detail for row in await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
            ]
            assert "TEMP B-TREE" not in str(plan), statement
            for detail in plan:  # by the index of the primary key, never the bare table; one of them has one row only
                assert " USING " in detail or detail == "SCAN installation", (statement, plan)


async def test_live_tokens_are_counted_by_the_time_of_their_key(tmp_path: Path) -> None:
    path = tmp_path / "data" / "keyring.json"
    async with opened(tmp_path / "data") as installation:
        older(path)
        for ttl in (None, 60.0, 0.0):  # the last one is over
            await tokens.issue(installation, account=ACCOUNT, scopes=["tasks:read"], actor="test", ttl=ttl)
        await tokens.issue(installation, account="other", scopes=["tasks:read"], actor="test", note="gone")
        await account_store.revoke_noted(installation.database, "gone", actor="test")
        ring = await rekeying.rotate(installation.database, path, actor="test")
        older(path, seconds=-7200)  # both made in the future: the tokens are of neither
        new, old = ring.kids
        count = rekeying.count_tokens
        assert await count(installation.database, ring.created) == {old: 2, new: 0}
        assert await count(installation.database, Keyring.load(path).created) == {old: 0, new: 0}
        hours = timedelta(hours=2)
        earlier = {new: ring.created[new] - hours, old: ring.created[old] - hours}
        assert await count(installation.database, earlier) == {old: 0, new: 2}


async def test_who_rotated_and_retired_is_noted(tmp_path: Path) -> None:
    path = tmp_path / "data" / "keyring.json"
    async with opened(tmp_path / "data") as installation:
        database = installation.database
        first = (await rekeying.rotate(database, path, actor="me")).kids[0]
        second = (await rekeying.rotate(database, path, actor="me")).kids[0]
        with pytest.raises(KeyringError):
            await rekeying.retire(database, path, second, change_fingerprints=False, actor="me")
        await rekeying.retire(database, path, first, change_fingerprints=False, actor="you")
    with closing(sqlite3.connect(tmp_path / "data" / "dispatcher.db")) as file:
        rows = file.execute("SELECT account, actor, action, subject FROM audit ORDER BY id").fetchall()
    assert rows == [
        ("-", "me", "keyring.rotate", first),
        ("-", "me", "keyring.rotate", second),
        ("-", "you", "keyring.retire", first),
    ]
    assert not ACCOUNT_NAME.match(rekeying.INSTALLATION)


# --- processes --------------------------------------------------------------------------------------------


def run(data_dir: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return forking.run("keyring", *arguments, "--data-dir", str(data_dir))


@pytest.mark.parametrize(("number", "status"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
async def test_ended_midway_it_goes_on_where_it_was(tmp_path: Path, number: int, status: int) -> None:
    data = tmp_path / "data"
    async with opened(data) as installation:
        ids = await add_tasks(installation.database, installation.keyring, 4000)
        subscription = await add_others(installation.database, installation.keyring)
        [old] = installation.keyring.kids
    ended, errors = rotation_ended(data, number, when=lambda: kids(data)[old] < len(ids))
    assert ended == status
    assert "Traceback" not in errors
    assert ("dispatcher keyring re-encrypt" in errors) is (number == signal.SIGINT)

    ring = Keyring.load(data / "keyring.json")
    assert len(ring.kids) == 2
    midway = kids(data)
    assert midway[old] > 0
    assert midway[ring.kids[0]] > 0
    assert midway.total() == len(ids)
    async with opened(data) as installation:
        await all_open(installation.database, installation.keyring, ids, subscription)

    done = run(data, "re-encrypt", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["complete"] is True
    assert json.loads(done.stdout)["resealed"]["tasks"] < len(ids) * TASK_VALUES
    assert Keyring.load(data / "keyring.json").kids == ring.kids  # no third key
    assert kids(data) == {ring.kids[0]: len(ids)}
    Keyring.retire(data / "keyring.json", old, change_fingerprints=True)
    async with opened(data) as installation:
        await all_open(installation.database, installation.keyring, ids, subscription)


def rotation_ended(data_dir: Path, number: int, *, when: Callable[[], bool]) -> tuple[int, str]:
    """Rotate, and end that by a signal as soon as this holds. Returns its status and what it said on stderr."""
    command = ["keyring", "rotate", "--yes", "--data-dir", str(data_dir)]
    process = forking.dispatcher(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        until(when, every=0.002)
    finally:
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    return process.wait(), errors.decode()


async def test_what_cannot_be_opened_makes_the_status_1(tmp_path: Path) -> None:
    async with opened(tmp_path / "data") as installation:
        [lost] = await add_tasks(installation.database, Keyring.generate(), 1)
    done = run(tmp_path / "data", "re-encrypt", "--json")
    assert done.returncode == 1
    shown = json.loads(done.stdout)
    assert (shown["complete"], shown["unopened"]) == (False, {"tasks": 3})
    assert shown["unopened_values"][0] == {"table": "tasks", "id": lost, "column": "callback_url"}
    assert f"tasks {lost} callback_url" in done.stderr
    assert "s3cr3t" not in done.stdout + done.stderr

    listed = run(tmp_path / "data", "list")
    assert listed.returncode == 0
    assert "3 values are sealed with a key that is not in the keyring: tasks 3" in listed.stderr


class Clients:
    """Submit tasks from several threads without a pause, until they are told to end."""

    THREADS = 4

    def __init__(self, server: Server, target: str) -> None:
        self._server = server
        self._target = target
        self._numbers = itertools.count()
        self._ended = threading.Event()
        self._changed = threading.Condition()
        #: delivery id -> number
        self.accepted: dict[str, int] = {}
        self.refused: list[str] = []

    def __enter__(self) -> Clients:
        self._pool = ThreadPoolExecutor(self.THREADS)
        self._running = [self._pool.submit(self._work) for _ in range(self.THREADS)]
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._pool.shutdown()
        for running in self._running:
            running.result()

    def more(self, count: int) -> None:
        """Wait until so many more were accepted."""
        with self._changed:
            enough = len(self.accepted) + count
            assert self._changed.wait_for(lambda: len(self.accepted) >= enough or self.refused, 60)
        assert self.refused == []

    def _work(self) -> None:
        with self._server.client() as client:
            while not self._ended.is_set():
                number = next(self._numbers)
                body: dict[str, Any] = {
                    "payload": {"n": number},
                    # some cannot be delivered before the keys were rotated
                    "callback_url": f"{self._target}/{'later' if number % 40 == 0 else 'now'}/{number}",
                    "headers": {"X-Number": str(number)},
                    "schemes": ["websub"],
                }
                if number % 2:  # the others are signed with the account's
                    body["secret"] = f"the secret of {number}"
                answer = client.post("/tasks", json=body)
                with self._changed:
                    if answer.status_code == 202:
                        self.accepted[answer.json()["delivery_id"]] = number
                    else:
                        self.refused.append(f"{answer.status_code} {answer.text}")
                    self._changed.notify_all()


def is_right(request: Received, number: int) -> bool:
    """Whether a delivery is signed with the secret of its task, and brings its header."""
    secret = f"the secret of {number}" if number % 2 else SECRET
    expected = "sha256=" + hmac.new(secret.encode(), request.body, "sha256").hexdigest()
    return request.header("X-Hub-Signature") == expected and request.header("X-Number") == str(number)


def test_keys_are_rotated_and_retired_while_a_server_works(start_server: Callable[..., Server]) -> None:
    rotated = threading.Event()

    def answer(request: Received) -> Reply:
        early = request.target.startswith("/later") and not rotated.is_set()
        return Reply(status=503 if early else 200)

    server = start_server(settings={"retry_schedule": json.dumps([0.5] * 4 + [2.0] * 40)})
    with Receiver(answer) as receiver, server.client() as client:
        assert client.patch("/account", json={"default_secret": SECRET}).status_code == 200
        with Clients(server, receiver.url) as clients:
            clients.more(100)
            first = json.loads(server.cli("keyring", "rotate", "--yes", "--json").stdout)
            assert first["complete"] is True
            assert first["resealed"]["tasks"] > 0
            clients.more(100)
            second = json.loads(server.cli("keyring", "rotate", "--yes", "--json").stdout)
            assert second["complete"] is True

            listed = json.loads(server.cli("keyring", "list", "--json").stdout)
            newest, middle, oldest = listed["keys"]
            assert [newest["kid"], middle["kid"]] == [second["key"], first["key"]]
            assert (newest["first"], oldest["fingerprints"]) == (True, True)
            assert newest["values"]["tasks"] > 0
            assert (middle["total"], oldest["total"], set(listed["unknown"].values())) == (0, 0, {0})

            assert server.cli("keyring", "retire", middle["kid"], "--yes").returncode == 0
            refused = server.cli("keyring", "retire", oldest["kid"], "--yes", check=False)
            assert (refused.returncode, "fingerprints" in refused.stderr) == (2, True)
            assert "tokens" in refused.stderr  # the server's own is one
            made = server.cli("token", "create", "--account", ACCOUNT, "--scope", "tasks:read").stdout.strip()
            bearer = {"Authorization": f"Bearer {made}"}
            assert client.get("/tasks", headers=bearer).status_code == 200
            clients.more(100)
        assert clients.refused == []
        rotated.set()
        arrived = until(lambda: delivered(receiver, clients.accepted))
        assert all(is_right(request, clients.accepted[request.delivery]) for request in arrived)

        ledger = until(lambda: (now := client.get("/ledger").json())["delivered"] == len(clients.accepted) and now)
        assert ledger["accepted"] == len(clients.accepted)
    assert [kept["kid"] for kept in listed_keys(server)] == [newest["kid"], oldest["kid"]]
    assert "unreadable" not in server.log.read_text()

    assert server.stop() in {0, -signal.SIGTERM}
    server.start()
    with server.client() as client:
        assert client.get("/account").json()["has_default_secret"] is True


def delivered(receiver: Receiver, accepted: dict[str, int]) -> list[Received] | None:
    """All that was received, once each delivery has come when it was wanted."""
    requests = list(receiver.received)
    return requests if {request.delivery for request in requests} >= set(accepted) else None


def listed_keys(server: Server) -> list[dict[str, Any]]:
    keys: list[dict[str, Any]] = json.loads(server.cli("keyring", "list", "--json").stdout)["keys"]
    return keys
