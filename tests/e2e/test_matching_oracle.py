"""10,000 events to 50 subscriptions: who gets which is exactly what an oracle says that shares no code with us.

The oracle matches patterns by regular expressions and filters by plain Python. The same answer is then looked for in
four places: what the publisher was told, what the database holds, what the API lists, and what arrived by HTTP.
"""

from __future__ import annotations

import itertools
import json
import random
import re
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.support.api import Json
from tests.support.ledgers import ask, reconciles
from tests.support.receiver import Receiver
from tests.support.server import Server, until
from tests.support.subscribers import PATH, subscribe

SEED = 10_000
#: seconds that fifty thousand deliveries may take on a busy machine
ALL_OF_IT = 400.0
EVENTS = 10_000
#: Events in a batch, by turns: the deliveries of a small one are made at once, of a large one step by step, with a rest
#: after each step.
IN_BATCH = (*(100,) * 30, 400)
SUBSCRIPTIONS = 50


class CannotSayError(Exception):
    """The oracle knows that this filter fails on this payload."""


# --- the oracle -------------------------------------------------------------------------------------------

Judge = Callable[[Any], bool]


def truth(value: object) -> bool:
    """What counts as true in JMESPath: all but false, null and what is empty. 0 is true."""
    return not (value is False or value is None or value in ("", [], {}))


def get(value: Any, *names: str) -> Any:
    """A member of members; None where there is none."""
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def more_than(value: Any, limit: float) -> bool:
    """`>` is null for what is no number, and null is no."""
    return number(value) and value > limit


def starts(value: Any, text: str) -> bool:
    if not isinstance(value, str):
        raise CannotSayError
    return value.startswith(text)


def contains(value: Any, text: str) -> bool:
    if not isinstance(value, (str, list)):
        raise CannotSayError
    return text in value


def length(value: Any) -> int:
    if not isinstance(value, (str, list, dict)):
        raise CannotSayError
    return len(value)


def total(values: Any) -> float:
    if not isinstance(values, list) or not all(map(number, values)):
        raise CannotSayError
    return sum(values)


def items(payload: Any) -> list[Any]:
    found = get(payload, "items")
    return found if isinstance(found, list) else []


def same(value: Any, other: Any) -> bool:
    """Equality that knows true from 1."""
    return isinstance(value, bool) == isinstance(other, bool) and bool(value == other)


#: filter as an owner writes it, and what it means
FILTERS: tuple[tuple[str, Judge], ...] = (
    ("total > `500`", lambda p: more_than(get(p, "total"), 500)),
    ("total >= `100` && currency == 'EUR'",
     lambda p: number(get(p, "total")) and get(p, "total") >= 100 and get(p, "currency") == "EUR"),
    ("customer.country == 'DE'", lambda p: get(p, "customer", "country") == "DE"),
    ("customer.country != 'DE'", lambda p: get(p, "customer", "country") != "DE"),
    ("!paid", lambda p: not truth(get(p, "paid"))),
    ("paid == `true`", lambda p: same(get(p, "paid"), True)),
    ("count == `1`", lambda p: same(get(p, "count"), 1)),
    ("count", lambda p: truth(get(p, "count"))),
    ("tags", lambda p: truth(get(p, "tags"))),
    ("note", lambda p: truth(get(p, "note"))),
    ("items[?price > `50`]", lambda p: any(more_than(get(one, "price"), 50) for one in items(p))),
    ("items[0].sku == 'a-1'", lambda p: bool(items(p)) and get(items(p)[0], "sku") == "a-1"),
    ("items[-1].price", lambda p: bool(items(p)) and truth(get(items(p)[-1], "price"))),
    ("customer.country == 'FR' || total < `10`",
     lambda p: get(p, "customer", "country") == "FR" or (number(get(p, "total")) and get(p, "total") < 10)),
    ("@", truth),
    ("not_there", lambda p: False),
    # these fail where the payload does not have what they need
    ("starts_with(customer.name, 'A')", lambda p: starts(get(p, "customer", "name"), "A")),
    ("contains(tags, 'vip')", lambda p: contains(get(p, "tags"), "vip")),
    ("length(items) > `2`", lambda p: length(get(p, "items")) > 2),
    ("sum(items[*].price) > `120`",
     lambda p: total(None if not isinstance(get(p, "items"), list) else [
         price for one in items(p) if (price := get(one, "price")) is not None
     ]) > 120),
    # an `||` that is decided by its first half never looks at the second
    ("total > `900` || starts_with(note, 'x')",
     lambda p: more_than(get(p, "total"), 900) or starts(get(p, "note"), "x")),
    ("customer && starts_with(customer.name, 'B')",
     lambda p: truth(get(p, "customer")) and starts(get(p, "customer", "name"), "B")),
)  # fmt: skip


def regex_of(pattern: str) -> re.Pattern[str]:
    """A pattern as a regular expression."""
    parts = {"*": r"[^.]*", "**": r".+"}
    segments = pattern.split(".")
    text = r"\.".join(parts.get(segment) or re.escape(segment) for segment in segments)
    return re.compile(text, re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Owner:
    """A subscription as the oracle knows it."""

    id: str
    patterns: tuple[re.Pattern[str], ...]
    judge: Judge | None

    def says(self, type_: str, payload: Any) -> str:
        """`yes`, `no` or `skip`."""
        if not any(pattern.fullmatch(type_) for pattern in self.patterns):
            return "no"
        try:
            return "yes" if self.judge is None or self.judge(payload) else "no"
        except CannotSayError:
            return "skip"


# --- what is asked for ------------------------------------------------------------------------------------

AREAS = ("order", "invoice", "Order", "ship-ment", "user_1")
ACTIONS = ("paid", "created", "line.added", "line.item.removed", "paid.late", "v2", "x")

#: those that take everything stand where few events pass their filters
PATTERNS: tuple[tuple[str, ...], ...] = (
    ("order.paid",),
    ("order.*",),
    ("order.**",),
    ("*.paid",),
    ("*",),
    ("**",),
    ("*.*.added",),
    ("order.line.*",),
    ("invoice.paid", "order.created", "user_1.*"),
    ("Order.*",),
    ("order.*.item.*",),
    ("*.line.**", "order.line.added", "**"),
    ("ship-ment.*", "order.paid.**"),
    ("order", "invoice"),
    ("*.*.*.*", "*.v2"),
    ("nothing.at.all",),
)


def make_payload(chance: random.Random, serial: int) -> Any:
    """Payloads of every shape, most of them like an order's."""
    odd = chance.random()
    if odd < 0.02:
        return chance.choice([serial, None, True, [], {}, "", "text", [1, 2], 0, 1.5])
    payload: Json = {"serial": serial}
    values: dict[str, Callable[[], Any]] = {
        "total": lambda: chance.choice([chance.randrange(1000), chance.random() * 1000, "500", None, 9, 501]),
        "currency": lambda: chance.choice(["EUR", "USD", "eur"]),
        "paid": lambda: chance.choice([True, False, None, 1, "true"]),
        "count": lambda: chance.choice([0, 1, True, 2, None, 1.0]),
        "tags": lambda: chance.choice([[], ["vip"], ["a", "vip"], ["a"], "a vip text", None, 5]),
        "note": lambda: chance.choice(["", "x-ray", "other", None, 7, {}]),
        "customer": lambda: chance.choice(
            [{"name": "Anna", "country": "DE"}, {"name": "Bob", "country": "FR"}, {"country": "DE"}, {}, None, "Bob"]
        ),
        "items": lambda: chance.choice(
            [
                [],
                [{"sku": "a-1", "price": 60}, {"sku": "b", "price": 70.5}],
                [{"sku": "b", "price": 1}, {"sku": "a-1"}, {"price": 0}],
                [{"sku": "a-1", "price": "60"}],
                [5, "x", None],
                None,
                "abc",
                {"a": 1},
            ]
        ),
    }
    for name, value in values.items():
        if chance.random() < 0.85:
            payload[name] = value()
    return payload


def make_type(chance: random.Random) -> str:
    if chance.random() < 0.1:
        return chance.choice(AREAS)
    return f"{chance.choice(AREAS)}.{chance.choice(ACTIONS)}"


# --- the run ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Event:
    """One of the events, and what its publisher was told."""

    type: str
    payload: Any
    told: Json


@pytest.mark.timeout(900)
def test_ten_thousand_events_reach_exactly_those_that_an_oracle_names(start_server: Callable[..., Server]) -> None:
    chance = random.Random(SEED)
    server = start_server()
    with ExitStack() as stack:
        receiver = stack.enter_context(Receiver())
        client = stack.enter_context(server.client())
        owners, active = subscribe_all(client, receiver.url, chance)
        wanted = [(make_type(chance), make_payload(chance, serial)) for serial in range(EVENTS)]
        events = publish_all(client, wanted)

        said = {
            (owner.id, event.told["id"]): owner.says(event.type, event.payload) for event in events for owner in owners
        }
        yes = {pair for pair, answer in said.items() if answer == "yes"}
        skips = {pair for pair, answer in said.items() if answer == "skip"}
        check_the_oracle(owners, events, yes, skips)

        # what the publisher was told
        named = {(skip["subscription_id"], event.told["id"]) for event in events for skip in event.told["skipped"]}
        assert named == skips
        assert {skip["reason"] for event in events for skip in event.told["skipped"]} == {"filter"}
        numbers = Counter(event_id for _, event_id in yes)
        assert [event.told["deliveries"] for event in events] == [numbers[event.told["id"]] for event in events]
        assert {event.told["fan_out"] for event in events} == {"complete", "in_progress"}
        until(lambda: not ask(server.place, "SELECT 1 FROM fan_outs"), within=ALL_OF_IT, every=0.1)

        # what the database holds
        question = "SELECT subscription_id, source_id FROM deliveries WHERE kind = 'message'"
        stored = ask(server.place, question)
        assert len(stored) == len(set(stored)), "somebody gets an event twice"
        assert set(stored) == yes
        kept = {
            (skip[0], event_id)
            for event_id, skipped in ask(server.place, "SELECT id, skipped FROM events WHERE skipped IS NOT NULL")
            for skip in json.loads(skipped)
        }
        assert kept == skips
        [[count]] = ask(server.place, "SELECT count(*) FROM events")
        assert count == EVENTS

        # what the API says of some of them, one by one: of one that nobody wants, too
        unwanted = [event for event in events if not numbers[event.told["id"]]]
        assert unwanted, "every event found somebody: the patterns are too wide to prove anything"
        for event in [*events[::500], *unwanted[:5]]:
            shown = client.get(f"/events/{event.told['id']}").json()
            assert (shown["deliveries"], shown["skipped"]) == (event.told["deliveries"], event.told["skipped"])
            assert shown["fan_out"] == "complete"
            assert shown["payload"] == event.payload
        check_lists(client, owners, yes)

        # what arrived
        to_arrive = {pair for pair in yes if pair[0] in active.values()}
        until(lambda: not any(client.get("/ledger").json()[s] for s in ("pending", "leased")), within=ALL_OF_IT)
        arrived = [(request.target.removeprefix("/"), request.delivery) for request in receiver.received]
        event_of = dict(ask(server.place, "SELECT id, source_id FROM deliveries"))
        assert len(arrived) == len(set(arrived)) == len(to_arrive)
        by_path = {(active[path], event_of[delivery]) for path, delivery in arrived}
        assert by_path == to_arrive
        by_id = {event.told["id"]: event for event in events}
        for request in receiver.received:
            event = by_id[event_of[request.delivery]]
            assert request.header("X-Webhook-Event") == event.type
            assert json.loads(request.body) == event.payload
    assert reconciles(server.place) == {
        "accepted": len(yes),
        "delivered": len(to_arrive),
        "held": len(yes) - len(to_arrive),
    }
    print(
        f"\n{len(events)} events, {len(owners)} subscriptions: {len(yes)} deliveries ({len(to_arrive)} sent), "
        f"{len(skips)} skips, {len(unwanted)} events that nobody wanted"
    )


def subscribe_all(client: httpx.Client, origin: str, chance: random.Random) -> tuple[list[Owner], dict[str, str]]:
    """The subscriptions: those with few events are active, the others inactive, so that theirs are held.

    Answers the active ones by path, too.
    """
    owners: list[Owner] = []
    active: dict[str, str] = {}
    for serial in range(SUBSCRIPTIONS):
        patterns = PATTERNS[serial % len(PATTERNS)]
        expression: str | None = None
        judge: Judge | None = None
        if serial >= len(PATTERNS) or set(patterns) & {"**", "*"}:
            expression, judge = FILTERS[serial % len(FILTERS)]
        is_active = serial % 4 == 0 and "**" not in patterns
        made = subscribe(
            client,
            f"{origin}/{serial}",
            name=str(serial),
            events=list(patterns),
            filter=expression,
            is_active=is_active,
            schemes=["websub"],
        )
        owners.append(Owner(id=made["id"], patterns=tuple(map(regex_of, patterns)), judge=judge))
        if is_active:
            active[str(serial)] = made["id"]
    assert len(active) >= 10
    chance.shuffle(owners)
    return owners, active


def publish_all(client: httpx.Client, wanted: list[tuple[str, Any]]) -> list[Event]:
    """Publish them in batches, several at once."""
    left = iter(wanted)
    batches = []
    for size in itertools.cycle(IN_BATCH):
        batches.append(list(itertools.islice(left, size)))
        if not batches[-1]:
            break

    def publish(part: list[tuple[str, Any]]) -> list[Event]:
        body = {"events": [{"type": type_, "payload": payload} for type_, payload in part]}
        answer = client.post("/events/batch", json=body, timeout=60)
        assert answer.status_code == 202, answer.text
        told = answer.json()["items"]
        assert [(item["index"], item["status"]) for item in told] == [(index, 202) for index in range(len(part))]
        return [
            Event(type=type_, payload=payload, told=item["event"])
            for (type_, payload), item in zip(part, told, strict=True)
        ]

    with ThreadPoolExecutor(2) as pool:
        return [event for part in pool.map(publish, batches[:-1]) for event in part]


def check_the_oracle(
    owners: list[Owner], events: list[Event], yes: set[tuple[str, str]], skips: set[tuple[str, str]]
) -> None:
    """It has something to say: of every filter yes and no, and of those that can fail a failure."""
    assert len(events) == EVENTS
    assert len(owners) == SUBSCRIPTIONS
    assert {owner.judge for owner in owners} >= {judge for _, judge in FILTERS}
    assert len(yes) > 20_000
    assert len(skips) > 1_000
    said: dict[str, set[str]] = {}
    for text, judge in FILTERS:
        everything = Owner(id="", patterns=(re.compile(".*"),), judge=judge)
        said[text] = {everything.says(event.type, event.payload) for event in events}
    assert {text for text, answers in said.items() if "no" not in answers} == set()
    assert {text for text, answers in said.items() if "yes" not in answers} == {"not_there"}
    failing = {text for text, _ in FILTERS if "(" in text}
    assert {text for text, answers in said.items() if "skip" in answers} == failing


def check_lists(client: httpx.Client, owners: list[Owner], yes: set[tuple[str, str]]) -> None:
    """The list of a subscription's deliveries has each of its events once."""
    number = Counter(owner for owner, _ in yes)
    short = [owner for owner in owners if 0 < number[owner.id] < 1_000]
    assert len(short) >= 5
    for owner in short[:5]:
        found: list[str] = []
        cursor: str | None = None
        while True:
            page = client.get(
                f"{PATH}/{owner.id}/deliveries", params={"limit": 200, **({"cursor": cursor} if cursor else {})}
            ).json()
            found += [item["event_id"] for item in page["items"]]
            cursor = page["next_cursor"]
            if cursor is None:
                break
        assert sorted(found) == sorted(event_id for id_, event_id in yes if id_ == owner.id)
