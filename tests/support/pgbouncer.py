"""A real PgBouncer in transaction mode before the tests' PostgreSQL: each transaction may be on another connection."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from tests.support.patience import PATIENCE
from tests.support.postgres import SUPERUSER, Cluster, binaries, unprivileged
from tests.support.server import until

#: connections to PostgreSQL that all clients share: fewer than two servers want at a time
POOL = 5
_PORT = 6432
_CONSOLE = "pgbouncer"


def binary() -> str | None:
    """The program; Debian keeps it among those of the system."""
    return shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")


def lacking() -> str | None:
    """What is missing on this machine to run it; None if nothing is."""
    return None if binary() else "pgbouncer"


class PgBouncer:
    """Runs within a `with` block."""

    def __init__(self, cluster: Cluster) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="pgb-", dir="/tmp"))
        self.log = self.folder / "log"
        settings = {
            "listen_addr": "",
            "listen_port": _PORT,
            "unix_socket_dir": self.folder,
            "auth_type": "any",
            "admin_users": SUPERUSER,
            "pool_mode": "transaction",
            "default_pool_size": POOL,
            "max_client_conn": 200,
            # each transaction gets the connection that rested longest: the one after it, most likely another
            "server_round_robin": 1,
        }
        lines = [f"{name} = {value}" for name, value in settings.items()]
        database = f"* = host={cluster.folder} user={SUPERUSER}"
        self._config = self.folder / "pgbouncer.ini"
        self._config.write_text("\n".join(["[databases]", database, "[pgbouncer]", *lines, ""]))
        self._user: list[str] = []
        if os.geteuid() == 0:
            # It refuses to run as root.
            user = pwd.getpwnam(unprivileged())
            os.chown(self.folder, user.pw_uid, user.pw_gid)
            self._user = ["--reuid", str(user.pw_uid), "--regid", str(user.pw_gid), "--clear-groups"]

    def url(self, database: str) -> str:
        """The URL by which a database is reached through it."""
        return f"postgresql://{SUPERUSER}@/{database}?host={quote(str(self.folder), safe='')}&port={_PORT}"

    def __enter__(self) -> Self:
        program = binary()
        assert program is not None
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                ["setpriv", *self._user, "--pdeathsig", "KILL", program, str(self._config)],
                cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        until((self.folder / f".s.PGSQL.{_PORT}").exists)
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait(PATIENCE)
        shutil.rmtree(self.folder)

    def pools(self) -> list[dict[str, str]]:
        """What its console says of its pools: `SHOW POOLS`."""
        return self._asked("SHOW POOLS")

    def transactions(self, database: str) -> int:
        """How many transactions it has passed on to a database."""
        [found] = [row for row in self._asked("SHOW STATS") if row["database"] == database]
        return int(found["total_xact_count"])

    def _asked(self, question: str) -> list[dict[str, str]]:
        folder = binaries()
        assert folder is not None
        command: list[str | Path] = [
            folder / "psql",
            "-h",
            self.folder,
            "-p",
            str(_PORT),
            "-U",
            SUPERUSER,
            "-A",
            "-F",
            "\t",
        ]
        said = subprocess.run(
            [*command, "-P", "footer=off", "-c", question, _CONSOLE], capture_output=True, text=True, check=True
        )
        heading, *rows = (line.split("\t") for line in said.stdout.splitlines())
        return [dict(zip(heading, row, strict=True)) for row in rows]
