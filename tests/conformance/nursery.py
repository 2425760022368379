"""Starts senders by the dozen: one process has all that they need, and forks for each.

A new interpreter for each would spend most of the test's time on imports. `command` is what the kit runs: a small
client hands its stdin and stdout over to the process that is forked for it, and ends with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from examples.other_sender.sender import Sender, serve
from tests.conformance.good_senders import GOOD
from tests.conformance.more_mutants import MUTANTS

ROOT = Path(__file__).parents[2]

_CLIENT = """
import socket, sys
connection = socket.socket(socket.AF_UNIX)
connection.connect(sys.argv[1])
socket.send_fds(connection, [sys.argv[2].encode()], [0, 1])
connection.recv(1)
"""


class Nursery:
    """Where senders are forked."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def command(self, name: str) -> list[str]:
        """What runs a sender: `good:wire`, or `mutant:gets`."""
        return [sys.executable, "-I", "-S", "-c", _CLIENT, str(self._path), name]


@contextlib.contextmanager
def nursery() -> Iterator[Nursery]:
    """One nursery, which is gone afterwards, and all its senders with it."""
    with tempfile.TemporaryDirectory(prefix="nursery-") as directory:
        path = Path(directory) / "socket"
        command = [sys.executable, "-m", "tests.conformance.nursery", str(path)]
        with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdout.readline()
            try:
                yield Nursery(path)
            finally:
                process.stdin.close()


def _make(name: str) -> Sender:
    kind, _, name = name.partition(":")
    return GOOD[name].make() if kind == "good" else MUTANTS[name].make()


def _fork(listener: socket.socket) -> None:
    connection, _ = listener.accept()
    with connection:
        name, handles, _, _ = socket.recv_fds(connection, 100, 2)
        if not os.fork():
            listener.close()
            os.dup2(handles[0], 0)
            os.dup2(handles[1], 1)
            for handle in handles:
                os.close(handle)
            asyncio.run(serve(_make(name.decode())))
            os._exit(0)
        for handle in handles:
            os.close(handle)


def _main() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(sys.argv[1])
        listener.listen(100)
        print("ready", flush=True)
        while listener in select.select([listener, sys.stdin], [], [])[0]:
            _fork(listener)


if __name__ == "__main__":
    _main()
