"""Subscriptions end to end: receivers that follow a script, and what tests wait for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, repeat
from typing import Any

import httpx

from tests.support.api import LIVE, Json
from tests.support.patience import PATIENCE
from tests.support.receiver import Answerer, Received, Reply
from tests.support.server import until
from tests.support.subscribers import PATH, subscription

PING = "webhook.ping"

#: an answer, or what makes it when it is asked for
Line = Reply | Callable[[], Reply]

#: the connection is closed, and nothing was answered
NO_BYTE = Reply(raw=b"")


def is_ping(request: Received) -> bool:
    """Whether a request asks only if the endpoint is there."""
    return request.header("X-Webhook-Event") == PING


class Script:
    """What a receiver answers, by path: the lines of a script in order, the last one for ever; pings by themselves.

    A request that gets no byte is sent once more if its connection was a kept one; it then gets no byte again.
    """

    def __init__(self, default: Answerer | None = None) -> None:
        self._default = default or (lambda _request: Reply())
        self._lines: dict[str, Iterator[Line]] = {}
        #: attempts that got no byte
        self._unanswered: set[tuple[str, int]] = set()
        #: what pings are answered, by path; 200 where nothing is said
        self.pings: dict[str, Reply] = {}

    def write(self, path: str, *lines: Line) -> None:
        """Answer so, from now on."""
        self._lines[path] = chain(lines, repeat(lines[-1]))

    def __call__(self, request: Received) -> Any:
        """The next answer."""
        if is_ping(request):
            return self.pings.get(request.target) or Reply()
        lines = self._lines.get(request.target)
        if lines is None:
            return self._default(request)
        attempt = (request.delivery, request.attempt)
        if attempt in self._unanswered:
            self._unanswered.discard(attempt)
            return NO_BYTE
        line = next(lines)
        if line == NO_BYTE:
            self._unanswered.add(attempt)
        return line if isinstance(line, Reply) else line()


def messages(requests: Iterable[Received], path: str | None = None) -> list[Received]:
    """Requests that are no pings; of one path, if it is named."""
    return [one for one in requests if not is_ping(one) and (path is None or one.target == path)]


def enable(client: httpx.Client, subscription_id: str, **body: Any) -> httpx.Response:
    """Ask for a subscription to be enabled."""
    return client.post(f"{PATH}/{subscription_id}/enable", json=body)


def disable(client: httpx.Client, subscription_id: str) -> None:
    """Disable a subscription by hand."""
    answer = client.post(f"{PATH}/{subscription_id}/disable")
    assert answer.status_code == 200, answer.text


def disabled(client: httpx.Client, subscription_id: str, *, within: float = PATIENCE) -> Json:
    """Wait until a subscription is disabled, and nothing of it is under way any more."""

    def is_at_rest() -> Json | None:
        found = subscription(client, subscription_id)
        moving = [item for state in ("pending", "leased") for item in deliveries(client, subscription_id, state=state)]
        return None if found["is_active"] or moving else found

    found: Json = until(is_at_rest, within=within)
    return found


def reason_of(found: Json) -> str | None:
    """Why a subscription is disabled; None while it is active."""
    assert found["is_active"] == (found["disabled"] is None)
    return None if found["disabled"] is None else str(found["disabled"]["reason"])


def deliveries(client: httpx.Client, subscription_id: str, **query: Any) -> list[Json]:
    """A subscription's messages, the oldest first; of many, the newest 200."""
    answer = client.get(f"{PATH}/{subscription_id}/deliveries", params={"limit": 200, **query})
    assert answer.status_code == 200, answer.text
    return [item for item in reversed(answer.json()["items"]) if item["kind"] == "message"]


def ledger(client: httpx.Client) -> dict[str, int]:
    """What an account's ledger counts; it reconciles, whenever one looks."""
    counts: dict[str, int] = client.get("/ledger").json()
    assert counts.pop("reconciles") is True, counts
    return counts


def at_rest(client: httpx.Client, *, within: float = PATIENCE, held: bool = False) -> dict[str, int]:
    """Wait until an account has nothing that can still move, but for what is held if that is said; its ledger."""
    states = LIVE - {"held"} if held else LIVE

    def found() -> dict[str, int] | None:
        counts = ledger(client)
        return None if any(counts[state] for state in states) else counts

    counts: dict[str, int] = until(found, within=within)
    return counts


def publish_many(client: httpx.Client, events: Sequence[Json]) -> list[Json]:
    """Publish events by as few requests as possible; what each was answered."""
    published: list[Json] = []
    for start in range(0, len(events), 1000):
        answer = client.post("/events/batch", json={"events": list(events[start : start + 1000])})
        assert answer.status_code == 202, answer.text
        items = answer.json()["items"]
        assert {item["status"] for item in items} == {202}, items
        published += [item["event"] for item in items]
    return published
