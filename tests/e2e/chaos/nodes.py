"""Two PostgreSQLs on loopback: one takes writes, the other follows it and is waited for by every commit.

Each has a small disk of its own where mounting is allowed, so that it can be full. A server of PostgreSQL is ended by
the signals that `pg_ctl stop` sends: SIGINT for `-m fast`, SIGQUIT for `-m immediate`.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import asyncpg

from tests.e2e.chaos.waiting import surely
from tests.support import postgres

#: seconds until a server has started, ended, or caught up
WITHIN = 60.0
#: the database of the dispatchers
DATABASE = "chaos"

CLONE_NEWNS = 0x00020000

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
    # A standby comes back soon after its primary does; commits wait for it.
    "wal_retrieve_retry_interval": "500ms",
}


class Node:
    """One server of PostgreSQL, which can be a primary or a standby."""

    def __init__(self, name: str, folder: Path, *, disk: int | None) -> None:
        self.name = name
        self.folder = folder / name
        self.folder.mkdir()
        if disk is not None:
            mount(self.folder, size=disk)
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
        await surely(lambda: not self.is_running, within=WITHIN, every=0.02)

    async def kill(self) -> int:
        """SIGKILL for all of its processes; how many they were."""
        assert self._process is not None
        first = self._process.pid
        children = children_of(first)
        for pid in (first, *children):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await self.stop(signal.SIGKILL)
        await surely(lambda: not any(map(is_alive, children)), within=WITHIN, every=0.02)
        return 1 + len(children)

    # --- roles --------------------------------------------------------------------------------------------

    async def promote(self) -> None:
        """Take writes from now on."""
        await self.execute("SELECT pg_promote()", database="postgres")

    async def wait_for_standby(self, standby: Node) -> None:
        """Have every commit wait for a standby, once that has caught up."""
        await self.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{standby.name}'", database="postgres")
        await self.execute("SELECT pg_reload_conf()", database="postgres")
        await surely(self.has_standby, within=WITHIN)

    async def has_standby(self) -> bool:
        """Whether commits wait for a standby that is there."""
        rows = await self.fetch("SELECT sync_state FROM pg_stat_replication", database="postgres")
        return [row[0] for row in rows] == ["sync"]

    # --- its disk -----------------------------------------------------------------------------------------

    async def fill_disk(self) -> None:
        """Take every free byte."""
        await asyncio.to_thread(self._fill)

    def _fill(self) -> None:
        with self._filler.open("ab", buffering=0) as file:
            free = os.statvfs(self.folder)
            with contextlib.suppress(OSError):
                os.posix_fallocate(file.fileno(), file.tell(), free.f_bfree * free.f_bsize)
            file.seek(0, os.SEEK_END)
            for chunk in (65536, 4096, 1):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(b"\0" * chunk)

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


#: What a database that cannot answer now makes of a question. The last one is of a connection that is just breaking.
AWAY = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)


async def close(connection: Any) -> None:
    """Close a connection, whatever has become of it."""
    try:
        await connection.close(timeout=2)
    except AWAY:
        connection.terminate()


class Pair:
    """The two nodes, and which one takes writes."""

    def __init__(self, folder: Path, *, disk: int | None) -> None:
        """`disk` is the size of the small disk of each, bytes; None where none can be mounted."""
        self.nodes = (Node("one", folder, disk=disk), Node("two", folder, disk=disk))
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


def why_no_mounts() -> str | None:
    """Move into a namespace of mounts of our own. Why that cannot be; None when it is done.

    Whatever is mounted is then gone with us, and nobody else has seen it.
    """
    if os.geteuid() != 0:
        return "only root may mount a small disk"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS) != 0:
        return f"no namespace of mounts: {os.strerror(ctypes.get_errno())}"
    made = subprocess.run(["mount", "--make-rprivate", "/"], capture_output=True, check=False)
    if made.returncode != 0 and "shared:" in Path("/proc/self/mountinfo").read_text():
        return "mounts cannot be made private"
    with tempfile.TemporaryDirectory() as folder:
        tried = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m", "none", folder], capture_output=True, check=False
        )
        if tried.returncode != 0:
            return f"no mount: {tried.stderr.decode().strip()}"
        subprocess.run(["umount", folder], check=True)
    return None


def mount(folder: Path, *, size: int) -> None:
    """Make a folder a small disk in memory."""
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
