"""Starts `dispatcher serve`, or `dispatcher worker`, as a real process, and talks to it."""

from __future__ import annotations

import os
import select
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import httpx

from tests.support import forking, new_databases
from tests.support.forking import ROOT, Forked
from tests.support.patience import PATIENCE

#: the module that is the command
DISPATCHER = "dispatcher.cli"
#: how each command begins the line that says where it is
READY = {"serve": "dispatcher ready on ", "worker": "dispatcher worker ready on "}
#: for clients that speak plain http only; without it, httpx loads all of the world's authorities for each of them
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


class Server:
    """One dispatcher process on a data directory. `start()` it again after `kill()` to see what it kept.

    It is forked from a process that has imported it; with `prefix`, or where it is to be a `real_start`, the command
    is run from the beginning.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        command: Literal["serve", "worker"] = "serve",
        name: str | None = None,
        dev: bool = True,
        settings: dict[str, str] | None = None,
        options: Sequence[str] = (),
        launcher: str = DISPATCHER,
        prefix: Sequence[str] = (),
        real_start: bool = False,
        database_url: str | None = None,
    ) -> None:
        self.data_dir = data_dir
        database_url = database_url or new_databases.url_for(data_dir)
        #: what leads any command on its data directory to its database
        self.environment = {} if database_url is None else {"DATABASE_URL": database_url}
        self.database_url = database_url
        #: where its database is, for whoever reads it beside it
        self.place: Path | str = database_url or data_dir
        self._command = command
        self.log = data_dir.parent / f"{name or data_dir.name}.log"
        self._dev = dev
        self._settings = settings or {}
        self._options = options
        self._launcher = launcher
        self._prefix = prefix
        self._real_start = real_start or bool(prefix)
        self.process: subprocess.Popen[bytes] | Forked | None = None
        self.url = ""
        self.token = ""

    def start(self) -> Self:
        """Start it and wait until it says that it is ready."""
        inherited = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith("DISPATCHER_") and key != "DATABASE_URL"
        }
        environment = {**inherited, **{f"DISPATCHER_{key.upper()}": value for key, value in self._settings.items()}}
        environment |= self.environment
        arguments = [self._command, "--port", "0", "--data-dir", str(self.data_dir)]
        arguments += [*(["--dev"] if self._dev else []), *self._options]
        with self.log.open("a") as log:
            if self._real_start:
                command = [*self._prefix, sys.executable, "-m", self._launcher, *arguments]
                self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=environment, cwd=ROOT)
            else:
                if self._launcher == DISPATCHER and not self.environment:
                    new_databases.place(self.data_dir)
                self.process = forking.launched(
                    self._launcher, arguments, stdout=subprocess.PIPE, stderr=log, env=environment
                )
        deadline = time.monotonic() + PATIENCE
        for line in self._lines(deadline):
            kind, _, rest = line.partition(" ")
            if kind == "token":
                self.token = rest
            elif line.startswith(READY[self._command]):
                self.url = line.removeprefix(READY[self._command])
                return self
        self.kill()
        raise AssertionError(f"the dispatcher did not start:\n{self.log.read_text()[-4000:]}")

    def worker(
        self, name: str = "worker", *, settings: dict[str, str] | None = None, options: Sequence[str] = ()
    ) -> Server:
        """A worker on the same data directory and database, with these settings beside ours; not started yet."""
        worker = Server(
            self.data_dir,
            command="worker",
            name=name,
            dev=self._dev,
            settings=self._settings | (settings or {}),
            options=options,
            database_url=self.database_url,
        )
        worker.token = self.token
        return worker

    def _lines(self, deadline: float) -> Iterator[str]:
        """Lines of its stdout as they come, until it ends or time is up. Nothing is buffered past a wait."""
        assert self.process is not None
        assert self.process.stdout is not None
        pending = b""
        while (left := deadline - time.monotonic()) > 0:
            readable, _, _ = select.select([self.process.stdout], [], [], left)
            chunk = os.read(self.process.stdout.fileno(), 65536) if readable else b""
            if not chunk:
                return
            *lines, pending = (pending + chunk).split(b"\n")
            yield from (line.decode() for line in lines)

    def client(self, **options: Any) -> httpx.Client:
        """A client with this server's token."""
        return httpx.Client(**self._speaking(), **options)

    def async_client(self, **options: Any) -> httpx.AsyncClient:
        """The same, for async tests."""
        return httpx.AsyncClient(**self._speaking(), **options)

    def _speaking(self) -> dict[str, Any]:
        return {
            "base_url": self.url,
            "headers": self.authorization,
            "timeout": 30,
            "trust_env": False,
            "verify": NO_TLS,
        }

    @property
    def authorization(self) -> dict[str, str]:
        """The header that carries its token."""
        return {"Authorization": f"Bearer {self.token}"}

    @property
    def running(self) -> bool:
        """Whether the process is alive."""
        return self.process is not None and self.process.poll() is None

    def signal(self, number: int) -> None:
        """Send it a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        if self.running:
            self.signal(signal.SIGKILL)
        self.wait()

    def stop(self) -> int:
        """SIGTERM, and wait until it has ended by itself. Returns its exit status."""
        if self.running:
            self.signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        """Wait until it has ended."""
        assert self.process is not None
        try:
            status = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"the dispatcher did not stop:\n{self.log.read_text()[-4000:]}") from None
        if self.process.stdout is not None:
            self.process.stdout.close()
        return status

    def cli(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run another `dispatcher` command on the same data directory and database."""
        environment = os.environ | self.environment
        return forking.run(*arguments, "--data-dir", str(self.data_dir), env=environment, check=check)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self.running:
            self.kill()
        elif self.process is not None and self.process.stdout is not None:
            self.process.stdout.close()


def until(condition: Any, *, within: float = PATIENCE, every: float | None = None) -> Any:
    """Wait until a condition returns something true, and return that. Fails after `within` seconds.

    It is asked `every` so many seconds, else ever less often: to ask a server takes time that it needs for its work.
    """
    deadline = time.monotonic() + within
    pause = every or 0.01
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within} s")
        time.sleep(pause)
        pause = every or min(pause * 1.3, 0.25)
