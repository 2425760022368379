"""Routes of tasks that were accepted: list, read, cancel, give another callback."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from dispatcher.api import shapes, views
from dispatcher.api.common import DEFAULT_PAGE, Cursor, Limit, Wanted, answer, before, find_task, known
from dispatcher.api.openapi import documented
from dispatcher.api.reading import read_shape
from dispatcher.api.services import Services
from dispatcher.models import TaskState
from dispatcher.store import queries


def add_routes(router: APIRouter, services: Services) -> None:
    """Add these routes."""
    store = services.store

    @router.get("/tasks", **documented("List tasks", shapes.TaskList, tag="tasks"))
    async def list_tasks(
        request: Request,
        state: TaskState | None = None,
        type: Wanted = None,  # noqa: A002 - the query parameter's name
        limit: Limit = DEFAULT_PAGE,
        cursor: Cursor = None,
    ) -> Response:
        caller = await services.auth.caller(request, scope="tasks:read")
        page = await queries.list_tasks(
            store.database, caller.account, limit=limit, before=before(cursor), state=state, type=type
        )
        items = [views.task(row) for row in page.rows]
        return answer(shapes.TaskList(items=items, next_cursor=page.next_cursor))

    @router.get("/tasks/{id}", **documented("Read a task", shapes.Task, tag="tasks"))
    async def read_task(request: Request, id: str) -> Response:  # noqa: A002 - the path parameter's name
        caller = await services.auth.caller(request, scope="tasks:read")
        return answer(await find_task(services, caller.account, id))

    @router.post(
        "/tasks/{id}/cancel",
        **documented("Cancel a task, or its delivery", shapes.Task, tag="tasks", problems=(404, 409)),
    )
    async def cancel_task(request: Request, id: str) -> Response:  # noqa: A002 - the path parameter's name
        caller = await services.auth.caller(request, scope="tasks:write")
        await store.cancel_task(caller.account, known("task", id))
        return answer(await find_task(services, caller.account, id))

    @router.put(
        "/tasks/{id}/callback",
        **documented(
            "Replace a task's callback",
            shapes.Task,
            tag="tasks",
            body=shapes.CallbackRequest,
            problems=(404, 409),
        ),
    )
    async def put_callback(request: Request, id: str) -> Response:  # noqa: A002 - the path parameter's name
        caller = await services.auth.caller(request, scope="tasks:write")
        wish = await read_shape(request, shapes.CallbackRequest)
        current = await find_task(services, caller.account, known("task", id))
        processor = services.registry.get(current.type)
        waits = current.state in {TaskState.QUEUED, TaskState.PROCESSING}
        timeout = processor.timeout if processor is not None and waits else 0.0
        account = await services.accounts.get(caller.account)
        callback, _ = services.reader.callback(wish, account=account, timeout=timeout)
        await store.replace_callback(caller.account, id, callback)
        return answer(await find_task(services, caller.account, id))
