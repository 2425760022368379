"""Takes the rows of the outbox: each is read as a request to the API, and the store makes a task or an event of it.

A step of `chores`. The checks are those of `POST /tasks` and `POST /events`, by the same code, and so is the storing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from http import HTTPStatus

import msgspec
import structlog

from dispatcher import metrics
from dispatcher.account_cache import AccountCache
from dispatcher.api import events
from dispatcher.api.checking import check_key, check_traceparent
from dispatcher.api.hot import ITEMS_PER_TURN
from dispatcher.api.intake import described
from dispatcher.api.problems import invalid, not_found, too_large
from dispatcher.api.reading import Reader
from dispatcher.errors import Problem, StoreUnavailable
from dispatcher.limits import MAX_AROUND_PAYLOAD
from dispatcher.parcels import Kind, info_of, request_of
from dispatcher.public_keys import SealingError
from dispatcher.store import Store, intake, publishing
from dispatcher.store.outbox import Batch, Event, Refusal, Row, Taken, Task
from dispatcher.store.outbox_keys import KeyPairs
from dispatcher.store.publishing import Publication
from subscriptions.keyring import KeyringError

log = structlog.get_logger(__name__)

_encode = msgspec.json.encode

#: seconds between looks for rows that no notification told of
LOOK_INTERVAL = 1.0

Item = Task | Event | Refusal


class OutboxTaker:
    """Takes rows, a step at a time."""

    def __init__(self, store: Store, reader: Reader, accounts: AccountCache, *, expect: Callable[[int], None]) -> None:
        """`expect` is told how many deliveries a step has made, once they are on disk."""
        self._store = store
        self._reader = reader
        self._accounts = accounts
        self._expect = expect
        #: the account that was looked at last
        self._after = ""

    async def outbox(self) -> float | None:
        """Take the next rows; answers as a step of `Chores` does."""
        waiting = await self._store.outbox_waiting(after=self._after, max_body=self._reader.limits.max_body)
        self._after = waiting.last
        taken = await self._take(await self._read_all(waiting.rows, waiting.keys))
        moved = any(one.done or one.refused or one.stale for one in taken)
        return 0.0 if moved or self._after else LOOK_INTERVAL

    # Read

    async def _read_all(self, rows: Sequence[Row], keys: KeyPairs) -> list[Item]:
        """What rows come to. Where an account's events are for very many, the rest of its rows wait."""
        items: list[Item] = []
        room: dict[str, int] = {}
        for index, row in enumerate(rows):
            if index % ITEMS_PER_TURN == 0:
                await asyncio.sleep(0)
            if room.setdefault(row.account, publishing.AT_ONCE) <= 0:
                continue
            item = await self._read(row, keys)
            items.append(item)
            if isinstance(item, Event):
                room[row.account] -= len(item.publication.plan.subscribers)
        return items

    async def _read(self, row: Row, keys: KeyPairs) -> Item:
        try:
            return await self._requested(row, keys)
        except Problem as problem:
            return Refusal(row=row, problem=problem.as_dict())
        except (StoreUnavailable, KeyringError):
            # It is not the row's fault: it waits.
            raise
        except Exception as exc:  # noqa: BLE001 - whatever it is, the other rows have their turn
            return _at_fault(row, exc)

    async def _requested(self, row: Row, keys: KeyPairs) -> Task | Event:
        if not row.is_known:
            raise not_found("account")
        if row.traceparent is not None:
            check_traceparent(row.traceparent, "/traceparent")
        if row.kind == Kind.TASK:
            return await self._task(row, keys)
        if row.kind == Kind.EVENT:
            return await self._event(row)
        raise invalid("/kind", "must be task or event")

    async def _task(self, row: Row, keys: KeyPairs) -> Task:
        try:
            opened = keys.open(row.sealed or b"", info_of(kind=row.kind, account=row.account, row=row.id))
        except SealingError:
            raise invalid("/sealed", "must be sealed with the installation's public key, for this row") from None
        body = self._request(row, opened)
        if row.idempotency_key is not None:
            check_key(row.idempotency_key, "/idempotency_key")
        account = await self._accounts.get(row.account)
        task, token = self._reader.task(body, account=account, trace=row.traceparent)
        key = None
        if row.idempotency_key is not None:
            key = self._reader.key_of(row.idempotency_key, body, account=row.account, route="outbox task")
        answer = _encode(described(task, token))
        return Task(row=row, task=task, rows=intake.rows_of(task, self._store.keyring), key=key, answer=answer)

    async def _event(self, row: Row) -> Event:
        for name in ("sealed", "idempotency_key"):
            if getattr(row, name) is not None:
                # Were it passed over, what its writer takes for the same event would be another.
                raise invalid(f"/{name}", "is for tasks; an event has an id")
        event, key = self._reader.event(self._request(row, b"{}"), account=row.account, trace=row.traceparent)
        roster = await self._store.roster(row.account)
        async with self._store.planning(row.account):
            plan = await publishing.plan(roster, event)
        bodies = publishing.compose_bodies(
            event, plan, created_at=time.time_ns() // 1_000_000, source=self._reader.settings.event_source
        )
        return Event(row=row, publication=Publication(event=event, plan=plan, bodies=bodies, handed_off={}, key=key))

    def _request(self, row: Row, opened: bytes) -> bytes:
        limits = self._reader.limits
        for name, part, limit in (
            ("payload", row.payload, limits.max_body),
            ("fields", row.fields, MAX_AROUND_PAYLOAD),
            ("sealed", opened, MAX_AROUND_PAYLOAD),
        ):
            if len(part) > limit:
                raise too_large(f"/{name}", limit)
        return request_of(row.fields, row.payload, opened)

    # Take

    async def _take(self, items: Sequence[Item]) -> list[Taken]:
        """Have them stored together. Where that fails for a fault of ours, halves are tried, until the row at fault
        stands alone; it is refused, so that it does not stand before the others for ever."""
        if not items:
            return []
        try:
            taken = await self._store.take_outbox(
                Batch(items=items, source=self._reader.settings.event_source, describe=events.described)
            )
        except StoreUnavailable:
            raise
        except Exception as exc:  # noqa: BLE001 - whatever it is, the other rows have their turn
            if len(items) > 1:
                middle = len(items) // 2
                taken_first = await self._take(items[:middle])
                return [*taken_first, *await self._take(_not_overtaking(items[:middle], taken_first, items[middle:]))]
            [item] = items
            if isinstance(item, Refusal):
                # Not even that can be written. Its account's rows wait, and those of the others go on.
                error = type(exc).__qualname__
                log.error("outbox_row_stuck", outbox_id=item.row.id, account=item.row.account, error=error)
                return []
            return await self._take([_at_fault(item.row, exc)])
        self._tell(taken)
        return [taken]

    def _tell(self, taken: Taken) -> None:
        metrics.outbox_taken.inc(len(taken.done))
        metrics.outbox_refused.inc(len(taken.refused))
        metrics.tasks_accepted.inc(len(taken.tasks))
        metrics.events_accepted.inc(taken.events)
        for one in taken.refused:
            log.warning("outbox_refused", outbox_id=one.row.id, account=one.row.account, problem=one.problem["type"])
        self._expect(taken.deliveries + sum(task.body is not None for task in taken.tasks))


def _not_overtaking(earlier: Sequence[Item], taken: Sequence[Taken], later: Sequence[Item]) -> list[Item]:
    """Those of `later` that do not go before one of their account's that still waits: another process was at it, or
    its plan was out of date."""
    over = {id_ for one in taken for id_ in (*one.done, *(refusal.row.id for refusal in one.refused))}
    waiting = {item.row.account for item in earlier if item.row.id not in over}
    return [item for item in later if item.row.account not in waiting]


def _at_fault(row: Row, error: Exception) -> Refusal:
    """A row that ran into a fault of ours. Only its kind is logged: its text may hold anything."""
    log.error("outbox_row_failed", outbox_id=row.id, account=row.account, error=type(error).__qualname__)
    status = HTTPStatus.INTERNAL_SERVER_ERROR
    return Refusal(row=row, problem={"type": "about:blank", "title": status.phrase, "status": int(status)})
