"""Runs tasks: lease -> run -> store the result. The delivery of the result is the delivery engine's."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from typing import Any

import anyio
import anyio.to_process
import msgspec
import structlog
from tenacity import AsyncRetrying, retry_if_exception_type, wait_random_exponential

from dispatcher import metrics
from dispatcher.bodies import Message, compose
from dispatcher.config import Settings
from dispatcher.errors import LeaseLost, ProcessorError, StoreUnavailable
from dispatcher.loops import repeat
from dispatcher.models import TaskState
from dispatcher.processors.registry import Kind, Processor, Registry
from dispatcher.processors.threads import Threads
from dispatcher.retry import POISON_AFTER
from dispatcher.store import Store, queries
from dispatcher.store.records import LeasedTask, TaskClaim, TaskReport, TaskSettled
from dispatcher.store.work import TaskRelease

log = structlog.get_logger(__name__)

#: seconds between looks for due tasks that no hint told of
POLL_INTERVAL = 10.0
#: seconds to rest at least, when a task is due that another process may just be leasing
MIN_REST = 0.05
#: seconds before a task is tried again that failed by a fault of ours
FAULT_DELAY = 1.0

_encode = msgspec.json.encode


class TaskEngine:
    """Works on this process's task types. `wake` it when a task comes in."""

    def __init__(self, store: Store, registry: Registry, settings: Settings) -> None:
        self._store = store
        self._registry = registry
        self._settings = settings
        self._runs: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None
        self._threads = Threads(on_end=self.wake)
        #: one process for each processor core: more of them would only take memory and turns
        self._processes = anyio.CapacityLimiter(min(settings.task_slots, os.cpu_count() or 1))

    def start(self) -> None:
        """Begin to work, if there is any type to work on."""
        if self._registry.local():
            self._loop = asyncio.create_task(repeat(self._take_on), name="task-engine")

    def wake(self) -> None:
        """Tell that a task may be due."""
        self._wake.set()

    async def stop(self, grace: float) -> None:
        """Finish what is running within `grace` seconds; what is cut off is tried again by the next process."""
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.gather(self._loop, return_exceptions=True)
        if self._runs:
            await asyncio.wait(self._runs, timeout=max(0.0, grace))
        for run in self._runs:
            run.cancel()
        await asyncio.gather(*self._runs, return_exceptions=True)

    async def _take_on(self) -> None:
        """Begin as many tasks as there is room for, then rest until something changes."""
        free = self._settings.task_slots - len(self._runs) - self._threads.abandoned
        self._wake.clear()
        tasks = await self._lease(free) if free > 0 else []
        for task in tasks:
            begun = asyncio.create_task(self._work(task))
            self._runs.add(begun)
            begun.add_done_callback(self._finished)
        if len(tasks) < free or free <= 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(await self._rest(free)):
                    await self._wake.wait()

    async def _rest(self, free: int) -> float:
        """Seconds to rest at most: until the next task is due, if there is room for it."""
        due = await queries.next_task_due(self._store.database, self._registry.local()) if free > 0 else None
        return POLL_INTERVAL if due is None else min(POLL_INTERVAL, max(MIN_REST, due))

    def _finished(self, run: asyncio.Task[None]) -> None:
        self._runs.discard(run)
        self._wake.set()

    async def _lease(self, limit: int) -> list[LeasedTask]:
        claim = TaskClaim(types=self._registry.local(), limit=limit)
        lease = asyncio.ensure_future(self._store.lease_tasks(claim))
        try:
            return await asyncio.shield(lease)
        except asyncio.CancelledError:
            # Stopped while the lease was being committed: give back what it brought.
            for task in await lease:
                await self._store.release_task(TaskRelease(task_id=task.id, attempt=task.attempt))
            raise

    async def _work(self, task: LeasedTask) -> None:
        """Run a leased task and store what came of it."""
        processor = self._registry.get(task.type)
        try:
            if processor is None:
                raise LookupError("a task was leased that has no processor")
            report = await run(
                task,
                processor,
                threads=self._threads,
                processes=self._processes,
                source=self._settings.event_source,
                max_result=self._settings.max_body,
            )
        except Exception:
            log.exception("task_failed_inside", task=task.id)
            report = TaskReport(task_id=task.id, attempt=task.attempt, retry_in=FAULT_DELAY)
        settled = await self._finish(report)
        if settled is not None:
            log.info("task", task=task.id, type=task.type, attempt=task.attempt, state=str(settled.state))
            if settled.state is not TaskState.QUEUED:
                metrics.tasks_finished.labels(settled.state).inc()

    async def _finish(self, report: TaskReport) -> TaskSettled | None:
        async for attempt in AsyncRetrying(
            retry=retry_if_exception_type(StoreUnavailable),
            wait=wait_random_exponential(multiplier=0.1, max=5),
        ):
            with attempt:
                try:
                    return await self._store.finish_task(report)
                except LeaseLost:
                    log.warning("task_lease_lost", task=report.task_id, attempt=report.attempt)
        return None


async def run(
    task: LeasedTask,
    processor: Processor,
    *,
    threads: Threads,
    processes: anyio.CapacityLimiter,
    source: str,
    max_result: int,
) -> TaskReport:
    """One try at a task: its result, its failure, or when to try again."""
    if is_poison(task):
        return give_up(task, source=source)
    try:
        payload = msgspec.json.decode(task.payload, type=processor.payload_type)
    except (msgspec.DecodeError, RecursionError) as exc:
        log.info("task_payload_unfit", task=task.id, type=task.type, error=type(exc).__name__)
        return failed(task, "the payload is not what this processor takes", source=source)
    deadline = asyncio.timeout(None)
    room = processes if processor.kind is Kind.PROCESS else contextlib.nullcontext()
    try:
        async with room, deadline:
            # Waiting for a free core does not count.
            deadline.reschedule(asyncio.get_running_loop().time() + processor.timeout)
            result = await _call(processor, payload, threads)
        content = _encode(result)
        if len(content) > max_result:
            return failed(task, f"the result is larger than {max_result} bytes", source=source)
        return report_end(task, TaskState.SUCCEEDED, content, source=source)
    except ProcessorError as exc:
        message, again = exc.message, exc.retry
    except (Exception, SystemExit, asyncio.CancelledError) as exc:
        if _is_our_stop(exc):
            raise
        again = True
        if deadline.expired() and isinstance(exc, TimeoutError):
            message = f"the processor took longer than {processor.timeout:g} s"
        else:
            message = "the processor failed"
            log.warning("processor_raised", task=task.id, type=task.type, error=type(exc).__qualname__, exc_info=True)
    if again and task.failures + 1 < processor.tries:
        return TaskReport(task_id=task.id, attempt=task.attempt, retry_in=processor.delay(task.failures + 1))
    return failed(task, message, source=source)


def _is_our_stop(error: BaseException) -> bool:
    """Whether we are being stopped. A processor may let a cancellation of its own escape; that is a failed try."""
    current = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and current is not None and current.cancelling() > 0


async def _call(processor: Processor, payload: Any, threads: Threads) -> Any:
    function = processor.function
    if function is None:
        raise LookupError("an external processor cannot be called")
    if processor.kind is Kind.ASYNC:
        return await function(payload)
    if processor.kind is Kind.PROCESS:
        # The caller has made room for it already.
        room = anyio.CapacityLimiter(1)
        return await anyio.to_process.run_sync(function, payload, cancellable=True, limiter=room)
    return await threads.call(function, payload)


def is_poison(task: LeasedTask) -> bool:
    """Whether its lease was lost so often that the processor may be what ends our processes."""
    return task.interruptions >= POISON_AFTER


def give_up(task: LeasedTask, *, source: str, account: str | None = None, remote: bool = False) -> TaskReport:
    """The report of a task that is poison."""
    error = _encode({"message": "the task was interrupted too often"})
    return report_end(task, TaskState.FAILED, error, source=source, account=account, remote=remote)


def failed(task: LeasedTask, message: str, *, source: str) -> TaskReport:
    """The report of a task that is given up: the caller is answered all the same."""
    return report_end(task, TaskState.FAILED, _encode({"message": message}), source=source)


def report_end(
    task: LeasedTask,
    state: TaskState,
    content: bytes,
    *,
    source: str,
    account: str | None = None,
    remote: bool = False,
) -> TaskReport:
    """The report of a task that has ended, with the exact bytes to deliver. `content` is JSON."""
    message = Message(
        wire_id=task.delivery_id,
        type=task.type,
        payload=content,
        created_at_ms=time.time_ns() // 1_000_000,
        task_id=task.id,
        status=state,
    )
    return TaskReport(
        task_id=task.id,
        attempt=task.attempt,
        account=account,
        remote=remote,
        state=state,
        body=compose(task.body_mode, message, source=source),
        error=content if state is TaskState.FAILED else None,
    )
