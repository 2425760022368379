"""The hot routes: `POST /tasks` and `POST /tasks/batch`.

They read the body's bytes themselves, and answer when the commit that holds the task is on disk. A relayed task
whose lane has room is committed as leased to this process and handed to its lane at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec
from msgspec.structs import replace
from starlette.requests import Request
from starlette.responses import Response

from dispatcher import metrics
from dispatcher.api import shapes
from dispatcher.api.checking import check_text, decode
from dispatcher.api.hot import ACCEPTED, ITEMS_PER_TURN, accepted
from dispatcher.api.problems import invalid
from dispatcher.api.reading import read_body, traceparent, warnings_of
from dispatcher.api.services import Services
from dispatcher.bodies import Body, rfc3339
from dispatcher.errors import Problem
from dispatcher.limits import MAX_AROUND_PAYLOAD
from dispatcher.models import TaskState, lane_of
from dispatcher.store.records import Endpoint, IdempotencyKey, LeasedDelivery, NewTask, Replayed
from dispatcher.window import Token

_encode = msgspec.json.encode


class Intake:
    """Accepts tasks."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def post_task(self, request: Request) -> Response:
        """Accept one task. Raises Problem."""
        caller = await self._services.auth.caller(request, scope="tasks:write")
        body = await read_body(request, limit=self._services.settings.max_body + MAX_AROUND_PAYLOAD)
        check_text(body)
        key = self._services.reader.idempotency_key(request, body, account=caller.account, route="POST /tasks")
        account = await self._services.accounts.get(caller.account)
        try:
            task, token = self._services.reader.task(body, account=account, trace=traceparent(request))
        except Problem:
            # What was accepted once stays accepted, though it could not be now.
            earlier = None if key is None else await self._services.store.earlier_answer(key)
            if earlier is None:
                raise
            return accepted(earlier.answer, replayed=True, resource="/tasks")
        answer = _encode(described(task, token))
        earlier = await self._store([task], key=key, answer=answer)
        return accepted(earlier.answer if earlier else answer, replayed=earlier is not None, resource="/tasks")

    async def post_batch(self, request: Request) -> Response:
        """Accept many tasks by one commit. Raises Problem."""
        caller = await self._services.auth.caller(request, scope="tasks:write")
        body = await read_body(request, limit=self._services.settings.max_batch)
        key = self._services.reader.idempotency_key(request, body, account=caller.account, route="POST /tasks/batch")
        batch = decode(body, shapes.BatchRequest)
        if len(batch.tasks) > self._services.settings.max_batch_items:
            raise invalid("/tasks", f"must be array of length <= {self._services.settings.max_batch_items}")
        trace = traceparent(request)
        account = await self._services.accounts.get(caller.account)
        tasks: list[NewTask] = []
        items: list[shapes.BatchItem] = []
        for index, raw in enumerate(batch.tasks):
            if index % ITEMS_PER_TURN == 0:
                await asyncio.sleep(0)
            try:
                task, token = self._services.reader.task(raw, account=account, trace=trace, prefix=f"/tasks/{index}")
            except Problem as problem:
                items.append(shapes.BatchItem(index=index, status=problem.status, problem=problem.as_dict()))
            else:
                tasks.append(task)
                items.append(shapes.BatchItem(index=index, status=ACCEPTED, task=described(task, token)))
        answer = _encode(shapes.BatchAccepted(items=items))
        earlier = await self._store(tasks, key=key, answer=answer)
        return accepted(earlier.answer if earlier else answer, replayed=earlier is not None)

    async def _store(self, tasks: Sequence[NewTask], *, key: IdempotencyKey | None, answer: bytes) -> Replayed | None:
        hand_off = _HandOff(self._services, tasks)
        return await self._services.store.accept(hand_off.tasks, key=key, answer=answer, then=hand_off.committed)


class _HandOff:
    """Reserves places in lanes before the commit, and fills them or gives them back after it."""

    def __init__(self, services: Services, tasks: Sequence[NewTask]) -> None:
        self._services = services
        #: under which they are leased, unless it ends before the commit
        self._session = services.store.session
        self.tasks = [
            replace(task, handed_off=True)
            if task.body is not None and services.engine.reserve(_lane(task), len(task.body.body))
            else task
            for task in tasks
        ]

    def committed(self, result: Replayed | Exception | None) -> None:
        """What the commit brought: None when these tasks are on disk."""
        stored = result is None
        for task in self.tasks:
            if task.body is None:
                continue
            if task.handed_off and stored:
                self._services.engine.hand_off(_leased(task, task.body, self._session))
            elif task.handed_off:
                self._services.engine.cancel_reservation(_lane(task), len(task.body.body))
        if stored:
            self._services.engine.expect(sum(task.body is not None and not task.handed_off for task in self.tasks))
            metrics.tasks_accepted.inc(len(self.tasks))


def described(task: NewTask, token: Token) -> shapes.TaskAccepted:
    """What the caller is told about a task that was accepted."""
    callback = task.callback
    return shapes.TaskAccepted(
        id=task.id,
        delivery_id=task.delivery_id,
        state=TaskState.QUEUED if task.body is None else TaskState.SUCCEEDED,
        callback=shapes.CallbackSummary(
            host=callback.origin.partition("://")[2],
            token=token.kind,
            expires_at=None if callback.window_end is None else rfc3339(callback.window_end),
            warnings=warnings_of(token),
        ),
    )


def _lane(task: NewTask) -> str:
    return lane_of(task.account, task.callback.origin)


def _leased(task: NewTask, body: Body, session: str) -> LeasedDelivery:
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
