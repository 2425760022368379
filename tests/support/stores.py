"""A store on a database of its own, and tasks, subscriptions and events to put into it."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from dispatcher import retry
from dispatcher.bodies import Body
from dispatcher.config import Settings, load
from dispatcher.errors import LeaseLost, Problem
from dispatcher.ids import new_id
from dispatcher.installation import open_installation
from dispatcher.models import BodyMode, Outcome, lane_of
from dispatcher.store import Store, publishing
from dispatcher.store.database import embedded_url
from dispatcher.store.news import News
from dispatcher.store.records import (
    AttemptRecord,
    Callback,
    IdempotencyKey,
    LaneClaim,
    LeasedDelivery,
    NewEvent,
    NewTask,
    Published,
    Replayed,
    Report,
    Settled,
    Submission,
)
from dispatcher.store.rosters import Roster
from dispatcher.store.subscribing import Who
from dispatcher.store.tables import deliveries, subscriptions
from subscriptions.models import Draft, Movement, SubscriptionState
from subscriptions.secrets import Secret, SigningKey, generate, generate_seed
from tests.support import new_databases

ACCOUNT = "acme"
ORIGIN = "https://api.example.com"
LANE = lane_of(ACCOUNT, ORIGIN)
URL = f"{ORIGIN}/results/42/s3cr3t-t0ken-in-the-path"


@dataclass(frozen=True, kw_only=True)
class Home:
    """Where an installation is: its data directory and its database."""

    data_dir: Path
    #: none means the embedded one
    database_url: str | None = None

    @property
    def settings(self) -> Settings:
        """The settings that lead there."""
        return load(data_dir=self.data_dir, database_url=self.database_url)

    @property
    def url(self) -> str:
        """The URL of its database, whichever it is."""
        return self.database_url or embedded_url(self.data_dir)

    @property
    def is_embedded(self) -> bool:
        """Whether the database is SQLite."""
        return self.database_url is None


@asynccontextmanager
async def open_store(home: Home, *, alone: bool = True, session_ttl: float = 60.0) -> AsyncIterator[Store]:
    """A store where an installation is; it is made if there is none."""
    if home.is_embedded:
        new_databases.place(home.data_dir)
    installation = await open_installation(home.settings)
    store = await Store.open(installation.database, installation.keyring, session_ttl=session_ttl, alone=alone)
    try:
        yield store
    finally:
        await store.close()
        await installation.database.close()


def new_task(
    *,
    account: str = ACCOUNT,
    origin: str = ORIGIN,
    url: str = URL,
    window_end: int | None = None,
    handed_off: bool = False,
    task_type: str = "relay",
) -> NewTask:
    """A task to relay, or, of another type, to be worked on."""
    relay = task_type == "relay"
    return NewTask(
        id=new_id(),
        delivery_id=new_id(),
        account=account,
        type=task_type,
        body_mode=BodyMode.RAW,
        callback=Callback(
            url=Secret(url),
            secret=Secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLw4V"),
            headers=(("X-Secret", "a-header-value"),),
            schemes=None,
            origin=origin,
            fingerprint="0" * 16,
            token="opaque",
            window_end=window_end,
        ),
        payload=None if relay else b'{"n":1}',
        body=Body(b'{"n":1}', "application/json") if relay else None,
        handed_off=handed_off,
    )


async def accept(
    store: Store, *tasks: NewTask, key: IdempotencyKey | None = None, answer: bytes = b"{}"
) -> Replayed | None:
    """Store tasks by one request."""
    waiting: asyncio.Future[Replayed | None] = asyncio.get_running_loop().create_future()

    def then(_submission: Submission, result: Replayed | Exception | None) -> None:
        if isinstance(result, Exception):
            waiting.set_exception(result)
        else:
            waiting.set_result(result)

    store.accept([Submission(tasks=tasks, key=key, answer=answer)], then=then)
    return await waiting


async def lease(store: Store, limit: int = 10, lane: str = LANE) -> list[LeasedDelivery]:
    """Lease what is due in a lane."""
    return (await store.lease([LaneClaim(lane=lane, limit=limit)])).deliveries


async def settle(
    store: Store,
    delivery: LeasedDelivery,
    outcome: Outcome = Outcome.SUCCESS,
    status: int | None = 200,
    *,
    attempt: int | None = None,
    schedule: tuple[float, ...] = (0.0, 0.0, 0.0),
    **answer: Any,
) -> Settled:
    """Report an attempt."""
    now = time.monotonic()
    return await settle_report(
        store,
        Report(
            delivery_id=delivery.id,
            attempt=delivery.attempt if attempt is None else attempt,
            answer=retry.Answer(outcome=outcome, status=status, **answer),
            record=AttemptRecord(outcome=outcome, status=status, started=now, ended=now),
            schedule=schedule,
            jitter=0.0,
        ),
    )


async def settle_report(store: Store, report: Report) -> Settled:
    """Report an attempt, by itself. Raises LeaseLost."""
    [settled] = await store.settle([report])
    if isinstance(settled, LeaseLost):
        raise settled
    return settled


# --- subscriptions and events -----------------------------------------------------------------------------


def who(store: Store, account: str = ACCOUNT) -> Who:
    """An account's owner."""
    return Who(account=account, actor="test", keyring=store.keyring, source="/test")


def signing_key() -> SigningKey:
    """A new key."""
    return SigningKey(secret=generate(), seed=generate_seed())


def draft(
    store: Store,
    name: str = "s",
    *,
    account: str = ACCOUNT,
    url: str | None = None,
    events: tuple[str, ...] = ("order.*",),
    **fields: Any,
) -> Draft:
    """A subscription as its owner describes it."""
    url = url or f"https://{name}.example.com/hooks/{name}"
    return Draft(
        name=name,
        events=events,
        url=Secret(url),
        origin="/".join(url.split("/")[:3]),
        fingerprint=store.keyring.fingerprint(url, account=account),
        **fields,
    )


async def subscribe(
    store: Store,
    name: str = "s",
    *,
    account: str = ACCOUNT,
    is_active: bool = True,
    key: SigningKey | None = None,
    **fields: Any,
) -> str:
    """Store a subscription; its id."""
    changed = await store.create_subscription(
        who(store, account), draft(store, name, account=account, **fields), key or signing_key(), is_active=is_active
    )
    return changed.subscription.id


def lane_of_subscription(subscription_id: str, account: str = ACCOUNT) -> str:
    """The lane of a subscription's messages."""
    return lane_of(account, subscription_id)


async def lease_for(store: Store, subscription_id: str, limit: int = 100) -> list[LeasedDelivery]:
    """Lease what is due for a subscription."""
    return await lease(store, limit, lane=lane_of_subscription(subscription_id))


async def make_due(store: Store) -> None:
    """Let the time pass until everything that waits for a moment is due."""
    async with store.database.write() as connection:
        await connection.execute(sa.update(deliveries).where(deliveries.c.due_at.is_not(None)).values(due_at=0))


async def enable(store: Store, subscription_id: str, then: Movement = Movement.RELEASE) -> None:
    """Enable a subscription: its endpoint answers the ping."""
    changed = await store.enable_subscription(who(store), subscription_id, then)
    assert changed.asked is not None
    [ping] = await lease(store, 1, lane=changed.asked.lane)
    await settle(store, ping)
    assert (await subscription_row(store, subscription_id))["state"] == SubscriptionState.ACTIVE


def new_event(
    *,
    account: str = ACCOUNT,
    type: str = "order.paid",  # noqa: A002 - the field
    payload: bytes = b'{"n":1}',
    **fields: Any,
) -> NewEvent:
    """An event to publish."""
    return NewEvent(id=new_id(), account=account, type=type, payload=payload, **fields)


@dataclass(frozen=True, kw_only=True)
class Publishing:
    """What became of a request to publish."""

    result: publishing.Accepted | Replayed
    #: of those events that are new, in their order
    published: list[Published]


async def planned(
    roster: Roster, event: NewEvent, *, key: IdempotencyKey | None = None, hand_off: bool = False
) -> publishing.Publication:
    """An event with its plan, as the API makes it."""
    plan = await publishing.plan(roster, event)
    bodies = publishing.compose_bodies(event, plan, created_at=0, source="/test")
    handed_off = {one.id: new_id() for one in plan.subscribers if one.is_plain} if hand_off else {}
    return publishing.Publication(event=event, plan=plan, bodies=bodies, handed_off=handed_off, key=key)


async def publish_planned(
    store: Store, publications: Sequence[publishing.Publication], *, key: IdempotencyKey | None = None
) -> Publishing:
    """Commit publications by one request."""
    told: dict[str, Published] = {}

    def describe(published: Published) -> bytes:
        told[published.event_id] = published
        return published.event_id.encode()

    def join(parts: Sequence[Any]) -> bytes:
        if len(parts) == 1 and isinstance(parts[0], Problem):
            # as for a single event
            raise parts[0]
        return b",".join(part if isinstance(part, bytes) else part.slug.encode() for part in parts)

    result = await store.publish(
        publications, key=key, describe=describe, answer=join, source="/test", then=lambda _result: None
    )
    return Publishing(result=result, published=list(told.values()))


async def publish(store: Store, *events: NewEvent, hand_off: bool = False) -> Publishing:
    """Publish events by one request."""
    roster = await store.roster(events[0].account)
    return await publish_planned(store, [await planned(roster, event, hand_off=hand_off) for event in events])


@contextmanager
def heard(store: Store) -> Iterator[News]:
    """What the commits of the block leave to be done, gathered."""
    gathered = News()
    store.on_news(gathered.add)
    yield gathered
    store.on_news(lambda _news: None)


async def delivery_rows(store: Store, **equal: Any) -> list[sa.RowMapping]:
    """Rows of deliveries where columns have these values, in the order of their ids."""
    query = sa.select(deliveries).where(*(deliveries.c[name] == value for name, value in equal.items()))
    async with store.database.read() as connection:
        return list((await connection.execute(query.order_by(deliveries.c.id))).mappings().all())


async def subscription_row(store: Store, subscription_id: str) -> sa.RowMapping:
    """The row of a subscription."""
    async with store.database.read() as connection:
        rows = await connection.execute(sa.select(subscriptions).where(subscriptions.c.id == subscription_id))
        return rows.mappings().one()


async def reconciled(store: Store, account: str = ACCOUNT) -> dict[str, int]:
    """The ledger and the counts of held deliveries, checked against the rows themselves; what is not zero."""
    counts = await store.ledger(account)
    assert counts["accepted"] == sum(counts.values()) - counts["accepted"]
    rows = await delivery_rows(store, account=account)
    assert Counter(row["state"] for row in rows) == {
        state: number for state, number in counts.items() if number and state != "accepted"
    }
    held = Counter(row["subscription_id"] for row in rows if row["state"] == "held")
    async with store.database.read() as connection:
        found = await connection.execute(
            sa.select(subscriptions.c.id, subscriptions.c.held).where(subscriptions.c.account == account)
        )
        assert {id_: number for id_, number in found if number} == dict(held)
    return {state: number for state, number in counts.items() if number}


async def move_all(store: Store, limit: int = 100) -> int:
    """Take steps until every movement is done; how many there were. The books are right after each."""
    steps = 0
    while True:
        moved = await store.move_deliveries(limit)
        await reconciled(store)
        steps += 1
        if not moved.unfinished:
            return steps
        assert steps < 1_000
