"""A PostgreSQL of the benchmark's own: as its programs come, with every commit synced, on a real disk."""

from __future__ import annotations

import os
import pwd
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from scripts.benchmark import processes
from scripts.benchmark.disk import PLACES, real_disk
from scripts.benchmark.tools import POSTGRESQL, program

#: its superuser
SUPERUSER = "postgres"
#: what is set besides its defaults: a socket only, and as much memory as a small server gives it
_SETTINGS = {"listen_addresses": "", "shared_buffers": "256MB", "max_wal_size": "4GB"}


@contextmanager
def database() -> Iterator[str]:
    """A new database, gone after the block; its URL."""
    # Not among our own data: it runs as somebody who may not look there.
    with tempfile.TemporaryDirectory(prefix="bench-pg-", dir=real_disk(PLACES), ignore_cleanup_errors=True) as made:
        folder = Path(made)
        owner = _owner()
        if owner is not None:
            os.chown(folder, owner.pw_uid, owner.pw_gid)
        data, log = folder / "data", folder / "postgresql.log"
        login = ["--username", SUPERUSER, "--auth", "trust", "--encoding", "UTF8"]
        processes.finished(
            _as(owner, "initdb", "--pgdata", str(data), *login), log=folder / "initdb.log", within=processes.START_S
        )
        settings = {"unix_socket_directories": str(folder), **_SETTINGS}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        with processes.running(_as(owner, "postgres", "-D", str(data), *options), log=log) as child:
            processes.until(
                lambda: _takes_connections(child, folder), within=processes.START_S, what="PostgreSQL takes connections"
            )
            yield f"postgresql://{SUPERUSER}@/postgres?host={quote(str(folder), safe='')}"


def _takes_connections(child: processes.Child, folder: Path) -> bool:
    if child.process.poll() is not None:
        raise child.failure("did not start")
    # Its lock has a line for each thing that is settled; the last one says that it is ready.
    lock = folder / "data" / "postmaster.pid"
    return lock.exists() and lock.read_text().splitlines()[7:8] == ["ready   "]


def _owner() -> pwd.struct_passwd | None:
    """Whom it runs as: it refuses to run as root. Debian's package makes that user."""
    return pwd.getpwnam("postgres") if os.geteuid() == 0 else None


def _as(owner: pwd.struct_passwd | None, name: str, *arguments: str) -> Sequence[str]:
    initdb = program(POSTGRESQL)
    command = [str(Path(initdb).resolve().with_name(name)) if initdb else name, *arguments]
    if owner is None:
        return command
    rights = ["--reuid", str(owner.pw_uid), "--regid", str(owner.pw_gid), "--clear-groups"]
    return [shutil.which("setpriv") or "setpriv", *rights, *command]
