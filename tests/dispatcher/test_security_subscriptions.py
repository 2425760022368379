"""What a tenant who means harm tries with subscriptions and events; each of these once worked."""

from __future__ import annotations

import asyncio
import hmac
import json
import re
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from dispatcher.api import asking, events
from dispatcher.errors import Problem, StoreUnavailable
from dispatcher.ids import new_id
from dispatcher.store import Store, publishing, redelivering
from dispatcher.store.publishing import Accepted
from dispatcher.store.redelivering import Bulk, Criteria
from tests.support.api import client_of, problem
from tests.support.receiver import Receiver, Reply
from tests.support.server import Server
from tests.support.stores import (
    ACCOUNT,
    Home,
    delivery_rows,
    draft,
    new_event,
    open_store,
    planned,
    publish,
    publish_planned,
    subscribe,
    who,
)
from tests.support.subscribers import PATH, body_of, other
from tests.support.subscribers import subscribe as subscribe_by_api

#: takes several milliseconds for BUSY
SLOW = "length(s[?contains(@, 'yyyyyyyy')]) > `0`"
BUSY = json.dumps({"s": ["x" * 40] * 3_000}).encode()


@pytest.fixture
async def store(home: Home) -> AsyncIterator[Store]:
    async with open_store(home) as store:
        yield store


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("security") / "data", settings={"SEND_TIMEOUT": "3"}) as server:
        yield server


# --- one tenant's filters -------------------------------------------------------------------------------


async def test_slow_filters_do_not_stop_the_event_loop(store: Store) -> None:
    """A hundred of them were asked before anybody else had a turn: most of a second."""
    for number in range(100):
        await subscribe(store, f"s{number}", filter=SLOW)
    roster = await store.roster(ACCOUNT)
    waits: list[float] = []

    async def watch() -> None:
        while True:
            turn = time.process_time()
            await asyncio.sleep(0.001)
            waits.append(time.process_time() - turn)

    watching = asyncio.create_task(watch())
    # Processor time, since others use this machine too.
    began = time.process_time()
    plan = await publishing.plan(roster, new_event(payload=BUSY))
    took = time.process_time() - began
    watching.cancel()
    assert plan.subscribers == ()
    # a turn for others after each filter, not after all of them
    assert len(waits) > 20
    assert max(waits) < max(0.2, took / 4)


async def test_an_account_plans_one_event_at_a_time(store: Store) -> None:
    """Else many requests at once would have as many turns."""
    lock = store.planning(ACCOUNT)
    assert store.planning(ACCOUNT) is lock
    assert store.planning("other") is not lock


async def test_no_filters_are_asked_at_length_in_a_transaction(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one is open nobody can write; what was planned before is taken over, and only what changed is asked."""
    # Long enough for what changed, where the machine stands still for a moment.
    monkeypatch.setattr(publishing, "CHANGED_WITHIN", 0.5)
    for number in range(30):
        await subscribe(store, f"s{number}", filter=SLOW)
    roster = await store.roster(ACCOUNT)
    began = time.process_time()
    old = [await planned(roster, new_event(payload=BUSY)) for _ in range(2)]
    planning = time.process_time() - began
    later = await subscribe(store, "later")
    began = time.process_time()
    answers = await publish_planned(store, old)
    took = time.process_time() - began
    assert isinstance(answers.result, Accepted)
    assert len(await delivery_rows(store, subscription_id=later)) == 2
    # sixty filters take much more than that
    assert took < planning / 2


async def test_an_event_that_can_never_be_planned_in_time_comes_back(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A storm of changes costs its own account: nothing is planned at length in the transaction, however often."""
    monkeypatch.setattr(publishing, "MAX_CHANGED", 0)
    await subscribe(store, "a")
    old = await planned(await store.roster(ACCOUNT), new_event())
    real = publishing.plan_anew
    storms = 0

    async def in_a_storm(*args: Any, **kwargs: Any) -> publishing.Publication:
        nonlocal storms
        storms += 1
        made = await real(*args, **kwargs)
        await subscribe(store, f"storm{storms}")
        return made

    monkeypatch.setattr(publishing, "plan_anew", in_a_storm)
    await subscribe(store, "b")
    with pytest.raises(StoreUnavailable):
        await publish_planned(store, [old])
    assert 1 < storms <= 10
    assert await delivery_rows(store) == []
    # and as soon as it is over, it is accepted
    monkeypatch.undo()
    assert (await publish(store, new_event())).published[0].deliveries == 2 + storms


async def test_a_plan_that_was_made_anew_hands_nothing_off(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was reserved in lanes goes back with the first try; it was made for what the plan before said."""
    monkeypatch.setattr(publishing, "MAX_CHANGED", 0)
    await subscribe(store, "a")
    old = await planned(await store.roster(ACCOUNT), new_event(), hand_off=True)
    assert old.handed_off
    await store.change_subscription(who(store), next(iter(old.handed_off)), lambda _: draft(store, "moved"))
    result = (await publish_planned(store, [old])).result
    assert isinstance(result, Accepted)
    assert result.handed_off == frozenset()
    assert [row["state"] for row in await delivery_rows(store)] == ["pending"]


# --- one tenant's many ----------------------------------------------------------------------------------


async def test_what_is_skipped_is_named_within_bounds(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch of small events would else write, and answer, a hundred megabytes."""
    monkeypatch.setattr(publishing, "MAX_SKIPPED_TOGETHER", 5)
    for number in range(4):
        await subscribe(store, f"s{number}", filter="abs(@.n.text)")
    published = (await publish(store, *(new_event(payload=b'{"n":{"text":"x"}}') for _ in range(3)))).published
    assert [len(one.skipped) for one in published] == [4, 1, 0]


async def test_a_long_row_of_events_keeps_no_other_account_waiting(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of one account's took turns with one of another's, which was done when all of them were."""
    monkeypatch.setattr(publishing, "AT_ONCE", 2)
    for number in range(30):
        for account in ("long", "short"):
            await subscribe(store, f"s{number}", account=account)
    await publish(store, *(new_event(account="long") for _ in range(100)))
    [short] = (await publish(store, new_event(account="short"))).published
    steps = 0
    while len(await delivery_rows(store, source_id=short.event_id)) < 30:
        await store.fan_out()
        steps += 1
        assert steps < 10
    assert len(await delivery_rows(store, account="long")) < 1_000


async def test_redeliveries_of_many_run_one_after_the_other(store: Store) -> None:
    """Each is a walk over all of an account's deliveries; everybody's take turns."""

    def wish(account: str = ACCOUNT) -> Bulk:
        return Bulk(id=new_id(), account=account, criteria=Criteria(since=0), key=None)

    for _ in range(redelivering.MAX_RUNNING):
        await store.redeliver_all(wish())
    with pytest.raises(Problem) as caught:
        await store.redeliver_all(wish())
    assert caught.value.slug == "quota"
    await store.redeliver_all(wish("other"))
    await store.step_redeliveries()
    await store.redeliver_all(wish())


# --- by the API -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["subject", "ordering_key"])
def test_what_a_database_cannot_hold_is_refused_by_itself(server: Server, field: str) -> None:
    """PostgreSQL holds no NUL: a row that has one would fail the batch that it shares with others."""
    with client_of(server, "nul") as client:
        bad = {"type": "order.paid", "payload": 1, field: "a\0b"}
        problem(client.post("/events", json=bad), 422, "validation", f"/{field}")
        good = {"type": "order.paid", "payload": 1, field: "a\nb"}
        items = client.post("/events/batch", json={"events": [bad, good]}).json()["items"]
        assert [item["status"] for item in items] == [422, 202]


def test_nor_is_it_asked_for(server: Server) -> None:
    with client_of(server, "nul") as client:
        paths = client.get("/openapi.json").json()["paths"]
        lists = {path: item["get"].get("parameters", []) for path, item in paths.items() if "get" in item}
        asked = [(path, one["name"]) for path, found in lists.items() for one in found if "{" not in path]
        assert len(asked) >= 16
        for path, name in asked:
            problem(client.get(f"{path}?{name}=%00"), 422, "validation", f"/{name}")


@pytest.mark.parametrize(
    ("field", "value"), [("type", "order.paid\n"), ("id", "mine\n"), ("id", "a\r\nX-Injected: 1"), ("type", "a\nb")]
)
def test_a_line_end_is_in_no_name_that_becomes_a_header(server: Server, field: str, value: str) -> None:
    """`$` matches before a line end at the end of a text: an event of such a type could never be sent."""
    with client_of(server, "lines") as client:
        event = {"type": "order.paid", "payload": 1, field: value}
        problem(client.post("/events", json=event), 422, "validation", f"/{field}")
        [item] = client.post("/events/batch", json={"events": [event]}).json()["items"]
        assert item["status"] == 422
        if field == "type":
            task = {"type": value, "payload": 1, "callback_url": "http://127.0.0.1:9/"}
            problem(client.post("/tasks", json=task), 422, "validation", "/type")


async def test_an_account_has_only_so_many_calls_that_wait(server: Server) -> None:
    """Each that waits for an endpoint looks into the database again and again; thousands would keep it busy."""
    more = 5
    with Receiver(answer=lambda _request: Reply(hang=True)) as receiver:
        async with server.async_client(limits=httpx.Limits(max_connections=100)) as client:
            body = body_of(other(receiver.url), timeout=5)
            made = (await client.post(PATH, json=body)).json()
            asked = [
                asyncio.create_task(client.post(f"{PATH}/{made['id']}/ping")) for _ in range(asking.MAX_WAITING + more)
            ]
            done, waiting = await asyncio.wait(asked, timeout=4)
            assert [one.result().status_code for one in done] == [202] * more
            assert len(waiting) == asking.MAX_WAITING
            await asyncio.wait(waiting)


def test_a_batch_makes_only_so_many_deliveries(server: Server) -> None:
    """Who gets them is held in memory, and stored by one commit: small events would make it a gigabyte."""
    with client_of(server, "batches") as client:
        count = events.MAX_TOGETHER // 1_000 + 1
        for number in range(count):
            subscribe_by_api(client, f"http://127.0.0.1:9/{number}", events=["bulk"], is_active=False)
        many = {"events": [{"type": "bulk", "payload": number} for number in range(1_000)]}
        problem(client.post("/events/batch", json=many), 413, "too-large", "/events")
        assert client.get("/events").json()["items"] == []
        few = {"events": many["events"][:2]}
        [first, _] = client.post("/events/batch", json=few).json()["items"]
        assert first["event"]["deliveries"] == count


# --- whose, and with what token -------------------------------------------------------------------------


def routes(client: httpx.Client) -> list[tuple[str, str, dict[str, Any]]]:
    """Every method and path that needs a token."""
    paths = client.get("/openapi.json").json()["paths"]
    return [
        (method.upper(), path, operation)
        for path, operations in paths.items()
        for method, operation in operations.items()
        if operation.get("security")
    ]


def test_every_route_wants_its_scope(server: Server) -> None:
    """A token with another scope gets no further, whatever it sends."""
    one, none = "0" * 32, client_of(server, "scopeless", "tasks:process")
    free = {"/account", "/processors", "/egress-addresses", "/tasks/lease", "/tasks/{id}/renew", "/tasks/{id}/result"}
    with none:
        asked = [
            (method, path, none.request(method, re.sub(r"{\w+}", one, path)))
            for method, path, _ in routes(none)
            if path not in free or (method, path) == ("PATCH", "/account")
        ]
        assert len(asked) > 30
        assert [(method, path) for method, path, answer in asked if answer.status_code != 403] == []


def test_no_route_takes_another_accounts_id(server: Server) -> None:
    """Subscriptions, their secrets, events, deliveries, redeliveries and tasks: each is as if it were not there."""
    with Receiver() as receiver, client_of(server, "mine") as mine, client_of(server, "theirs") as theirs:
        made = subscribe_by_api(mine, other(receiver.url))
        event = mine.post("/events", json={"type": "order.paid", "payload": 1}).json()
        task = mine.post("/tasks", json={"payload": 1, "callback_url": other(receiver.url)}).json()
        bulk = mine.post("/deliveries/redeliver", json={"since": "2026-01-01T00:00:00Z"}).json()
        [secret] = mine.get(f"{PATH}/{made['id']}/secrets").json()["items"]
        [delivery] = mine.get(f"{PATH}/{made['id']}/deliveries").json()["items"]
        ids = {
            "/webhooks/subscriptions": made["id"],
            "/events": event["id"],
            "/tasks": task["id"],
            "/deliveries/redeliveries": bulk["id"],
            "/deliveries": delivery["id"],
        }
        bodies: dict[str, Any] = {
            "recover": {"since": "2026-01-01T00:00:00Z"},
            "callback": {"callback_url": other(receiver.url)},
            "renew": {"attempt": 1},
            "result": {"attempt": 1, "result": 1},
        }
        before = mine.get(f"{PATH}/{made['id']}").json()
        seen = []
        for method, path, _ in routes(theirs):
            if "{id}" not in path:
                continue
            prefix = next(prefix for prefix in ids if path.startswith(f"{prefix}/{{id}}"))
            url = path.replace("{id}", ids[prefix]).replace("{secret_id}", secret["id"])
            body = bodies.get(path.rpartition("/")[2], {} if method == "PATCH" else None)
            seen.append((method, path, theirs.request(method, url, json=body).status_code))
        assert len(seen) >= 20
        assert [one for one in seen if one[2] != 404] == []
        # named in a query or a body, too
        for query in ({"subscription_id": made["id"]}, {"event_id": event["id"]}, {"task_id": task["id"]}):
            assert theirs.get("/deliveries", params=query).json()["items"] == []
        wish = {"since": "2026-01-01T00:00:00Z", "subscription_id": made["id"]}
        problem(theirs.post("/deliveries/redeliver", json=wish), 422, "validation", "/subscription_id")
        assert {**mine.get(f"{PATH}/{made['id']}").json(), "recent": []} == {**before, "recent": []}


# --- secrets --------------------------------------------------------------------------------------------


def test_nothing_is_signed_with_a_revoked_secret_for_long(server: Server) -> None:
    """What waits in memory was opened with it: it is looked at again before it is sent."""
    with Receiver() as receiver, client_of(server, "revoked") as client:
        made = subscribe_by_api(client, other(receiver.url), schemes=["timestamped"], rate_limit=2)
        for number in range(8):
            client.post("/events", json={"type": "order.paid", "payload": number})
        receiver.wait_for(1)
        rotated = client.post(f"{PATH}/{made['id']}/secrets", json={"revoke_now": True}).json()
        end = time.monotonic() + 1.2
        late = [one for one in receiver.wait_for(8) if one.at > end]
        assert len(late) >= 3
        key = rotated["secret"].encode()
        assert {one.header("X-Webhook-Signature") for one in late} == {
            hmac.digest(key, one.body, "sha256").hex() for one in late
        }
