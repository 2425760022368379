"""Two PostgreSQLs on loopback: one takes writes, the other follows it and is waited for by every commit.

Each has a small disk of its own where mounting is allowed, so that it can be full. A server of PostgreSQL is ended by
the signals that `pg_ctl stop` sends: SIGINT for `-m fast`, SIGQUIT for `-m immediate`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import asyncpg

from tests.support import postgres

#: seconds until a server has started, ended, or caught up
WITHIN = 60.0
#: bytes of each small disk
DISK = 3 << 30
MIB = 1 << 20
#: the database of the dispatchers
DATABASE = "chaos"

SETTINGS = {
    # Processes die here, and no machine: what was written is in the system's memory all the same.
    "fsync": "off",
    "full_page_writes": "off",
    "max_connections": "120",
    "shared_buffers": "64MB",
    "listen_addresses": "127.0.0.1",
    "max_wal_size": "128MB",
    "min_wal_size": "8MB",
    "wal_keep_size": "96MB",
    "wal_receiver_status_interval": "1s",
    "wal_sender_timeout": "10s",
}


class Node:
    """One server of PostgreSQL, which can be a primary or a standby."""

    def __init__(self, name: str, folder: Path, *, small: bool) -> None:
        self.name = name
        self.folder = folder / name
        self.folder.mkdir()
        if small:
            mount(self.folder, size=DISK)
        postgres.give_to_its_user(self.folder)
        self.data = self.folder / "data"
        self.log = folder / f"{name}.log"
        self.port = free_port()
        self._filler = self.folder / "filler"
        self._process: subprocess.Popen[bytes] | None = None

    # --- life ---------------------------------------------------------------------------------------------

    async def make(self) -> None:
        """A new cluster, with one database."""
        await self._run(
            *("initdb", "--pgdata", str(self.data), "--auth", "trust", "--username", postgres.SUPERUSER),
            *("--encoding", "UTF8", "--locale", "C", "--no-sync", "--wal-segsize", "1"),
        )
        await self.start()
        await self.execute(f"CREATE DATABASE {DATABASE}", database="postgres")

    async def follow(self, primary: Node) -> None:
        """Become a standby of another, from a copy of it, and start."""
        shutil.rmtree(self.data, ignore_errors=True)
        source = f"host=127.0.0.1 port={primary.port} user={postgres.SUPERUSER}"
        await self._run(
            "pg_basebackup", "--pgdata", str(self.data), "--dbname", source, "-R", "-c", "fast", "-X", "stream"
        )
        settings = self.data / "postgresql.auto.conf"
        kept = [line for line in settings.read_text().splitlines() if "synchronous_standby_names" not in line]
        settings.write_text("\n".join([*kept, ""]))
        await self.start()

    async def start(self) -> None:
        """Start it, and wait until it answers."""
        options = SETTINGS | {
            "port": str(self.port),
            "unix_socket_directories": str(self.folder),
            # under which a standby is known to its primary
            "cluster_name": self.name,
        }
        arguments = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: ASYNC220 - it lives on, and starts at once
                postgres.command("postgres", "-D", str(self.data), *arguments),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        await self.answers()

    async def answers(self) -> None:
        """Wait until it answers; start it again if it has ended by itself."""
        async with asyncio.timeout(WITHIN):
            while not await self.is_up():
                if not self.is_running:
                    await self.start()
                    return
                await asyncio.sleep(0.05)

    async def is_up(self) -> bool:
        """Whether it answers now."""
        try:
            await self.fetch("SELECT 1", database="postgres")
        except AWAY:
            return False
        return True

    @property
    def is_running(self) -> bool:
        """Whether its first process is alive."""
        return self._process is not None and self._process.poll() is None

    async def stop(self, number: signal.Signals = signal.SIGINT) -> None:
        """End it: cleanly at once (SIGINT), or as by a crash (SIGQUIT)."""
        if self._process is None:
            return
        self._process.send_signal(number)
        async with asyncio.timeout(WITHIN):
            while self._process.poll() is None:
                await asyncio.sleep(0.02)

    async def kill(self) -> int:
        """SIGKILL for all of its processes; how many they were."""
        assert self._process is not None
        first = self._process.pid
        children = children_of(first)
        for pid in (first, *children):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await self.stop(signal.SIGKILL)
        async with asyncio.timeout(WITHIN):
            while any(is_alive(pid) for pid in children):
                await asyncio.sleep(0.02)
        return 1 + len(children)

    # --- roles --------------------------------------------------------------------------------------------

    async def promote(self) -> None:
        """Take writes from now on."""
        await self.execute("SELECT pg_promote()", database="postgres")

    async def wait_for_standby(self, standby: Node) -> None:
        """Have every commit wait for a standby, once that has caught up."""
        await self.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{standby.name}'", database="postgres")
        await self.execute("SELECT pg_reload_conf()", database="postgres")
        async with asyncio.timeout(WITHIN):
            while not await self.has_standby():
                await asyncio.sleep(0.1)

    async def has_standby(self) -> bool:
        """Whether commits wait for a standby that is there."""
        rows = await self.fetch("SELECT sync_state FROM pg_stat_replication", database="postgres")
        return [row[0] for row in rows] == ["sync"]

    # --- its disk -----------------------------------------------------------------------------------------

    def fill_disk(self) -> int:
        """Take every free byte; how many there were."""
        with self._filler.open("ab", buffering=0) as file:
            for chunk in (8 * MIB, MIB, 65536, 4096, 1):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(b"\0" * chunk)
            return file.tell()

    def free_disk(self) -> None:
        """Give them back."""
        self._filler.unlink(missing_ok=True)

    # --- SQL ----------------------------------------------------------------------------------------------

    async def fetch(self, question: str, *values: Any, database: str = DATABASE) -> list[Any]:
        """Ask it, over a connection of our own. Raises one of AWAY while it cannot answer."""
        connection = await self._connect(database)
        try:
            found: list[Any] = await connection.fetch(question, *values, timeout=20)
            return found
        finally:
            await close(connection)

    async def execute(self, statement: str, *, database: str = DATABASE) -> None:
        """Execute a statement, outside any transaction."""
        connection = await self._connect(database)
        try:
            await connection.execute(statement, timeout=20)
        finally:
            await close(connection)

    async def _connect(self, database: str) -> Any:
        return await asyncpg.connect(
            host="127.0.0.1", port=self.port, user=postgres.SUPERUSER, database=database, timeout=5, ssl=False
        )

    async def _run(self, program: str, *arguments: str) -> None:
        process = await asyncio.create_subprocess_exec(
            *postgres.command(program, *arguments),
            cwd=self.folder,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        _, said = await process.communicate()
        assert process.returncode == 0, said.decode()


#: what a database that cannot answer now makes of a question
AWAY = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError)


async def close(connection: Any) -> None:
    """Close a connection, whatever has become of it."""
    try:
        await connection.close(timeout=2)
    except AWAY:
        connection.terminate()


class Pair:
    """The two nodes, and which one takes writes."""

    def __init__(self, folder: Path, *, small: bool) -> None:
        self.nodes = (Node("one", folder, small=small), Node("two", folder, small=small))
        self.primary, self.standby = self.nodes

    async def start(self) -> None:
        """Make both."""
        await self.primary.make()
        await self._join()

    async def fail_over(self) -> float:
        """The primary is gone: the standby takes its place. Seconds until it took writes."""
        began = time.monotonic()
        await self.standby.promote()
        self.primary, self.standby = self.standby, self.primary
        return time.monotonic() - began

    async def rebuild(self) -> None:
        """Make what was the primary the new standby."""
        await self._join()

    async def _join(self) -> None:
        await self.standby.follow(self.primary)
        await self.primary.wait_for_standby(self.standby)

    async def stop(self) -> None:
        """End both."""
        for node in self.nodes:
            with contextlib.suppress(TimeoutError):
                await node.stop(signal.SIGQUIT)


# --- the machine ------------------------------------------------------------------------------------------


def mount(folder: Path, *, size: int) -> None:
    """Make a folder a small disk in memory, in our own namespace of mounts."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)], check=True)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def children_of(parent: int) -> list[int]:
    """The ids of a process's children."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # The name, in brackets, may hold anything.
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[1]) == parent:
                found.append(int(stat.parent.name))
    return found


def is_alive(pid: int) -> bool:
    """Whether there is such a process, other than a dead one that nobody has asked after."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except OSError:
        return False
