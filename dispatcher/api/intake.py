"""The hot routes: `POST /tasks` and `POST /tasks/batch`.

They read the body's bytes themselves, and answer when the commit that holds the task is on disk. Requests for one task
are taken in rounds; one that has to wait for something leaves its round, and its handler does all of it anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from dispatcher.api import shapes
from dispatcher.api.acceptance import Acceptance, Parcel
from dispatcher.api.checking import check_text, decode
from dispatcher.api.hot import ACCEPTED, ITEMS_PER_TURN, Visit, accepted, response_to
from dispatcher.api.problems import invalid, too_large
from dispatcher.api.reading import Asked, read_body, traceparent, warnings_of
from dispatcher.api.services import Services
from dispatcher.bodies import rfc3339
from dispatcher.errors import Problem
from dispatcher.limits import MAX_AROUND_PAYLOAD
from dispatcher.models import TaskState
from dispatcher.rounds import Rounds, each, tell
from dispatcher.store.accounts import Account
from dispatcher.store.records import IdempotencyKey, NewTask, Replayed
from dispatcher.window import Token

_encode = msgspec.json.encode


_SCOPE = "tasks:write"
_RESOURCE = "/tasks"


class _Post:
    """A request for one task, and how far it has got."""

    __slots__ = ("account", "answer", "body", "end", "key", "request", "task", "token", "was_refused")

    task: NewTask
    token: Token
    answer: bytes

    def __init__(
        self, request: Asked, body: bytes, account: Account, *, end: Callable[[_Post, Response | Exception], None]
    ) -> None:
        self.request = request
        self.body = body
        self.account = account
        #: told of the answer, or of what there is instead of one
        self.end = end
        self.key: IdempotencyKey | None = None
        #: it could not be read
        self.was_refused = False

    def refuse(self, error: Exception) -> None:
        """There is nothing to be stored."""
        self.was_refused = True
        self.end(self, error)

    def reply(self, result: Replayed | Exception | None) -> None:
        """It is stored, or it is not."""
        if result is None:
            self.end(self, accepted(self.answer, replayed=False, resource=_RESOURCE))
        elif isinstance(result, Replayed):
            self.end(self, accepted(result.answer, replayed=True, resource=_RESOURCE))
        else:
            self.end(self, result)


class Intake:
    """Accepts tasks."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._acceptance = Acceptance(services)
        #: requests for one task of which all is at hand, perhaps
        self._visits = Rounds(self._take_all)
        #: bytes of a request for one task
        self._limit = services.settings.max_body + MAX_AROUND_PAYLOAD

    # One task

    def take(self, visit: Visit) -> None:
        """Accept one task, together with the others that come now."""
        self._visits.join(visit)

    async def post_task(self, request: Request) -> Response:
        """Accept one task; what that takes is waited for. Raises Problem."""
        caller = await self._services.auth.caller(request, scope=_SCOPE)
        body = await read_body(request, limit=self._limit)
        account = await self._services.accounts.get(caller.account)
        answer: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        post = _Post(request, body, account, end=lambda _, outcome: tell(answer, outcome))
        self._accept_all([post])
        try:
            return await answer
        except Problem:
            if post.key is None or not post.was_refused:
                raise
            # What was accepted once stays accepted, though it could not be now.
            earlier = await self._services.store.earlier_answer(post.key)
            if earlier is None:
                raise
            return accepted(earlier.answer, replayed=True, resource=_RESOURCE)

    def _take_all(self, visits: list[Visit]) -> None:
        posts: list[_Post] = []
        each(partial(self._take_up, posts), visits, failed=_answer_error)
        self._accept_all(posts)

    def _take_up(self, posts: list[_Post], visit: Visit) -> None:
        """Put a request of which all is at hand to the others. Any other is left to its handler."""
        caller = self._services.auth.known(visit, scope=_SCOPE)
        account = None if caller is None else self._services.accounts.known(caller.account)
        body = visit.whole_body()
        if account is None or body is None:
            visit.wait()
        else:
            posts.append(_Post(visit, body, account, end=partial(_end, visit)))

    def _accept_all(self, posts: list[_Post]) -> None:
        for step in (self._read, _describe):
            posts = each(step, posts, failed=_Post.refuse)
        self._acceptance.submit(
            [Parcel(tasks=[post.task], key=post.key, answer=post.answer, reply=post.reply) for post in posts]
        )

    def _read(self, post: _Post) -> None:
        """Raises Problem."""
        if len(post.body) > self._limit:
            raise too_large("", self._limit)
        check_text(post.body)
        reader, account = self._services.reader, post.account
        post.key = reader.idempotency_key(post.request, post.body, account=account.id, route="POST /tasks")
        post.task, post.token = reader.task(post.body, account=account, trace=traceparent(post.request))

    # Many

    async def post_batch(self, request: Request) -> Response:
        """Accept many tasks by one commit. Raises Problem."""
        caller = await self._services.auth.caller(request, scope=_SCOPE)
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
        earlier = await self._acceptance.accept(tasks, key=key, answer=answer)
        return accepted(earlier.answer if earlier else answer, replayed=earlier is not None)


def _end(visit: Visit, post: _Post, outcome: Response | Exception) -> None:
    if isinstance(outcome, Response):
        visit.answer(outcome)
    elif post.was_refused and post.key is not None:
        # It was accepted once, perhaps: its handler looks.
        visit.wait()
    else:
        _answer_error(visit, outcome)


def _answer_error(visit: Visit, error: Exception) -> None:
    visit.answer(response_to(error, visit.scope["method"]))


def _describe(post: _Post) -> None:
    post.answer = _encode(described(post.task, post.token))


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
