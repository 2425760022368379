"""What of a process sends, without a server around it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from dispatcher.account_cache import AccountCache
from dispatcher.config import load
from dispatcher.delivery.engine import Engine
from dispatcher.egress import EgressPolicy
from dispatcher.heartbeat import Heartbeat
from dispatcher.installation import open_installation
from dispatcher.serving import server
from dispatcher.store import Store
from tests.support.stores import Home

Accounts = TypeVar("Accounts", bound=AccountCache)


@dataclass(frozen=True, kw_only=True)
class Process(Generic[Accounts]):
    """Its session is alive. The engine leases by itself once it is started."""

    store: Store
    heartbeat: Heartbeat
    engine: Engine
    accounts: Accounts


@asynccontextmanager
async def a_process(home: Home, accounts_of: Callable[[Store], Accounts]) -> AsyncIterator[Process[Accounts]]:
    """The only one at its database, with the settings of `serve --dev`."""
    settings = load(data_dir=home.data_dir, database_url=home.database_url, dev=True)
    installation = await open_installation(settings)
    store = await Store.open(installation.database, installation.keyring, session_ttl=60, alone=True)
    heartbeat, accounts = Heartbeat(store, ttl=60), accounts_of(store)
    async with server._sender(settings, installation, EgressPolicy.of(settings), clock=store.now) as sender:
        engine = Engine(store, sender, accounts, settings, heartbeat)
        await heartbeat.start()
        yield Process(store=store, heartbeat=heartbeat, engine=engine, accounts=accounts)
        await heartbeat.stop()
    await store.close()
    await installation.database.close()
