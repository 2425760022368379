"""A small shop. Its orders and what it publishes of them are one transaction, so the one is never without the other.

    python -m examples.outbox.shop postgresql+asyncpg://shop@localhost/shop tea https://api.example.com/receipts/eyJ…

Its tables are in its own schema, `shop`; those of the dispatcher are in the schema `dispatcher` of the same database.
`--dev` is for a dispatcher that runs with `--dev`, too.
"""

from __future__ import annotations

import argparse
import asyncio

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from dispatcher.outbox import EgressPolicy, Outbox

#: who publishes, as the dispatcher knows it
ACCOUNT = "acme"

metadata = sa.MetaData(schema="shop")
orders = sa.Table(
    "orders",
    metadata,
    sa.Column("id", sa.Integer, sa.Identity(), primary_key=True),
    sa.Column("item", sa.String(100), nullable=False),
)

_new_order = sa.insert(orders).returning(orders.c.id)


class SoldOut(Exception):
    """There is none left. What was written before is rolled back."""


def place_order(session: Session, outbox: Outbox, item: str, receipt_url: str) -> int:
    """Store an order, tell the subscribers of it, and have its receipt sent. Raises SoldOut."""
    order: int = session.execute(_new_order, {"item": item}).scalar_one()
    outbox.publish_event(session, ACCOUNT, "order.placed", {"order": order, "item": item}, id=f"order-{order}")
    outbox.submit_task(session, ACCOUNT, receipt_url, {"receipt": order}, idempotency_key=f"receipt-{order}")
    if item == "unicorn":
        raise SoldOut
    return order


async def place_order_async(session: AsyncSession, outbox: Outbox, item: str, receipt_url: str) -> int:
    """The same for a service that is async."""
    order: int = (await session.execute(_new_order, {"item": item})).scalar_one()
    await outbox.publish_event(session, ACCOUNT, "order.placed", {"order": order, "item": item}, id=f"order-{order}")
    await outbox.submit_task(session, ACCOUNT, receipt_url, {"receipt": order}, idempotency_key=f"receipt-{order}")
    if item == "unicorn":
        raise SoldOut
    return order


async def main(url: str, item: str, receipt_url: str, *, dev: bool) -> None:
    """Place one order. Makes the shop's table first, if it is not there."""
    outbox = Outbox(schema="dispatcher", policy=EgressPolicy.dev() if dev else EgressPolicy())
    engine = create_async_engine(url)
    try:
        async with engine.begin() as connection:
            await connection.run_sync(metadata.create_all)
        async with AsyncSession(engine) as session, session.begin():
            order = await place_order_async(session, outbox, item, receipt_url)
        print(f"order {order} is placed")
    finally:
        await engine.dispose()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Place an order.")
    for name in ("url", "item", "receipt_url"):
        parser.add_argument(name)
    parser.add_argument("--dev", action="store_true", help="admit http and loopback addresses")
    asyncio.run(main(**vars(parser.parse_args())))
