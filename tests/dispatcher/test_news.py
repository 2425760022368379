"""News: what a commit leaves to be done, and how it is told to others."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import asyncpg
import pytest

from dispatcher.models import Outcome, lane_of, ping_lane_of
from dispatcher.parcels import CHANNEL
from dispatcher.serving.hearing import Ear
from dispatcher.store import Store, direct, subscribing
from dispatcher.store.news import MAX_BYTES, News, decoded
from dispatcher.store.records import TaskClaim
from dispatcher.store.tables import LONGEST_LANE
from subscriptions.models import Ordering
from tests.support.patience import PROMPTLY
from tests.support.stores import (
    ACCOUNT,
    LANE,
    Home,
    accept,
    heard,
    lease,
    lease_for,
    new_event,
    new_task,
    open_store,
    publish,
    settle,
    subscribe,
    who,
)

LANES = {
    lane_of("acme", "https://api.example.com:8443"),
    lane_of("acme", "0192f0000000700080000000000000aa"),
    ping_lane_of("acme", "0192f0000000700080000000000000aa"),
    lane_of("other", "https://[::1]"),
}

# --- as it is told ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "news",
    [
        News(lanes=LANES),
        News(pauses={LANE: 3.5}),
        News(tasks=True),
        News(chores=True),
        News(more=True),
        News(lanes=LANES, pauses={LANE: 1.0}, tasks=True, chores=True),
    ],
)
def test_it_is_understood_as_it_was_meant(news: News) -> None:
    assert news
    assert decoded(news.encoded("me")) == ("me", news)


def test_no_news_is_no_news() -> None:
    assert not News()


def test_what_is_too_long_is_left_to_be_found() -> None:
    def naming(count: int) -> News:
        return News(lanes={lane_of("acme", f"{number:032}") for number in range(count)}, tasks=True)

    fits = max(count for count in range(200, 300) if "lanes" in json.loads(naming(count).encoded("x" * 32)))
    told = naming(fits).encoded("x" * 32)
    assert MAX_BYTES - 40 < len(told) <= MAX_BYTES
    assert decoded(naming(fits + 1).encoded("x" * 32)) == ("x" * 32, News(tasks=True, more=True))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"by": 1}', '{"by": "x", "lanes": {"a": [1]}}', "{}"])
def test_what_nobody_understands_may_be_anything(text: str) -> None:
    assert decoded(text) == ("", News.of_anything())


@pytest.mark.parametrize(
    "said",
    [
        {"lanes": {"acme": ["https://a.example", "a\0b"]}},
        {"lanes": {"acme": ["x" * LONGEST_LANE]}},
        {"pauses": {"a\0 b": 1.0}},
        {"pauses": {"acme": 1.0}},
        {"pauses": {LANE: 86_401.0}},
        {"pauses": {LANE: -1.0}},
        {"pauses": {LANE: 1e300}},
    ],
)
def test_what_no_process_of_ours_would_say_is_not_believed(said: dict[str, object]) -> None:
    assert decoded(json.dumps({"by": "x", **said})) == ("", News.of_anything())


def test_the_longest_pause_is_believed() -> None:
    assert decoded(json.dumps({"by": "x", "pauses": {LANE: 86_400.0}})) == ("x", News(pauses={LANE: 86_400.0}))


def test_what_a_newer_version_adds_is_passed_over() -> None:
    assert decoded('{"by": "x", "tasks": true, "later": {}}') == ("x", News(tasks=True))


# --- what is news -----------------------------------------------------------------------------------------


@pytest.fixture
async def store(home: Home) -> AsyncIterator[Store]:
    async with open_store(home) as store:
        yield store


async def test_what_is_handed_off_is_none(store: Store) -> None:
    with heard(store) as news:
        await accept(store, new_task(handed_off=True))
    assert not news
    with heard(store) as news:
        await accept(store, new_task(handed_off=True), new_task())
    assert news == News(lanes={LANE})


async def test_work_and_its_result(store: Store) -> None:
    with heard(store) as news:
        await accept(store, new_task(task_type="slow"))
    assert news == News(tasks=True)
    with heard(store) as news:
        await store.lease_tasks(TaskClaim(types=("slow",), limit=1))
    assert not news


async def test_the_next_in_a_line_is_known_to_who_was_at_it(store: Store) -> None:
    id_ = await subscribe(store, ordering=Ordering.FIFO)
    with heard(store) as news:
        await publish(store, new_event())
    assert news == News(lanes={lane_of(ACCOUNT, id_)})
    with heard(store) as news:
        await publish(store, new_event())
        [first] = await lease_for(store, id_)
        assert (await settle(store, first)).promoted
    assert not news


async def test_a_pause_is_told(store: Store) -> None:
    await accept(store, new_task())
    [leased] = await lease(store)
    with heard(store) as news:
        await settle(store, leased, Outcome.HTTP_ERROR, 429, retry_after=30.0, schedule=(1.0,))
    assert news == News(pauses={LANE: 30.0})


async def test_leaving_is_told(store: Store) -> None:
    with heard(store) as news:
        await store.leave()
    assert news == News.of_anything()


# --- told and heard ---------------------------------------------------------------------------------------


class Heard:
    """What an ear passes on."""

    def __init__(self) -> None:
        self.news = News()
        self.changed = asyncio.Event()

    def __call__(self, news: News) -> None:
        self.news.add(news)
        self.changed.set()

    async def until(self, wanted: News) -> None:
        async with asyncio.timeout(PROMPTLY):
            while self.news != wanted:
                self.changed.clear()
                await self.changed.wait()
        self.news = News()


async def test_with_the_commit_and_not_by_who_told(postgres_url: str, home_on_postgres: Home) -> None:
    async with open_store(home_on_postgres, alone=False) as one, open_store(home_on_postgres, alone=False) as two:
        ears = [Heard(), Heard()]
        tasks = [
            asyncio.create_task(Ear(postgres_url, session=lambda store=store: store.session, hear=ear).listen())  # type: ignore[misc]  # bound at once
            for store, ear in zip((one, two), ears, strict=True)
        ]
        try:
            for ear in ears:
                await ear.until(News.of_anything())
            await accept(one, new_task())
            await ears[1].until(News(lanes={LANE}))
            # What the other tells comes after what one would have told itself.
            await accept(two, new_task(task_type="slow"))
            await ears[0].until(News(tasks=True))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_batch_is_told_once(postgres_url: str, home_on_postgres: Home) -> None:
    told: list[str] = []
    listener = await asyncpg.connect(postgres_url)
    await listener.add_listener(CHANNEL, lambda _c, _pid, _channel, text: told.append(text))
    async with open_store(home_on_postgres, alone=False) as store:
        await asyncio.gather(*(accept(store, new_task()) for _ in range(50)), accept(store, new_task(handed_off=True)))
        await accept(store, new_task(handed_off=True))
        await store.leave()
        async with asyncio.timeout(PROMPTLY):
            while not told or not decoded(told[-1])[1].more:
                await listener.fetchval("SELECT 1")
    await listener.close()
    # one batch, or two: the first may have begun before the others were there
    assert 1 <= len(told[:-1]) <= 2
    assert {lane for text in told[:-1] for lane in decoded(text)[1].lanes} == {LANE}


@pytest.fixture
def home_on_postgres(postgres_url: str, tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(data_dir=tmp_path_factory.mktemp("news") / "data", database_url=postgres_url)


async def test_a_change_on_the_command_line_is_told(postgres_url: str, home_on_postgres: Home) -> None:
    told: list[str] = []
    listener = await asyncpg.connect(postgres_url)
    await listener.add_listener(CHANNEL, lambda _c, _pid, _channel, text: told.append(text))
    async with open_store(home_on_postgres, alone=False) as store:
        id_ = await subscribe(store)
        for keep in (False, True):
            await direct.apply(store.database, lambda tx: subscribing.disable(tx, who(store), id_), keep=keep)
        async with asyncio.timeout(PROMPTLY):
            while not told:
                await listener.fetchval("SELECT 1")
    await listener.close()
    assert [decoded(text)[1] for text in told] == [News(chores=True)]
