"""Processes that the benchmark starts: ended by id, whatever happens, and measured through /proc."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from scripts.benchmark.failures import BenchmarkFailed

ROOT = Path(__file__).parents[2]
#: seconds that a process may take to start
START_S = 60.0
#: seconds that it is given to end by itself
STOP_S = 10.0
#: how much of a log is shown when its process failed, characters
SHOWN = 2_000
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What a process has used so far."""

    #: CPU time, user and system, seconds
    cpu_s: float
    #: memory that it has now, and the most it ever had, MiB
    mib: float
    peak_mib: float


class Child:
    """A running process, with its standard output as lines and its log in a file."""

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        self._log = log
        with log.open("ab") as errors:
            self.process = subprocess.Popen(  # noqa: S603 - commands of the benchmark's own
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=dict(environment),
                cwd=ROOT,
            )

    @property
    def pid(self) -> int:
        """Its id."""
        return self.process.pid

    def lines(self, within: float = START_S) -> Iterator[str]:
        """Lines of its standard output as they come, until it ends. Raises BenchmarkFailed when time is up."""
        if self.process.stdout is None:
            return
        descriptor, pending, deadline = self.process.stdout.fileno(), b"", time.monotonic() + within
        while (left := deadline - time.monotonic()) > 0:
            if not select.select([descriptor], [], [], left)[0]:
                break
            chunk = os.read(descriptor, 65_536)
            if not chunk:
                return
            *whole, pending = (pending + chunk).split(b"\n")
            yield from (line.decode() for line in whole)
        raise self.failure("said nothing in time")

    def failure(self, what: str) -> BenchmarkFailed:
        """The error that says what went wrong with this process, with the end of its log."""
        end = self._log.read_text(errors="replace")[-SHOWN:] if self._log.exists() else ""
        return BenchmarkFailed(f"{self._log.stem} {what}\n{end}".rstrip())

    def usage(self) -> Usage:
        """What it has used so far, and its children: their CPU time together, the memory of the largest."""
        try:
            children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
            used = [_usage(pid) for pid in (str(self.pid), *children)]
        except (OSError, KeyError):
            raise self.failure("is gone") from None
        return Usage(
            cpu_s=sum(one.cpu_s for one in used),
            mib=max(one.mib for one in used),
            peak_mib=max(one.peak_mib for one in used),
        )

    def stop(self, patience: float = STOP_S) -> None:
        """SIGTERM, and SIGKILL for what does not heed it within `patience` seconds."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(patience)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


def _usage(pid: str) -> Usage:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    status = Path(f"/proc/{pid}/status").read_text()
    kib = dict(re.findall(r"^(VmRSS|VmHWM):\s+(\d+) kB$", status, re.MULTILINE))
    return Usage(
        cpu_s=(int(fields[11]) + int(fields[12])) / _TICKS,
        mib=int(kib["VmRSS"]) / 1024,
        peak_mib=int(kib["VmHWM"]) / 1024,
    )


@contextmanager
def running(
    command: Sequence[str], *, log: Path, environment: Mapping[str, str] | None = None, patience: float = STOP_S
) -> Iterator[Child]:
    """A process that ends with this block."""
    child = Child(command, log, {**clean_environment(), **(environment or {})})
    try:
        yield child
    finally:
        child.stop(patience)


def finished(
    command: Sequence[str],
    *,
    log: Path,
    within: float,
    given: bytes = b"",
    environment: Mapping[str, str] | None = None,
) -> str:
    """Run a command to its end; returns its standard output. Raises BenchmarkFailed if it fails or takes too long."""
    try:
        done = subprocess.run(  # noqa: S603 - commands of the benchmark's own
            command,
            input=given,
            capture_output=True,
            timeout=within,
            check=False,
            env={**clean_environment(), **(environment or {})},
            cwd=ROOT,
        )
    except subprocess.TimeoutExpired:
        raise BenchmarkFailed(f"{log.stem} took more than {within:g} s") from None
    log.write_bytes(done.stderr)
    if done.returncode:
        end = done.stderr.decode(errors="replace")[-SHOWN:]
        raise BenchmarkFailed(f"{log.stem} ended with status {done.returncode}\n{end}")
    return done.stdout.decode()


def clean_environment() -> dict[str, str]:
    """Our environment without settings of the dispatcher, so that it runs with its defaults."""
    return {
        **{name: value for name, value in os.environ.items() if not _is_setting(name)},
        "PYTHONPATH": str(ROOT),
    }


def _is_setting(name: str) -> bool:
    return name.startswith("DISPATCHER_") or name == "DATABASE_URL"


def until(condition: Callable[[], bool], *, within: float, what: str, every: float = 0.02) -> float:
    """Wait until a condition holds; returns the monotonic time of the look that found it.

    Raises BenchmarkFailed after `within` seconds.
    """
    deadline = time.monotonic() + within
    while (looked := time.monotonic()) <= deadline:
        if condition():
            return looked
        time.sleep(every)
    raise BenchmarkFailed(f"not within {within:g} s: {what}")
