"""The dispatcher under measurement: `dispatcher serve --dev` as it comes, and what it says about itself.

`--dev` admits plain http and loopback. Nothing else is set: durability, signing and limits are the defaults.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from scripts.benchmark import processes
from scripts.benchmark.failures import BenchmarkFailed
from scripts.benchmark.load import EVENT_TYPE, Job
from scripts.benchmark.processes import Child, Usage

#: the account's secret: what is measured is signed, as webhooks are
SECRET = "whsec_YmVuY2htYXJrcyBhcmUgc2lnbmVkLCB0b28="  # noqa: S105 - it signs nothing but measurements
#: seconds that it is given to stop: its data is thrown away, and a hanging endpoint would keep it for longer
STOP_S = 3.0
#: seconds between two looks at the ledger, which counts rows for each
LOOK_S = 0.05

_COMMAND = (sys.executable, "-m", "dispatcher.cli")


class Dispatcher:
    """A running dispatcher, and an account of it."""

    def __init__(self, child: Child, folder: Path, client: httpx.Client, token: str) -> None:
        self._child = child
        self._folder = folder
        self._client = client
        self._token = token
        self._host, self._port = client.base_url.host, client.base_url.port or 0

    @contextmanager
    def for_account(self, account: str) -> Iterator[Dispatcher]:
        """The same dispatcher, for another account."""
        command = [*_COMMAND, "token", "create", "--account", account, "--data-dir", str(_data_dir(self._folder))]
        for scope in ("tasks:write", "events:write", "subscriptions:write", "deliveries:read"):
            command += ["--scope", scope]
        token = processes.finished(command, log=self._folder / "token.log", within=processes.START_S).strip()
        with _client(str(self._client.base_url), token) as client:
            yield Dispatcher(self._child, self._folder, client, token)

    def job(self, **fields: Any) -> Job:
        """A job for the load generator against this dispatcher."""
        return Job(host=self._host, port=self._port, token=self._token, **fields)

    def usage(self) -> Usage:
        """CPU and memory of its process."""
        return self._child.usage()

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """One call of the API that must succeed."""
        return self._checked(self._client.post(path, json=body))

    def subscribe(self, urls: Sequence[str]) -> None:
        """A subscription to the events that the load generator publishes, for each URL."""
        for index, url in enumerate(urls):
            self.post(
                "/webhooks/subscriptions",
                {"name": f"s{index}", "events": [EVENT_TYPE], "config": {"url": url, "secret": SECRET}},
            )

    def ledger(self) -> dict[str, int]:
        """Its deliveries by state, and `accepted`."""
        found: dict[str, int] = self._checked(self._client.get("/ledger"))
        if not found["reconciles"]:
            raise BenchmarkFailed(f"the ledger does not reconcile: {found}")
        return found

    def sign(self) -> None:
        """Give the account a secret, so that callbacks are signed."""
        self._checked(self._client.patch("/account", json={"default_secret": SECRET}))

    def until_delivered(self, count: int, *, within: float) -> float:
        """Wait until the ledger says so; returns the moment."""
        return processes.until(
            lambda: self.ledger()["delivered"] >= count,
            within=within,
            what=f"the ledger says that {count} are delivered",
            every=LOOK_S,
        )

    def _checked(self, answer: httpx.Response) -> Any:
        if not answer.is_success:
            raise BenchmarkFailed(f"{answer.request.method} {answer.request.url.path}: {answer.status_code}")
        return answer.json()


@contextmanager
def serving(
    folder: Path, environment: Mapping[str, str] | None = None, *, options: Sequence[str] = ()
) -> Iterator[Dispatcher]:
    """A dispatcher on a new data directory in `folder`."""
    command = [*_COMMAND, "serve", "--dev", "--port", "0", "--data-dir", str(_data_dir(folder)), *options]
    with processes.running(command, log=folder / "dispatcher.log", environment=environment, patience=STOP_S) as child:
        token = ""
        for line in child.lines():
            if line.startswith("token "):
                token = line.removeprefix("token ")
            elif line.startswith("dispatcher ready on "):
                url = line.removeprefix("dispatcher ready on ")
                break
        else:
            raise child.failure("did not start")
        with _client(url, token) as client:
            dispatcher = Dispatcher(child, folder, client, token)
            dispatcher.sign()
            yield dispatcher


def _client(url: str, token: str) -> httpx.Client:
    return httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=60, trust_env=False)


def _data_dir(folder: Path) -> Path:
    return folder / "data"
