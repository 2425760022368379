"""Where the time goes: processor time of each stage of a delivery, measured one after the other in this process.

The parts are the real ones, on a data directory and a socket of their own. What runs between them in a server, the web
server and the engine that has the lanes, is not in it; nor is what waiting costs.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager, redirect_stderr
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TypeVar

import msgspec
import uvloop
from rich.table import Table

from dispatcher import logs
from dispatcher.account_cache import AccountCache
from dispatcher.api.intake import described
from dispatcher.api.reading import Reader
from dispatcher.config import Settings, load
from dispatcher.delivery.handshake import Handshakes
from dispatcher.delivery.http1_transport import Http1Transport
from dispatcher.delivery.resolver import Resolver
from dispatcher.delivery.sender import Attempt, Sender
from dispatcher.egress import EgressPolicy
from dispatcher.installation import Installation, open_installation
from dispatcher.models import Outcome, lane_of
from dispatcher.processors.registry import load_processors
from dispatcher.store import Store, accounts
from dispatcher.store.accounts import Account
from dispatcher.store.records import LaneClaim, LeasedDelivery, Report
from scripts.benchmark.failures import BenchmarkFailed
from scripts.benchmark.load import payload
from scripts.benchmark.receivers import timing
from scripts.benchmark.subject import SECRET
from subscriptions.secrets import Secret

Item = TypeVar("Item")
Answer = TypeVar("Answer")

#: deliveries that go through all stages
COUNT = 4_000
#: that are under way at once in a stage
AT_ONCE = 64
ACCOUNT = "stages"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What one stage of a delivery took, µs of processor time."""

    name: str
    #: in the thread of the event loop, which is what limits a process
    loop_us: float
    #: in all threads: with SQLite's own
    all_us: float


def measure(folder: Path, *, count: int = COUNT) -> list[Stage]:
    """Send `count` deliveries through all stages; each attempt is logged to a file, as a server does."""
    with timing(folder) as receiver, (folder / "stages.log").open("w") as log, redirect_stderr(log):
        logs.configure(level="info", style="json")
        return uvloop.run(_measure(folder, receiver.origins[0], count))


def table(stages: Sequence[Stage]) -> Table:
    """What they took, for people."""
    shown = Table(title="µs of processor time a delivery, stage by stage", title_justify="left", title_style="bold")
    for heading in ("stage", "event loop", "all threads"):
        shown.add_column(heading, justify="left" if heading == "stage" else "right")
    for one in stages:
        shown.add_row(one.name, f"{one.loop_us:.0f}", f"{one.all_us:.0f}")
    total = sum(one.loop_us for one in stages), sum(one.all_us for one in stages)
    shown.add_row("together", *(f"{us:.0f}" for us in total), style="bold")
    return shown


async def _measure(folder: Path, origin: str, count: int) -> list[Stage]:
    settings = load(data_dir=folder / "data", dev=True)
    async with AsyncExitStack() as stack:
        installation = await open_installation(settings)
        stack.push_async_callback(installation.database.close)
        store = await Store.open(installation.database, installation.keyring, session_ttl=60, alone=True)
        stack.push_async_callback(store.close)
        policy = EgressPolicy.of(settings)
        resolver = Resolver(nameservers=())
        stack.push_async_callback(resolver.aclose)
        transport = Http1Transport(resolver=resolver, policy=policy)
        stack.push_async_callback(transport.aclose)
        reader = Reader(
            settings=settings, policy=policy, registry=load_processors(settings), keyring=installation.keyring
        )
        await _sign(installation)
        return await _go_through(origin, count, store, reader, _sender(settings, installation, transport))


async def _sign(installation: Installation) -> None:
    await accounts.change_account(
        installation.database,
        installation.keyring,
        ACCOUNT,
        lambda account: replace(account, default_secret=Secret(SECRET)),
        actor="benchmark",
    )


def _sender(settings: Settings, installation: Installation, transport: Http1Transport) -> Sender:
    return Sender(
        transport,
        deadline=settings.send_timeout,
        user_agent=settings.user_agent,
        schedule=settings.retry_schedule,
        handshakes=Handshakes(origin="localhost", public_url=None, keyring=installation.keyring),
    )


async def _go_through(origin: str, count: int, store: Store, reader: Reader, sender: Sender) -> list[Stage]:
    account = await AccountCache(store).get(ACCOUNT)
    lane, url = lane_of(ACCOUNT, origin), f"{origin}/results"
    posted = [b'{"callback_url":"%s","payload":%s}' % (url.encode(), payload(number)) for number in range(count)]
    stages: list[Stage] = []

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        gc.collect()
        loop, everything = time.thread_time(), time.process_time()
        yield
        loop, everything = time.thread_time() - loop, time.process_time() - everything
        stages.append(Stage(name=name, loop_us=loop / count * 1e6, all_us=everything / count * 1e6))

    with stage("read"):
        read = [reader.task(raw, account=account, trace=None) for raw in posted]
        accepted = [(task, msgspec.json.encode(described(task, token))) for task, token in read]
    with stage("accept"):
        await _at_once(accepted, lambda one: store.accept([one[0]], key=None, answer=one[1], then=lambda _answer: None))
    leased: list[LeasedDelivery] = []
    with stage("lease"):
        while len(leased) < count:
            leased += (await store.lease([LaneClaim(lane=lane, limit=2 * AT_ONCE)])).deliveries
    with stage("send"):
        reports = await _sent(leased, sender, account)
    with stage("settle"):
        for start in range(0, count, AT_ONCE):
            await store.settle(reports[start : start + AT_ONCE])
    ledger = await store.ledger(ACCOUNT)
    if ledger["delivered"] != count or any(report.answer.outcome is not Outcome.SUCCESS for report in reports):
        raise BenchmarkFailed(f"of {count} deliveries {ledger['delivered']} were delivered")
    return stages


async def _sent(leased: Sequence[LeasedDelivery], sender: Sender, account: Account) -> list[Report]:
    waiting, reports = iter(leased), list[Report]()
    all_made = asyncio.get_running_loop().create_future()

    def begin(count: int) -> None:
        sender.begin([sender.attempt(delivery, account) for delivery in islice(waiting, count)])

    def on_made(attempts: Sequence[Attempt]) -> None:
        reports.extend(attempt.report for attempt in attempts if attempt.report is not None)
        begin(len(attempts))
        if len(reports) == len(leased):
            all_made.set_result(None)

    sender.on_made = on_made
    begin(AT_ONCE)
    await all_made
    return reports


async def _at_once(items: Sequence[Item], work: Callable[[Item], Awaitable[Answer]]) -> list[Answer]:
    waiting, answers = iter(items), list[Answer]()

    async def take() -> None:
        for item in waiting:
            answers.append(await work(item))

    await asyncio.gather(*(take() for _ in range(AT_ONCE)))
    return answers
