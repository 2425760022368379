"""Subscriptions opened for sending, kept in memory by version: opening one costs more than all else about a lease."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from dispatcher.store.statements import Statement, among, run
from subscriptions import store as subscription_store
from subscriptions.keyring import Keyring
from subscriptions.models import Subscription
from subscriptions.schema import subscriptions

#: subscriptions that are remembered
MAX_REMEMBERED = 20_000


#: a row of `subscriptions`, or what `standing` finds of one
Standing = Mapping[str, Any] | sa.RowMapping


class Stamp(NamedTuple):
    """Which state of a subscription is meant."""

    id: str
    version: int
    #: the moment, too: a version that was rolled back is given out again, to another change
    updated_at: int

    @classmethod
    def of(cls, row: Standing) -> Stamp:
        """The stamp of a row of `subscriptions`."""
        return cls(row["id"], row["version"], row["updated_at"])


class Endpoints:
    """The process's opened subscriptions."""

    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring
        self._opened: OrderedDict[str, Subscription] = OrderedDict()

    async def get(self, connection: AsyncConnection, stamps: Iterable[Stamp]) -> dict[str, Subscription]:
        """The subscriptions that have these stamps.

        Raises KeyringError when the keyring lacks what sealed one of them.
        """
        wanted = list(stamps)
        known = self.known(wanted)
        missing = [stamp.id for stamp in wanted if stamp.id not in known]
        if missing:
            fresh = await subscription_store.find(connection, self._keyring, missing)
            self._opened.update(fresh)
            for id_ in fresh:
                self._opened.move_to_end(id_)
            known.update(fresh)
        while len(self._opened) > MAX_REMEMBERED:
            self._opened.popitem(last=False)
        return known

    def known(self, stamps: Iterable[Stamp]) -> dict[str, Subscription]:
        """Those that are in memory with these stamps."""
        known = {stamp.id: self._opened[stamp.id] for stamp in stamps if self._is_known(stamp)}
        for id_ in known:
            self._opened.move_to_end(id_)
        return known

    def _is_known(self, stamp: Stamp) -> bool:
        known = self._opened.get(stamp.id)
        return known is not None and (known.version, known.updated_at) == (stamp.version, stamp.updated_at)


#: what decides about a subscription's deliveries; nothing that is sealed or has to be decoded
_STANDING = (
    "id", "account", "version", "updated_at", "operational", "state", "disabled_reason", "movement", "verifying",
    "then", "refusals", "failures", "failing_since", "disable_after_4xx", "disable_on", "disable_after", "hold_for",
    "held", "ordering", "on_exhausted", "rate_limit", "body_mode",
)  # fmt: skip
_QUERY = (
    sa.select(*(subscriptions.c[name] for name in _STANDING))
    .where(among(subscriptions.c.id, "ids"))
    .order_by(subscriptions.c.id)
)
_SEEN, _LOCKED = Statement(_QUERY, "ids", packed=True), Statement(_QUERY.with_for_update(), "ids", packed=True)


async def standing(connection: AsyncConnection, ids: Iterable[str], *, lock: bool = False) -> dict[str, Standing]:
    """Where subscriptions stand, by id, in one order so that locks never cross; deleted ones too."""
    wanted = sorted(set(ids))
    if not wanted:
        return {}
    [rows] = await run(connection, (_LOCKED if lock else _SEEN, [(wanted,)]))
    return {row[0]: dict(zip(_STANDING, row, strict=True)) for row in rows}
