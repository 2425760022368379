"""Clients that do not give up: each request is sent again, under its idempotency key, until it is answered 202."""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import dataclass

import httpx

from tests.e2e.crash.orders import Happening, Order, Submission
from tests.support.patience import PATIENCE
from tests.support.server import NO_TLS

#: seconds before a request is tried again
PAUSE = 0.02


@dataclass(frozen=True, kw_only=True)
class Accepted:
    """A task that was answered 202."""

    task_id: str
    delivery_id: str
    order: Order


class Clients:
    """Threads that take submissions from one queue. `connect()` tells them where the dispatcher is now."""

    def __init__(self, number: int) -> None:
        self._waiting: queue.SimpleQueue[Submission | None] = queue.SimpleQueue()
        self._changed = threading.Condition()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(number)]
        self._server: tuple[str, dict[str, str]] | None = None
        self._ended = False
        self._open = 0
        #: by delivery
        self.accepted: dict[str, Accepted] = {}
        #: events that were answered 202
        self.published: dict[str, Happening] = {}
        self.requests = 0
        #: requests whose connection broke before an answer
        self.unanswered = 0
        #: 202s that repeated the answer to an earlier request, which had got lost
        self.replayed = 0
        #: what should not have happened
        self.faults: list[str] = []

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        for _thread in self._threads:
            self._waiting.put(None)
        for thread in self._threads:
            thread.join(PATIENCE)

    def submit(self, submissions: list[Submission]) -> None:
        """Give them more to do."""
        with self._changed:
            self._open += len(submissions)
        for submission in submissions:
            self._waiting.put(submission)

    def connect(self, url: str, headers: dict[str, str]) -> None:
        """A dispatcher is up."""
        with self._changed:
            self._server = (url, headers)
            self._changed.notify_all()

    def disconnect(self) -> None:
        """It is down."""
        with self._changed:
            self._server = None

    def wait_until_answered(self) -> None:
        """Wait until every submission was answered 202."""
        with self._changed:
            done = self._changed.wait_for(lambda: self._open == 0 or self.faults, PATIENCE)
        assert not self.faults, self.faults[:5]
        assert done, f"{self._open} requests were not answered within {PATIENCE} s"

    def _work(self) -> None:
        with httpx.Client(timeout=20, trust_env=False, verify=NO_TLS) as http:
            while (submission := self._waiting.get()) is not None:
                while not self._try(http, submission):
                    if self._ended:
                        return
                    time.sleep(PAUSE)

    def _try(self, http: httpx.Client, submission: Submission) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._server is not None or self._ended)
            if self._server is None:
                return False
            url, headers = self._server
        try:
            answer = http.post(
                url + submission.route,
                content=submission.body,
                headers={**headers, "Idempotency-Key": submission.key},
            )
        except httpx.ConnectError:
            return False
        except httpx.TransportError:
            with self._changed:
                self.unanswered += 1
            return False
        with self._changed:
            self._note(submission, answer)
            self._changed.notify_all()
        return True

    def _note(self, submission: Submission, answer: httpx.Response) -> None:
        self._open -= 1
        self.requests += 1
        self.replayed += "Idempotency-Replayed" in answer.headers
        if answer.status_code != 202:
            self.faults.append(f"{submission.route} was answered {answer.status_code}: {answer.text[:200]}")
            return
        content = answer.json()
        if submission.happening is not None:
            if content["id"] in self.published or content["deliveries"] != submission.happening.subscribers:
                self.faults.append(f"published twice, or not to all: {content}")
            self.published[content["id"]] = submission.happening
            return
        tasks = [content] if submission.route == "/tasks" else [item.get("task", {}) for item in content["items"]]
        for task, order in zip(tasks, submission.orders, strict=True):
            if task.get("delivery_id", "") in {"", *self.accepted}:
                self.faults.append(f"not accepted, or accepted twice: {task}")
                return
            accepted = Accepted(task_id=task["id"], delivery_id=task["delivery_id"], order=order)
            self.accepted[accepted.delivery_id] = accepted
