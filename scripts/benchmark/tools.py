"""What a run needs beyond our own environment, and what of it this machine has."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from scripts.benchmark.processes import ROOT

WRK, NGINX, REDIS, PACKAGES = "wrk", "nginx", "redis-server", "the packages of requirements-bench.lock"
#: one of PostgreSQL's programs; the others are beside it
POSTGRESQL = "initdb"
#: the environment of the rivals
BENCH_PYTHON = ROOT / ".venv-bench" / "bin" / "python"


def program(name: str) -> str | None:
    """Where a program is."""
    # Debian keeps those of PostgreSQL apart, by version.
    apart = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: int(folder.parts[-2]), reverse=True)
    places = [os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin", *map(str, apart)]
    return shutil.which(name, path=":".join(places))


def has(need: str) -> bool:
    """Whether this machine has it."""
    return BENCH_PYTHON.exists() if need == PACKAGES else program(need) is not None


def bench_program(name: str) -> list[str]:
    """The command of a rival's program."""
    return [str(BENCH_PYTHON), str(Path(__file__).parent / "rival_programs" / name)]
