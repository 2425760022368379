"""From tasks that were read to their commit and beyond: a place in a lane, the commit, the hand-off, the reply.

A relayed task whose lane has room is committed as leased to this process, and handed to its lane when that is on disk.
What is submitted together takes each step together, and so does what came to disk together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial

import structlog
from msgspec.structs import replace

from dispatcher import metrics
from dispatcher.api.services import Services
from dispatcher.bodies import Body
from dispatcher.models import lane_of
from dispatcher.rounds import Rounds, each, tell
from dispatcher.store.records import Endpoint, IdempotencyKey, LeasedDelivery, NewTask, Replayed, Submission

log = structlog.get_logger(__name__)


class Parcel(Submission, kw_only=True):
    """The tasks of one request, on their way."""

    #: told what came of it: None when the tasks are on disk; else the earlier answer to its key, or why they are not
    reply: Callable[[Replayed | Exception | None], None]
    #: under which they are leased, unless it ends before the commit
    session: str = ""
    result: Replayed | Exception | None = None


class Acceptance:
    """Has tasks stored, and hands them on."""

    def __init__(self, services: Services) -> None:
        self._engine = services.engine
        self._store = services.store
        self._over = Rounds(self._conclude)

    async def accept(self, tasks: Sequence[NewTask], *, key: IdempotencyKey | None, answer: bytes) -> Replayed | None:
        """Store the tasks of one request. Returns the earlier answer to its key. Raises Problem, StoreUnavailable."""
        waiting: asyncio.Future[Replayed | None] = asyncio.get_running_loop().create_future()
        self.submit([Parcel(tasks=tasks, key=key, answer=answer, reply=partial(tell, waiting))])
        return await waiting

    def submit(self, parcels: Sequence[Parcel]) -> None:
        """Store the tasks of each request."""
        # From here on nothing waits: what is reserved is filled or given back.
        reserved = each(self._reserve, parcels, failed=self._refuse)
        self._store.accept(reserved, then=self._committed)

    def _reserve(self, parcel: Parcel) -> None:
        parcel.session = self._store.session
        # One by one, so that those that have a place are known if a later one fails.
        tasks = parcel.tasks = list(parcel.tasks)
        for index, task in enumerate(tasks):
            tasks[index] = self._with_place(task)

    def _with_place(self, task: NewTask) -> NewTask:
        if task.body is not None and self._engine.reserve(_lane(task), len(task.body.body)):
            return replace(task, handed_off=True)
        return task

    def _refuse(self, parcel: Parcel, error: Exception) -> None:
        self._give_back(parcel)
        parcel.reply(error)

    def _committed(self, parcel: Parcel, result: Replayed | Exception | None) -> None:
        parcel.result = result
        self._over.join(parcel)

    def _conclude(self, parcels: list[Parcel]) -> None:
        # The replies come first: whatever else fails, callers are told of what is on disk.
        each(_reply, parcels, failed=_complain)
        stored = [parcel for parcel in parcels if parcel.result is None]
        for parcel in parcels:
            if parcel.result is not None:
                self._give_back(parcel)
        handed_off: list[LeasedDelivery] = []
        each(lambda parcel: handed_off.extend(_leased(parcel)), stored, failed=self._leave)
        each(self._engine.hand_off, [handed_off], failed=_complain)
        if stored:
            relayed = sum(task.body is not None for parcel in stored for task in parcel.tasks)
            each(self._engine.expect, [relayed - len(handed_off)], failed=_complain)
            each(metrics.tasks_accepted.inc, [sum(len(parcel.tasks) for parcel in stored)], failed=_complain)

    def _leave(self, parcel: Parcel, error: Exception) -> None:
        """It cannot be handed off. The engine finds it among its stray leases."""
        _complain(parcel, error)
        self._give_back(parcel)

    def _give_back(self, parcel: Parcel) -> None:
        each(self._cancel_place, parcel.tasks, failed=_complain)

    def _cancel_place(self, task: NewTask) -> None:
        if task.handed_off and task.body is not None:
            self._engine.cancel_reservation(_lane(task), len(task.body.body))


def _reply(parcel: Parcel) -> None:
    parcel.reply(parcel.result)


def _complain(_item: object, error: Exception) -> None:
    """What fails here is ours, and is on disk all the same. Only its kind is logged: its text may hold anything."""
    log.error("acceptance_failed_inside", error=type(error).__qualname__)


def _lane(task: NewTask) -> str:
    return lane_of(task.account, task.callback.origin)


def _leased(parcel: Parcel) -> list[LeasedDelivery]:
    return [
        _delivery(task, task.body, parcel.session) for task in parcel.tasks if task.handed_off and task.body is not None
    ]


def _delivery(task: NewTask, body: Body, session: str) -> LeasedDelivery:
    return LeasedDelivery(
        id=task.delivery_id,
        wire_id=task.delivery_id,
        account=task.account,
        lane=_lane(task),
        attempt=1,
        session=session,
        event=task.type,
        endpoint=Endpoint.of_callback(task.callback, account=task.account),
        body=body,
        traceparent=task.traceparent,
    )
