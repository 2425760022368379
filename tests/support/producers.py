"""Publishers of events that do not give up: each event is sent again, under its own id, until it is answered 202."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import httpx

from tests.support.api import Json
from tests.support.patience import PATIENCE
from tests.support.server import NO_TLS, Server

#: seconds before a request is tried again
PAUSE = 0.02


class Producers:
    """Threads that each publish their events one after the other, while the dispatcher comes and goes."""

    def __init__(self, server: Server, work: Sequence[Sequence[Json]], *, pause: float = 0.0) -> None:
        self._server = server
        self._authorization = dict(server.authorization)
        self._pause = pause
        self._stopping = False
        self._threads = [threading.Thread(target=self._produce, args=(events,), daemon=True) for events in work]
        #: ids of events that were answered 202, by thread, in order
        self.accepted: list[list[str]] = [[] for _ in work]
        #: what should not have happened
        self.faults: list[str] = []
        self._numbers = {thread: number for number, thread in enumerate(self._threads)}

    @property
    def count(self) -> int:
        """How many were answered 202."""
        return sum(map(len, self.accepted))

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._stopping = True
        for thread in self._threads:
            thread.join(PATIENCE)

    def join(self) -> None:
        """Wait until all events were answered 202."""
        end = time.monotonic() + PATIENCE
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
            assert not thread.is_alive(), f"{self.count} events were accepted within {PATIENCE} s"
        assert not self.faults, self.faults[:5]

    def _produce(self, events: Sequence[Json]) -> None:
        accepted = self.accepted[self._numbers[threading.current_thread()]]
        with httpx.Client(timeout=20, trust_env=False, verify=NO_TLS) as http:
            for event in events:
                while not self._stopping and not self._try(http, event, accepted):
                    time.sleep(PAUSE)
                time.sleep(self._pause)

    def _try(self, http: httpx.Client, event: Json, accepted: list[str]) -> bool:
        try:
            answer = http.post(f"{self._server.url}/events", json=event, headers=self._authorization)
        except httpx.TransportError:
            return False
        if answer.status_code == 202:
            accepted.append(answer.json()["id"])
        else:
            self.faults.append(f"{answer.status_code}: {answer.text[:200]}")
        return True
