"""`dispatcher.outbox`: what it takes from callers and writes for them, and what becomes of it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import pg8000, psycopg, psycopg2
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from dispatcher.account_cache import AccountCache
from dispatcher.api.outbox import OutboxTaker
from dispatcher.api.reading import Reader
from dispatcher.egress import EgressPolicy
from dispatcher.installation import open_installation
from dispatcher.limits import Limits
from dispatcher.outbox import Outbox, OutboxRefused, publish_event, submit_task
from dispatcher.parcels import CHANNEL, NEWS
from dispatcher.processors.registry import Registry
from dispatcher.public_keys import KeyPair, PublicKey
from dispatcher.store import Store, accounts, outbox_keys
from dispatcher.store import outbox as outbox_store
from dispatcher.store.outbox import Batch, Taken
from dispatcher.store.tables import bodies, deliveries, events, outbox, tasks
from dispatcher.store.tables import outbox_keys as outbox_keys_table
from tests.support.api import jwt
from tests.support.forking import ROOT
from tests.support.stores import (
    ACCOUNT,
    Home,
    delivery_rows,
    lease,
    lease_for,
    open_store,
    reconciled,
    settle,
    subscribe,
)

MARKER = "Zx9-never-shown"
URL = f"https://api.example.com/results/{MARKER}"
PUBLIC = KeyPair(bytes(range(32))).public


# --- what is refused at the call --------------------------------------------------------------------------


class Anywhere(sa.engine.Connection):
    """A connection that leads nowhere: whoever writes on it has gone too far."""

    def __init__(self) -> None:
        pass


def loads(*parts: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", "; ".join(parts)], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    ).stdout


def test_importing_it_loads_nothing_of_the_server() -> None:
    loaded = set(loads("import sys, dispatcher.outbox", "print(*{name.split('.')[0] for name in sys.modules})").split())
    heavy = {"fastapi", "starlette", "uvicorn", "pydantic", "asyncpg", "aiosqlite", "structlog", "httpx", "alembic"}
    assert {"sqlalchemy", "cryptography", "dispatcher"} <= loaded
    assert heavy & loaded == set()


EVENTS: list[tuple[str, dict[str, Any], str]] = [
    ("account", {"account": ""}, "account"),
    ("account of another alphabet", {"account": "ac me"}, "account"),
    ("type", {"type": "order paid"}, "type"),
    ("NaN", {"payload": {"n": float("nan")}}, "payload"),
    ("not JSON", {"payload": object()}, "payload"),
    ("broken bytes", {"payload": b'{"n":'}, "payload"),
    ("two values", {"payload": b"1, 2"}, "payload"),
    ("not UTF-8", {"payload": b'"\xff"'}, "payload"),
    ("a lone surrogate", {"payload": "\ud800"}, "payload"),
    ("a byte too large", {"payload": b'"' + b"x" * (256 * 1024 - 1) + b'"'}, "payload"),
    ("too deep", {"payload": b"[" * 65 + b"]" * 65}, "payload"),
    ("id", {"id": "with space"}, "id"),
    ("subject", {"subject": ""}, "subject"),
    ("subject with NUL", {"subject": "\0"}, "subject"),
    ("ordering_key", {"ordering_key": "x" * 256}, "ordering_key"),
    ("traceparent", {"traceparent": "00-0-0-00"}, "traceparent"),
    ("unknown", {"topic": "x"}, "topic"),
]


@pytest.mark.parametrize(("fields", "named"), [row[1:] for row in EVENTS], ids=[row[0] for row in EVENTS])
def test_an_event_that_is_not_valid_is_refused_at_the_call(fields: dict[str, Any], named: str) -> None:
    wish = {"account": ACCOUNT, "type": "order.paid", "payload": {"n": 1}, **fields}
    with pytest.raises(OutboxRefused, match=f"^{named}: "):
        publish_event(Anywhere(), **wish)


def ended() -> str:
    return f"https://api.example.com/{jwt(exp=1)}"


TASKS: list[tuple[str, dict[str, Any], str]] = [
    ("loopback", {"callback_url": f"https://127.0.0.1/{MARKER}"}, "callback_url"),
    ("metadata service", {"callback_url": f"https://169.254.169.254/{MARKER}"}, "callback_url"),
    ("plain http", {"callback_url": f"http://api.example.com/{MARKER}"}, "callback_url"),
    ("another port", {"callback_url": f"https://api.example.com:9443/{MARKER}"}, "callback_url"),
    ("user", {"callback_url": f"https://{MARKER}@api.example.com/"}, "callback_url"),
    ("not a URL", {"callback_url": MARKER}, "callback_url"),
    ("too long", {"callback_url": "https://api.example.com/" + "x" * 8192}, "callback_url"),
    ("an ended token", {"callback_url": ended()}, "callback_url"),
    ("an end that is past", {"deliver_before": datetime(2020, 1, 1, tzinfo=UTC)}, "deliver_before"),
    ("an end without a zone", {"deliver_before": datetime(2100, 1, 1)}, "deliver_before"),  # noqa: DTZ001 - that is it
    ("a short secret", {"secret": "1234567"}, "secret"),
    ("an unknown scheme", {"schemes": ["md5"]}, "schemes/0"),
    ("schemes that exclude each other", {"schemes": ["websub", "github"]}, "schemes"),
    ("a form", {"body": "xml"}, "body"),
    ("a header of ours", {"headers": {"X-Webhook-Event": MARKER}}, "headers/X-Webhook-Event"),
    ("a header with a line end", {"headers": {"X-A": f"{MARKER}\r\nX-B: 1"}}, "headers/X-A"),
    ("metadata that are no object", {"metadata": [1]}, "metadata"),
    ("metadata that are not JSON", {"metadata": {"a": object()}}, "metadata"),
    ("metadata that are too large", {"metadata": {"a": "x" * 200_000}}, "metadata"),
    ("key", {"idempotency_key": ""}, "idempotency_key"),
    ("type", {"type": "a b"}, "type"),
]


@pytest.mark.parametrize(("fields", "named"), [row[1:] for row in TASKS], ids=[row[0] for row in TASKS])
def test_a_task_that_is_not_valid_is_refused_at_the_call(fields: dict[str, Any], named: str) -> None:
    wish = {"account": ACCOUNT, "callback_url": URL, "payload": {"n": 1}, **fields}
    with pytest.raises(OutboxRefused, match=f"^{named}: ") as caught:
        submit_task(Anywhere(), **wish)
    assert MARKER not in str(caught.value)


@pytest.mark.parametrize("key", ["", "whok_", str(PUBLIC)[:-2]])
def test_a_public_key_that_is_none_is_refused(key: str) -> None:
    with pytest.raises(OutboxRefused, match=r"^public_key: "):
        Outbox(public_key=key)


def test_it_takes_nothing_but_connections_and_sessions() -> None:
    for where in (None, "postgresql://", object()):
        with pytest.raises(TypeError, match="AsyncSession"):
            publish_event(where, ACCOUNT, "order.paid", {})  # type: ignore[call-overload]  # that is it


def test_sqlite_is_refused(tmp_path: Path) -> None:
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'file.db'}")
    with Session(engine) as session, pytest.raises(OutboxRefused, match="PostgreSQL"):
        publish_event(session, ACCOUNT, "order.paid", {})
    engine.dispose()


@pytest.mark.parametrize("dialect", [psycopg, psycopg2, pg8000])
def test_the_statement_says_its_types_to_drivers_that_do_not(dialect: Any) -> None:
    text = str(Outbox(schema="dispatcher")._insert.compile(dialect=dialect.dialect()))
    assert text.startswith("INSERT INTO dispatcher.outbox (id, ")
    assert "RETURNING" not in text
    assert text.count("AS BYTEA)") == 3
    assert text.count("AS VARCHAR)") == 5


# --- what is written --------------------------------------------------------------------------------------


@pytest.fixture
def home(postgres_url: str, tmp_path: Path) -> Home:
    return Home(data_dir=tmp_path / "data", database_url=postgres_url)


@pytest.fixture
async def store(home: Home) -> AsyncIterator[Store]:
    async with open_store(home, alone=False) as opened:
        async with opened.database.write() as connection:
            await accounts.ensure(connection, ACCOUNT)
        yield opened


@pytest.fixture
async def engine(store: Store, home: Home) -> AsyncIterator[AsyncEngine]:
    """A service's own way to the database."""
    made = create_async_engine(home.url.replace("postgresql://", "postgresql+asyncpg://"))
    yield made
    await made.dispose()


def taker_of(store: Store, home: Home, **settings: Any) -> OutboxTaker:
    changed = home.settings.model_copy(update=settings)
    reader = Reader(settings=changed, policy=EgressPolicy(), registry=Registry(), keyring=store.keyring)
    return OutboxTaker(store, reader, AccountCache(store), expect=lambda _count: None)


async def rows(store: Store, table: sa.Table = outbox) -> list[sa.RowMapping]:
    async with store.database.read() as connection:
        return list((await connection.execute(sa.select(table).order_by(table.c.id))).mappings().all())


async def take_all(store: Store, home: Home, **settings: Any) -> None:
    """Take steps until nothing moves."""
    taker = taker_of(store, home, **settings)
    for _ in range(100):
        if await taker.outbox() != 0.0:
            return
    raise AssertionError("the steps do not end")


def sync(work: Callable[[Any], str]) -> Callable[[AsyncConnection | AsyncSession], Awaitable[str]]:
    """Work that has a sync connection or session."""
    return lambda where: where.run_sync(work)


WAYS: dict[str, tuple[type[AsyncConnection | AsyncSession], Callable[[Any], Awaitable[str]]]] = {
    "async connection": (AsyncConnection, lambda where: publish_event(where, ACCOUNT, "order.paid", {"n": 1})),
    "async session": (AsyncSession, lambda where: publish_event(where, ACCOUNT, "order.paid", {"n": 1})),
    "connection": (AsyncConnection, sync(lambda where: publish_event(where, ACCOUNT, "order.paid", {"n": 1}))),
    "session": (AsyncSession, sync(lambda where: publish_event(where, ACCOUNT, "order.paid", {"n": 1}))),
    "task by async connection": (AsyncConnection, lambda where: submit_task(where, ACCOUNT, URL, {"n": 1})),
    "task by session": (AsyncSession, sync(lambda where: submit_task(where, ACCOUNT, URL, {"n": 1}))),
}


@asynccontextmanager
async def opened(engine: AsyncEngine, kind: type[Any]) -> AsyncIterator[Any]:
    async with AsyncSession(engine) if kind is AsyncSession else engine.connect() as where:
        yield where


@pytest.mark.parametrize("way", WAYS)
async def test_a_row_is_there_when_its_transaction_commits_and_not_before(
    store: Store, engine: AsyncEngine, way: str
) -> None:
    kind, write = WAYS[way]
    told: list[str] = []
    listener = await asyncpg.connect(store.database.url)
    await listener.add_listener(CHANNEL, lambda _connection, _pid, _channel, text: told.append(text))
    async with opened(engine, kind) as where:
        await write(where)
        await where.rollback()
        assert await rows(store) == []
        id_ = await write(where)
        assert await rows(store) == []
        await where.commit()
    [row] = await rows(store)
    assert (row["id"], row["account"], row["payload"], row["problem"]) == (id_, ACCOUNT, b'{"n":1}', None)
    await listener.fetchval("SELECT 1")
    assert told == [NEWS]
    await listener.close()


async def test_nothing_secret_stands_in_the_row(store: Store, engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await submit_task(connection, ACCOUNT, URL, 1, secret=MARKER, headers={"X-Secret": MARKER}, metadata={"a": 1})
    [row] = await rows(store)
    assert MARKER.encode() not in b"".join(part for part in row.values() if isinstance(part, bytes))
    assert json.loads(row["fields"]) == {"metadata": {"a": 1}}


async def test_a_task_comes_of_it_as_by_the_api(store: Store, engine: AsyncEngine, home: Home) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    until = datetime.now(UTC) + timedelta(hours=1)
    async with engine.begin() as connection:
        await submit_task(
            connection, ACCOUNT, URL, b'{"n": 1.50}', deliver_before=until, secret="whsec_AAAA", schemes=("websub",),
            headers={"X-Secret": "value"}, metadata={"order": 7}, traceparent=trace,
        )  # fmt: skip
    await take_all(store, home)
    assert await rows(store) == []
    [task] = await rows(store, tasks)
    assert (task["account"], task["type"], task["state"]) == (ACCOUNT, "relay", "succeeded")
    assert (task["metadata"], task["traceparent"], task["schemes"]) == (b'{"order":7}', trace, ["websub"])
    assert task["window_end"] == int(until.timestamp() * 1000)
    [leased] = await lease(store)
    assert leased.body.body == b'{"n": 1.50}'
    assert leased.endpoint.url.reveal() == URL
    assert leased.endpoint.headers == (("X-Secret", "value"),)
    assert leased.endpoint.keys[0].key.secret.reveal() == "whsec_AAAA"
    await settle(store, leased)
    assert await reconciled(store) == {"accepted": 1, "delivered": 1}


async def test_an_event_comes_of_it_for_whoever_subscribed(store: Store, engine: AsyncEngine, home: Home) -> None:
    id_ = await subscribe(store, ordering="fifo-by-key")
    async with engine.begin() as connection:
        for n in range(3):
            await publish_event(connection, ACCOUNT, "order.paid", n, id=f"e-{n}", subject="s", ordering_key="k")
    await take_all(store, home)
    found = await rows(store, events)
    assert [(row["reference"], row["subject"], row["ordering_key"]) for row in found] == [
        (f"e-{n}", "s", "k") for n in range(3)
    ]
    for n in range(3):
        [leased] = await lease_for(store, id_)
        assert leased.body.body == str(n).encode()
        await settle(store, leased)
    assert await reconciled(store) == {"accepted": 3, "delivered": 3}


async def test_the_same_again_is_the_same(store: Store, engine: AsyncEngine, home: Home) -> None:
    await subscribe(store)
    for _ in range(2):
        for _ in range(2):
            async with engine.begin() as connection:
                await publish_event(connection, ACCOUNT, "order.paid", {"n": 1}, id="e-1", subject="s")
                await submit_task(connection, ACCOUNT, URL, {"n": 1}, idempotency_key="t-1", secret="12345678")
        await take_all(store, home)
    assert await rows(store) == []
    assert [len(await rows(store, table)) for table in (events, tasks, deliveries)] == [1, 1, 2]


# --- what is refused when it is taken ---------------------------------------------------------------------


async def refused(store: Store) -> list[tuple[str, list[str]]]:
    found = [row for row in await rows(store) if row["refused_at"] is not None]
    assert all(MARKER not in json.dumps(row["problem"]) for row in found)
    return [
        (
            row["problem"]["type"].removeprefix("/problems/"),
            [error["field"] for error in row["problem"].get("errors", [])],
        )
        for row in found
    ]


async def test_what_cannot_be_taken_stays_with_its_problem_and_holds_up_nobody(
    store: Store, engine: AsyncEngine, home: Home
) -> None:
    id_ = await subscribe(store)
    lenient = Outbox(limits=Limits(max_body=1_000_000), policy=EgressPolicy.dev())
    async with engine.begin() as connection:
        await publish_event(connection, "nobody", "order.paid", {})
        await publish_event(connection, ACCOUNT, "order.paid", {"n": 1}, id="e-1")
        await publish_event(connection, ACCOUNT, "order.paid", {"n": 2}, id="e-1")
        await submit_task(connection, ACCOUNT, URL, 1, type="transcode")
        await submit_task(connection, ACCOUNT, URL, 1, idempotency_key="t-1")
        await submit_task(connection, ACCOUNT, URL, 2, idempotency_key="t-1")
        await lenient.submit_task(connection, ACCOUNT, f"http://127.0.0.1/{MARKER}", 1)
        await lenient.publish_event(connection, ACCOUNT, "order.paid", "x" * 300_000)
        await Outbox(public_key=str(PUBLIC)).submit_task(connection, ACCOUNT, URL, 1)
        await publish_event(connection, ACCOUNT, "order.paid", {"n": 3})
    await take_all(store, home)
    assert await refused(store) == [
        ("not-found", []),
        ("idempotency-mismatch", ["/id"]),
        ("unknown-type", ["/type"]),
        ("idempotency-mismatch", []),
        ("egress", ["/callback_url"]),
        ("too-large", ["/payload"]),
        ("validation", ["/sealed"]),
    ]
    assert len(await rows(store)) == 7
    assert [one.body.body for one in await lease_for(store, id_)] == [b'{"n":1}', b'{"n":3}']
    assert [row["type"] for row in await rows(store, tasks)] == ["relay"]


BY_HAND: dict[str, tuple[dict[str, Any], tuple[str, list[str]]]] = {
    "another kind": ({"kind": "order"}, ("validation", ["/kind"])),
    "no sealed part": ({"kind": "task"}, ("validation", ["/sealed"])),
    "garbage as sealed part": ({"kind": "task", "sealed": b"\x01" * 100}, ("validation", ["/sealed"])),
    "a URL in clear": ({"fields": b'{"type":"a","callback_url":"x"}'}, ("validation", ["/callback_url"])),
    "fields that are no object": ({"fields": b"[]"}, ("validation", ["/fields"])),
    "an unknown field": ({"fields": b'{"type":"a","b":1}'}, ("validation", ["/b"])),
    "a payload that ends early": ({"payload": b"["}, ("invalid-json", ["/payload"])),
    "a payload with more behind it": ({"payload": b'1,"type":"b"'}, ("invalid-json", ["/payload"])),
    "fields that are too large": ({"fields": b" " * 200_000 + b'{"type":"a"}'}, ("too-large", ["/fields"])),
    "a trace context that is none": ({"traceparent": "x"}, ("validation", ["/traceparent"])),
    "an event with a key of tasks": ({"idempotency_key": "k"}, ("validation", ["/idempotency_key"])),
    "an account without a name": ({"account": ""}, ("not-found", [])),
}


@pytest.mark.parametrize("row", BY_HAND)
async def test_rows_that_were_written_by_hand_are_read_with_distrust(store: Store, home: Home, row: str) -> None:
    values, expected = BY_HAND[row]
    plain = {
        "id": "1",
        "account": ACCOUNT,
        "kind": "event",
        "fields": b'{"type":"a"}',
        "payload": b"1",
        "created_at": 1,
    }
    async with store.database.write() as connection:
        await connection.execute(sa.insert(outbox).values(**plain | values))
    await take_all(store, home)
    assert await refused(store) == [expected]


async def test_a_sealed_part_is_good_for_its_own_row(store: Store, engine: AsyncEngine, home: Home) -> None:
    async with engine.begin() as connection:
        await submit_task(connection, ACCOUNT, URL, 1)
    [row] = await rows(store)
    async with store.database.write() as connection:
        copied = {name: row[name] for name in ("account", "kind", "fields", "payload", "sealed", "created_at")}
        await connection.execute(sa.insert(outbox).values(**copied, id="0"))
        await accounts.ensure(connection, "another")
        await connection.execute(sa.insert(outbox).values(**copied | {"account": "another"}, id="1"))
    await take_all(store, home)
    assert await refused(store) == [("validation", ["/sealed"])] * 2
    assert len(await rows(store, tasks)) == 1


@pytest.mark.parametrize("at", ["reading", "storing"])
async def test_a_fault_of_ours_costs_one_row_only(
    store: Store, engine: AsyncEngine, home: Home, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """One row among many cannot be read, or the database itself refuses it: the others are taken, and it is kept."""
    async with engine.begin() as connection:
        for n in range(5):
            await submit_task(connection, ACCOUNT, URL, n, metadata={"n": n})
    read = Reader.task

    def failing(self: Reader, raw: bytes, **options: Any) -> Any:
        task, token = read(self, raw, **options)
        if task.metadata == b'{"n":3}':
            if at == "reading":
                raise RuntimeError(MARKER)
            task = type(task)(**{name: getattr(task, name) for name in task.__struct_fields__} | {"id": "x" * 40})
        return task, token

    monkeypatch.setattr(Reader, "task", failing)
    await take_all(store, home)
    [row] = await rows(store)
    assert (json.loads(row["fields"]), row["problem"]["status"]) == ({"metadata": {"n": 3}}, 500)
    assert len(await rows(store, tasks)) == 4


@pytest.mark.parametrize("why", ["locked", "outdated"])
async def test_after_a_fault_no_row_goes_before_an_earlier_one_of_its_account(
    store: Store, engine: AsyncEngine, home: Home, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    """The rows are taken in halves then; what the first half leaves for later, the second one does not overtake."""
    async with engine.begin() as connection:
        for n in range(4):
            await publish_event(connection, ACCOUNT, "order.paid", n)
    take = store.take_outbox
    steps: list[int] = []

    async def failing(batch: Batch) -> Taken:
        steps.append(len(batch.items))
        if len(steps) == 1:
            raise RuntimeError(MARKER)
        if len(steps) == 2:
            # another process is at the account, or its subscriptions have changed
            return Taken() if why == "locked" else Taken(stale=frozenset({ACCOUNT}))
        return await take(batch)

    monkeypatch.setattr(store, "take_outbox", failing)
    taker = taker_of(store, home)
    await taker.outbox()
    assert (steps, len(await rows(store))) == ([4, 2], 4)
    await taker.outbox()
    content = {row["id"]: row["content"] for row in await rows(store, bodies)}
    assert [content[row["id"]] for row in await rows(store, events)] == [b"0", b"1", b"2", b"3"]


async def test_whatever_an_account_is_called_the_others_go_on(store: Store, engine: AsyncEngine, home: Home) -> None:
    name = "aaccccacaacacccccaaaccacccaaccaaaaaaaaaa"  # its checksum is 0, so its lock has the least number of all
    assert outbox_store._lock_of(name) == -(1 << 31)
    async with store.database.write() as connection:
        await accounts.ensure(connection, name)
    async with engine.begin() as connection:
        for account in (name, ACCOUNT):
            await publish_event(connection, account, "order.paid", {})
    await take_all(store, home)
    assert (await rows(store), {row["account"] for row in await rows(store, events)}) == ([], {name, ACCOUNT})


async def test_a_row_that_cannot_even_be_refused_stops_its_own_account_only(
    store: Store, engine: AsyncEngine, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with store.database.write() as connection:
        await accounts.ensure(connection, "another")
    async with engine.begin() as connection:
        for account in ("another", ACCOUNT, "another", ACCOUNT):
            await publish_event(connection, account, "order.paid", {})
    take = store.take_outbox

    async def failing(batch: Batch) -> Taken:
        if "another" in {one.row.account for one in batch.items}:
            raise RuntimeError(MARKER)
        return await take(batch)

    monkeypatch.setattr(store, "take_outbox", failing)
    await take_all(store, home)
    assert [row["account"] for row in await rows(store, events)] == [ACCOUNT, ACCOUNT]
    assert [(row["account"], row["refused_at"]) for row in await rows(store)] == [("another", None)] * 2


async def test_an_operator_tries_again_or_discards(store: Store, engine: AsyncEngine, home: Home) -> None:
    async with engine.begin() as connection:
        first = await publish_event(connection, "nobody", "order.paid", {})
        second = await publish_event(connection, "nobody", "order.paid", {})
        waiting = await publish_event(connection, ACCOUNT, "order.paid", {})
    assert await outbox_store.discard(store.database, [first, waiting], actor="test") == []
    await take_all(store, home)
    listed = await outbox_store.list_refused(store.database, limit=10)
    assert [row["id"] for row in listed] == [first, second]
    assert await outbox_store.discard(store.database, [second], actor="test") == [second]
    await take_all(store, home)
    assert await refused(store) == [("not-found", [])]
    async with store.database.write() as connection:
        await accounts.ensure(connection, "nobody")
    assert await outbox_store.retry(store.database, [first, second], actor="test") == [first]
    await take_all(store, home)
    assert await rows(store) == []
    assert [row["account"] for row in await rows(store, events)] == [ACCOUNT, "nobody"]


async def test_an_account_hears_of_what_was_refused(store: Store, engine: AsyncEngine, home: Home) -> None:
    listener = await subscribe(store, "operations", events=())
    async with store.database.write() as connection:
        statement = sa.text("UPDATE accounts SET operational_id = :id WHERE id = :account")
        await connection.execute(statement, {"id": listener, "account": ACCOUNT})
    async with engine.begin() as connection:
        for _ in range(2):
            id_ = await submit_task(connection, ACCOUNT, URL, 1, type="transcode")
    await take_all(store, home)
    await store.tell("/test")
    [told] = await lease_for(store, listener)
    said = json.loads(told.body.body)
    assert (told.event, said["type"], said["count"], said["outbox_id"]) == ("outbox.refused",) * 2 + (2, id_)
    assert said["problem"]["type"] == "/problems/unknown-type"
    assert "subscription" not in said


# --- many at once -----------------------------------------------------------------------------------------


async def test_several_workers_take_each_row_once_and_an_account_s_rows_in_order(
    store: Store, engine: AsyncEngine, home: Home, tmp_path: Path
) -> None:
    ids = {name: await subscribe(store, account=name, ordering="fifo") for name in ("a", "b", "c")}
    each = 40

    async def publish(account: str) -> None:
        async with engine.connect() as connection:
            for n in range(each):
                async with connection.begin():
                    await publish_event(connection, account, "order.paid", n)

    async def work(other: Store, done: asyncio.Event) -> None:
        taker = taker_of(other, home)
        while not done.is_set() or await rows(other):
            await taker.outbox()

    async with open_store(home, alone=False) as second:
        done = asyncio.Event()
        workers = [asyncio.create_task(work(one, done)) for one in (store, second, store)]
        await asyncio.gather(*(publish(name) for name in ids))
        done.set()
        await asyncio.gather(*workers)
    for account, id_ in ids.items():
        found = sorted(await delivery_rows(store, subscription_id=id_), key=lambda row: row["seq"])
        content = {row["id"]: row["content"] for row in await rows(store, bodies)}
        assert [int(content[row["source_id"]]) for row in found] == [*range(each)], account


async def test_a_row_that_is_being_written_stops_nobody(store: Store, engine: AsyncEngine, home: Home) -> None:
    async with engine.connect() as early, engine.connect() as late:
        await early.begin()
        await publish_event(early, ACCOUNT, "order.early", {})
        await late.begin()
        await publish_event(late, ACCOUNT, "order.late", {})
        await late.commit()
        await take_all(store, home)
        await early.commit()
        await take_all(store, home)
    assert [row["type"] for row in await rows(store, events)] == ["order.late", "order.early"]


async def test_no_account_waits_for_another_s_long_line(store: Store, engine: AsyncEngine, home: Home) -> None:
    async with store.database.write() as connection:
        await accounts.ensure(connection, "small")
    async with engine.begin() as connection:
        for n in range(outbox_store.STEP + 5):
            await publish_event(connection, ACCOUNT, "order.paid", n)
        await publish_event(connection, "small", "order.paid", {})
    await taker_of(store, home).outbox()
    assert "small" in {row["account"] for row in await rows(store, events)}
    await take_all(store, home)
    assert len(await rows(store, events)) == outbox_store.STEP + 6


async def test_of_many_accounts_each_has_its_turn(store: Store, engine: AsyncEngine, home: Home) -> None:
    names = [f"a{n:02}" for n in range(2 * outbox_store.ACCOUNTS_AT_ONCE + 1)]
    async with store.database.write() as connection:
        for name in names:
            await accounts.ensure(connection, name)
    rounds = outbox_store.STEP // outbox_store.ACCOUNTS_AT_ONCE + 1
    async with engine.begin() as connection:
        for name in names:
            for n in range(rounds):
                await publish_event(connection, name, "order.paid", n)
    taker = taker_of(store, home)
    for _ in range(3):
        assert await taker.outbox() == 0.0
    assert {row["account"] for row in await rows(store, events)} == set(names)
    await take_all(store, home)
    assert len(await rows(store, events)) == rounds * len(names)


async def test_workers_need_not_be_told(store: Store, engine: AsyncEngine, home: Home) -> None:
    told: list[str] = []
    listener = await asyncpg.connect(store.database.url)
    await listener.add_listener(CHANNEL, lambda _connection, _pid, _channel, text: told.append(text))
    async with engine.begin() as connection:
        await Outbox(notify=False).publish_event(connection, ACCOUNT, "order.paid", {})
    await listener.fetchval("SELECT 1")
    assert (told, len(await rows(store))) == ([], 1)
    await listener.close()
    await take_all(store, home)
    assert len(await rows(store, events)) == 1


# --- keys -------------------------------------------------------------------------------------------------


async def test_older_keys_open_what_was_sealed_to_them_until_they_are_dropped(
    store: Store, engine: AsyncEngine, home: Home
) -> None:
    async with store.database.read() as connection:
        [old] = await outbox_keys.stored(connection)
    pinned = Outbox(public_key=str(old.public))
    async with store.database.write() as connection:
        new = await outbox_keys.add(connection, store.keyring, actor="test")
    async with engine.begin() as connection:
        await pinned.submit_task(connection, ACCOUNT, URL, 1)
        await submit_task(connection, ACCOUNT, URL, 1)
    assert {PublicKey.kid_of(row["sealed"]) for row in await rows(store)} == {old.public.kid, new.kid}
    await take_all(store, home)
    assert (await rows(store), len(await rows(store, tasks))) == ([], 2)
    async with store.database.write() as connection:
        assert await outbox_keys.remove_older(connection, actor="test") == 1
    async with engine.begin() as connection:
        await pinned.submit_task(connection, ACCOUNT, URL, 1)
    await take_all(store, home)
    assert await refused(store) == [("validation", ["/sealed"])]


async def test_a_new_key_is_the_one_in_use_whatever_the_clock_of_the_last_one_said(store: Store) -> None:
    async with store.database.write() as connection:
        await connection.execute(sa.update(outbox_keys_table).values(id="f" * 31 + "0"))
        new = await outbox_keys.add(connection, store.keyring, actor="test")
        assert await outbox_keys.remove_older(connection, actor="test") == 1
        assert [str(key.public) for key in await outbox_keys.stored(connection)] == [str(new)]
        await outbox_keys.opened(connection, store.keyring)


async def test_a_key_pair_is_made_once(home: Home) -> None:
    installations = await asyncio.gather(*(open_installation(home.settings) for _ in range(3)))
    async with installations[0].database.read() as connection:
        assert len(await outbox_keys.stored(connection)) == 1
    for installation in installations:
        await installation.database.close()


async def test_the_embedded_database_has_none(tmp_path: Path) -> None:
    installation = await open_installation(Home(data_dir=tmp_path / "data").settings)
    async with installation.database.read() as connection:
        assert await outbox_keys.stored(connection) == []
    await installation.database.close()
