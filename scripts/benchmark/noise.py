"""How quiet the machine is: what else runs on it makes figures worthless, so it is measured and said."""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

#: load average of the last minute at which others are at work
LOUD_LOAD = 0.5
#: spread of the spins, of their median, at which the processor was not ours
LOUD_SPREAD = 0.25
#: share of the time that the host gave to others
LOUD_STEAL = 0.02
#: work of one spin: this much is hashed, so often
_BLOCK, _TIMES = bytes(4096), 10_000


@dataclass(frozen=True, kw_only=True)
class Fsync:
    """How long this disk takes to make 4 KiB durable, milliseconds."""

    p50_ms: float
    p99_ms: float


@dataclass(kw_only=True)
class Noise:
    """Watches from its making to `reasons()`."""

    #: load average of the last minute before we began
    load_before: float = field(default_factory=lambda: os.getloadavg()[0])
    #: seconds that the same work took, before each round of each case
    spins: list[float] = field(default_factory=list)
    _ticks: tuple[int, int] = field(default_factory=lambda: _stolen_and_all())  # noqa: PLW0108 - it is defined below

    def spin(self) -> None:
        """Do a fixed piece of work, and remember how long it took."""
        began = time.perf_counter()
        for _ in range(_TIMES):
            hashlib.sha256(_BLOCK).digest()
        self.spins.append(time.perf_counter() - began)

    @property
    def spread(self) -> float:
        """Slowest less fastest spin, of their median."""
        return (max(self.spins) - min(self.spins)) / median(self.spins) if self.spins else 0.0

    @property
    def steal(self) -> float:
        """Share of the processors' time that the host gave to others."""
        stolen, everything = _stolen_and_all()
        return (stolen - self._ticks[0]) / max(1, everything - self._ticks[1])

    def reasons(self) -> list[str]:
        """Why these figures are not to be trusted; nothing, if they are."""
        found = []
        if self.load_before > LOUD_LOAD:
            found.append(f"load average before the start {self.load_before:.2f}, over {LOUD_LOAD}")
        if self.spread > LOUD_SPREAD:
            found.append(f"the same work took times {self.spread:.0%} apart, over {LOUD_SPREAD:.0%}")
        if self.steal > LOUD_STEAL:
            found.append(f"the host took {self.steal:.1%} of the processors' time, over {LOUD_STEAL:.0%}")
        return found


def fsync_time(folder: Path, times: int = 100) -> Fsync:
    """Append 4 KiB and sync, so many times, on the disk that holds `folder`."""
    took = []
    path = folder / "fsync"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        for _ in range(times):
            began = time.perf_counter()
            os.write(descriptor, _BLOCK)
            os.fsync(descriptor)
            took.append((time.perf_counter() - began) * 1000)
    finally:
        os.close(descriptor)
        path.unlink()
    took.sort()
    return Fsync(p50_ms=took[len(took) // 2], p99_ms=took[int(len(took) * 0.99)])


def _stolen_and_all() -> tuple[int, int]:
    times = [int(part) for part in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return times[7], sum(times)
