"""A real PostgreSQL for tests: a cluster of this machine's binaries in a folder of its own, and databases in it.

The cluster begins with the first test that needs it and is gone with the process of the tests, however that ends. It
listens on a Unix socket in a folder that only its user, and root, can enter. Its databases sort text by the rules of a
language, as many an operator's do; ours must not.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import asyncpg

from dispatcher.store import migrations
from dispatcher.store.database import Database
from subscriptions.schema import metadata

T = TypeVar("T")

#: for speed; what a killed process of PostgreSQL had written is in the system's memory all the same
SETTINGS = {"fsync": "off", "full_page_writes": "off", "max_connections": "200", "shared_buffers": "32MB"}
#: seconds until it has started or ended
WITHIN = 60.0
#: its superuser, whoever runs it
SUPERUSER = "postgres"
#: the database that those of the tests are copies of
TEMPLATE = "migrated"
#: how connections are called that empty databases
EMPTYING = "emptying"
#: what is raised where a test has ended such a one
CUT_OFF = (OSError, asyncpg.AdminShutdownError, asyncpg.PostgresConnectionError, asyncpg.InterfaceError)


def binaries() -> Path | None:
    """The folder of PostgreSQL's programs, the newest where there are several; None where there is none."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda file: int(file.parts[-3]))
    found = debian[-1] if debian else shutil.which("initdb")
    return Path(found).resolve().parent if found else None


def lacking() -> str | None:
    """What is missing on this machine to run it; None if nothing is."""
    if binaries() is None:
        return "PostgreSQL"
    if shutil.which("setpriv") is None:
        return "setpriv"
    return None


@functools.cache
def _user() -> pwd.struct_passwd | None:
    """Whom it runs as, where that is not us. It refuses to run as root."""
    return None if os.geteuid() != 0 else pwd.getpwnam(unprivileged())


def unprivileged() -> str:
    """A user without rights: the one that Debian's package makes, or the one that every system has."""
    with contextlib.suppress(KeyError):
        return pwd.getpwnam("postgres").pw_name
    return "nobody"


def give_to_its_user(folder: Path) -> None:
    """Let it have a folder of ours."""
    user = _user()
    if user is not None:
        os.chown(folder, user.pw_uid, user.pw_gid)


def command(program: str, *arguments: str) -> list[str]:
    """One of its programs, as a user without rights, and no longer than whoever began it."""
    found = binaries()
    assert found is not None
    user = _user()
    rights = [] if user is None else ["--reuid", str(user.pw_uid), "--regid", str(user.pw_gid), "--clear-groups"]
    return ["setpriv", *rights, "--pdeathsig", "QUIT", str(found / program), *arguments]


class Cluster:
    """A PostgreSQL that can be started, stopped and killed."""

    def __init__(self, **settings: str) -> None:
        self._settings = SETTINGS | settings
        # a short name: the path of a socket has little room
        self.folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
        self.data = self.folder / "data"
        self.log = self.folder / "log"
        self._process: subprocess.Popen[bytes] | None = None
        give_to_its_user(self.folder)
        self._names = itertools.count()
        #: databases that are as new
        self._free: list[str] = []
        self._emptying = Emptying(self.url)
        self._run(
            *("initdb", "--pgdata", str(self.data), "--auth", "trust", "--username", SUPERUSER, "--no-sync"),
            *("--encoding", "UTF8", "--locale", "C", "--locale-provider", "icu", "--icu-locale", "en"),
        )

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            command(program, *arguments), cwd=self.folder, capture_output=True, timeout=WITHIN, check=False
        )
        assert done.returncode == 0, done.stderr.decode()

    def start(self) -> None:
        """Start it, and wait until it takes connections."""
        options = {"listen_addresses": "", "unix_socket_directories": str(self.folder)} | self._settings
        settings = itertools.chain.from_iterable(("-c", f"{name}={value}") for name, value in options.items())
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command("postgres", "-D", str(self.data), *settings),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            _in_thread(self._answers)
        except BaseException:
            self.stop(signal.SIGQUIT)
            raise

    async def _answers(self) -> None:
        async with asyncio.timeout(WITHIN):
            while True:
                assert self._process is not None
                assert self._process.poll() is None, self.log.read_text()
                try:
                    connection = await asyncpg.connect(self.url("postgres"))
                except (OSError, asyncpg.CannotConnectNowError):
                    await asyncio.sleep(0.05)
                else:
                    await connection.close()
                    return

    def stop(self, number: signal.Signals = signal.SIGINT) -> None:
        """End it: at once and cleanly (SIGINT), as by a crash (SIGQUIT), or when all have gone (SIGTERM)."""
        if self._process is None:
            return
        self._process.send_signal(number)
        try:
            self._process.wait(WITHIN)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise
        finally:
            self._process = None

    def remove(self) -> None:
        """End it for good."""
        self._emptying.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.stop()
        shutil.rmtree(self.folder)

    # --- databases ----------------------------------------------------------------------------------------

    def url(self, database: str) -> str:
        """The URL of a database, as an operator would set it."""
        return f"postgresql://{SUPERUSER}@/{database}?host={quote(str(self.folder), safe='')}"

    @property
    def socket(self) -> Path:
        """What it listens on."""
        return self.folder / ".s.PGSQL.5432"

    def create(self, *, template: str = "template0") -> str:
        """A new database; its name."""
        name = f"test{next(self._names)}"
        # Not through the log, as by default: that takes three times as long.
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
        return name

    def take(self) -> str:
        """A database with our tables, and nothing in them; its name. Making one takes longer than most tests."""
        return self._free.pop() if self._free else self.create(template=self.template)

    def give_back(self, database: str) -> None:
        """Let another test have it, as it was before this one."""
        self._emptying.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            f" WHERE datname = '{database}' AND pid <> pg_backend_pid();"
            f"ALTER DATABASE {database} RESET ALL;"
            f"DO $$ BEGIN ASSERT (SELECT version_num = '{migrations.HEAD}' FROM alembic_version),"
            " 'a test that changes the tables needs a bare database'; END $$;"
            + "".join(f"DELETE FROM {table.name};" for table in metadata.sorted_tables),
            database=database,
        )
        self._free.append(database)

    def drop(self, database: str) -> None:
        """Remove a database, whoever still uses it."""
        self.execute(f"DROP DATABASE {database} WITH (FORCE)")

    @contextlib.contextmanager
    def locked(self, table: str, *, database: str) -> Iterator[None]:
        """Nobody writes into a table within the block."""
        with ThreadPoolExecutor(1) as pool:
            loop = asyncio.new_event_loop()
            run = loop.run_until_complete
            try:
                connection = pool.submit(lambda: run(asyncpg.connect(self.url(database)))).result()
                pool.submit(lambda: run(connection.execute(f"BEGIN; LOCK TABLE {table} IN SHARE MODE"))).result()
                yield
                pool.submit(lambda: run(connection.close())).result()
            finally:
                loop.close()

    @functools.cached_property
    def template(self) -> str:
        """The database that those of the tests are copies of: our tables, and nothing in them."""
        self.execute(f"CREATE DATABASE {TEMPLATE} TEMPLATE template0")

        async def migrate() -> None:
            database = Database(self.url(TEMPLATE))
            async with database.write() as connection:
                await connection.run_sync(migrations.upgrade)
            await database.close()

        _in_thread(migrate)
        return TEMPLATE

    def execute(self, statement: str, *, database: str = "postgres") -> None:
        """Execute a statement, outside any transaction."""

        async def execute() -> None:
            connection = await asyncpg.connect(self.url(database))
            try:
                await connection.execute(statement)
            finally:
                await connection.close()

        _in_thread(execute)


class Emptying:
    """Connections that stay, one to each database: a new one has to learn of all tables before it can empty them."""

    def __init__(self, url: Callable[[str], str]) -> None:
        self._url = url
        self._connections: dict[str, asyncpg.Connection] = {}
        self._loop = asyncio.new_event_loop()
        #: where the loop runs: another may do so in the thread of who asks
        self._thread = ThreadPoolExecutor(1)

    def execute(self, statement: str, *, database: str) -> None:
        """Execute a statement, outside any transaction."""
        self._thread.submit(self._loop.run_until_complete, self._execute(statement, database)).result()

    async def _execute(self, statement: str, database: str) -> None:
        if database in self._connections:
            try:
                await self._connections[database].execute(statement)
            except CUT_OFF:
                self._connections.pop(database).terminate()
            else:
                return
        connection = await asyncpg.connect(self._url(database), server_settings={"application_name": EMPTYING})
        self._connections[database] = connection
        await connection.execute(statement)

    def close(self) -> None:
        """Close all of them."""

        async def close() -> None:
            for connection in self._connections.values():
                connection.terminate()
            await asyncio.sleep(0)  # what was terminated is closed in the next round

        self._thread.submit(self._loop.run_until_complete, close()).result()
        self._thread.shutdown()
        self._loop.close()


def _in_thread(work: Callable[[], Awaitable[T]]) -> T:
    """Do something asynchronous from wherever we are: a loop may run already in this thread."""

    async def working() -> T:
        return await work()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: asyncio.run(working())).result()


def answers(url: str, questions: Sequence[tuple[str, Sequence[Any]]]) -> list[list[tuple[Any, ...]]]:
    """The rows of several answers, all of the same moment. Parameters are `?`, as SQLite has them."""

    async def ask() -> list[list[tuple[Any, ...]]]:
        connection = await asyncpg.connect(url)
        try:
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                return [
                    [tuple(row) for row in await connection.fetch(_numbered(question), *parameters)]
                    for question, parameters in questions
                ]
        finally:
            await connection.close()

    return _in_thread(ask)


def name_of(url: str) -> str:
    """The name of the database that one of our URLs leads to."""
    return url.rpartition("@/")[2].partition("?")[0]


def change(url: str, statement: str, parameters: Sequence[Any]) -> int:
    """Execute one statement with parameters, as SQLite has them; how many rows changed."""

    async def execute() -> int:
        connection = await asyncpg.connect(url)
        try:
            done: str = await connection.execute(_numbered(statement), *parameters)
        finally:
            await connection.close()
        return int(done.rpartition(" ")[2])

    return _in_thread(execute)


def _numbered(statement: str) -> str:
    """With `$1, $2 …` for its `?`."""
    numbers = itertools.count(1)
    return re.sub(r"\?", lambda _: f"${next(numbers)}", statement)


def kept_in(url: str) -> bytes:
    """Every value in every row of a database, each on a line of its own; and what our server has logged."""

    async def values() -> list[Any]:
        connection = await asyncpg.connect(url)
        try:
            tables = await connection.fetch(
                "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables"
                " WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
            )
            rows = [row for [table] in tables for row in await connection.fetch(f"SELECT * FROM {table}")]
        finally:
            await connection.close()
        return [value for row in rows for value in row]

    lines = [value if isinstance(value, bytes) else str(value).encode() for value in _in_thread(values)]
    return b"\n".join([*lines, shared().log.read_bytes()])


def others_at(url: str) -> int:
    """How many connections a database has, but for that of whoever asks, and the one that empties it."""
    question = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        f" AND backend_type = 'client backend' AND pid <> pg_backend_pid() AND application_name <> '{EMPTYING}'"
    )
    [[[number]]] = answers(url, [(question, ())])
    return int(number)


# --- one for all tests of this process --------------------------------------------------------------------

_shared: list[Cluster] = []


def shared() -> Cluster:
    """The cluster of this process, started."""
    if not _shared:
        cluster = Cluster()
        _shared.append(cluster)
        cluster.start()
    return _shared[0]


@contextlib.contextmanager
def ending_with_us() -> Iterator[None]:
    """The cluster is gone at the end of the block."""
    try:
        yield
    finally:
        while _shared:
            _shared.pop().remove()
