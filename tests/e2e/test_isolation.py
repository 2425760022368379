"""One bad endpoint never hurts another: hosts that hang in DNS, in TCP or after it, and lanes with a long backlog.

Each test first measures healthy deliveries alone, and then the same ones beside the trouble, on the same machine.
"""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.support.dns import NameServerThread
from tests.support.receiver import Receiver, Reply
from tests.support.server import Server, until

Start = Callable[..., Server]

HOSTS = 100
#: what a healthy delivery may take beside the trouble: so many times what it takes alone, and so many seconds
FACTOR, CONSTANT = 5.0, 1.0


@dataclass(frozen=True, kw_only=True)
class Delays:
    """Seconds from the start of `POST /tasks` to the request at the receiver, sorted."""

    seconds: tuple[float, ...]

    def at(self, share: float) -> float:
        return self.seconds[min(len(self.seconds) - 1, int(share * len(self.seconds)))]

    def __str__(self) -> str:
        shown = ", ".join(f"{name} {self.at(share) * 1000:.0f}" for name, share in (("p50", 0.5), ("p95", 0.95)))
        return f"{shown}, max {self.at(1) * 1000:.0f} ms of {len(self.seconds)}"

    def assert_undisturbed(self, alone: Delays) -> None:
        assert self.at(0.5) <= FACTOR * alone.at(0.5) + CONSTANT / 5, f"{self} instead of {alone}"
        assert self.at(0.95) <= FACTOR * alone.at(0.95) + CONSTANT, f"{self} instead of {alone}"
        assert self.at(1) <= FACTOR * alone.at(1) + 2 * CONSTANT, f"{self} instead of {alone}"


def measure(
    clients: list[httpx.Client], receiver: Receiver, url: Callable[[int], str], *, count: int, every: float
) -> Delays:
    """Post healthy tasks at a steady pace, by each client in turn, and see how long each takes to arrive."""
    before = len(receiver.received)
    posted: dict[str, float] = {}
    began = time.monotonic()
    for n in range(count):
        time.sleep(max(0.0, began + n * every - time.monotonic()))
        at = time.monotonic()
        answer = clients[n % len(clients)].post("/tasks", json={"payload": n, "callback_url": url(n)})
        assert answer.status_code == 202, answer.text
        posted[answer.json()["delivery_id"]] = at
    arrived = {request.delivery: request.at for request in receiver.wait_for(before + count)[before:]}
    assert set(arrived) == set(posted)
    return Delays(seconds=tuple(sorted(arrived[delivery] - at for delivery, at in posted.items())))


@contextmanager
def full_listeners(count: int) -> Iterator[list[str]]:
    """Addresses where connecting hangs: each backlog is full, and nobody accepts."""
    with ExitStack() as stack:
        urls = []
        for n in range(1, count + 1):
            listener = stack.enter_context(socket.socket())
            listener.bind((f"127.0.1.{n}", 0))
            listener.listen(0)
            for _ in range(3):
                waiting = stack.enter_context(socket.socket())
                waiting.setblocking(False)
                waiting.connect_ex(listener.getsockname())
            urls.append("http://{}:{}".format(*listener.getsockname()))
        probe = stack.enter_context(socket.socket())
        probe.settimeout(0.3)
        with pytest.raises(TimeoutError):
            probe.connect(listener.getsockname())
        yield urls


def test_hosts_that_hang_leave_the_others_undisturbed(start_server: Start) -> None:
    zone = {"*.good.test": ["127.0.0.1"], "*.mute.test": ["127.0.0.1"]}
    with (
        NameServerThread(zone) as names,
        Receiver() as good,
        Receiver(lambda _request: Reply(hang=True)) as mute,
        full_listeners(HOSTS) as full,
    ):
        settings = {
            "nameservers": names.address,
            # above the resolver's own 5 s, so that a name that hangs is told from an address that does
            "send_timeout": "6",
            "retry_schedule": "[0.5, 0.5, 60]",
        }
        server = start_server(settings=settings)
        hanging = {
            "dns_error": [f"http://h{n}.hang.test" for n in range(HOSTS)],
            "timeout": full + [f"http://h{n}.mute.test:{mute.port}" for n in range(HOSTS)],
        }

        def healthy(n: int) -> str:
            return f"http://h{n % 20}.good.test:{good.port}/{n}"

        with server.client() as client:
            measure([client], good, healthy, count=40, every=0.01)
            alone = measure([client], good, healthy, count=200, every=0.02)
            sent: dict[str, str] = {}
            for outcome, urls in hanging.items():
                tasks = [{"payload": n, "callback_url": f"{url}/{n}"} for n in range(3) for url in urls]
                answer = client.post("/tasks/batch", json={"tasks": tasks})
                assert answer.status_code == 202
                accepted = [item["task"]["delivery_id"] for item in answer.json()["items"]]
                sent |= dict.fromkeys(accepted[: len(urls)], outcome)
            # Longer than every timeout: through the first tries, their ends, and the second tries.
            beside = measure([client], good, healthy, count=400, every=0.02)

            def tried() -> dict[str, Counter[str]] | None:
                found = {outcome: Counter[str]() for outcome in hanging}
                for delivery, outcome in sent.items():
                    attempts = client.get(f"/deliveries/{delivery}").json()["attempts"]
                    if not attempts:
                        return None
                    assert {attempt["outcome"] for attempt in attempts} == {outcome}, attempts
                    found[outcome]["hosts"] += 1
                    found[outcome]["retried"] += attempts[0]["retry_at"] is not None
                return found

            found = until(tried, within=10, every=0.5)
            assert {outcome: dict(counts) for outcome, counts in found.items()} == {
                outcome: {"hosts": len(urls), "retried": len(urls)} for outcome, urls in hanging.items()
            }
            second = until(lambda: [d for d in sent if client.get(f"/deliveries/{d}").json()["attempt"] >= 2])
            counts = client.get("/ledger").json()
        assert counts["reconciles"]
        assert counts["delivered"] == len(good.received) == 640
        assert len(names.asked(".hang.test")) == HOSTS
    print(f"\nalone: {alone}\nbeside {3 * HOSTS} hosts that hang: {beside}; {len(second)} of them were tried again")
    beside.assert_undisturbed(alone)


def test_a_lane_with_a_long_backlog_leaves_the_others_undisturbed(start_server: Start) -> None:
    backlog = 2000
    with Receiver() as good, Receiver(lambda _request: Reply(delay=0.2)) as slow:
        server = start_server()
        other_token = server.cli("token", "create", "--account", "other", "--scope", "tasks:write").stdout.strip()

        def clients(stack: ExitStack) -> list[httpx.Client]:
            """One of the account with the backlog, one of another account."""
            own = stack.enter_context(server.client())
            headers = {"Authorization": f"Bearer {other_token}"}
            return [own, stack.enter_context(httpx.Client(base_url=server.url, headers=headers, trust_env=False))]

        def healthy(n: int) -> str:
            return f"http://127.0.0.1:{good.port}/{n}" if n % 3 else f"http://localhost:{good.port}/{n}"

        with ExitStack() as stack:
            both = clients(stack)
            measure(both, good, healthy, count=40, every=0.01)
            alone = measure(both, good, healthy, count=150, every=0.02)
            for _ in range(backlog // 1000):
                tasks: list[dict[str, Any]] = [{"payload": n, "callback_url": f"{slow.url}/{n}"} for n in range(1000)]
                assert both[0].post("/tasks/batch", json={"tasks": tasks}).status_code == 202
        # After a restart all of it is overdue.
        server.kill()
        token = server.token
        server.start()
        server.token = token
        with ExitStack() as stack:
            both = clients(stack)
            beside = measure(both, good, healthy, count=150, every=0.02)
            waiting = both[0].get("/ledger").json()
            until(lambda: len({request.delivery for request in slow.received}) == backlog, within=30, every=0.1)
            until(lambda: both[0].get("/ledger").json()["delivered"] == waiting["accepted"])
        again = len(slow.received) - backlog
    assert waiting["pending"] > backlog / 5, "the backlog was gone before it could disturb anyone"
    assert again <= 64, "no more than what was in flight at the kill"
    print(f"\nalone: {alone}\nbeside {backlog} overdue in one lane: {beside}; {waiting['pending']} still waited then")
    beside.assert_undisturbed(alone)


def test_one_account_that_floods_leaves_another_undisturbed(start_server: Start) -> None:
    """Many lanes of one account, all slow, and more of them than there are send slots."""
    with (
        NameServerThread({"*.slow.test": ["127.0.0.1"]}) as names,
        Receiver() as good,
        Receiver(lambda _request: Reply(delay=2.0)) as slow,
        ExitStack() as stack,
    ):
        server = start_server(settings={"nameservers": names.address, "send_slots": "64"})
        made = server.cli("token", "create", "--account", "other", "--scope", "tasks:write")
        headers = {"Authorization": f"Bearer {made.stdout.strip()}"}
        other = stack.enter_context(httpx.Client(base_url=server.url, headers=headers, trust_env=False))
        flood = stack.enter_context(server.client())
        measure([other], good, lambda n: f"{good.url}/{n}", count=20, every=0.01)
        alone = measure([other], good, lambda n: f"{good.url}/{n}", count=60, every=0.02)
        tasks = [{"payload": n, "callback_url": f"http://h{n % 300}.slow.test:{slow.port}/{n}"} for n in range(900)]
        assert flood.post("/tasks/batch", json={"tasks": tasks}).status_code == 202
        beside = measure([other], good, lambda n: f"{good.url}/{n}", count=100, every=0.02)
    print(f"\nalone: {alone}\nbeside another account with 900 deliveries to 300 slow hosts: {beside}")
    beside.assert_undisturbed(alone)
