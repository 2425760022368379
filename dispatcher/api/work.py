"""Routes for processors outside this process: lease tasks, keep the lease, give the result."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter, Request
from msgspec import UNSET
from starlette.responses import Response

from dispatcher import metrics
from dispatcher.api import shapes, views
from dispatcher.api.common import answer, find_task, known
from dispatcher.api.openapi import documented
from dispatcher.api.problems import invalid, not_found
from dispatcher.api.reading import read_shape
from dispatcher.api.services import Services
from dispatcher.bodies import rfc3339
from dispatcher.errors import FieldError, LeaseLost, Problem
from dispatcher.limits import MAX_AROUND_PAYLOAD
from dispatcher.models import TaskState
from dispatcher.processors.engine import give_up, is_poison, report_end
from dispatcher.processors.registry import Kind
from dispatcher.store import queries
from dispatcher.store.records import LeasedTask, TaskClaim, TaskReport
from dispatcher.store.work import Renewal


def add_routes(router: APIRouter, services: Services) -> None:
    """Add these routes."""
    store = services.store

    @router.post(
        "/tasks/lease",
        **documented("Lease tasks to work on", shapes.LeasedTasks, tag="processing", body=shapes.LeaseRequest),
    )
    async def lease_tasks(request: Request) -> Response:
        account = await services.auth.processor(request)
        wish = await read_shape(request, shapes.LeaseRequest)
        spans = _spans(services, wish.types)
        leased = await store.lease_tasks(
            TaskClaim(types=tuple(spans), limit=wish.limit, account=account, lease_for=spans)
        )
        for task in filter(is_poison, leased):
            await _finish(services, give_up(task, source=services.settings.event_source, account=account, remote=True))
        return answer(shapes.LeasedTasks(items=[views.leased_task(task) for task in leased if not is_poison(task)]))

    @router.post(
        "/tasks/{id}/renew",
        **documented(
            "Keep a lease",
            shapes.Renewed,
            tag="processing",
            body=shapes.RenewRequest,
            problems=(404, 409),
        ),
    )
    async def renew(request: Request, id: str) -> Response:  # noqa: A002 - the path parameter's name
        account = await services.auth.processor(request)
        wish = await read_shape(request, shapes.RenewRequest)
        task = await _leased(services, account, id, wish.attempt)
        processor = services.registry.get(task.type)
        until = await store.renew_task(
            Renewal(
                task_id=task.id,
                attempt=wish.attempt,
                account=account,
                seconds=processor.timeout if processor else 30.0,
            )
        )
        return answer(shapes.Renewed(lease_until=rfc3339(until)))

    @router.post(
        "/tasks/{id}/result",
        **documented(
            "Give a task's result",
            shapes.Task,
            tag="processing",
            body=shapes.ResultRequest,
            problems=(404, 409),
        ),
    )
    async def result(request: Request, id: str) -> Response:  # noqa: A002 - the path parameter's name
        account = await services.auth.processor(request)
        wish = await read_shape(request, shapes.ResultRequest, limit=services.settings.max_body + MAX_AROUND_PAYLOAD)
        if (not bytes(wish.result)) == (wish.error is UNSET):
            raise invalid("/result", "give either result or error")
        task = await _leased(services, account, id, wish.attempt)
        if task.state in {TaskState.SUCCEEDED, TaskState.FAILED}:
            # The answer to this very report was lost, and it was sent again.
            return answer(await find_task(services, task.account, id))
        await _finish(services, _report(services, task, wish, account))
        return answer(await find_task(services, task.account, id))


def _spans(services: Services, types: list[str]) -> dict[str, float]:
    """How long each type's lease lasts, seconds. Raises Problem for a type that is not worked on outside."""
    spans: dict[str, float] = {}
    for index, name in enumerate(types):
        processor = services.registry.get(name)
        if processor is None or processor.kind is not Kind.EXTERNAL:
            raise Problem(
                "unknown-type",
                "GET /processors lists the types there are.",
                errors=[FieldError(field=f"/types/{index}", detail="is not an external type")],
            )
        spans[name] = processor.timeout
    return spans


async def _finish(services: Services, report: TaskReport) -> None:
    settled = await services.store.finish_task(report)
    if settled.state is not TaskState.QUEUED:
        metrics.tasks_finished.labels(settled.state).inc()


def _report(services: Services, task: LeasedTask, wish: shapes.ResultRequest, account: str | None) -> TaskReport:
    processor = services.registry.get(task.type)
    tries = processor.tries if processor is not None else 1
    if wish.error is not UNSET and wish.retry and task.failures + 1 < tries:
        return TaskReport(task_id=task.id, attempt=task.attempt, account=account, remote=True, retry_in=0.0)
    if wish.error is not UNSET:
        state, content = TaskState.FAILED, msgspec.json.encode(wish.error)
    else:
        state, content = TaskState.SUCCEEDED, bytes(wish.result)
        services.reader.check_json(content, "/result", services.settings.max_body)
    return report_end(task, state, content, source=services.settings.event_source, account=account, remote=True)


async def _leased(services: Services, account: str | None, task_id: str, attempt: int) -> LeasedTask:
    """The task that was leased as this attempt. Raises Problem, or LeaseLost when it has been leased since."""
    task = await queries.leased_task(services.store.database, account, known("task", task_id))
    if task is None:
        raise not_found("task")
    if task.attempt != attempt:
        raise LeaseLost("the lease of this task is no longer held")
    return task
