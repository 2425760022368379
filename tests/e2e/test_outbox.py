"""The shop of examples/outbox: what it commits is delivered, whatever is killed; what it rolls back is never seen."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession
from standardwebhooks import Webhook

from examples.outbox.shop import ACCOUNT, SoldOut, place_order, place_order_async
from tests.conftest import missing
from tests.support import postgres, shops
from tests.support.forking import ROOT
from tests.support.receiver import Received, Receiver
from tests.support.server import Server, until
from tests.support.shops import SECRET, Shop

Start = Callable[..., Server]

FAST = {"retry_schedule": "[0.2, 0.2, 0.5]", "send_timeout": "2", "session_ttl": "15"}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    lacks = postgres.lacking()
    if lacks is not None:
        missing(lacks)
    with shops.opened(postgres.shared(), tmp_path_factory.mktemp("shop") / "data") as found:
        yield found


@pytest.fixture
def start(shop: Shop, tmp_path: Path) -> Iterator[Start]:
    """Starts dispatchers on the shop's database."""
    servers: list[Server] = []

    def started(name: str = "one") -> Server:
        server = Server(shop.copied_to(tmp_path / name), settings=FAST, database_url=shop.database_url)
        servers.append(server)
        return server.start()

    yield started
    for server in servers:
        if server.running:
            server.kill()


def subscribe(client: httpx.Client, receiver: Receiver, **fields: Any) -> str:
    wish = {"name": "s", "events": ["order.*"], "config": {"url": f"{receiver.url}/orders", "secret": SECRET}, **fields}
    answer = client.post("/webhooks/subscriptions", json=wish)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def unsubscribe(client: httpx.Client, subscription: str) -> None:
    assert client.delete(f"/webhooks/subscriptions/{subscription}").status_code == 204


def verified(request: Received) -> Any:
    """What an independent verifier reads out of a delivery."""
    return Webhook(SECRET).verify(request.body, dict(request.headers))


def everything_is_settled(client: httpx.Client) -> bool:
    ledger = client.get("/ledger").json()
    assert ledger["reconciles"], ledger
    return bool(ledger["accepted"] == ledger["delivered"])


@pytest.fixture
def subscription(shop: Shop, start: Start, receiver: Receiver) -> str:
    """A subscription to the shop's orders, a secret for its receipts, and no server any more."""
    server = start("first")
    with shop.client(server) as client:
        id_ = subscribe(client, receiver)
        assert client.patch("/account", json={"default_secret": SECRET}).status_code == 200
    assert server.stop() == 0
    return id_


KILLED_AFTER_ITS_COMMIT = """
import asyncio, os, signal, sys
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from dispatcher.outbox import EgressPolicy, Outbox
from examples.outbox.shop import place_order_async

async def main(url, receipt_url):
    async with AsyncSession(create_async_engine(url)) as session, session.begin():
        outbox = Outbox(schema="dispatcher", policy=EgressPolicy.dev())
        await place_order_async(session, outbox, "tea", receipt_url)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main(*sys.argv[1:]))
"""


def test_what_is_committed_is_delivered_and_what_is_rolled_back_is_not(
    shop: Shop, start: Start, receiver: Receiver, subscription: str
) -> None:
    receipt = f"{receiver.url}/receipts/s3cr3t"
    died = subprocess.run(
        [sys.executable, "-c", KILLED_AFTER_ITS_COMMIT, shop.url, receipt], cwd=ROOT, check=False, timeout=120
    )
    assert died.returncode == -signal.SIGKILL
    with pytest.raises(SoldOut):
        shop.sync_session(lambda session: place_order(session, shop.outbox, "unicorn", receipt))
    with pytest.raises(SoldOut):
        shop.session(lambda session: place_order_async(session, shop.outbox, "unicorn", receipt))
    shop.sync_session(lambda session: place_order(session, shop.outbox, "coffee", receipt))
    assert [count for (count,) in shop.rows("SELECT count(*) FROM outbox WHERE refused_at IS NULL")] == [4]

    server = start()
    receiver.wait_for(4)
    with shop.client(server) as client:
        until(lambda: everything_is_settled(client))
        events = client.get("/events").json()["items"]
        unsubscribe(client, subscription)
    got = [(request.target, verified(request)) for request in receiver.received]
    orders = {row["item"]: row["order"] for target, row in got if target == "/orders"}
    assert sorted(orders) == ["coffee", "tea"]
    assert sorted(row["receipt"] for target, row in got if target != "/orders") == sorted(orders.values())
    assert len(got) == 4
    assert {event["event_id"] for event in events} == {f"order-{number}" for number in orders.values()}
    assert shop.rows("SELECT * FROM outbox") == []


def test_a_server_and_a_worker_take_each_row_once_and_in_order(shop: Shop, start: Start, receiver: Receiver) -> None:
    number = 60
    server = start("one")
    with server.worker(), shop.client(server) as client:
        id_ = subscribe(client, receiver, ordering="fifo")

        async def publish() -> None:
            # many short transactions, one after the other's commit
            async with shop.connected() as connection:
                for n in range(number):
                    async with connection.begin():
                        await shop.outbox.publish_event(connection, ACCOUNT, "order.counted", {"n": n})
                        await shop.outbox.submit_task(connection, ACCOUNT, f"{receiver.url}/cb/{n}", n)

        asyncio.run(publish())
        receiver.wait_for(2 * number)
        until(lambda: everything_is_settled(client))
        unsubscribe(client, id_)
    assert [verified(request)["n"] for request in receiver.received if request.target == "/orders"] == [*range(number)]
    assert Counter(request.target for request in receiver.received) == {
        "/orders": number,
        **{f"/cb/{n}": 1 for n in range(number)},
    }


def test_a_worker_that_is_killed_in_the_middle_has_taken_nothing(
    shop: Shop, start: Start, receiver: Receiver, subscription: str
) -> None:
    number = 20
    server = start("one")

    async def killed_while_it_takes() -> None:
        async with shop.connected() as connection, connection.begin():
            for n in range(number):
                await shop.outbox.submit_task(connection, ACCOUNT, f"{receiver.url}/cb/{n}", n)
                await shop.outbox.publish_event(connection, ACCOUNT, "order.counted", {"n": n})
        # Its transaction has stored the tasks and some of the rest, and waits for us to let it go on.
        await asyncio.to_thread(until, lambda: shop.rows(WAITING))
        await asyncio.to_thread(server.kill)

    with shop.cluster.locked("dispatcher.events", database=shop.database):
        asyncio.run(killed_while_it_takes())
        assert [count for (count,) in shop.rows("SELECT count(*) FROM outbox")] == [2 * number]
        assert receiver.received == []
    another = start("two")
    receiver.wait_for(2 * number)
    with shop.client(another) as client:
        until(lambda: everything_is_settled(client))
        unsubscribe(client, subscription)
    assert set(Counter(request.target for request in receiver.received).values()) == {1, number}
    assert sorted(verified(request)["n"] for request in receiver.received if request.target == "/orders") == [
        *range(number)
    ]
    assert shop.rows("SELECT * FROM outbox") == []


#: a transaction that has something of the outbox locked, and waits for a lock itself
WAITING = (
    "SELECT 1 FROM pg_locks mine JOIN pg_locks theirs USING (pid)"
    " WHERE mine.relation = 'outbox'::regclass AND NOT theirs.granted AND theirs.relation = 'events'::regclass"
)


def test_a_role_that_only_publishes_can_do_nothing_else(shop: Shop) -> None:
    async def attempt(statement: str) -> str:
        async with shop.connected() as connection:
            try:
                await connection.execute(sa.text(statement))
            except sa.exc.DBAPIError as exc:
                return str(exc.orig)
            return "done"

    async def attempts() -> dict[str, str]:
        forbidden = [
            "SELECT id FROM dispatcher.outbox",
            "SELECT callback_url FROM dispatcher.tasks",
            "SELECT url FROM dispatcher.subscriptions",
            "SELECT private_key FROM dispatcher.outbox_keys",
            "UPDATE dispatcher.outbox_keys SET public_key = ''",
            "UPDATE dispatcher.outbox SET problem = NULL",
            "DELETE FROM dispatcher.outbox",
            "INSERT INTO dispatcher.outbox (id, refused_at) VALUES ('x', 1)",
            "INSERT INTO dispatcher.outbox_keys (id) VALUES ('x')",
            "INSERT INTO dispatcher.deliveries (id) VALUES ('x')",
        ]
        return {statement: await attempt(statement) for statement in forbidden}

    found = asyncio.run(attempts())
    assert {statement: text for statement, text in found.items() if "permission denied" not in text} == {}

    async def publish(session: AsyncSession) -> None:
        await shop.outbox.publish_event(session, "another", "order.counted", {})

    with pytest.raises(sa.exc.DBAPIError, match="row-level security"):
        shop.session(publish)
