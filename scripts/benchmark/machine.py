"""What this machine is, for the report: a figure says little without it."""

from __future__ import annotations

import datetime as dt
import os
import platform
from pathlib import Path

from scripts.benchmark.disk import file_system
from scripts.benchmark.tools import NGINX, has


def describe(folder: Path) -> dict[str, str]:
    """Name -> value."""
    return {
        "when": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "processor": _processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "disk": file_system(folder),
        "receiver": "nginx, 1 worker" if has(NGINX) else "our own, on uvloop: nginx is not on this machine",
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
