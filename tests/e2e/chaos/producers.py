"""Producers: they ask for tasks and publish events, each request again with its key until it is answered.

What they were answered is one side of the books. An order is one delivery that was promised to them.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx

from tests.e2e.chaos.waiting import surely
from tests.support.server import NO_TLS

#: what receivers see of a delivery: the path that it came to, and the number in its body
Order = tuple[str, int]

#: events by type, and the paths of the subscriptions that want them
NEWS, LINE, KEYED = "news", "line", "keyed"
#: events of one `ordering_key` keep their order
KEYS = 6
#: hours until the window of a callback ends, where it has one: further off than clocks are here, and nearer
WINDOW = 2
#: deliveries in a second that do not come in batches
ONE_BY_ONE = 33
#: deliveries that wait, from which on nothing comes in batches
MOST_WAITING = 3000
#: seconds until a request is given up, and made again
TIMEOUT = 10.0
#: seconds until each has an answer once nothing goes wrong any more
ANSWERED_WITHIN = 120.0


@dataclass(frozen=True, kw_only=True)
class Subscribed:
    """A subscription, as those know it who made it."""

    id: str
    path: str
    port: int
    type: str
    ordering: str


@dataclass(kw_only=True)
class Answers:
    """What producers were answered so far."""

    #: every order that was answered 202, with the delivery's id where that is known
    accepted: dict[Order, str | None] = field(default_factory=dict)
    #: deliveries that the answers speak of
    deliveries: int = 0
    #: requests that were answered 202; those among them that were answered before
    requests: int = 0
    replayed: int = 0
    #: answers 503, and requests that broke off
    refused: int = 0
    broken: int = 0
    #: answers that there should not be
    wrong: list[str] = field(default_factory=list)
    #: monotonic time at which the latest began of those that were answered 202
    latest: float = 0.0


class Producers:
    """Work at a steady rate, until told to pause or stop."""

    def __init__(
        self,
        url: str,
        token: str,
        *,
        origins: Sequence[str],
        subscriptions: Sequence[Subscribed],
        rate: float,
        taken: Callable[[], int],
        seed: str,
    ) -> None:
        self._url = url
        self._headers = {"Authorization": f"Bearer {token}"}
        self._origins = origins
        self._wanted = {kind: [one.path for one in subscriptions if one.type == kind] for kind in (NEWS, LINE, KEYED)}
        self._ordered = {
            kind: [one.path for one in subscriptions if one.type == kind and one.ordering != "none"]
            for kind in (LINE, KEYED)
        }
        self._taken = taken
        self._dice = random.Random(seed)
        self._numbers = iter(range(1 << 40))
        self._may_go = asyncio.Event()
        self._stopping = False
        self._busy = 0
        self._tasks: list[asyncio.Task[None]] = []
        #: most tasks in a batch, one a second: on average half of them; and half as many events, for two each
        self._in_batch = max(2, min(1000, round(rate - ONE_BY_ONE)))
        self.answers = Answers()
        #: numbers of events whose order is kept, by path and key, as they were accepted
        self.lines: dict[tuple[str, str], list[int]] = {}

    def start(self) -> None:
        """Begin. What comes one by one is always the same; the rest of the rate comes in batches, half of it tasks."""
        self._may_go.set()
        self._tasks = [
            asyncio.create_task(work)
            for work in (
                self._repeat(self._one_task, 4),
                self._repeat(self._one_task, 4),
                self._repeat(self._batch_of_tasks, 1),
                self._repeat(self._news, 4),
                self._repeat(self._batch_of_news, 1),
                # In a line one waits for the other.
                self._repeat(self._line, 2.5),
                self._repeat(self._keyed, 6),
            )
        ]

    async def pause(self) -> None:
        """Ask for nothing more, until `go_on`; returns when all that was asked for is answered."""
        self._may_go.clear()
        await surely(lambda: not self._busy, within=ANSWERED_WITHIN)

    def go_on(self) -> None:
        """Begin again."""
        self._may_go.set()

    async def stop(self) -> None:
        """End."""
        self._stopping = True
        self._may_go.set()
        await asyncio.gather(*self._tasks)

    # --- what they ask for --------------------------------------------------------------------------------

    async def _repeat(self, make: Any, rate: float) -> None:
        async with httpx.AsyncClient(timeout=TIMEOUT, trust_env=False, verify=NO_TLS, headers=self._headers) as http:
            due = time.monotonic()
            while True:
                await self._may_go.wait()
                if self._stopping:
                    return
                self._busy += 1
                try:
                    await make(http)
                finally:
                    self._busy -= 1
                # What was missed while the dispatcher was away is not caught up with.
                due = max(due + self._dice.uniform(0.5, 1.5) / rate, time.monotonic())
                await asyncio.sleep(due - time.monotonic())

    def _task(self) -> tuple[Order, str]:
        n = next(self._numbers)
        path = f"/t/{n}"
        fields: dict[str, Any] = {"callback_url": self._dice.choice(self._origins) + path}
        if self._dice.random() < 0.2:
            fields["type"] = "chaos.work"
        if self._dice.random() < 0.1:
            fields["deliver_before"] = (datetime.now(UTC) + timedelta(hours=WINDOW)).isoformat()
        return (path, n), f'{json.dumps(fields)[:-1]}, "payload": {payload(n)}}}'

    def _event(self, kind: str, n: int, key: str | None = None) -> str:
        ordering = "" if key is None else f', "ordering_key": "{key}"'
        return f'{{"type": "{kind}", "payload": {payload(n)}{ordering}}}'

    async def _one_task(self, http: httpx.AsyncClient) -> None:
        order, body = self._task()
        answer = await self._ask(http, "/tasks", body)
        self._note_task(order, answer)

    async def _batch_of_tasks(self, http: httpx.AsyncClient) -> None:
        if self._is_far_ahead():
            return
        made = [self._task() for _ in range(self._dice.randint(1, self._in_batch))]
        answer = await self._ask(http, "/tasks/batch", f'{{"tasks": [{",".join(body for _, body in made)}]}}')
        for (order, _), item in zip(made, answer["items"], strict=True):
            self._note_task(order, item["task"] if item["status"] == 202 else item)

    def _is_far_ahead(self) -> bool:
        """Whether so much waits to be delivered that more of it would show nothing new."""
        return self.answers.deliveries - self._taken() > MOST_WAITING

    def _note_task(self, order: Order, answer: Any) -> None:
        if "delivery_id" not in answer:
            self.answers.wrong.append(f"{order}: {answer}")
            return
        self.answers.accepted[order] = answer["delivery_id"]
        self.answers.deliveries += 1

    async def _news(self, http: httpx.AsyncClient) -> None:
        n = next(self._numbers)
        self._note_event(NEWS, n, await self._ask(http, "/events", self._event(NEWS, n)))

    async def _batch_of_news(self, http: httpx.AsyncClient) -> None:
        if self._is_far_ahead():
            return
        numbers = [next(self._numbers) for _ in range(self._dice.randint(1, max(1, self._in_batch // 2)))]
        body = f'{{"events": [{",".join(self._event(NEWS, n) for n in numbers)}]}}'
        answer = await self._ask(http, "/events/batch", body)
        for n, item in zip(numbers, answer["items"], strict=True):
            self._note_event(NEWS, n, item["event"] if item["status"] == 202 else item)

    async def _line(self, http: httpx.AsyncClient) -> None:
        n = next(self._numbers)
        for path in self._ordered[LINE]:
            self.lines.setdefault((path, ""), []).append(n)
        self._note_event(LINE, n, await self._ask(http, "/events", self._event(LINE, n)))

    async def _keyed(self, http: httpx.AsyncClient) -> None:
        n = next(self._numbers)
        key = f"k{self._dice.randrange(KEYS)}"
        for path in self._ordered[KEYED]:
            self.lines.setdefault((path, key), []).append(n)
        self._note_event(KEYED, n, await self._ask(http, "/events", self._event(KEYED, n, key)))

    def _note_event(self, kind: str, n: int, answer: Any) -> None:
        wanted = self._wanted[kind]
        if answer.get("deliveries") != len(wanted) or answer["skipped"]:
            self.answers.wrong.append(f"{kind} {n}: {answer}")
            return
        self.answers.deliveries += len(wanted)
        self.answers.accepted.update({(path, n): None for path in wanted})

    # --- until it is answered -----------------------------------------------------------------------------

    async def _ask(self, http: httpx.AsyncClient, route: str, body: str) -> Any:
        headers = {"Idempotency-Key": f"{self._dice.getrandbits(128):032x}"}
        while True:
            began = time.monotonic()
            try:
                answer = await http.post(self._url + route, content=body.encode(), headers=headers)
            except httpx.TransportError:
                self.answers.broken += 1
                await asyncio.sleep(0.2)
                continue
            if answer.status_code == 503:
                self.answers.refused += 1
                # It says for how long; here impatience is wanted.
                await asyncio.sleep(0.3)
                continue
            if answer.status_code != 202:
                self.answers.wrong.append(f"{route}: {answer.status_code} {answer.text[:300]}")
                return {"items": []}
            self.answers.requests += 1
            self.answers.replayed += "Idempotency-Replayed" in answer.headers
            self.answers.latest = max(self.answers.latest, began)
            return answer.json()


def payload(n: int) -> str:
    """The bytes of a payload; some are long."""
    return f'{{"n" : {n}, "pad":"{"x" * (4000 if n % 50 == 0 else n % 200)}"}}'


def number_of(path: str, body: bytes) -> int | None:
    """Which payload a body carries: as it was, or as the result of its task. None if it is neither."""
    read = json.loads(body)
    if "n" in read:
        n = int(read["n"])
        return n if body == payload(n).encode() else None
    result = read.get("result") or {}
    return int(result["n"]) if path == f"/t/{result.get('n')}" and read["status"] == "succeeded" else None
