"""A shop whose tables are in one database with the dispatcher's, as docs/outbox.md has it set up: a schema and a role
for each.
"""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from dispatcher import tokens
from dispatcher.config import load
from dispatcher.installation import open_installation
from dispatcher.outbox import EgressPolicy, Outbox
from examples.outbox.shop import ACCOUNT, metadata
from tests.support.api import client_with
from tests.support.postgres import Cluster
from tests.support.server import Server

T = TypeVar("T")

DOCS = Path(__file__).parents[2] / "docs" / "outbox.md"
SECRET = "whsec_b25seSBmb3IgYSB0cmlhbCwgbm90IHRydWU="


@dataclass(kw_only=True)
class Shop:
    """The database of both, and a data directory that has the dispatcher's keyring."""

    cluster: Cluster
    database: str
    data_dir: Path
    outbox: Outbox = field(default_factory=lambda: Outbox(schema="dispatcher", policy=EgressPolicy.dev()))

    def _url(self, role: str, scheme: str) -> str:
        return f"{scheme}://{role}@/{self.database}?host={quote(str(self.cluster.folder), safe='')}"

    @property
    def database_url(self) -> str:
        """What the dispatcher is given."""
        return self._url("dispatcher", "postgresql")

    @property
    def url(self) -> str:
        """What the shop is given."""
        return self._url("shop", "postgresql+asyncpg")

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[AsyncConnection]:
        """A connection of the shop's, where no transaction is open yet."""
        engine = create_async_engine(self.url, poolclass=sa.pool.NullPool)
        try:
            async with engine.connect() as connection:
                yield connection
        finally:
            await engine.dispose()

    def session(self, work: Callable[[AsyncSession], Awaitable[T]]) -> T:
        """Do something in a transaction of the shop's, and commit it."""

        async def working() -> T:
            async with self.connected() as connection, AsyncSession(connection) as session, session.begin():
                return await work(session)

        return asyncio.run(working())

    def sync_session(self, work: Callable[[Session], T]) -> T:
        """The same in a sync one."""
        return self.session(lambda session: session.run_sync(work))

    def rows(self, query: str) -> list[Any]:
        """What the dispatcher's role sees."""

        async def read() -> list[Any]:
            engine = create_async_engine(self._url("dispatcher", "postgresql+asyncpg"), poolclass=sa.pool.NullPool)
            async with engine.connect() as connection:
                found = (await connection.execute(sa.text(query))).all()
            await engine.dispose()
            return list(found)

        return asyncio.run(read())

    def copied_to(self, data_dir: Path) -> Path:
        """Another data directory with the same keyring."""
        data_dir.mkdir(mode=0o700)
        shutil.copy(self.data_dir / "keyring.json", data_dir)
        return data_dir

    def client(self, server: Server) -> httpx.Client:
        """A client that speaks for the shop's account."""

        async def make() -> str:
            installation = await open_installation(load(data_dir=self.data_dir, database_url=self.database_url))
            try:
                return await tokens.issue(installation, account=ACCOUNT, scopes=tokens.ACCOUNT_SCOPES, actor="test")
            finally:
                await installation.database.close()

        return client_with(server, asyncio.run(make()))


def grants() -> tuple[str, str, str]:
    """The SQL of docs/outbox.md: before the dispatcher starts, what the shop may do, and only for its account."""
    first, second, third = re.findall(r"```sql\n(.*?)```", DOCS.read_text("utf-8"), re.DOTALL)
    return first, second, third


@contextmanager
def opened(cluster: Cluster, data_dir: Path) -> Iterator[Shop]:
    """A shop, and the dispatcher's tables beside its own."""
    before, allowed, own_account = grants()
    database = cluster.create()
    shop = Shop(cluster=cluster, database=database, data_dir=data_dir)
    try:
        cluster.execute("CREATE ROLE shop LOGIN; CREATE SCHEMA shop AUTHORIZATION shop;" + before, database=database)
        asyncio.run(_made(shop))
        cluster.execute(allowed + own_account, database=database)
        yield shop
    finally:
        cluster.drop(database)
        cluster.execute("DROP ROLE shop; DROP ROLE dispatcher")


async def _made(shop: Shop) -> None:
    installation = await open_installation(load(data_dir=shop.data_dir, database_url=shop.database_url))
    await installation.database.close()
    async with shop.connected() as connection, connection.begin():
        await connection.run_sync(metadata.create_all)
