"""A store on a database of its own, and tasks to put into it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from dispatcher import retry
from dispatcher.bodies import Body
from dispatcher.config import load
from dispatcher.ids import new_id
from dispatcher.installation import open_installation
from dispatcher.models import BodyMode, Outcome, lane_of
from dispatcher.store import Store
from dispatcher.store.records import (
    AttemptRecord,
    Callback,
    LaneClaim,
    LeasedDelivery,
    NewTask,
    Replayed,
    Report,
    Settled,
)
from subscriptions.secrets import Secret

ACCOUNT = "acme"
ORIGIN = "https://api.example.com"
LANE = lane_of(ACCOUNT, ORIGIN)
URL = f"{ORIGIN}/results/42/s3cr3t-t0ken-in-the-path"


@asynccontextmanager
async def open_store(data_dir: Path, *, alone: bool = True, session_ttl: float = 60.0) -> AsyncIterator[Store]:
    """A store on a data directory."""
    installation = await open_installation(load(data_dir=data_dir))
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


async def accept(store: Store, *tasks: NewTask) -> Replayed | None:
    """Store tasks by one request."""
    return await store.accept(tasks, key=None, answer=b"{}", then=lambda _result: None)


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
    return await store.settle(
        Report(
            delivery_id=delivery.id,
            attempt=delivery.attempt if attempt is None else attempt,
            answer=retry.Answer(outcome=outcome, status=status, **answer),
            record=AttemptRecord(outcome=outcome, status=status, started=now, ended=now),
            schedule=schedule,
            jitter=0.0,
        )
    )
