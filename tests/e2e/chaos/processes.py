"""The dispatcher's processes: one that takes requests, and workers; some of them with a clock of their own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from tests.e2e.chaos.waiting import surely, until
from tests.support import forking
from tests.support.forking import ROOT, Forked
from tests.support.patience import PATIENCE

#: seconds that a send may take, and that a session lives without a heartbeat: the least that such a send allows for
SEND_TIMEOUT = 2
SESSION_TTL = 2 * (SEND_TIMEOUT + 5)
#: seconds until a process must have ended that was told to
STOPPED_WITHIN = 60.0
SETTINGS = {
    # Nothing here is to be given up: receivers are back within seconds, and the last delay comes again and again.
    "retry_schedule": "[" + ",".join(["0.3", "0.5", "1", "1", "2", "2", "3", "3", *["4"] * 42]) + "]",
    "send_timeout": str(SEND_TIMEOUT),
    "session_ttl": str(SESSION_TTL),
    "grace": "5",
    "database_timeout": "10",
    "dev": "1",
    "log_format": "json",
    "processors": "tests.e2e.chaos.work",
}


class Process:
    """One process of the dispatcher, which can be started again and again, on the same port."""

    def __init__(
        self, name: str, command: str, folder: Path, *, port: int, database_url: str, options: Sequence[str] = ()
    ) -> None:
        self.name = name
        self.data_dir = folder / name
        self.log = folder / f"{name}.log"
        self.port = port
        self._command = command
        self._options = options
        self._environment = {"DATABASE_URL": database_url} | {
            f"DISPATCHER_{key.upper()}": value for key, value in SETTINGS.items()
        }
        self._process: Forked | subprocess.Popen[bytes] | None = None
        self.token = ""
        #: ids of the processes that it was so far
        self.pids: list[int] = []
        #: its clock, where it has one of its own
        self.clock: Clock | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The id of the process that it is now, or was last."""
        return self.pids[-1]

    @property
    def running(self) -> bool:
        """Whether it is alive."""
        return self._process is not None and self._process.poll() is None

    def launch(self) -> None:
        """Start it. `ready` waits for it."""
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("DISPATCHER_")}
        environment = inherited | self._environment
        arguments = [self._command, "--port", str(self.port), "--data-dir", str(self.data_dir), *self._options]
        with self.log.open("ab") as log:
            if self.clock is None:
                self._process = forking.dispatcher(arguments, stdout=subprocess.PIPE, stderr=log, env=environment)
            else:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "dispatcher.cli", *arguments],
                    stdout=subprocess.PIPE,
                    stderr=log,
                    env=environment | self.clock.environment,
                    cwd=ROOT,
                )
        self.pids.append(self._process.pid)

    async def ready(self) -> bool:
        """Wait until it says so. False if it has ended first, as where the database is away."""
        assert self._process is not None
        stream = self._process.stdout
        assert stream is not None
        deadline = time.monotonic() + PATIENCE
        said = b""
        while time.monotonic() < deadline:
            readable, _, _ = select.select([stream], [], [], 0)
            if not readable:
                await asyncio.sleep(0.05)
                continue
            chunk = os.read(stream.fileno(), 65536)
            said += chunk
            *lines, _ = said.decode().split("\n")
            for line in lines:
                kind, _, rest = line.partition(" ")
                self.token = rest if kind == "token" else self.token
                if " ready on " in line:
                    return True
            if not chunk:
                self.signal(signal.SIGKILL)
                await self.ended()
                return False
        raise AssertionError(f"{self.name} did not start; {self.log} says why")

    async def start(self) -> None:
        """Start it, again and again if need be, as whatever looks after it in production would."""
        for pause in (0.2, 0.5, 1, 1, 2, 2, 3, 3, 5, 5, 5, 5, 5):
            self.launch()
            if await self.ready():
                return
            await asyncio.sleep(pause)
        raise AssertionError(f"{self.name} did not start; {self.log} says why")

    def signal(self, number: int) -> None:
        """Send it a signal."""
        if self.running:
            os.kill(self.pid, number)

    async def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        self.signal(signal.SIGKILL)
        await self.ended()

    async def stop(self) -> int:
        """SIGTERM, and wait until it has ended by itself; its exit status. One that does not end is killed."""
        self.signal(signal.SIGTERM)
        if await until(lambda: not self.running, within=STOPPED_WITHIN) is None:
            self.signal(signal.SIGKILL)
        return await self.ended()

    async def ended(self) -> int:
        """Wait until it has ended; its exit status."""
        assert self._process is not None
        await surely(lambda: not self.running, within=PATIENCE, every=0.01)
        if self._process.stdout is not None:
            self._process.stdout.close()
        return self._process.wait()

    def logged_ahead(self) -> float:
        """How far its latest line of log is ahead of the moment it was written in, seconds: what its clock is off."""
        written = self.log.stat().st_mtime
        for line in reversed(self.log.read_bytes()[-20_000:].decode().splitlines()):
            with contextlib.suppress(ValueError, KeyError, TypeError):
                return datetime.fromisoformat(json.loads(line)["timestamp"]).timestamp() - written
        return 0.0

    def take_keyring(self, other: Process) -> None:
        """Have the same keyring as another one."""
        self.data_dir.mkdir(mode=0o700, exist_ok=True)
        shutil.copy(other.data_dir / "keyring.json", self.data_dir)


class Clock:
    """A clock that a process has instead of the machine's, by libfaketime."""

    def __init__(self, file: Path, library: Path, *, monotonic: bool) -> None:
        self._file = file
        self.library = library
        #: whether the monotonic one is another, too; then the offset must not change while it runs
        self.monotonic = monotonic
        self.offset = 0

    def set(self, offset: int) -> None:
        """Have it wrong by so many seconds, within a second from now where a process runs by it."""
        self.offset = offset
        written = self._file.with_suffix(".new")
        written.write_text(f"{offset:+d}\n")
        written.replace(self._file)

    @property
    def environment(self) -> dict[str, str]:
        """What makes a process run by it."""
        by_file = {"FAKETIME_TIMESTAMP_FILE": str(self._file), "FAKETIME_CACHE_DURATION": "1"}
        return {
            "LD_PRELOAD": str(self.library),
            **({"FAKETIME": f"{self.offset:+d}"} if self.monotonic else by_file),
            "DONT_FAKE_MONOTONIC": "0" if self.monotonic else "1",
        }


def faketime() -> Path | None:
    """The library; None where it is not installed. Debian's package is `libfaketime`."""
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    return found[0] if found else None


# --- what a frozen process has open -----------------------------------------------------------------------


def local_ports(pid: int, remote: Sequence[int]) -> set[int]:
    """The local ports of a process's TCP connections to these ports of 127.0.0.1, half open ones too."""
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            kind, _, inode = str(link.readlink()).partition(":")
            if kind == "socket":
                inodes.add(inode.strip("[]"))
    found = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[9] in inodes and int(fields[2].partition(":")[2], 16) in remote:
            found.add(int(fields[1].partition(":")[2], 16))
    return found
