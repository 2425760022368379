"""A secret is rotated under load, and its receivers change theirs when they please: nothing is lost, nothing disabled.

The receivers know one secret at a time and refuse what it did not sign. They verify with libraries that are not ours
(tests/support/discerning.py).
"""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from tests.support.api import Json, delivery, ended, in_state, outcomes
from tests.support.discerning import SCHEMES, Known, is_signed, single_valued
from tests.support.ledgers import ask, attempts_of, deliveries_to, reconciles
from tests.support.patience import PATIENCE
from tests.support.receiver import Received, Receiver, Reply
from tests.support.server import Server, until
from tests.support.subscribers import PATH, publish, subscribe, subscription

#: published while the secrets change
EVENTS = 520
#: one in so many goes to every endpoint, the others to those with the default schemes only
EVERY = 13
#: what endpoints refuse with
STATUSES = (400, 401, 403, 404)
#: seconds after which nothing is sent any more by what a subscription was before it was changed
NOTICED_WITHIN = 1.5


class Endpoint:
    """A receiver's side of one subscription: what it knows, and what it made of each request."""

    def __init__(self, name: str, scheme: str, status: int) -> None:
        self.name = name
        self.scheme = scheme
        self.status = status
        self.knows: Known | None = None
        #: what it takes over once it has finished with every delivery that it refused once
        self._next: Known | None = None
        self._between_tries: set[str] = set()
        self._lock = threading.Lock()
        self.requests: list[tuple[Received, bool]] = []
        self.subscription_id = ""
        self.old = self.new = Known(secret="", public_key="")

    def learn(self, known: Known) -> None:
        """Know another secret from now on."""
        self.knows = known

    def change_to(self, known: Known) -> None:
        """Know it as soon as no delivery stands between a refusal and its second try.

        A refusal by the old secret, then a second try that meets the new one, would be two honest refusals.
        """
        with self._lock:
            self._next = known
            self._change_if_it_may()

    def answer(self, request: Received) -> Reply:
        with self._lock:
            known = self.knows
            assert known is not None
            accepted = is_signed(self.scheme, request, known)
            self.requests.append((request, accepted))
            if accepted or request.delivery in self._between_tries:
                self._between_tries.discard(request.delivery)
            else:
                self._between_tries.add(request.delivery)
            self._change_if_it_may()
        return Reply(status=200 if accepted else self.status)

    def _change_if_it_may(self) -> None:
        if self._next is not None and not self._between_tries:
            self.knows, self._next = self._next, None

    def by_delivery(self) -> dict[str, list[tuple[Received, bool]]]:
        """Its requests, in the order in which they came."""
        found: dict[str, list[tuple[Received, bool]]] = defaultdict(list)
        for request, accepted in self.requests:
            found[request.delivery].append((request, accepted))
        return dict(found)

    @property
    def is_changed(self) -> bool:
        return self.knows == self.new

    def is_by(self, known: Known, request: Received) -> bool:
        return is_signed(self.scheme, request, known)


class House:
    """A receiver with many endpoints, one for each path."""

    def __init__(self) -> None:
        self.endpoints: dict[str, Endpoint] = {}

    def __call__(self, request: Received) -> Reply:
        return self.endpoints[request.target].answer(request)

    def open(
        self, client: httpx.Client, origin: str, name: str, scheme: str, status: int = 401, **fields: Any
    ) -> Endpoint:
        """An endpoint and its subscription."""
        endpoint = Endpoint(name, scheme, status)
        self.endpoints[f"/{name}"] = endpoint
        made = subscribe(client, f"{origin}/{name}", name=name, **fields)
        endpoint.subscription_id = made["id"]
        endpoint.old = Known(secret=made["config"]["secret"], public_key=made["config"]["public_key"])
        endpoint.learn(endpoint.old)
        return endpoint


def rotate(client: httpx.Client, endpoint: Endpoint, **fields: Any) -> Known:
    """Rotate an endpoint's secret; it does not know of it yet."""
    answer = client.post(f"{PATH}/{endpoint.subscription_id}/secrets", json=fields)
    assert answer.status_code == 201, answer.text
    made = answer.json()
    endpoint.new = Known(secret=made["secret"], public_key=made["public_key"])
    return endpoint.new


@pytest.fixture
def house() -> House:
    return House()


@pytest.fixture
def origin(house: House) -> Iterator[str]:
    with Receiver(house) as receiver:
        yield receiver.url


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


_names = (f"e{number}" for number in itertools.count())


# --- under load -------------------------------------------------------------------------------------------


class Load(threading.Thread):
    """Publishes one event after the other."""

    def __init__(self, client: httpx.Client) -> None:
        super().__init__(daemon=True)
        self._client = client
        self.accepted: list[str] = []
        self.faults: list[str] = []

    def run(self) -> None:
        for number in range(EVENTS):
            type_ = "load.all" if number % EVERY == 0 else "load.some"
            answer = self._client.post("/events", json={"type": type_, "payload": {"number": number}})
            if answer.status_code != 202 or answer.json()["skipped"]:
                self.faults.append(answer.text)
                return
            self.accepted.append(type_)


def test_a_rotation_under_load_loses_nothing_and_disables_nothing(start_server: Callable[..., Server]) -> None:
    house = House()
    server = start_server()
    with ExitStack() as stack:
        origin = stack.enter_context(Receiver(house)).url
        client = stack.enter_context(server.client())
        # The default schemes, of which a receiver looks at one; and all schemes with all statuses.
        busy = [
            house.open(client, origin, f"default-{scheme}-{status}", scheme, status, events=["load.*"])
            for scheme, status in (("websub", 401), ("standard", 400))
        ]
        others = [
            house.open(
                client, origin, f"{scheme}-{status}", scheme, status, events=["load.all"], schemes=[scheme],
                config=given_secret(scheme, status, "old"),
            )
            for scheme in SCHEMES
            for status in STATUSES
        ]  # fmt: skip
        endpoints = [*busy, *others]
        load = Load(stack.enter_context(server.client()))
        load.start()
        until(lambda: len(busy[0].requests) >= EVENTS // 5 or load.faults)
        for endpoint in endpoints:
            rotate(client, endpoint, overlap=3600, **given_secret(endpoint.scheme, endpoint.status, "new"))
        assert load.is_alive(), "the load was over before the secrets were rotated"
        rotated_at = len(load.accepted)
        until(lambda: len(load.accepted) >= rotated_at + EVENTS // 4 or load.faults)
        for endpoint in endpoints:
            endpoint.change_to(endpoint.new)
        assert load.is_alive(), "the load was over before the receivers changed"
        load.join(PATIENCE)
        assert not load.faults, load.faults
        assert len(load.accepted) == EVENTS
        until(lambda: not any(client.get("/ledger").json()[s] for s in ("pending", "leased")))

        of_all = load.accepted.count("load.all")
        attempts = attempts_of(server.place)
        for endpoint in endpoints:
            check_endpoint(client, server, endpoint, EVENTS if endpoint in busy else of_all, attempts)
        ledger = client.get("/ledger").json()
        total = 2 * EVENTS + len(others) * of_all
        assert (ledger["accepted"], ledger["delivered"]) == (total, total)
        assert reconciles(server.place) == {"accepted": total, "delivered": total}
    refused = sum(not accepted for endpoint in endpoints for _, accepted in endpoint.requests)
    print(f"\n{total} deliveries, {refused} of them refused once and taken by their second try")


def given_secret(scheme: str, status: int, when: str) -> Json:
    """A secret of the owner's choice for some, where the scheme takes any text."""
    text = {400: f'{when} "päss" <wörd> & more', 403: f"{when}-of-some-length"}.get(status)
    return {} if text is None or scheme == "standard" else {"secret": text}


def check_endpoint(
    client: httpx.Client,
    server: Server,
    endpoint: Endpoint,
    number: int,
    attempts: dict[str, list[tuple[int, str, int | None]]],
) -> None:
    """Every event came in, and no refusal was held against the endpoint."""
    stands = subscription(client, endpoint.subscription_id)
    assert (stands["is_active"], stands["disabled"]) == (True, None), endpoint.name
    assert (stands["refusals"], stands["failures"], stands["failing_since"]) == (0, 0, None), endpoint.name
    assert endpoint.is_changed, endpoint.name
    states = deliveries_to(server.place, endpoint.subscription_id)
    assert len(states) == number, endpoint.name
    assert set(states.values()) == {"delivered"}, endpoint.name

    came = endpoint.by_delivery()
    assert came.keys() == states.keys(), endpoint.name
    numbers = [json.loads(tries[-1][0].body)["number"] for tries in came.values()]
    assert len(set(numbers)) == number, endpoint.name
    for id_, tries in came.items():
        # What came is what is on record, attempt by attempt.
        on_record = [("success", 200) if accepted else ("http_error", endpoint.status) for _, accepted in tries]
        assert [attempt[1:] for attempt in attempts[id_]] == on_record, endpoint.name
        assert [attempt[0] for attempt in attempts[id_]] == list(range(1, len(tries) + 1))
        assert [request.attempt for request, _ in tries] == list(range(1, len(tries) + 1))
        assert len({request.body for request, _ in tries}) == 1
        assert [accepted for _, accepted in tries] in ([True], [False, True]), endpoint.name
    refused_once = {id_: tries for id_, tries in came.items() if len(tries) == 2}
    if not single_valued(endpoint.scheme):
        assert not refused_once, "a header with both signatures needs no second try"
        both = [r for r, _ in endpoint.requests if all(endpoint.is_by(k, r) for k in (endpoint.old, endpoint.new))]
        assert both, endpoint.name
        return
    assert refused_once, f"{endpoint.name} was never sent anything by the new secret before it changed"
    for (first, _), (second, _) in refused_once.values():
        assert endpoint.is_by(endpoint.new, first)
        assert not endpoint.is_by(endpoint.old, first)
        assert endpoint.is_by(endpoint.old, second)
        assert not endpoint.is_by(endpoint.new, second)
    id_ = next(iter(refused_once))
    shown = delivery(client, id_)
    assert (shown["state"], outcomes(shown)) == (
        "delivered",
        [(1, "http_error", endpoint.status), (2, "success", 200)],
    )


# --- what a second try is for, and what it is not for -----------------------------------------------------


@pytest.mark.parametrize("scheme", SCHEMES)
def test_both_secrets_refused_count_once(client: httpx.Client, house: House, origin: str, scheme: str) -> None:
    endpoint = house.open(
        client, origin, next(_names), scheme, 403, events=[f"{scheme}.both"], schemes=[scheme], disable_after_4xx=2
    )
    rotate(client, endpoint)
    endpoint.learn(Known(secret="whsec_" + "A" * 32, public_key=endpoint.new.public_key[:-5] + "AAAA="))
    tries = 2 if single_valued(scheme) else 1

    publish(client, f"{scheme}.both")
    [first] = until(lambda: list(deliveries_of(client, endpoint)))
    refused = ended(client, first)
    assert (refused["state"], refused["reason"]) == ("rejected", "rejected")
    assert outcomes(refused) == [(number, "http_error", 403) for number in range(1, tries + 1)]
    stands = subscription(client, endpoint.subscription_id)
    assert (stands["is_active"], stands["refusals"], stands["failures"]) == (True, 1, 1)

    publish(client, f"{scheme}.both")
    second = until(lambda: list(deliveries_of(client, endpoint) - {first}))[0]
    held = in_state(client, second, "held")
    assert len(held["attempts"]) == tries
    stands = subscription(client, endpoint.subscription_id)
    assert (stands["is_active"], stands["disabled"]["reason"]) == (False, "rejected")


@pytest.mark.parametrize(
    ("status", "second_try"),
    [(400, True), (409, True), (408, False), (410, False), (411, True), (422, True), (423, False), (429, False),
     (499, True), (500, False), (302, False)],
)  # fmt: skip
def test_only_a_refusal_that_may_be_the_signatures_fault_is_tried_with_the_older_secret(
    client: httpx.Client, house: House, origin: str, status: int, second_try: bool
) -> None:
    endpoint = house.open(client, origin, next(_names), "websub", status, events=[f"status.{status}"])
    rotate(client, endpoint)
    publish(client, f"status.{status}")
    [id_] = until(lambda: list(deliveries_of(client, endpoint)))
    found = ended(client, id_)
    stands = subscription(client, endpoint.subscription_id)
    if second_try:
        assert (found["state"], outcomes(found)) == (
            "delivered",
            [(1, "http_error", status), (2, "success", 200)],
        )
    else:
        assert not any(accepted for _, accepted in endpoint.requests), "the older secret was used"
        gone = status == 410
        assert (found["state"], found["reason"]) == (("rejected", "gone") if gone else ("exhausted", "schedule"))
        assert len(found["attempts"]) == (1 if gone else 4)
        assert stands["is_active"] is not gone
    assert all(endpoint.is_by(endpoint.new, request) for request, accepted in endpoint.requests if not accepted)


def test_without_an_overlap_the_old_secret_never_signs_again(client: httpx.Client, house: House, origin: str) -> None:
    endpoints = [
        house.open(client, origin, next(_names), scheme, 401, events=["revoked.now"], schemes=[scheme])
        for scheme in SCHEMES
    ]
    for endpoint in endpoints:
        endpoint.learn(rotate(client, endpoint, revoke_now=True))
    for _ in range(10):
        assert publish(client, "revoked.now")["deliveries"] == len(SCHEMES)
    for endpoint in endpoints:
        until(lambda endpoint=endpoint: len(endpoint.requests) >= 10)
        assert all(accepted for _, accepted in endpoint.requests), endpoint.scheme
        assert not any(endpoint.is_by(endpoint.old, request) for request, _ in endpoint.requests), endpoint.scheme
        # One that still knows only the old secret is not served: no second try goes out.
        endpoint.learn(endpoint.old)
    publish(client, "revoked.now")
    for endpoint in endpoints:
        until(lambda endpoint=endpoint: not subscription(client, endpoint.subscription_id)["is_active"])
        last = endpoint.requests[-1][0]
        assert (last.attempt, endpoint.is_by(endpoint.old, last)) == (1, False), endpoint.scheme


def test_a_revoked_secret_takes_no_part_any_more(client: httpx.Client, house: House, origin: str) -> None:
    endpoint = house.open(client, origin, next(_names), "standard", events=["revoked.one"])
    rotate(client, endpoint)
    publish(client, "revoked.one")
    until(lambda: len(endpoint.requests) == 1)
    path = f"{PATH}/{endpoint.subscription_id}/secrets"
    [old] = [one["id"] for one in client.get(path).json()["items"] if one["state"] == "previous"]
    assert client.delete(f"{path}/{old}").status_code == 204
    endpoint.learn(endpoint.new)
    publish(client, "revoked.one")
    until(lambda: len(endpoint.requests) == 2)
    (before, _), (after, accepted) = endpoint.requests
    assert endpoint.is_by(endpoint.old, before)
    assert (accepted, endpoint.is_by(endpoint.old, after)) == (True, False)


# --- what was on its way when the secret changed ----------------------------------------------------------


class Slow:
    """Answers at once for a while; then it keeps its requests until it is told what it knows from now on."""

    def __init__(self, scheme: str, *, quick: int) -> None:
        self._scheme = scheme
        self._quick = quick
        self._gate = threading.Event()
        self.knows: Known | None = None
        self.requests: list[tuple[Received, bool]] = []
        self.waiting = 0

    def open_with(self, known: Known) -> None:
        self.knows = known
        self._gate.set()

    async def __call__(self, request: Received) -> Reply:
        self._quick -= 1
        if self._quick < 0:
            self.waiting += 1
            while not self._gate.is_set():  # noqa: ASYNC110 - it is set in the test's thread
                await asyncio.sleep(0.01)
        assert self.knows is not None
        accepted = is_signed(self._scheme, request, self.knows)
        self.requests.append((request, accepted))
        return Reply(status=200 if accepted else 401)


@pytest.mark.parametrize("scheme", ["websub", "standard"])
@pytest.mark.parametrize("rotation", [{"overlap": 3600}, {"revoke_now": True}])
def test_what_was_signed_before_a_rotation_and_refused_after_it_is_sent_again(
    start_server: Callable[..., Server], scheme: str, rotation: Json
) -> None:
    """Requests are under way, and more wait in memory, when the secret changes and its receiver with it."""
    quick, slow = 60, 60
    house = Slow(scheme, quick=quick)
    server = start_server(settings={"lane_concurrency": "8"})
    with Receiver(house) as receiver, server.client() as client:
        made = subscribe(client, receiver.url, events=["some.thing"], schemes=[scheme])
        old = Known(secret=made["config"]["secret"], public_key=made["config"]["public_key"])
        house.knows = old
        for _ in range(quick):
            publish(client, "some.thing")
        until(lambda: len(house.requests) == quick)
        for _ in range(slow):
            publish(client, "some.thing")
        until(lambda: house.waiting == 8)
        # As many again are in memory, ready to be sent.
        [[leased]] = ask(server.place, "SELECT count(*) FROM deliveries WHERE state = 'leased'")
        assert leased > 8
        started = time.monotonic()
        answer = client.post(f"{PATH}/{made['id']}/secrets", json=rotation)
        assert answer.status_code == 201
        until(lambda: time.monotonic() > started + NOTICED_WITHIN)
        house.open_with(Known(secret=answer.json()["secret"], public_key=answer.json()["public_key"]))
        until(lambda: client.get("/ledger").json()["delivered"] == quick + slow)
        stands = subscription(client, made["id"])
    assert (stands["is_active"], stands["refusals"]) == (True, 0)
    refused = [request for request, accepted in house.requests if not accepted]
    assert len(refused) == 8, "what waited in memory was signed with a secret that was over"
    assert all(is_signed(scheme, request, old) for request in refused)
    assert reconciles(server.place) == {"accepted": quick + slow, "delivered": quick + slow}
    tries = attempts_of(server.place)
    assert sorted(len(attempts) for attempts in tries.values()) == [1] * (quick + slow - 8) + [2] * 8


def deliveries_of(client: httpx.Client, endpoint: Endpoint) -> set[str]:
    """The ids of the messages to an endpoint."""
    answer = client.get(f"{PATH}/{endpoint.subscription_id}/deliveries", params={"limit": 200})
    assert answer.status_code == 200, answer.text
    return {item["id"] for item in answer.json()["items"] if item["kind"] == "message"}
