"""News: what a commit leaves to be done, so that nobody has to look for it.

Whatever writes notes it in its transaction. With the commit this process hears of it, and on PostgreSQL every other
one, by one NOTIFY in the same transaction: it is told exactly when it is on disk. It is only a hint. One too many costs
a query that finds nothing; what nobody was told of is found by the next look around.

A NOTIFY is not free: from there to the end of its COMMIT a transaction holds a lock that all of a server's NOTIFYs
need, so those commit one after the other, each with its own sync. Hence one for each batch at most, and none where a
batch left nothing to others: what is handed off to our own lanes, or follows in a lane that we are at, is no news.

Everybody who may connect to the database can hear it. It names lanes (an account, and a subscription's id or the
scheme, host and port of its callbacks), never a path, a token or a payload. And everybody can tell it: what no process
of ours would say is not believed (`decoded`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from dispatcher.models import account_of
from dispatcher.parcels import CHANNEL
from dispatcher.retry import MAX_RETRY_AFTER
from dispatcher.store.statements import Statement, run
from dispatcher.store.tables import LONGEST_LANE

#: bytes that a NOTIFY takes at most are 7,999
MAX_BYTES = 7_900


@dataclass(kw_only=True, slots=True)
class News:
    """What there is to be done."""

    #: lanes where a delivery became due
    lanes: set[str] = field(default_factory=set)
    #: lanes whose endpoint asks to be left alone, and for how many seconds
    pauses: dict[str, float] = field(default_factory=dict)
    #: tasks wait for a processor
    tasks: bool = False
    #: there are steps to take: a fan-out, deliveries to move or to send again, something to tell
    chores: bool = False
    #: rows of the outbox wait to be taken
    outbox: bool = False
    #: more than is named here: whoever hears of it looks around
    more: bool = False

    @classmethod
    def of_anything(cls) -> News:
        """There may be anything to do."""
        return cls(tasks=True, chores=True, more=True)

    def add(self, other: News) -> None:
        """Have this, too."""
        self.lanes |= other.lanes
        self.pauses |= other.pauses
        self.tasks |= other.tasks
        self.chores |= other.chores
        self.outbox |= other.outbox
        self.more |= other.more

    def __bool__(self) -> bool:
        return bool(self.lanes or self.pauses or self.tasks or self.chores or self.outbox or self.more)

    def encoded(self, sender: str) -> str:
        """As it is told to others. What is too long to be told is left for them to find."""
        said = _Said(by=sender, lanes=_by_account(self.lanes), pauses=self.pauses, tasks=self.tasks, chores=self.chores)
        text = _encode(said)
        if self.more or len(text) > MAX_BYTES:
            text = _encode(_Said(by=sender, tasks=self.tasks, chores=self.chores, more=True))
        return text.decode()


class _Said(msgspec.Struct, kw_only=True, omit_defaults=True):
    """News as JSON."""

    #: the session that tells it
    by: str
    #: by account: what follows it in the names of its lanes
    lanes: dict[str, list[str]] = {}
    pauses: dict[str, float] = {}
    tasks: bool = False
    chores: bool = False
    #: told by whoever publishes (`dispatcher.parcels`)
    outbox: bool = False
    more: bool = False


_encode = msgspec.json.encode
_decode = msgspec.json.Decoder(_Said).decode


def decoded(text: str) -> tuple[str, News]:
    """Who tells, and what. Of what cannot be read, as from another version, that there is something."""
    try:
        said = _decode(text)
    except msgspec.DecodeError:
        return "", News.of_anything()
    lanes = {f"{account} {rest}" for account, rests in said.lanes.items() for rest in rests}
    if not (all(map(_can_be_lane, (*lanes, *said.pauses))) and all(map(_can_be_pause, said.pauses.values()))):
        return "", News.of_anything()
    return said.by, News(
        lanes=lanes, pauses=said.pauses, tasks=said.tasks, chores=said.chores, outbox=said.outbox, more=said.more
    )


def _can_be_lane(text: str) -> bool:
    # PostgreSQL takes no text with a NUL in it: asked for by that name, it would refuse the other lanes as well.
    return " " in text and "\0" not in text and len(text) <= LONGEST_LANE


def _can_be_pause(seconds: float) -> bool:
    return 0 <= seconds <= MAX_RETRY_AFTER


def _by_account(lanes: Iterable[str]) -> dict[str, list[str]]:
    grouped: dict[str, list[str]] = {}
    for lane in lanes:
        account = account_of(lane)
        grouped.setdefault(account, []).append(lane[len(account) + 1 :])
    return grouped


async def tell_others(connection: AsyncConnection, news: News, *, sender: str) -> None:
    """Tell it with this transaction's commit, where there can be others."""
    if connection.dialect.name == "postgresql":
        await run(connection, (_NOTIFY, [(news.encoded(sender),)]))


_NOTIFY = Statement(sa.select(sa.func.pg_notify(CHANNEL, sa.bindparam("news", type_=sa.Text))), "news")
