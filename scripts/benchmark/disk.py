"""Where the data of a run is kept: on a real disk, since a commit in memory costs nothing and shows nothing."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from scripts.benchmark.failures import BenchmarkFailed
from scripts.benchmark.processes import ROOT

#: where folders for data are made, on the first of them that is a disk
PLACES = (Path(tempfile.gettempdir()), Path("/var/tmp"), ROOT)  # noqa: S108 - the folders are ours alone

#: file systems that keep nothing
IN_MEMORY = {"tmpfs", "ramfs", "devtmpfs"}


def file_system(folder: Path) -> str:
    """The kind of file system that holds a folder."""
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    holding = [(place, kind) for place, kind in mounts if folder.resolve().is_relative_to(place)]
    return max(holding, key=lambda found: len(found[0]))[1] if holding else "unknown"


def real_disk(candidates: Sequence[Path]) -> Path:
    """The first of these folders that is not in memory. Raises BenchmarkFailed if there is none."""
    for folder in candidates:
        if folder.is_dir() and file_system(folder) not in IN_MEMORY:
            return folder
    raise BenchmarkFailed(f"none of these is on a disk: {', '.join(map(str, candidates))}; set TMPDIR to one that is")
