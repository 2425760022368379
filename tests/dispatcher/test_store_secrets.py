"""Secrets of subscriptions: rotated with an overlap, revoked, ended; sealed at rest, and nothing of them left after."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from dispatcher.errors import Problem
from dispatcher.store import Store
from dispatcher.store.rotating import MAX_KEYS, Rotation
from dispatcher.store.tables import notices, secrets
from subscriptions.models import Subscription, ValidKey
from subscriptions.secrets import Secret, SigningKey, generate_seed
from tests.support.stores import (
    Home,
    lease_for,
    new_event,
    open_store,
    publish,
    settle,
    signing_key,
    subscribe,
    who,
)

DAY = 86_400.0


@pytest.fixture
async def store(home: Home) -> AsyncIterator[Store]:
    async with open_store(home) as store:
        yield store


def anything(_subscription: Subscription, _key: SigningKey) -> None:
    """Every key will do."""


async def rotate(
    store: Store,
    id_: str,
    *,
    overlap: float = DAY,
    key: SigningKey | None = None,
    valid_from: int | None = None,
    valid_until: int | None = None,
) -> ValidKey:
    rotation = Rotation(key=key or signing_key(), overlap=overlap, valid_from=valid_from, valid_until=valid_until)
    return await store.rotate_secret(who(store), id_, rotation, anything)


async def rows(store: Store) -> list[sa.RowMapping]:
    async with store.database.read() as connection:
        return list((await connection.execute(sa.select(secrets).order_by(secrets.c.id))).mappings())


async def set_times(store: Store, id_: str, **values: int) -> None:
    async with store.database.write() as connection:
        await connection.execute(sa.update(secrets).where(secrets.c.id == id_).values(values))


async def signs(store: Store, id_: str) -> list[SigningKey]:
    """What signs the next delivery, the newest first."""
    await publish(store, new_event())
    [one] = await lease_for(store, id_)
    await settle(store, one)
    return list(one.endpoint.keys_at(time.time_ns() // 1_000_000))


async def test_in_the_overlap_both_sign_the_new_one_first(store: Store) -> None:
    first = signing_key()
    id_ = await subscribe(store, key=first)
    assert await signs(store, id_) == [first]
    second = await rotate(store, id_)
    assert await signs(store, id_) == [second.key, first]
    [old, new] = await rows(store)
    assert old["valid_until"] - new["valid_from"] == 86_400_000
    assert (new["valid_until"], new["notice_at"]) == (None, None)


async def test_without_an_overlap_the_old_one_is_gone(store: Store) -> None:
    id_ = await subscribe(store)
    second = await rotate(store, id_, overlap=0)
    assert await signs(store, id_) == [second.key]
    assert [row["id"] for row in await rows(store)] == [second.id]


async def test_one_that_begins_later(store: Store) -> None:
    first = signing_key()
    id_ = await subscribe(store, key=first)
    later = time.time_ns() // 1_000_000 + 3_600_000
    second = await rotate(store, id_, overlap=0, valid_from=later)
    assert await signs(store, id_) == [first]
    assert (await rows(store))[0]["valid_until"] == later == second.valid_from


async def test_an_overlap_never_prolongs_what_ends_sooner(store: Store) -> None:
    id_ = await subscribe(store)
    await rotate(store, id_, overlap=60)
    [old, *_] = await rows(store)
    await rotate(store, id_, overlap=DAY)
    [same, middle, _] = await rows(store)
    assert same["valid_until"] == old["valid_until"]
    assert middle["valid_until"] > same["valid_until"]


async def test_the_same_secret_twice_is_refused(store: Store) -> None:
    first = signing_key()
    id_ = await subscribe(store, key=first)
    with pytest.raises(Problem) as caught:
        await rotate(store, id_, key=SigningKey(secret=first.secret, seed=generate_seed()))
    assert caught.value.slug == "conflict"
    assert (await rows(store))[0]["valid_until"] is None


async def test_a_check_that_fails_leaves_nothing(store: Store) -> None:
    id_ = await subscribe(store)

    def refuse(_subscription: Subscription, _key: SigningKey) -> None:
        raise Problem("validation", "no")

    with pytest.raises(Problem):
        await store.rotate_secret(who(store), id_, Rotation(key=signing_key(), overlap=0), refuse)
    assert len(await rows(store)) == 1


async def test_so_many_and_no_more(store: Store) -> None:
    id_ = await subscribe(store)
    for _ in range(MAX_KEYS - 1):
        await rotate(store, id_)
    before = await rows(store)
    assert len(before) == MAX_KEYS
    with pytest.raises(Problem) as caught:
        await rotate(store, id_)
    assert caught.value.slug == "conflict"
    # what was refused changed nothing
    assert await rows(store) == before
    await store.revoke_secret(who(store), id_, before[0]["id"])
    await rotate(store, id_)
    await rotate(store, id_, overlap=0)
    assert len(await rows(store)) == 1


class TestRevoke:
    """Ends one at once; the last that is valid stays."""

    async def test_either_of_two(self, store: Store) -> None:
        first = signing_key()
        id_ = await subscribe(store, key=first)
        second = await rotate(store, id_)
        await store.revoke_secret(who(store), id_, second.id)
        assert await signs(store, id_) == [first]
        assert len(await rows(store)) == 1

    async def test_not_the_last_one(self, store: Store) -> None:
        id_ = await subscribe(store)
        [only] = await rows(store)
        with pytest.raises(Problem) as caught:
            await store.revoke_secret(who(store), id_, only["id"])
        assert caught.value.slug == "conflict"
        assert await rows(store) == [only]

    async def test_not_the_last_one_that_is_valid_now(self, store: Store) -> None:
        id_ = await subscribe(store)
        [first] = await rows(store)
        later = await rotate(store, id_, valid_from=time.time_ns() // 1_000_000 + 3_600_000)
        with pytest.raises(Problem):
            await store.revoke_secret(who(store), id_, first["id"])
        await store.revoke_secret(who(store), id_, later.id)
        assert [row["id"] for row in await rows(store)] == [first["id"]]

    async def test_not_one_of_another_subscription(self, store: Store) -> None:
        id_, other = await subscribe(store, "a"), await subscribe(store, "b")
        await rotate(store, id_)
        await rotate(store, other)
        theirs = next(row for row in await rows(store) if row["subscription_id"] == other)
        with pytest.raises(Problem) as caught:
            await store.revoke_secret(who(store), id_, theirs["id"])
        assert caught.value.slug == "not-found"


class TestEnding:
    """An owner hears of it in time, and what has ended is deleted."""

    async def test_it_is_told_and_then_deleted(self, store: Store) -> None:
        id_ = await subscribe(store)
        await rotate(store, id_)
        [old, _] = await rows(store)
        # after three quarters of its time
        assert old["valid_until"] - old["notice_at"] == pytest.approx(21_600_000, abs=1_000)
        assert await store.end_secrets() == 0
        await set_times(store, old["id"], notice_at=1)
        assert await store.end_secrets() == 1
        async with store.database.read() as connection:
            [notice] = (await connection.execute(sa.select(notices))).mappings()
        assert (notice["type"], notice["detail"]["secret_id"]) == ("secret.expiring", old["id"])
        assert await store.end_secrets() == 0
        await set_times(store, old["id"], notice_at=1, valid_until=1)
        assert await store.end_secrets() == 1
        assert old["id"] not in {row["id"] for row in await rows(store)}

    async def test_deleting_a_subscription_deletes_them(self, store: Store) -> None:
        id_ = await subscribe(store)
        await rotate(store, id_)
        await store.delete_subscription(who(store), id_)
        assert await rows(store) == []


async def test_nothing_is_in_clear_in_the_files(tmp_path: Path) -> None:
    text, path, header, payload = "s3cret-text-of-mine", "path-with-t0ken", "x-secret-header-value", "payl0ad-in-clear"
    seed = generate_seed()
    async with open_store(Home(data_dir=tmp_path / "data")) as store:
        id_ = await subscribe(
            store,
            url=f"https://a.example.com/{path}?q={path}",
            headers=(("X-Secret", header),),
            key=SigningKey(secret=Secret(text), seed=seed),
        )
        key = await rotate(store, id_)
        await publish(store, new_event(payload=f'"{payload}"'.encode()))
        [one] = await lease_for(store, id_)
        assert one.endpoint.url.reveal().endswith(path)
        await settle(store, one)
        await store.disable_subscription(who(store), id_)
        await store.tell("/test")
        everything = b"".join(file.read_bytes() for file in (tmp_path / "data").glob("*.db*"))
    everything += b"".join(file.read_bytes() for file in (tmp_path / "data").glob("*.db*"))
    # the search finds what is there
    assert payload.encode() in everything
    for secret in (text, path, header, key.key.secret.reveal(), key.key.secret.reveal().removeprefix("whsec_")):
        assert secret.encode() not in everything
    assert seed not in everything
    assert (key.key.seed or b"") not in everything
