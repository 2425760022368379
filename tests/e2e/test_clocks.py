"""A machine's clock is set back while the dispatcher runs: what is to happen from time to time happens all the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import asyncpg
import pytest

from tests.conftest import missing
from tests.e2e.chaos.processes import Clock, faketime
from tests.support.api import accept
from tests.support.receiver import Received, Receiver, Reply
from tests.support.server import Server, until

Start = Callable[..., Server]

SETTINGS = {"retry_schedule": "[0.2, 0.2]", "send_timeout": "5", "session_ttl": "20"}


@pytest.mark.timeout(600)
async def test_leases_of_the_dead_are_freed(
    start_server: Start, tmp_path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = faketime()
    if library is None:
        missing("libfaketime")
    assert library is not None
    clock = Clock(tmp_path / "clock", library, monotonic=False)
    clock.set(0)

    def hangs_at_first(request: Received) -> Reply:
        return Reply(hang=request.attempt == 1)

    with Receiver(hangs_at_first) as receiver:
        doomed = start_server(settings=SETTINGS, database_url=postgres_url)
        with monkeypatch.context() as environment:
            for name, value in clock.environment.items():
                environment.setenv(name, value)
            other = start_server(settings=SETTINGS, database_url=postgres_url, real_start=True)
        clock.set(-3 * 3600)
        until(lambda: "clock_was_set" in other.log.read_text())
        with doomed.client() as client:
            accept(client, receiver.url)
            receiver.wait_for(1)
        doomed.kill()
        assert [request.attempt for request in receiver.wait_for(2)] == [1, 2]
    connection = await asyncpg.connect(postgres_url)
    first = await connection.fetchval("SELECT outcome FROM attempts WHERE number = 1")
    await connection.close()
    assert first == "interrupted"
