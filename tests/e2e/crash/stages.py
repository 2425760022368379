"""The moments at which the crash test ends the dispatcher, and how they are reached from outside.

Production code knows nothing of this: `wrap` puts a watcher around methods and functions of the dispatcher before it
starts. A fuse counts how often its stage is passed; at the chosen passage it leaves a witness on disk and sends
SIGKILL to its own process.
"""

from __future__ import annotations

import asyncio
import json
import mmap
import os
import random
import signal
import struct
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from enum import StrEnum
from pathlib import Path
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from dispatcher.delivery.connection import Connection
from dispatcher.delivery.engine import Engine
from dispatcher.delivery.http1_transport import Http1Transport
from dispatcher.delivery.sender import Attempt, Sender
from dispatcher.delivery.transport import Response
from dispatcher.store import Store, intake, publishing, settling, upkeep, work
from dispatcher.store.database import Database

#: environment of the launcher: the stage, at which passage of it to die, where to leave the witness and the gauge
STAGE, COUNT, WITNESS, GAUGE = "CRASH_STAGE", "CRASH_COUNT", "CRASH_WITNESS", "CRASH_GAUGE"
#: and, where it is set, that PostgreSQL's process for the transaction at hand is stopped first (SIGSTOP): it keeps its
#: locks, and does not notice that we are gone
FREEZE = "CRASH_FREEZE"

#: seconds within which a commit is under way
COMMIT_TAKES = 0.002


class Stage(StrEnum):
    """Where the process can be made to die."""

    #: the keyring's file was made, and nothing is in it yet
    KEYRING = "keyring"
    #: the tables were made, and their COMMIT was not issued
    INSTALLING = "installing"
    #: at a start, what the process before left is freed, and the COMMIT was not issued
    REAPING = "reaping"
    #: the rows of accepted tasks are inserted, and COMMIT was not issued
    INSERTED = "before commit"
    #: that COMMIT is being executed: nobody can say how it ends
    COMMITTING = "in commit"
    #: it is on disk, and the 202 was not written
    ACCEPTED = "before 202"
    #: a lease of deliveries was committed, and nothing was done with it
    LEASED = "leased"
    #: the connection to the receiver is open, and nothing was written
    CONNECTED = "connected"
    #: the request is gone, and nothing of an answer was read
    SENT = "sent"
    #: the answer was read
    ANSWERED = "answered"
    #: what came of it is about to be written
    SETTLE = "before settle"
    #: it is written, and COMMIT was not issued
    SETTLING = "before settle's commit"
    #: it is on disk, and nobody was told
    SETTLED = "settled"
    #: a lease of tasks was committed, and no processor was called
    TASK_LEASED = "task leased"
    #: a processor has its result
    TASK_DONE = "task computed"
    #: the result is written, and COMMIT was not issued
    TASK_SETTLING = "before result's commit"
    #: the result is on disk, and its delivery was not woken
    TASK_SETTLED = "task settled"
    #: the rows of accepted events are inserted, with deliveries or with whom they are for, and COMMIT was not issued
    PUBLISHING = "before event's commit"
    #: they are on disk, and the 202 was not written
    PUBLISHED = "before event's 202"
    #: a step of a fan-out is written, and COMMIT was not issued
    FANNING_OUT = "before fan-out's commit"
    #: it is on disk, and nobody was woken
    FANNED_OUT = "fanned out"


class Fuse:
    """Ends this process at the n-th passage of a stage."""

    def __init__(self, stage: Stage | None, count: int, witness: Path) -> None:
        self._stage = stage
        self._left = count
        self._witness = witness
        #: PostgreSQL's process that is to be stopped first
        self.backend: int | None = None

    @classmethod
    def from_environment(cls) -> Fuse:
        """The fuse that the test asked for; without a stage it never burns."""
        stage = os.environ.get(STAGE)
        return cls(Stage(stage) if stage else None, int(os.environ.get(COUNT, "1")), Path(os.environ[WITNESS]))

    def passes(self, stage: Stage, *, within: float = 0.0, **seen: object) -> None:
        """A stage is passed. `seen` is what the test may check; `within` lets the process run on for a moment."""
        if stage is not self._stage:
            return
        self._left -= 1
        if self._left == 0:
            self._witness.write_text(json.dumps({"stage": stage, "backend": self.backend, **seen}))
            if self.backend is not None:
                os.kill(self.backend, signal.SIGSTOP)
            if within:
                threading.Thread(target=_die_within, args=(within,)).start()
            else:
                os.kill(os.getpid(), signal.SIGKILL)


def _die_within(seconds: float) -> None:
    time.sleep(random.uniform(0, seconds))
    os.kill(os.getpid(), signal.SIGKILL)


class Gauge:
    """How many deliveries are between the start of their request and the end of their settle. It outlives us."""

    def __init__(self, file: Path) -> None:
        file.write_bytes(bytes(8))
        with file.open("r+b") as opened:
            self._shared = mmap.mmap(opened.fileno(), 8)
        self._number = 0

    def add(self, change: int) -> None:
        """Count up or down."""
        self._number += change
        struct.pack_into("q", self._shared, 0, self._number)

    @staticmethod
    def read(file: Path) -> int:
        """What the last process left."""
        number: int = struct.unpack("q", file.read_bytes())[0]
        return number


def wrap(owner: object, name: str, around: Callable[[Any], Any]) -> None:
    """Replace a method of a class, or a function of a module, by what `around` makes of it."""
    setattr(owner, name, around(getattr(owner, name)))


def install(fuse: Fuse, gauge: Gauge) -> None:
    """Put the watchers in place."""
    _watch_start(fuse)
    _watch_transactions(fuse)
    _watch_store(fuse)
    _watch_sends(fuse, gauge)


def _watch_start(fuse: Fuse) -> None:
    def fdopen(original: Any) -> Any:
        def watched(*args: Any, **kwargs: Any) -> Any:
            fuse.passes(Stage.KEYRING)
            return original(*args, **kwargs)

        return watched

    # The keyring is the only file that is written this way.
    wrap(os, "fdopen", fdopen)


def _watch_transactions(fuse: Fuse) -> None:
    """Stages that lie between the last statement of a transaction and its COMMIT."""
    written: list[tuple[Stage, dict[str, object]]] = []

    def write(original: Any) -> Any:
        @asynccontextmanager
        async def watched(self: Database, held: AsyncConnection | None = None) -> AsyncIterator[Any]:
            async with original(self, held) as connection:
                written.clear()
                yield connection
                if FREEZE in os.environ:
                    fuse.backend = (await connection.get_raw_connection()).driver_connection.get_server_pid()
                fuse.passes(Stage.INSTALLING)
                for stage, seen in written:
                    fuse.passes(stage, within=COMMIT_TAKES if stage is Stage.COMMITTING else 0.0, **seen)

        return watched

    def accept(original: Any) -> Any:
        async def watched(tx: Any, requests: Sequence[Any]) -> Any:
            answers = await original(tx, requests)
            fresh = [request for request, answer in zip(requests, answers, strict=True) if answer is None]
            if fresh:
                tasks = [row.task[0] for request in fresh for row in request.rows]
                written.extend((stage, {"tasks": tasks}) for stage in (Stage.INSERTED, Stage.COMMITTING))
            return answers

        return watched

    def settle(original: Any) -> Any:
        async def watched(tx: Any, reports: Sequence[Any]) -> Any:
            answers = await original(tx, reports)
            sent = [(report.delivery_id, report.attempt) for report in reports]
            written.append((Stage.SETTLING, {"deliveries": sent}))
            return answers

        return watched

    def finish(original: Any) -> Any:
        async def watched(tx: Any, reports: Sequence[Any]) -> Any:
            answers = await original(tx, reports)
            written.append((Stage.TASK_SETTLING, {"tasks": [report.task_id for report in reports]}))
            return answers

        return watched

    def publish(original: Any) -> Any:
        async def watched(tx: Any, requests: Sequence[Any]) -> Any:
            answers = await original(tx, requests)
            fresh = [
                request
                for request, answer in zip(requests, answers, strict=True)
                if isinstance(answer, publishing.Accepted)
            ]
            if fresh:
                events = [one.event.id for request in fresh for one in request.publications]
                written.append((Stage.PUBLISHING, {"events": events}))
            return answers

        return watched

    def fan_out(original: Any) -> Any:
        async def watched(tx: Any, items: Sequence[Any]) -> Any:
            answers = await original(tx, items)
            if any(answer.count for answer in answers):
                written.append((Stage.FANNING_OUT, {}))
            return answers

        return watched

    def reap(original: Any) -> Any:
        async def watched(tx: Any, items: Sequence[Any]) -> Any:
            answers = await original(tx, items)
            written.append((Stage.REAPING, {}))
            return answers

        return watched

    wrap(Database, "write", write)
    wrap(intake, "accept", accept)
    wrap(publishing, "accept", publish)
    wrap(publishing, "fan_out", fan_out)
    wrap(settling, "settle", settle)
    wrap(work, "finish", finish)
    wrap(upkeep, "reap", reap)


def _watch_store(fuse: Fuse) -> None:
    """Stages that lie right before a write, or right after its commit."""

    def accept(original: Any) -> Any:
        async def watched(self: Store, tasks: Sequence[Any], **kwargs: Any) -> Any:
            replayed = await original(self, tasks, **kwargs)
            if replayed is None:
                fuse.passes(Stage.ACCEPTED, tasks=[task.id for task in tasks])
            return replayed

        return watched

    def lease(original: Any) -> Any:
        async def watched(self: Store, lanes: Any) -> Any:
            batch = await original(self, lanes)
            if batch.deliveries:
                fuse.passes(Stage.LEASED, deliveries=[(leased.id, leased.attempt) for leased in batch.deliveries])
            return batch

        return watched

    def settle(original: Any) -> Any:
        async def watched(self: Store, reports: Sequence[Any]) -> Any:
            sent = [(report.delivery_id, report.attempt) for report in reports]
            for one in sent:
                fuse.passes(Stage.SETTLE, deliveries=[one])
            settled = await original(self, reports)
            for one in sent:
                fuse.passes(Stage.SETTLED, deliveries=[one])
            return settled

        return watched

    def lease_tasks(original: Any) -> Any:
        async def watched(self: Store, claim: Any) -> Any:
            leased = await original(self, claim)
            if leased:
                fuse.passes(Stage.TASK_LEASED, tasks=[task.id for task in leased])
            return leased

        return watched

    def finish_task(original: Any) -> Any:
        async def watched(self: Store, report: Any) -> Any:
            fuse.passes(Stage.TASK_DONE, tasks=[report.task_id])
            settled = await original(self, report)
            fuse.passes(Stage.TASK_SETTLED, tasks=[report.task_id])
            return settled

        return watched

    def publish(original: Any) -> Any:
        async def watched(self: Store, publications: Sequence[Any], **kwargs: Any) -> Any:
            result = await original(self, publications, **kwargs)
            if isinstance(result, publishing.Accepted):
                fuse.passes(Stage.PUBLISHED, events=[one.event.id for one in publications])
            return result

        return watched

    def fan_out(original: Any) -> Any:
        async def watched(self: Store) -> Any:
            done = await original(self)
            if done.count:
                fuse.passes(Stage.FANNED_OUT)
            return done

        return watched

    wrap(Store, "accept", accept)
    wrap(Store, "publish", publish)
    wrap(Store, "fan_out", fan_out)
    wrap(Store, "lease", lease)
    wrap(Store, "settle", settle)
    wrap(Store, "lease_tasks", lease_tasks)
    wrap(Store, "finish_task", finish_task)


def _watch_sends(fuse: Fuse, gauge: Gauge) -> None:
    """Stages of a request, and how many requests are under way."""

    def begin(original: Any) -> Any:
        def watched(self: Sender, attempts: Sequence[Attempt]) -> None:
            gauge.add(len(attempts))
            original(self, attempts)

        return watched

    def on_made(original: Any) -> Any:
        def watched(self: Engine, attempts: Sequence[Attempt]) -> None:
            gauge.add(-sum(attempt.report is None for attempt in attempts))
            original(self, attempts)

        return watched

    def on_settled(original: Any) -> Any:
        def watched(self: Engine, *settled: Any) -> None:
            original(self, *settled)
            gauge.add(-1)

        return watched

    def open_connection(original: Any) -> Any:
        async def watched(self: Http1Transport, addresses: Any, attempt: Attempt) -> Any:
            connection = await original(self, addresses, attempt)
            fuse.passes(Stage.CONNECTED, deliveries=[sent(attempt)])
            return connection

        return watched

    def write(original: Any) -> Any:
        def watched(self: Connection, attempt: Attempt) -> None:
            original(self, attempt)
            asyncio.get_running_loop().call_soon(gone, self, attempt)

        return watched

    def gone(connection: Connection, attempt: Attempt) -> None:
        # uvloop writes at the end of a turn of the loop.
        answer = connection._answer
        if connection.exchange is not attempt or connection._is_lost or answer is None or answer.has_begun:
            return
        if connection._transport is None or connection._transport.get_write_buffer_size():
            asyncio.get_running_loop().call_soon(gone, connection, attempt)
        else:
            fuse.passes(Stage.SENT, deliveries=[sent(attempt)])

    def over(original: Any) -> Any:
        def watched(self: Attempt) -> None:
            if isinstance(self.answer, Response):
                fuse.passes(Stage.ANSWERED, deliveries=[sent(self)])
            original(self)

        return watched

    def sent(attempt: Attempt) -> tuple[str, int]:
        return attempt.delivery.id, attempt.delivery.attempt

    wrap(Sender, "begin", begin)
    wrap(Engine, "_on_made", on_made)
    wrap(Engine, "_on_settled", on_settled)
    wrap(Http1Transport, "_open", open_connection)
    wrap(Connection, "begin", write)
    wrap(Attempt, "over", over)
