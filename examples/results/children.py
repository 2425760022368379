"""Child processes that say on stdout when they are ready, and are ended by their id."""

from __future__ import annotations

import os
import queue
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

#: time that a child has to finish after SIGTERM
GRACE_SECONDS = 15


class ChildFailed(Exception):
    """A child ended, or said nothing, before it was ready."""


def clean_environment() -> dict[str, str]:
    """Ours, without settings of a dispatcher that somebody runs from the same shell."""
    return {
        name: value
        for name, value in os.environ.items()
        if name != "DATABASE_URL" and not name.startswith("DISPATCHER_")
    }


class Child:
    """A running process. Its stderr goes to a file; the lines of its stdout wait to be read."""

    def __init__(self, command: Sequence[str], *, env: Mapping[str, str], cwd: Path, log: Path) -> None:
        self.name = log.stem
        self.log = log
        self._lines: queue.Queue[str | None] = queue.Queue()
        with log.open("wb") as stderr:
            self._process = subprocess.Popen(
                command,
                env={**clean_environment(), **env},
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def expect(self, prefix: str, *, deadline: float) -> str:
        """The rest of the next line that starts so. `deadline` is monotonic time."""
        while (left := deadline - time.monotonic()) > 0:
            try:
                line = self._lines.get(timeout=left)
            except queue.Empty:
                break
            if line is None:
                raise ChildFailed(f"{self.name} ended before it was ready")
            if line.startswith(prefix):
                return line.removeprefix(prefix)
        raise ChildFailed(f"{self.name} was not ready in time")

    def has_ended(self) -> bool:
        """Whether the process is gone."""
        return self._process.poll() is not None

    def stop(self) -> None:
        """SIGTERM, and SIGKILL for one that does not go within the grace time."""
        self._process.terminate()
        try:
            self._process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def last_words(self, lines: int = 30) -> str:
        """The end of what it wrote to stderr."""
        return "\n".join(self.log.read_text("utf-8", "replace").splitlines()[-lines:])


@contextmanager
def running(command: Sequence[str], *, env: Mapping[str, str], cwd: Path, log: Path) -> Iterator[Child]:
    """A child that is stopped at the end, however that comes."""
    child = Child(command, env=env, cwd=cwd, log=log)
    try:
        yield child
    finally:
        child.stop()
