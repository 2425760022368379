"""All that takes part: two databases behind proxies, an API, three workers, receivers, producers, and the watch."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import httpx

from tests.e2e.chaos.nodes import AWAY, DATABASE, Pair, free_port
from tests.e2e.chaos.processes import Clock, Process, faketime
from tests.e2e.chaos.producers import KEYED, LINE, NEWS, Producers, Subscribed
from tests.e2e.chaos.proxy import Proxy
from tests.e2e.chaos.receivers import Arrival, Receiver
from tests.e2e.chaos.watch import Watch
from tests.support import postgres
from tests.support.server import NO_TLS

RECEIVERS = 4
WORKERS = 3
#: event type, ordering, and which receiver
SUBSCRIPTIONS = (
    (NEWS, "none", 0),
    (NEWS, "none", 1),
    (LINE, "fifo", 2),
    (LINE, "none", 3),
    (KEYED, "fifo-by-key", 1),
    (KEYED, "fifo-by-key", 3),
)


class Scene:
    """Everything, once `start()` has set it up."""

    def __init__(self, folder: Path, *, seed: str, rate: float, disk: int | None) -> None:
        self.folder = folder
        self.pair = Pair(folder, disk=disk)
        #: whether the disks of the databases can be filled
        self.small = disk is not None
        self.proxies = [Proxy(node.port) for node in self.pair.nodes]
        self.arrivals: list[Arrival] = []
        self.receivers = [Receiver(self.arrivals, random.Random(f"{seed} {n}")) for n in range(RECEIVERS)]
        self.watch = Watch(pair=self.pair)
        self.subscriptions: list[Subscribed] = []
        self._seed = seed
        self._rate = rate

    async def start(self) -> None:
        """Set it up, and begin to work."""
        await asyncio.gather(self._database(), *(receiver.start() for receiver in self.receivers))
        hosts = ",".join(f"127.0.0.1:{proxy.port}" for proxy in self.proxies)
        url = f"postgresql://{postgres.SUPERUSER}@{hosts}/{DATABASE}?target_session_attrs=read-write&connect_timeout=5"
        self.api = self._process("api", "serve", url, "--role", "api")
        self.workers = [self._process(f"worker-{n}", "worker", url) for n in range(WORKERS)]
        await self.api.start()
        library = faketime()
        if library is not None:
            self.workers[-1].clock = Clock(self.folder / "clock", library, monotonic=False)
            self.workers[-1].clock.set(0)
        for worker in self.workers:
            worker.take_keyring(self.api)
        await asyncio.gather(*(worker.start() for worker in self.workers))
        self.watch.start()
        await self._subscribe()
        self.producers = Producers(
            self.api.url,
            self.api.token,
            origins=[receiver.url for receiver in self.receivers],
            subscriptions=self.subscriptions,
            rate=self._rate,
            taken=lambda: sum(receiver.taken for receiver in self.receivers),
            seed=f"{self._seed} producers",
        )
        self.producers.start()

    async def _database(self) -> None:
        await self.pair.start()
        await asyncio.gather(*(proxy.start() for proxy in self.proxies))

    def _process(self, name: str, command: str, url: str, *options: str) -> Process:
        return Process(name, command, self.folder, port=free_port(), database_url=url, options=options)

    async def _subscribe(self) -> None:
        headers = {"Authorization": f"Bearer {self.api.token}"}
        async with httpx.AsyncClient(timeout=60, trust_env=False, verify=NO_TLS, headers=headers) as http:
            for number, (kind, ordering, receiver) in enumerate(SUBSCRIPTIONS):
                path, port = f"/s/{number}", self.receivers[receiver].port
                body = {
                    "name": f"s{number}",
                    "events": [kind],
                    "config": {"url": f"http://127.0.0.1:{port}{path}"},
                    "ordering": None if ordering == "none" else ordering,
                }
                answer = await http.post(f"{self.api.url}/webhooks/subscriptions", json=body)
                assert answer.status_code == 201, answer.text
                self.subscriptions.append(
                    Subscribed(id=answer.json()["id"], path=path, port=port, type=kind, ordering=ordering)
                )

    async def ledger(self) -> dict[str, int]:
        """What the API says of the ledger."""
        headers = {"Authorization": f"Bearer {self.api.token}"}
        async with httpx.AsyncClient(timeout=60, trust_env=False, verify=NO_TLS, headers=headers) as http:
            answer = await http.get(f"{self.api.url}/ledger")
            found: dict[str, int] = answer.json()
            return found

    @property
    def ports(self) -> Sequence[int]:
        """Where receivers listen."""
        return [receiver.port for receiver in self.receivers]

    @property
    def processes(self) -> list[Process]:
        """The dispatcher's."""
        return [self.api, *self.workers]

    async def stop(self) -> list[str]:
        """End what is there, the dispatchers in good order. What did not end as it should."""
        statuses = await asyncio.gather(*(process.stop() for process in self.processes))
        await self.watch.stop()
        wrong = [
            f"{process.name} ended with status {status}"
            for process, status in zip(self.processes, statuses, strict=True)
            if status != 0
        ]
        [[sessions]] = await self.pair.primary.fetch("SELECT count(*) FROM sessions")
        if sessions:
            wrong.append(f"{sessions} sessions are left after all processes have stopped")
        return wrong

    async def remove(self) -> None:
        """Whatever still runs ends now."""
        for process in [getattr(self, "api", None), *getattr(self, "workers", [])]:
            if process is not None and process.pids:
                await process.kill()
        for proxy in self.proxies:
            await proxy.close()
        for receiver in self.receivers:
            await receiver.stop()
        with suppress(*AWAY):
            await self.pair.stop()
