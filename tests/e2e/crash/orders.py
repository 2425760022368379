"""What the crash test asks for, and what must come of it, byte for byte."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

from tests.e2e.crash.processors import digest

#: JSON that no parser gives back as it was: `relay` must deliver it unread
ODD = '{"number" : %d, "a":1e400, "a":\t18446744073709551616, "text":"\\u00e9\\/", "pad":"%s"}'
#: bytes of padding; most payloads are small
PADDING = (0, 10, 200, 2_000, 40_000)
PADDING_WEIGHTS = (30, 40, 20, 9, 1)


@dataclass(frozen=True, kw_only=True)
class Order:
    """One task."""

    type: str
    body_mode: str
    payload: str
    #: where its result must come to
    origin: str
    path: str

    @property
    def request(self) -> str:
        """Its JSON in a request."""
        fields = json.dumps({"type": self.type, "body": self.body_mode, "callback_url": self.origin + self.path})
        return f'{fields[:-1]}, "payload": {self.payload}}}'

    def is_answered_by(self, body: bytes, task_id: str) -> bool:
        """Whether a body is what has to be delivered."""
        if self.type == "relay":
            return body == self.payload.encode()
        result = digest(json.loads(self.payload))
        if self.body_mode == "raw":
            return body == json.dumps(result, separators=(",", ":")).encode()
        answer = json.loads(body)
        completed = answer.pop("completed_at", "")
        wanted = {"task_id": task_id, "type": self.type, "status": "succeeded", "result": result}
        return completed.endswith("Z") and bool(answer == wanted)


@dataclass(frozen=True, kw_only=True)
class Happening:
    """One event."""

    type: str
    payload: str
    #: subscriptions that want it
    subscribers: int

    @property
    def request(self) -> str:
        """Its JSON in a request."""
        return f'{{"type": "{self.type}", "payload": {self.payload}}}'


@dataclass(frozen=True, kw_only=True)
class Submission:
    """One request to the API."""

    route: str
    key: str
    orders: tuple[Order, ...] = ()
    happening: Happening | None = None

    @property
    def body(self) -> bytes:
        """Its bytes: the same ones each time it is tried."""
        if self.happening is not None:
            return self.happening.request.encode()
        if self.route == "/tasks":
            return self.orders[0].request.encode()
        return f'{{"tasks": [{", ".join(order.request for order in self.orders)}]}}'.encode()


class OrderBook:
    """Makes orders, the same ones for the same seed."""

    def __init__(self, seed: int, origins: Sequence[str]) -> None:
        self._random = random.Random(seed)
        self._origins = origins
        self._numbers = count()

    def submissions(self, *, single: int, batches: int, in_batch: int) -> list[Submission]:
        """So many single tasks, and batches of so many. A third of them is work for a processor."""
        made = [self._submission("/tasks", 1) for _ in range(single)]
        for _ in range(batches):
            made.insert(self._random.randrange(len(made) + 1), self._submission("/tasks/batch", in_batch))
        return made

    def happenings(self, type_: str, number: int, *, subscribers: int) -> list[Submission]:
        """So many events of a type."""
        return [
            Submission(
                route="/events",
                key=f"{self._random.getrandbits(128):032x}",
                happening=Happening(
                    type=type_,
                    payload=ODD % (next(self._numbers), "x" * self._random.choices(PADDING, PADDING_WEIGHTS)[0]),
                    subscribers=subscribers,
                ),
            )
            for _ in range(number)
        ]

    def _submission(self, route: str, tasks: int) -> Submission:
        return Submission(
            route=route, key=f"{self._random.getrandbits(128):032x}", orders=tuple(self._order() for _ in range(tasks))
        )

    def _order(self) -> Order:
        number = next(self._numbers)
        pad = "x" * self._random.choices(PADDING, PADDING_WEIGHTS)[0]
        kind = self._random.choice(("relay", "relay", "relay", "relay", "crash.async", "crash.thread"))
        relayed = kind == "relay"
        return Order(
            type=kind,
            body_mode="raw" if relayed else self._random.choice(("raw", "envelope")),
            payload=ODD % (number, pad) if relayed else json.dumps({"number": number, "text": pad}),
            origin=self._random.choice(self._origins),
            path=f"/results/{number}/{self._random.getrandbits(128):032x}",
        )
