"""`dispatcher outbox …`: the key that publishers get, and what becomes of rows that were refused."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from pathlib import Path

import pytest
import sqlalchemy as sa

from dispatcher.ids import new_id
from dispatcher.outbox import Outbox
from dispatcher.public_keys import PublicKey
from dispatcher.store.tables import outbox
from tests.support import forking
from tests.support.stores import Home, open_store

PROBLEM = {"type": "/problems/unknown-type", "title": "t", "errors": [{"field": "/type", "detail": "is [red]none"}]}


@pytest.fixture
def home(postgres_url: str, tmp_path: Path) -> Home:
    return Home(data_dir=tmp_path / "data", database_url=postgres_url)


def run(home: Home, *arguments: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("DISPATCHER_", "DATABASE_"))}
    database = {} if home.database_url is None else {"DATABASE_URL": home.database_url}
    environment = clean | database | {"COLUMNS": "120", "DISPATCHER_DATA_DIR": str(home.data_dir)}
    return forking.run("outbox", *arguments, env=environment)


def out(home: Home, *arguments: str) -> str:
    done = run(home, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


async def add_refused(home: Home, *ids: str, account: str = "a", created_at: int = 1) -> None:
    times = {"created_at": created_at, "refused_at": 2}
    values = {"account": account, "kind": "task", "fields": b"{}", "payload": b"1", **times}
    async with open_store(home, alone=False) as store, store.database.write() as connection:
        await connection.execute(sa.insert(outbox), [{**values, "id": id_, "problem": PROBLEM} for id_ in ids])


async def ids_left(home: Home) -> dict[str, bool]:
    """The rows that there are, and whether they wait to be taken."""
    async with open_store(home, alone=False) as store, store.database.read() as connection:
        found = await connection.execute(sa.select(outbox.c.id, outbox.c.refused_at.is_(None)))
        return {str(row[0]): bool(row[1]) for row in found}


def test_the_public_key_is_printed_and_rotated(home: Home) -> None:
    [first] = out(home, "key").splitlines()
    Outbox(public_key=first)
    [second] = out(home, "rotate-key").splitlines()
    assert out(home, "key") == f"{second}\n"
    assert [key["public_key"] for key in json.loads(out(home, "key", "--json"))] == [second, first]
    refused = run(home, "rotate-key", "--drop-older")
    assert (refused.returncode, refused.stdout) == (2, "")
    [third] = out(home, "rotate-key", "--drop-older", "--yes").splitlines()
    assert [key["public_key"] for key in json.loads(out(home, "key", "--json"))] == [third]
    assert len({PublicKey.parse(key).kid for key in (first, second, third)}) == 3


def test_refused_rows_are_listed_tried_again_and_discarded(home: Home) -> None:
    first, second, third = (new_id() for _ in range(3))
    asyncio.run(add_refused(home, first, second, third))
    [shown, *_] = listed = json.loads(out(home, "refused", "--json"))
    assert [row["id"] for row in listed] == [first, second, third]
    assert (shown["account"], shown["kind"], shown["problem"]) == ("a", "task", PROBLEM)
    table = out(home, "refused")
    assert first in table
    assert "/type is [red]none" in table

    assert run(home, "discard", second).returncode == 2  # nobody can be asked
    out(home, "discard", second, "--yes")
    out(home, "retry", first)
    again = run(home, "retry", first, third)
    assert (again.returncode, "1 rows are tried again" in again.stderr) == (2, True)
    assert first in again.stderr.splitlines()[-1]
    assert asyncio.run(ids_left(home)) == {first: True, third: True}


def test_a_row_written_by_hand_does_nothing_to_the_list_or_the_terminal(home: Home) -> None:
    """An id, an account and a moment are what its writer says; the others are listed all the same."""
    good, hostile = new_id(), "\x1b]52;c;eA==\x07\x9b2J\u202e"
    asyncio.run(add_refused(home, good, hostile, account=hostile, created_at=2**62))
    table = out(home, "refused")
    assert good in table
    assert "]52;c;eA==" in table
    assert not set("\x1b\x07\x9b\u202e") & set(table)
    listed = json.loads(out(home, "refused", "--json"))
    assert {row["id"]: row["created_at"] for row in listed} == {good: None, hostile: None}


@pytest.mark.parametrize("arguments", [["key"], ["refused"], ["rotate-key"], ["retry", "1"]])
def test_without_postgresql_there_is_no_outbox(tmp_path: Path, arguments: list[str]) -> None:
    done = run(Home(data_dir=tmp_path / "data"), *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "PostgreSQL" in done.stderr
    assert not (tmp_path / "data").exists()
