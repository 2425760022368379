"""Every misbehaviour of the kit's, through a real dispatcher: the right outcome is on record, and memory is flat."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from dispatcher.conformance.faults import FAULTS, Script
from dispatcher.conformance.wire.exchange import Exchange
from dispatcher.conformance.wire.server import WireServer
from tests.support.memory import measured, resident
from tests.support.server import Server

#: faults that are another one each time
CHANGING = {"flap", "random"}
STEADY = sorted(FAULTS.keys() - CHANGING)
#: settings that a fault needs
SETTINGS = {
    "redirect": ";to=http://127.0.0.1:9/",
    "until-rotated": ";secret=new",
    # They are not to keep the machine so busy that deadlines pass first. Unbounded, each would still be megabytes.
    "endless-headers": ";pause=0.002",
    "interim-flood": ";pause=0.002",
    "huge": ";pause=0.002",
}
ROUNDS = 2
#: seconds: a busy machine has to cut the floods for what they are before the deadline does
SEND_TIMEOUT = "8"
#: deliveries to each fault in a round, each to a receiver of its own
AT_ONCE = 2
#: bytes by which a process may grow over all rounds but the first: much less than what the faults would have it read
GROWTH = 16 * 1024 * 1024


@pytest.mark.timeout(300)
@pytest.mark.parametrize("transport", ["http1", "httpx"])
@measured
async def test_each_misbehaviour_is_survived_and_recorded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], transport: str
) -> None:
    async def misbehave(exchange: Exchange) -> None:
        name = exchange.request.path.strip("/")
        step = Script.parse(name + SETTINGS.get(name, "")).next(exchange.request)
        assert step is not None
        await step(exchange)

    # Each at an origin of its own: they share neither a lane nor a kept connection, which "torn" resets a moment later.
    names = [name for name in STEADY for _ in range(AT_ONCE)]
    receivers = [WireServer(misbehave) for _ in names]
    await asyncio.gather(*(receiver.start() for receiver in receivers))
    urls = [f"http://127.0.0.1:{receiver.port}/{name}" for name, receiver in zip(names, receivers, strict=True)]
    settings = {
        "send_timeout": SEND_TIMEOUT,
        "retry_schedule": "[3600]",
        "log_level": "error",
        "transport": transport,
    }
    server = await asyncio.to_thread(Server(tmp_path / "data", settings=settings).start)
    try:
        async with server.async_client() as client:
            outcomes, sizes = await _rounds(client, names, urls, server)
    finally:
        await asyncio.to_thread(server.stop)
        await asyncio.gather(*(receiver.close() for receiver in receivers))
    expected = {name: {FAULTS[name].expects} for name in STEADY}
    with capsys.disabled():
        mebibytes = [size // 1_048_576 for size in sizes]
        print(f"\n{len(STEADY)} misbehaviours, {transport}; MiB of memory after each round: {mebibytes}")
    assert outcomes == expected
    assert sizes[-1] - sizes[0] < GROWTH, mebibytes


async def _rounds(
    client: httpx.AsyncClient, names: list[str], urls: list[str], server: Server
) -> tuple[dict[str, set[str]], list[int]]:
    outcomes: dict[str, set[str]] = {name: set() for name in names}
    sizes: list[int] = []
    assert server.process is not None
    for _ in range(ROUNDS):
        tasks = [{"payload": 1, "callback_url": url} for url in urls]
        accepted = (await client.post("/tasks/batch", json={"tasks": tasks})).json()["items"]
        for name, item in zip(names, accepted, strict=True):
            outcomes[name].add(await _outcome(client, item["task"]["delivery_id"]))
        sizes.append(resident(server.process.pid))
    return outcomes, sizes


async def _outcome(client: httpx.AsyncClient, delivery_id: str) -> str:
    """How its first attempt ended."""
    async with asyncio.timeout(30):
        while True:
            found: dict[str, Any] = (await client.get(f"/deliveries/{delivery_id}")).json()
            if found["attempts"]:
                return str(found["attempts"][0]["outcome"])
            await asyncio.sleep(0.05)
