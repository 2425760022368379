"""What an answer means for a callback's delivery, on real sockets: DESIGN §5, row by row.

All cases are sent at once, each to a receiver of its own, since a lane learns from what it is answered.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import chain, repeat
from typing import Any

import pytest

from tests.support.api import LIVE, Json, accept, delivery, outcomes
from tests.support.receiver import Receiver, Reply
from tests.support.server import Server, until

SCHEDULE = [0.05, 0.1, 0.2]
SEND_TIMEOUT = 1.0
EXHAUSTED = len(SCHEDULE) + 1
#: seconds that a busy machine may stand still; what is not kept waits a minute and more, or for ever
STALLED = 10.0

CUT_OFF = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this"
HALF_HEAD = b"HTTP/1.1 200 OK\r\nContent-Le"


@dataclass(frozen=True, kw_only=True)
class Case:
    """Replies in order, and what must come of them. After the last one comes 200."""

    replies: list[Reply | Callable[[], Reply]]
    state: str = "delivered"
    reason: str | None = None
    #: outcome and status of each attempt
    attempts: list[tuple[str, int | None]] = field(default_factory=list)
    #: seconds between the end of the first attempt and the second, at least and below
    pause: tuple[float, float] | None = None


def answered(status: int, *headers: tuple[str, str], body: bytes = b"") -> Reply:
    return Reply(status=status, headers=headers, body=body)


def retried(reply: Reply | Callable[[], Reply], outcome: str, status: int | None, **more: Any) -> Case:
    """One failed attempt, then a good one."""
    return Case(replies=[reply], attempts=[(outcome, status), ("success", 200)], **more)


def refused(status: int, reason: str = "rejected") -> Case:
    """One attempt, and never again."""
    return Case(replies=[answered(status)] * 9, state="rejected", reason=reason, attempts=[("http_error", status)])


def http_date(seconds: float) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


def after(value: str | Callable[[], str], status: int = 503) -> Callable[[], Reply]:
    return lambda: answered(status, ("Retry-After", value() if callable(value) else value))


#: jitter is 20 % of 0.05 s; what is above that is the machine's, up to what a Retry-After below would ask for
AT_ONCE = (0.03, 1.4)

CASES: dict[str, Case] = {
    **{
        f"{status}": Case(replies=[answered(status)], attempts=[("success", status)]) for status in (201, 202, 204, 299)
    },
    **{
        f"{status}, not followed": retried(answered(status, ("Location", "/elsewhere")), "http_error", status)
        for status in (300, 301, 302, 303, 304, 307, 308)
    },
    **{f"{status}, retried": retried(answered(status), "http_error", status) for status in (408, 423, 425, 429)},
    **{f"{status}, retried": retried(answered(status), "http_error", status) for status in (500, 502, 503, 504, 599)},
    **{f"{status}": refused(status) for status in (400, 401, 403, 404, 405, 409, 411, 413, 415, 418, 422, 431, 451)},
    "410": refused(410, "gone"),
    "the schedule's end": Case(
        replies=[answered(500)] * 9,
        state="exhausted",
        reason="schedule",
        attempts=[("http_error", 500)] * EXHAUSTED,
    ),
    "refused after failures": Case(
        replies=[answered(500), answered(503), answered(404)],
        state="rejected",
        reason="rejected",
        attempts=[("http_error", 500), ("http_error", 503), ("http_error", 404)],
    ),
    "timeout": retried(Reply(hang=True), "timeout", None),
    "slow, but in time": Case(replies=[Reply(delay=0.6)], attempts=[("success", 200)]),
    "reset": retried(Reply(raw=b""), "connection_error", None),
    "reset inside the head": retried(Reply(raw=HALF_HEAD), "connection_error", None),
    "garbage": retried(Reply(status=99_999), "protocol_error", None),
    "a body that breaks off after a 2xx": Case(replies=[Reply(raw=CUT_OFF)], attempts=[("success", 200)]),
    "abort-message": Case(
        replies=[answered(503, ("webhook-delivery", "abort-message"))],
        state="rejected",
        reason="aborted",
        attempts=[("http_error", 503)],
    ),
    "abort-message among others, any case": Case(
        replies=[answered(500, ("Webhook-Delivery", "disable, Abort-Message"))],
        state="rejected",
        reason="aborted",
        attempts=[("http_error", 500)],
    ),
    "abort-message with a 2xx": Case(
        replies=[answered(200, ("webhook-delivery", "abort-message"))], attempts=[("success", 200)]
    ),
    "another wish": retried(answered(503, ("webhook-delivery", "abort")), "http_error", 503),
    "Retry-After: 1": retried(after("1"), "http_error", 503, pause=(1.0, 3.0)),
    "Retry-After: 1, with 429": retried(after("1", 429), "http_error", 429, pause=(1.0, 3.0)),
    "Retry-After: 1, with 500": retried(after("1", 500), "http_error", 500, pause=(1.0, 3.0)),
    "Retry-After: a date": retried(after(lambda: http_date(3)), "http_error", 503, pause=(1.5, 5.0)),
    "Retry-After: 0": retried(after("0"), "http_error", 503, pause=AT_ONCE),
    "Retry-After: the past": retried(after("Wed, 21 Oct 2015 07:28:00 GMT"), "http_error", 503, pause=AT_ONCE),
    "Retry-After: negative": retried(after("-5"), "http_error", 503, pause=AT_ONCE),
    "Retry-After: garbage": retried(after("soon, please"), "http_error", 503, pause=AT_ONCE),
    "Retry-After: a fraction": retried(after("1.5"), "http_error", 503, pause=AT_ONCE),
    "Retry-After: beyond a day": Case(
        replies=[after("86401")], state="exhausted", reason="retry-after", attempts=[("http_error", 503)]
    ),
    "Retry-After: endless digits": Case(
        replies=[after("9" * 400)], state="exhausted", reason="retry-after", attempts=[("http_error", 503)]
    ),
    "Retry-After with a 4xx": Case(
        replies=[after("1", 400)], state="rejected", reason="rejected", attempts=[("http_error", 400)]
    ),
}


@dataclass(frozen=True, kw_only=True)
class Result:
    """How a case went: the delivery at its end, and what its receiver saw."""

    delivery: Json
    receiver: Receiver


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Result]]:
    settings = {"retry_schedule": str(SCHEDULE), "send_timeout": str(SEND_TIMEOUT)}

    def scripted(case: Case) -> Receiver:
        replies = chain(case.replies, repeat(Reply()))

        def answer(_request: object) -> Reply:
            reply = next(replies)
            return reply if isinstance(reply, Reply) else reply()

        return Receiver(answer)

    with (
        ExitStack() as stack,
        Server(tmp_path_factory.mktemp("answers") / "data", settings=settings) as server,
        server.client() as client,
    ):
        receivers = {name: stack.enter_context(scripted(case)) for name, case in CASES.items()}
        made = {name: accept(client, f"{receiver.url}/cb/k3yQ9x7Lm2Vb8Rt5") for name, receiver in receivers.items()}
        found: dict[str, Json] = {}
        for name, task in made.items():
            found[name] = until(
                lambda task=task: (now := delivery(client, task["delivery_id"]))["state"] not in LIVE and now,
            )
        yield {name: Result(delivery=found[name], receiver=receivers[name]) for name in CASES}


@pytest.mark.parametrize("name", CASES)
def test_an_answer_means_what_the_table_says(results: dict[str, Result], name: str) -> None:
    case, result = CASES[name], results[name]
    found = result.delivery
    assert (found["state"], found["reason"]) == (case.state, case.reason)
    numbered = [(number, *attempt) for number, attempt in enumerate(case.attempts, 1)]
    assert outcomes(found) == numbered
    requests = result.receiver.received
    assert [request.attempt for request in requests] == [number for number, *_ in numbered]
    assert {request.target for request in requests} == {"/cb/k3yQ9x7Lm2Vb8Rt5"}
    assert {request.delivery for request in requests} == {found["wire_id"]}
    check_times(found, case, [request.at for request in requests])


def check_times(found: Json, case: Case, arrivals: list[float]) -> None:
    *failed, last = found["attempts"]
    assert last["retry_at"] is None
    assert found["due_at"] is None
    assert found["finished_at"] is not None
    for attempt, following in zip(failed, found["attempts"][1:], strict=True):
        # moments are reckoned back from the commit, so they are off by as much as its statements took
        assert moment(following["started_at"]) >= moment(attempt["retry_at"]) - 2.0
        assert moment(attempt["retry_at"]) >= moment(attempt["started_at"])
    if case.pause is not None:
        first, second = found["attempts"][:2]
        waited = moment(second["started_at"]) - moment(first["started_at"]) - first["duration_ms"] / 1000
        # Where one of the two clocks was read late, the other was not.
        assert case.pause[0] - 0.3 <= max(waited, arrivals[1] - arrivals[0])
        assert waited < case.pause[1] + STALLED


def moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def test_no_answer_within_the_deadline_is_a_timeout(results: dict[str, Result]) -> None:
    [first, _] = results["timeout"].delivery["attempts"]
    assert SEND_TIMEOUT * 1000 - 10 <= first["duration_ms"] < (SEND_TIMEOUT + STALLED) * 1000
    assert first["error"]


def test_the_schedule_spaces_the_tries(results: dict[str, Result]) -> None:
    attempts = results["the schedule's end"].delivery["attempts"]
    for delay, attempt in zip(SCHEDULE, attempts, strict=False):
        waits = moment(attempt["retry_at"]) - moment(attempt["started_at"]) - attempt["duration_ms"] / 1000
        assert 0.8 * delay - 0.01 <= waits <= 1.2 * delay + STALLED


def test_a_broken_body_is_flagged(results: dict[str, Result]) -> None:
    broken = results["a body that breaks off after a 2xx"].delivery["attempts"][0]
    assert (broken["truncated"], broken["response_body"]) == (True, "only this")
    assert results["201"].delivery["attempts"][0]["truncated"] is False


def test_what_was_answered_is_kept(server: Server) -> None:
    reply = Reply(
        status=400,
        headers=(("X-Reason", "no /cb/k3yQ9x7Lm2Vb8Rt5 here"), ("Set-Cookie", "a=b")),
        body=b"got /cb/k3yQ9x7Lm2Vb8Rt5 \xff with top-secret-value " + b"x" * 5000,
    )
    with Receiver(lambda _: reply) as receiver, server.client() as client:
        made = accept(client, f"{receiver.url}/cb/k3yQ9x7Lm2Vb8Rt5", secret="top-secret-value")
        until(lambda: delivery(client, made["delivery_id"])["state"] == "rejected")
        answer = client.get(f"/deliveries/{made['delivery_id']}")
    [attempt] = answer.json()["attempts"]
    assert len(attempt["response_body"]) == 2048
    assert attempt["response_body"].startswith("got [redacted] \ufffd with [redacted] xxx")
    kept = {name.lower(): value for name, value in attempt["response_headers"]}
    assert kept["x-reason"] == "no [redacted] here"
    assert "set-cookie" not in kept
    assert set(attempt["timing"]) == {"dns", "connect", "tls", "wait", "reconnected"}
    assert attempt["timing"]["wait"] > 0
    assert not re.search("k3yQ9x7Lm2Vb8Rt5|top-secret-value", answer.text)


def test_nobody_listening_is_a_connection_error(server: Server) -> None:
    with Receiver() as receiver:
        url = receiver.url
    with server.client() as client:
        made = accept(client, url)
        found = until(lambda: (now := delivery(client, made["delivery_id"]))["state"] == "exhausted" and now)
    assert {attempt["outcome"] for attempt in found["attempts"]} == {"connection_error"}


def test_the_last_try_falls_inside_the_window(server: Server) -> None:
    """With less than half a minute left there is one try, and the delivery then expires."""
    end = (datetime.now(UTC) + timedelta(seconds=12)).isoformat()
    with Receiver(lambda _: Reply(status=500)) as receiver, server.client() as client:
        made = accept(client, receiver.url, deliver_before=end)
        found = until(lambda: (now := delivery(client, made["delivery_id"]))["state"] == "expired" and now)
        assert (found["reason"], outcomes(found)) == ("window", [(1, "http_error", 500)])
        assert client.get(f"/tasks/{made['id']}").json()["callback"]["wiped"] is True
        assert client.post(f"/deliveries/{made['delivery_id']}/redeliver").json()["type"] == "/problems/callback-wiped"
