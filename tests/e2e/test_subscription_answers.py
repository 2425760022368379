"""What an answer means for a delivery and for its subscription, on real sockets: DESIGN §5, row by row.

Each row comes with its nearest miss. All cases are sent at once, each to a subscription of its own at one receiver;
what a callback's delivery makes of the same answers is in tests/dispatcher/test_api_answers.py.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme

from tests.support.api import Json, accept, delivery, ended, in_state, outcomes, requested
from tests.support.dns import NXDOMAIN, NameServerThread
from tests.support.ledgers import change
from tests.support.patience import PATIENCE
from tests.support.receiver import Received, Receiver, Reply
from tests.support.server import Server, until
from tests.support.subscribers import PATH, publish, subscribe, subscription
from tests.support.subscriptions import (
    NO_BYTE,
    Line,
    Script,
    deliveries,
    enable,
    is_ping,
    ledger,
    messages,
    publish_many,
    reason_of,
)

#: one retry soon, and one that no test waits for
SOON, LATE = 0.05, 60.0
SCHEDULE = [SOON, LATE]
#: seconds; more than all that come at once take on a slow machine
SEND_TIMEOUT = 5.0
JITTER = 0.2
DAY = 86_400
#: seconds that a moment may be off: clocks are read before and after
MARGIN = 2.0

Attempt = tuple[str, int | None]
#: state, reason and attempts of a delivery
End = tuple[str, str | None, list[Attempt]]


@dataclass(frozen=True, kw_only=True)
class Case:
    """What an endpoint answers, and what must come of it."""

    #: what the subscription asks for
    fields: Json = field(default_factory=dict)
    #: answers in order, the last one for ever
    replies: list[Line]
    #: of each event's delivery; the next event is published when that has come about
    ends: list[End]
    #: why the subscription is disabled in the end, if it is
    disabled: str | None = None
    #: what is remembered of its endpoint
    failures: int = 0
    refusals: int = 0
    #: what the endpoint is told to be asked for again, seconds after the first attempt: at least, at most
    pause: tuple[float, float] | None = None


def answered(status: int, *headers: tuple[str, str]) -> Reply:
    return Reply(status=status, headers=headers, body=b"")


def fine(reply: Line, status: int) -> Case:
    """One attempt that delivers."""
    return Case(replies=[reply], ends=[("delivered", None, [("success", status)])])


def failing(reply: Line, outcome: str, status: int | None, **fields: Any) -> Case:
    """It is tried again, and again later; two failures, and the subscription stays as it is."""
    return Case(fields=fields, replies=[reply], ends=[("pending", None, [(outcome, status)] * 2)], failures=2)


def refused(status: int, *headers: tuple[str, str], disabled: str = "rejected", **fields: Any) -> Case:
    """No second try: it is held, since its subscription is disabled by it."""
    return Case(
        fields=fields,
        replies=[answered(status, *headers)],
        ends=[("held", None, [("http_error", status)])],
        disabled=disabled,
        failures=1,
        refusals=1,
    )


def spared(status: int, *, counted: bool, times: int = 1, **fields: Any) -> Case:
    """No second try, and the subscription stays as it is."""
    return Case(
        fields=fields,
        replies=[answered(status)],
        ends=[("rejected", "rejected", [("http_error", status)])] * times,
        failures=times * counted,
        refusals=times * counted,
    )


def after(value: str | Callable[[], str], pause: tuple[float, float], status: int = 503) -> Case:
    """A retry that Retry-After has a say in; without it, it comes after LATE seconds."""
    return Case(
        fields={"retry_schedule": [LATE]},
        replies=[lambda: answered(status, ("Retry-After", value() if callable(value) else value))],
        ends=[("pending", None, [("http_error", status)])],
        failures=1,
        pause=pause,
    )


def too_long(value: str | Callable[[], str]) -> Case:
    return Case(
        replies=[lambda: answered(503, ("Retry-After", value() if callable(value) else value))],
        ends=[("exhausted", "retry-after", [("http_error", 503)])],
        failures=1,
    )


def http_date(seconds: float) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


def rfc850_date(seconds: float) -> str:
    moment = datetime.now(UTC) + timedelta(seconds=seconds)
    day = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")[moment.weekday()]
    return f"{day}, {format_datetime(moment, usegmt=True)[5:7]}-{moment:%b-%y %H:%M:%S} GMT"


def asctime(seconds: float) -> str:
    moment = datetime.now(UTC) + timedelta(seconds=seconds)
    return f"{moment:%a %b} {moment.day:>2} {moment:%H:%M:%S %Y}"


#: as if there were no Retry-After
IGNORED = (LATE * (1 - JITTER), LATE * (1 + JITTER))


def wish(*words: str, status: int = 500) -> Reply:
    return answered(status, *(("webhook-delivery", word) for word in words))


RAW_103 = b"HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
RAW_199 = b"HTTP/1.1 199 Not Yet\r\n\r\n"
CUT_OFF = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this"
HALF_HEAD = b"HTTP/1.1 200 OK\r\nContent-Le"
#: replaced by the URL of another receiver, which must stay alone
ELSEWHERE = "{elsewhere}"

SPARED = (400, 409, 413, 414, 415, 422, 431)
THREE = {"disable_after_4xx": 3}
NEVER = {"disable_after_4xx": 0}
ENDPOINT = {"disable_on": "endpoint"}
REFUSED_401: End = ("rejected", "rejected", [("http_error", 401)])
HELD_401: End = ("held", None, [("http_error", 401)])
DELIVERED: End = ("delivered", None, [("success", 200)])

CASES: dict[str, Case] = {
    # 2xx
    **{f"{status}": fine(answered(status), status) for status in (200, 201, 202, 204, 206, 226, 299)},
    "103, then 200": fine(Reply(raw=RAW_103), 200),
    "a body that breaks off after a 2xx": fine(Reply(raw=CUT_OFF), 200),
    "199, and nothing more": failing(Reply(raw=RAW_199), "connection_error", None),
    "2xx with Retry-After": fine(answered(200, ("Retry-After", "90000")), 200),
    "2xx with abort-message": fine(wish("abort-message", status=200), 200),
    # 3xx
    **{
        f"{status}, not followed": failing(answered(status, ("Location", ELSEWHERE)), "http_error", status)
        for status in (300, 301, 302, 303, 304, 305, 307, 308, 399)
    },
    # the 4xx that are retried, and their neighbours
    **{f"{status}, retried": failing(answered(status), "http_error", status) for status in (408, 423, 425, 429)},
    **{
        f"{status}, refused": refused(status)
        for status in (
            *(400, 401, 402, 403, 404, 405, 406, 407, 409, 411, 412, 413, 414, 415, 418, 421, 422, 424, 426),
            *(428, 430, 431, 451, 499),
        )
    },
    # 410
    "410": Case(
        replies=[answered(410)],
        ends=[("rejected", "gone", [("http_error", 410)])],
        disabled="gone",
        failures=1,
    ),
    "410, whatever the policy": Case(
        fields={**NEVER, **ENDPOINT},
        replies=[answered(410)],
        ends=[("rejected", "gone", [("http_error", 410)])],
        disabled="gone",
        failures=1,
    ),
    # disable_after_4xx
    "the third in a row": Case(
        fields=THREE,
        replies=[answered(401)],
        ends=[REFUSED_401, REFUSED_401, HELD_401],
        disabled="rejected",
        failures=3,
        refusals=3,
    ),
    "two in a row of three": spared(401, counted=True, times=2, **THREE),
    "three, with a success between": Case(
        fields=THREE,
        replies=[answered(401), answered(401), answered(200), answered(401)],
        ends=[REFUSED_401, REFUSED_401, DELIVERED, REFUSED_401],
        failures=1,
        refusals=1,
    ),
    "never": spared(401, counted=True, times=4, **NEVER),
    "never, and a 5xx is retried": failing(answered(500), "http_error", 500, **NEVER),
    # disable_on
    **{
        f"{status}, which speaks of a payload": spared(status, counted=False, times=2, **ENDPOINT)
        for status in SPARED
    },
    **{
        f"{status}, which speaks of the endpoint": refused(status, **ENDPOINT)
        for status in (401, 402, 403, 404, 405, 406, 407, 411, 412, 416, 417, 418, 421, 424, 426, 428, 430, 432, 451)
    },
    **{
        f"{status}, retried with disable_on": failing(answered(status), "http_error", status, **ENDPOINT)
        for status in (408, 423, 425, 429, 399, 500)
    },
    "a spared one between two that are not": Case(
        fields={**ENDPOINT, "disable_after_4xx": 2},
        replies=[answered(401), answered(422), answered(401)],
        ends=[REFUSED_401, ("rejected", "rejected", [("http_error", 422)]), HELD_401],
        disabled="rejected",
        failures=2,
        refusals=2,
    ),
    # 5xx and no answer
    **{f"{status}, retried": failing(answered(status), "http_error", status) for status in (500, 502, 503, 504, 599)},
    "timeout": failing(Reply(hang=True), "timeout", None),
    "slow, but in time": fine(Reply(delay=0.5), 200),
    "its own timeout": failing(Reply(delay=4), "timeout", None, timeout=0.3),
    "reset": failing(NO_BYTE, "connection_error", None),
    "reset inside the head": failing(Reply(raw=HALF_HEAD), "connection_error", None),
    "garbage": failing(Reply(status=99_999), "protocol_error", None),
    "101": failing(Reply(status=101, headers=(("Upgrade", "x"),), body=b""), "protocol_error", None),
    "every try": Case(
        fields={"retry_schedule": [SOON]},
        replies=[answered(500)],
        ends=[("exhausted", "schedule", [("http_error", 500)] * 2)],
        failures=2,
    ),
    "no retries at all": Case(
        fields={"retry_schedule": []},
        replies=[answered(500)],
        ends=[("exhausted", "schedule", [("http_error", 500)])],
        failures=1,
    ),
    "a success ends the streak": Case(
        fields={"retry_schedule": [SOON, SOON, LATE]},
        replies=[answered(500), NO_BYTE, answered(204)],
        ends=[("delivered", None, [("http_error", 500), ("connection_error", None), ("success", 204)])],
    ),
    "refused after failures": Case(
        replies=[answered(500), answered(404)],
        ends=[("held", None, [("http_error", 500), ("http_error", 404)])],
        disabled="rejected",
        failures=2,
        refusals=1,
    ),
    # the header webhook-delivery
    "disable, with a 2xx": Case(replies=[wish("disable", status=200)], ends=[DELIVERED], disabled="asked"),
    "disable, with a 5xx": Case(
        replies=[wish("disable")], ends=[("held", None, [("http_error", 500)])], disabled="asked", failures=1
    ),
    "disable, with a 4xx": refused(400, ("webhook-delivery", "disable"), disabled="asked"),
    "disable, whatever the policy": refused(400, ("Webhook-Delivery", " DISABLE "), disabled="asked", **NEVER),
    "disable, with a 410": Case(
        replies=[wish("disable", status=410)],
        ends=[("rejected", "gone", [("http_error", 410)])],
        disabled="gone",
        failures=1,
    ),
    **{
        f"abort-message, with {status}": Case(
            replies=[wish("abort-message", status=status)], ends=[("rejected", "aborted", [("http_error", status)])]
        )
        for status in (302, 400, 401, 429, 500)
    },
    **{
        f"both: {' | '.join(words)}": Case(
            replies=[wish(*words)], ends=[("rejected", "aborted", [("http_error", 500)])], disabled="asked"
        )
        for words in (
            ("disable, abort-message",),
            ("Abort-Message,Disable",),
            ("disable", "abort-message"),
            ("abort-message", "disable"),
            ("later, disable", "abort-message, never"),
        )
    },
    **{
        f"another word: {word!r}": failing(wish(word), "http_error", 500)
        for word in (
            *("", "disabled", "abort", "abort_message", "abort-message disable", "disable=1", "no, yes", '"disable"'),
        )
    },
    "the words in another header": failing(
        answered(500, ("X-Webhook-Delivery", "disable"), ("webhook-deliver", "abort-message")), "http_error", 500
    ),
    # Retry-After
    **{
        f"Retry-After: 3600, with {status}": after("3600", (3600, 3600 + MARGIN), status)
        for status in (302, 408, 423, 425, 429, 500, 503)
    },
    "Retry-After: a day": after(str(DAY), (DAY, DAY + MARGIN)),
    "Retry-After: shorter than the schedule": after("30", IGNORED),
    "Retry-After: zero": after("0", IGNORED),
    "Retry-After: with zeros before it": after("0003600", (3600, 3600 + MARGIN)),
    "Retry-After: a date": after(lambda: http_date(7200), (7200 - MARGIN, 7200 + MARGIN)),
    "Retry-After: a date as of RFC 850": after(lambda: rfc850_date(7200), (7200 - MARGIN, 7200 + MARGIN)),
    "Retry-After: a date as of asctime": after(lambda: asctime(7200), (7200 - MARGIN, 7200 + MARGIN)),
    "Retry-After: a date sooner than the schedule": after(lambda: http_date(30), IGNORED),
    "Retry-After: now": after(lambda: http_date(0), IGNORED),
    "Retry-After: a second ago": after(lambda: http_date(-1), IGNORED),
    "Retry-After: the past": after("Wed, 21 Oct 2015 07:28:00 GMT", IGNORED),
    **{
        f"Retry-After: {value!r}": after(value, IGNORED)
        for value in (
            *("", "soon", "-3600", "+3600", "3600.5", "1e4", "0x10", "3600 s", "3600, 3600", "PT1H"),
            *("2030-01-01T00:00:00Z", "Wed, 31 Feb 2035 07:28:00 GMT", "Wed, 21 Oct 2035 07:28:00 CET"),
        )
    },
    "Retry-After: more than a day": too_long(str(DAY + 1)),
    "Retry-After: endless digits": too_long("9" * 400),
    "Retry-After: a date beyond a day": too_long(lambda: http_date(DAY + 60)),
    "Retry-After: a date in 9999": too_long("Fri, 31 Dec 9999 23:59:59 GMT"),
    "Retry-After: with a refusal": refused(400, ("Retry-After", "3600")),
    "Retry-After: absurd, where the order is kept": Case(
        fields={"ordering": "fifo"},
        replies=[answered(503, ("Retry-After", "90000"))],
        ends=[("exhausted", "retry-after", [("http_error", 503)])],
        disabled="blocked",
        failures=1,
    ),
}  # fmt: skip

NAMES = list(CASES)
ROUNDS = max(len(case.ends) for case in CASES.values())


@dataclass(frozen=True, kw_only=True)
class Result:
    """How a case went."""

    subscription: Json
    #: of each event
    deliveries: list[Json]
    requests: list[Received]
    event_type: str


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How all went, and where."""

    results: dict[str, Result]
    #: requests that followed a redirect
    followed: list[Received]
    server: Server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    settings = {"retry_schedule": str(SCHEDULE), "send_timeout": str(SEND_TIMEOUT), "log_level": "warning"}
    with Server(tmp_path_factory.mktemp("answers") / "data", settings=settings) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with server.client() as running:
        yield running


@pytest.fixture(scope="module")
def outcome(server: Server) -> Iterator[Outcome]:
    """All cases, carried out at once: so many rounds as one of them has events."""
    script = Script()
    with Receiver(script) as receiver, Receiver() as elsewhere, server.client() as client:

        def located(line: Line) -> Line:
            if isinstance(line, Reply) and ("Location", ELSEWHERE) in line.headers:
                return answered(line.status, ("Location", f"{elsewhere.url}/elsewhere"))
            return line

        made: dict[str, Json] = {}
        for number, (name, case) in enumerate(CASES.items()):
            script.write(f"/{number}", *map(located, case.replies))
            made[name] = subscribe(client, f"{receiver.url}/{number}", events=[f"case.{number}"], **case.fields)
        found: dict[str, list[Json]] = {name: [] for name in CASES}
        for turn in range(ROUNDS):
            names = [name for name, case in CASES.items() if turn < len(case.ends)]
            publish_many(client, [{"type": f"case.{NAMES.index(name)}", "payload": turn} for name in names])
            end = time.monotonic() + PATIENCE
            for name in names:
                found[name].append(_came_about(client, made[name]["id"], turn, CASES[name], end))
        yield Outcome(
            results={
                name: Result(
                    subscription=subscription(client, made[name]["id"]),
                    deliveries=found[name],
                    requests=messages(receiver.received, f"/{number}"),
                    event_type=f"case.{number}",
                )
                for number, name in enumerate(CASES)
            },
            followed=elsewhere.received,
            server=server,
        )


def _came_about(client: httpx.Client, subscription_id: str, turn: int, case: Case, end: float) -> Json:
    """The delivery of this turn as it ended up; or as it is when the time is up, which its test then reports."""
    state, _, attempts = case.ends[turn]
    while True:
        ids = [item["id"] for item in deliveries(client, subscription_id)]
        now = delivery(client, ids[turn]) if turn < len(ids) else {"state": "missing", "reason": None, "attempts": []}
        now["seen_at"] = time.time()
        if now["state"] not in {"pending", "leased", "missing"} or time.monotonic() > end:
            return now
        if now["state"] == state and len(now["attempts"]) >= len(attempts):
            return now
        time.sleep(0.1)


@pytest.mark.parametrize("name", CASES)
def test_an_answer_means_what_the_table_says(outcome: Outcome, name: str) -> None:
    case, result = CASES[name], outcome.results[name]
    assert [(found["state"], found["reason"], _attempts(found)) for found in result.deliveries] == case.ends
    assert [request.attempt for request in result.requests] == [
        number for found in result.deliveries for number in requested(found)
    ]
    for attempt in (attempt for found in result.deliveries for attempt in found["attempts"]):
        # All cases share a receiver, and so its connections: which attempt met a kept one is not told beforehand.
        assert not attempt["timing"]["reconnected"] or attempt["outcome"] == "connection_error"
        assert not attempt["timing"]["reconnected"] or NO_BYTE in case.replies
    now = result.subscription
    assert reason_of(now) == case.disabled
    assert (now["failures"], now["refusals"]) == (case.failures, case.refusals)
    assert (now["failing_since"] is None) == (case.failures == 0)
    assert now["held"] == sum(state == "held" for state, *_ in case.ends)
    for found, (_, _, attempts) in zip(result.deliveries, case.ends, strict=True):
        _check_times(found, len(attempts), case)


def _attempts(found: Json) -> list[Attempt]:
    return [(outcome, status) for _, outcome, status in outcomes(found)]


def _check_times(found: Json, tries: int, case: Case) -> None:
    last = found["attempts"][-1]
    assert (found["due_at"] is not None) == (found["state"] == "pending")
    assert (found["finished_at"] is not None) == (found["state"] in {"delivered", "rejected", "exhausted"})
    assert (found["expires_at"] is not None) == (found["state"] == "held")
    if found["state"] != "pending":
        assert last["retry_at"] is None
        return
    assert last["retry_at"] == found["due_at"]
    # The pause begins when the attempt is recorded: after its end, and before anybody saw it recorded.
    ended = _moment(last["started_at"]) + last["duration_ms"] / 1000
    least, most = case.pause or IGNORED
    assert ended + least - 0.1 <= _moment(last["retry_at"]) <= found["seen_at"] + most
    assert tries == (1 if case.pause else 2)


def _moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def test_no_redirect_is_followed(outcome: Outcome) -> None:
    assert sum("not followed" in name for name in CASES) == 9
    assert outcome.followed == []


def test_nothing_new_is_held_for_what_is_gone(outcome: Outcome) -> None:
    """An event is not for a subscription that answered 410; for one that answered 411 it is held."""
    with outcome.server.client() as client:
        for name in ("410", "410, whatever the policy", "disable, with a 410"):
            gone = outcome.results[name]
            published = publish(client, gone.event_type)
            assert published["deliveries"] == 0
            [skipped] = published["skipped"]
            assert (skipped["subscription_id"], skipped["reason"]) == (gone.subscription["id"], "gone")
            assert len(deliveries(client, gone.subscription["id"])) == 1
        for name in ("411, refused", "409, refused", "disable, with a 5xx"):
            refusing = outcome.results[name]
            published = publish(client, refusing.event_type)
            assert (published["deliveries"], published["skipped"]) == (1, [])
            assert [item["state"] for item in deliveries(client, refusing.subscription["id"])] == ["held", "held"]
            assert len(refusing.requests) == 1


def test_what_is_gone_can_come_back(client: httpx.Client) -> None:
    """After 410 nothing was held; an owner who knows better enables it, and it gets what comes then."""
    script = Script()
    with Receiver(script) as receiver:
        script.write("/back", answered(410), answered(200))
        made = subscribe(client, f"{receiver.url}/back", events=["back"])
        publish(client, "back")
        until(lambda: reason_of(subscription(client, made["id"])) == "gone")
        assert publish(client, "back", {"n": "missed"})["deliveries"] == 0
        answer = enable(client, made["id"])
        assert (answer.status_code, answer.json()["is_active"]) == (200, True), answer.text
        assert publish(client, "back", {"n": "new"})["deliveries"] == 1
        until(lambda: len(messages(receiver.received)) == 2)
    assert [request.body for request in messages(receiver.received)] == [b'{"n":1}', b'{"n":"new"}']


# --- while it is disabled already -------------------------------------------------------------------------


class Gate:
    """Lets the first of two requests be answered at once, and the second when it is opened."""

    def __init__(self, first: Reply, second: Reply) -> None:
        self._replies = [first, second]
        self._waiting: list[asyncio.Event] = []
        self._both = asyncio.Event()
        self._opened = asyncio.Event()
        self.loop: asyncio.AbstractEventLoop | None = None

    def open(self) -> None:
        assert self.loop is not None
        self.loop.call_soon_threadsafe(self._opened.set)

    async def __call__(self) -> Reply:
        self.loop = asyncio.get_running_loop()
        self._waiting.append(self._both)
        number = len(self._waiting) - 1
        if number == 1:
            self._both.set()
        await (self._both if number == 0 else self._opened).wait()
        return self._replies[number]


@pytest.mark.parametrize(
    ("second", "state", "reason", "disabled"),
    [
        (answered(200), "delivered", None, "rejected"),
        (answered(404), "held", None, "rejected"),
        (answered(422), "held", None, "rejected"),
        (answered(500), "held", None, "rejected"),
        (answered(302), "held", None, "rejected"),
        (answered(429, ("Retry-After", "3600")), "held", None, "rejected"),
        (NO_BYTE, "held", None, "rejected"),
        (wish("abort-message"), "rejected", "aborted", "rejected"),
        (wish("disable"), "held", None, "rejected"),
        (answered(410), "rejected", "gone", "gone"),
    ],
    ids=["200", "404", "422", "500", "302", "429", "reset", "abort-message", "disable", "410"],
)
def test_an_answer_that_finds_it_disabled(
    client: httpx.Client, second: Reply, state: str, reason: str | None, disabled: str
) -> None:
    """Two requests are under way; the first is refused. What the second is answered drops nothing."""
    gates: dict[str, Gate] = {}
    with Receiver(lambda request: gates[request.target]()) as receiver:
        path = f"/{disabled}/{state}"
        gates[path] = gate = Gate(answered(401), second)
        made = subscribe(client, f"{receiver.url}{path}", events=["twice"])
        publish_many(client, [{"type": "twice", "payload": n} for n in range(2)])
        until(lambda: reason_of(subscription(client, made["id"])) == "rejected")
        gate.open()
        ids = [request.delivery for request in receiver.wait_for(2)]
        first, other = (in_state(client, id_, "held", "delivered", "rejected") for id_ in ids)
        assert (first["state"], first["reason"]) == ("held", None)
        assert (other["state"], other["reason"], len(other["attempts"])) == (state, reason, 1)
        assert reason_of(subscription(client, made["id"])) == disabled
        assert client.delete(f"{PATH}/{made['id']}").status_code == 204


# --- refused again ----------------------------------------------------------------------------------------


def test_refused_again_it_is_rejected_for_good(client: httpx.Client) -> None:
    script = Script()
    with Receiver(script) as receiver:
        script.write("/again", answered(401), answered(403), answered(404), answered(200))
        made = subscribe(client, f"{receiver.url}/again", events=["again"])
        publish(client, "again", {"n": 0})
        until(lambda: reason_of(subscription(client, made["id"])) == "rejected")
        [held] = deliveries(client, made["id"])
        assert held["state"] == "held"
        assert enable(client, made["id"]).json()["is_active"] is True
        ended_ = in_state(client, held["id"], "rejected")
        assert (ended_["reason"], outcomes(ended_)) == ("rejected", [(1, "http_error", 401), (2, "http_error", 403)])
        assert subscription(client, made["id"])["is_active"] is True
        # another delivery's first refusal disables it, as ever
        publish(client, "again", {"n": 1})
        until(lambda: reason_of(subscription(client, made["id"])) == "rejected")
        assert enable(client, made["id"]).json()["is_active"] is True
        in_state(client, deliveries(client, made["id"])[1]["id"], "delivered")
        # and the one that was rejected can be sent again by hand, with a right of its own
        again = client.post(f"/deliveries/{held['id']}/redeliver").json()
        assert in_state(client, again["id"], "delivered")["wire_id"] == held["wire_id"]


@pytest.mark.parametrize("ordering", ["none", "fifo", "fifo-by-key"])
def test_one_poison_message_holds_no_stream(client: httpx.Client, ordering: str) -> None:
    """A message that is always answered 422 disables its subscription once; then it is rejected, and the rest flow."""

    def answer(request: Received) -> Reply:
        return answered(422 if request.body == b'{"n":3}' and not is_ping(request) else 200)

    kind = f"poison.{ordering}"
    with Receiver(answer) as receiver:
        made = subscribe(client, receiver.url, events=[kind], ordering=ordering)
        events = [{"type": kind, "payload": {"n": n}, "ordering_key": "k"} for n in range(8)]
        publish_many(client, events)
        until(lambda: reason_of(subscription(client, made["id"])) == "rejected")
        publish_many(client, [{"type": kind, "payload": {"n": n}, "ordering_key": "k"} for n in range(8, 12)])
        assert enable(client, made["id"]).json()["is_active"] is True
        until(lambda: {item["state"] for item in deliveries(client, made["id"])} == {"delivered", "rejected"})
        now = subscription(client, made["id"])
        found = deliveries(client, made["id"])
    assert (now["is_active"], now["held"]) == (True, 0)
    assert len(found) == 12
    [poison] = [item for item in found if item["state"] == "rejected"]
    assert (poison["reason"], poison["attempt"]) == ("rejected", 2)
    bodies = [request.body for request in messages(receiver.received)]
    assert bodies.count(b'{"n":3}') == 2
    others = [int(body[5:-1]) for body in bodies if body != b'{"n":3}']
    assert sorted(others) == [n for n in range(12) if n != 3]
    if ordering != "none":
        assert others == sorted(others)


# --- no answer --------------------------------------------------------------------------------------------


def test_names_certificates_and_ports_that_are_no_good(start_server: Callable[..., Server], tmp_path: Path) -> None:
    """DNS and TLS errors, and a port where nobody listens, are failures that are retried."""
    authority = trustme.CA()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("good.test").configure_cert(tls)
    roots = tmp_path / "roots.pem"
    authority.cert_pem.write_to_path(str(roots))
    zone: dict[str, Any] = {"good.test": ["127.0.0.1"], "bad.test": ["127.0.0.1"], "none.test": NXDOMAIN}
    with (
        NameServerThread(zone) as names,
        Receiver() as plain,
        Receiver(tls=tls) as secure,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("SSL_CERT_FILE", str(roots))
        settings = {"nameservers": names.address, "retry_schedule": str(SCHEDULE), "send_timeout": "5"}
        server = start_server(settings=settings)
        with Receiver() as closed:
            pass
        cases = {
            f"http://good.test:{plain.port}/": "success",
            f"https://good.test:{secure.port}/": "success",
            f"https://bad.test:{secure.port}/": "tls_error",
            f"http://none.test:{plain.port}/": "dns_error",
            f"http://127.0.0.1:{closed.port}/": "connection_error",
        }
        with server.client() as client:
            made = {url: subscribe(client, url, events=["x"])["id"] for url in cases}
            publish(client, "x")
            for url, outcome in cases.items():
                tries = 1 if outcome == "success" else 2
                [item] = deliveries(client, made[url])
                until(lambda id_=item["id"], n=tries: len(delivery(client, id_)["attempts"]) == n)
                found = in_state(client, item["id"], "delivered" if tries == 1 else "pending")
                assert [kind for kind, _ in _attempts(found)] == [outcome] * tries, (url, found["attempts"])
                now = subscription(client, made[url])
                assert (now["is_active"], now["failures"]) == (True, 0 if tries == 1 else 2)


def test_an_address_that_is_refused_at_connect(start_server: Callable[..., Server]) -> None:
    """Twice in a row it may be the name server's mistake; the third time it is what it is."""
    zone: dict[str, Any] = {"denied.test": ["127.0.0.9"], "moving.test": ["127.0.0.9"]}
    with NameServerThread(zone) as names, Receiver() as receiver:
        # the resolver keeps each answer for a second
        names.server.ttl = 0
        settings = {
            "nameservers": names.address,
            "deny_networks": "127.0.0.9/32",
            "retry_schedule": str([SOON, 4.0, LATE]),
        }
        server = start_server(settings=settings)
        with server.client() as client:
            moving = subscribe(client, f"http://moving.test:{receiver.port}/", events=["y"])
            fields = {"events": ["y"], "retry_schedule": [SOON, SOON, LATE]}
            denied = subscribe(client, f"http://denied.test:{receiver.port}/", **fields)
            publish(client, "y")
            [first], [other] = deliveries(client, denied["id"]), deliveries(client, moving["id"])
            until(lambda: len(delivery(client, other["id"])["attempts"]) == 2)
            zone_now = names.server.zone
            zone_now["moving.test"] = ["127.0.0.1"]

            rejected = in_state(client, first["id"], "rejected")
            assert rejected["reason"] == "egress"
            assert _attempts(rejected) == [("egress_refused", None)] * 3
            assert {attempt["error"] for attempt in rejected["attempts"]} == {"this address is not one we send to"}
            now = subscription(client, denied["id"])
            assert (reason_of(now), now["failures"], now["refusals"]) == ("egress", 3, 0)
            # new ones are held for it; its ping is refused, too, so that it stays disabled
            assert publish(client, "y")["deliveries"] == 2
            assert [item["state"] for item in deliveries(client, denied["id"])] == ["rejected", "held"]
            answer = enable(client, denied["id"])
            assert (answer.status_code, answer.json()["ping"]["outcome"]) == (409, "egress_refused")

            delivered = in_state(client, other["id"], "delivered")
            assert _attempts(delivered) == [("egress_refused", None)] * 2 + [("success", 200)]
            now = subscription(client, moving["id"])
            assert (now["is_active"], now["failures"]) == (True, 0)
    assert {request.header("Host") for request in receiver.received} == {f"moving.test:{receiver.port}"}


def test_nothing_succeeded_for_long(start_server: Callable[..., Server], receiver: Receiver) -> None:
    """`disable_after` counts from the first failure to the latest, and takes five; time is turned back in the file."""
    script = Script()
    with Receiver(script) as receiver:
        # name: disable_after, seconds since its first failure, answers of further events, how it ends
        cases: dict[str, tuple[float, float, list[Reply], str | None]] = {
            "five failures, long enough": (60, 61, [answered(500)], "failing"),
            "by no answer at all": (60, 61, [NO_BYTE], "failing"),
            "by a 3xx": (60, 61, [answered(301)], "failing"),
            "by a 408": (60, 61, [answered(408)], "failing"),
            "five failures, not long enough": (120, 61, [answered(500)], None),
            "a success between": (60, 61, [answered(200), answered(500)], None),
            "a success at last": (60, 61, [answered(200)], None),
        }
        late = {"retry_schedule": [LATE, LATE, LATE]}
        settings = {"retry_schedule": str(SCHEDULE), "log_level": "warning"}
        server = start_server(settings=settings)
        with server.client() as client:
            made: dict[str, str] = {}
            for number, (name, (disable_after, _, _, _)) in enumerate(cases.items()):
                script.write(f"/{number}", answered(500))
                fields = {"events": ["z", f"z.{number}"], "disable_after": disable_after, **late}
                made[name] = subscribe(client, f"{receiver.url}/{number}", **fields)["id"]
            for _ in range(4):
                publish(client, "z")
            until(lambda: all(subscription(client, id_)["failures"] == 4 for id_ in made.values()))
            assert all(subscription(client, id_)["is_active"] for id_ in made.values())
        assert server.stop() == 0
        for name, (_, ago, _, _) in cases.items():
            change(
                server.place,
                "UPDATE subscriptions SET failing_since = failing_since - ? WHERE id = ?",
                round(ago * 1000),
                made[name],
            )
        server.start()
        with server.client() as client:
            # four failures are too few, however long ago: the fifth does it
            assert all(subscription(client, id_)["is_active"] for id_ in made.values())
            for number, (name, (_, _, replies, _)) in enumerate(cases.items()):
                script.write(f"/{number}", *replies)
                for reply in replies:
                    before = len(messages(receiver.received, f"/{number}"))
                    publish(client, f"z.{number}")
                    until(lambda n=number, seen=before: len(messages(receiver.received, f"/{n}")) > seen)
                    want = 0 if reply.status == 200 and reply.raw is None else 1
                    until(lambda id_=made[name], n=want: bool(subscription(client, id_)["failures"]) == bool(n))
            for name, (_, _, _, end) in cases.items():
                if end is not None:
                    until(lambda id_=made[name]: not subscription(client, id_)["is_active"])
                now = subscription(client, made[name])
                assert (name, reason_of(now)) == (name, end)
                states = {item["state"] for item in deliveries(client, made[name])}
                if end is not None:
                    # nothing is dropped: they wait for it to come back
                    until(lambda id_=made[name]: {d["state"] for d in deliveries(client, id_)} == {"held"})
                    assert (now["failures"], now["refusals"]) == (5, 0)
                else:
                    assert states <= {"pending", "delivered"}


# --- Retry-After and the lane -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "least"),
    [(lambda: "2", 2.0), (lambda: http_date(3), 1.9)],
    ids=["seconds", "a date"],
)
def test_retry_after_quiets_the_whole_subscription(
    client: httpx.Client, value: Callable[[], str], least: float
) -> None:
    """What else is for the subscription waits as long; what is for another does not."""
    script = Script()
    event = f"quiet.{least}"
    with Receiver(script) as receiver:
        script.write("/busy", lambda: answered(429, ("Retry-After", value())), answered(200))
        busy = subscribe(client, f"{receiver.url}/busy", events=[f"{event}.**"])
        other = subscribe(client, f"{receiver.url}/other", events=[f"{event}.more"])
        publish(client, f"{event}.first")
        until(lambda: subscription(client, busy["id"])["failures"] == 1)
        publish_many(client, [{"type": f"{event}.more", "payload": n} for n in range(5)])
        receiver.wait_for(1 + 2 * 5 + 1)
        for one in (busy, other):
            until(lambda id_=one["id"]: {d["state"] for d in deliveries(client, id_)} == {"delivered"})
    first, *rest = messages(receiver.received, "/busy")
    others = messages(receiver.received, "/other")
    assert len(rest) == 6
    assert min(request.at for request in rest) - first.at >= least
    assert max(request.at for request in others) < min(request.at for request in rest)


# --- callbacks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [401, 404, 410, 422, 500])
def test_what_a_callback_is_answered_touches_no_subscription(client: httpx.Client, status: int) -> None:
    """Even at the same URL, of the same account."""
    script = Script()
    path = f"/shared/{status}"
    with Receiver(script) as receiver:
        script.write(path, answered(status, ("webhook-delivery", "disable")))
        url = f"{receiver.url}{path}"
        made = subscribe(client, url, events=[f"shared.{status}"])
        task = accept(client, url)
        if status == 500:
            until(lambda: len(delivery(client, task["delivery_id"])["attempts"]) == 2)
        else:
            assert ended(client, task["delivery_id"])["state"] == "rejected"
        now = subscription(client, made["id"])
        assert (reason_of(now), now["failures"], now["refusals"]) == (None, 0, 0)
        script.write(path, answered(200))
        publish(client, f"shared.{status}")
        until(lambda: [item["state"] for item in deliveries(client, made["id"])] == ["delivered"])


def test_the_books_balance(outcome: Outcome) -> None:
    """After all of it, whatever other tests of this module have added."""
    with outcome.server.client() as client:
        counts = ledger(client)
    kept = [found["state"] for result in outcome.results.values() for found in result.deliveries]
    assert all(counts[state] >= kept.count(state) > 0 for state in ("delivered", "rejected", "exhausted", "held"))
