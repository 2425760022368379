"""The process behind `tests.support.forking`: it has imported what commands need, and forks for each.

Run as `python -m tests.support.fork_server MODULE...`, with the modules that are to be imported. It prints the path of
the Unix socket it listens on, and lives until its stdin ends. Who wants a process connects, and sends the file handles
it is to have as stdin, stdout and stderr, and an order (JSON, one line). It is told the id of the process and, when
that has ended, its status. The connection is the life of the process: who goes away, however it ends, takes it along.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

#: an order, as it came
Order = dict[str, Any]


class ForkServer:
    """Forks, reaps, and tells."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._woken, self._waker = os.pipe()
        os.set_blocking(self._waker, False)
        #: who waits for a process, by its id
        self._children: dict[int, socket.socket] = {}

    def work(self) -> Order | None:
        """Fork for whoever asks. Returns an order in the process that is to follow it, and None at the end."""
        signal.signal(signal.SIGCHLD, lambda *_: None)  # only what is handled wakes
        signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        while True:
            watched: list[int | socket.socket] = [0, self._woken, self._listener, *self._children.values()]
            ready, _, _ = select.select(watched, [], [])
            if 0 in ready:
                for pid in list(self._children):
                    self._end(pid)
                return None
            if self._woken in ready:
                os.read(self._woken, 4096)
                self._reap()
            for pid, connection in list(self._children.items()):
                if connection in ready:
                    self._end(pid)
            if self._listener in ready and (order := self._fork()) is not None:
                return order

    def _fork(self) -> Order | None:
        connection, _ = self._listener.accept()
        line, handles, _, _ = socket.recv_fds(connection, 65536, 3)
        while not line.endswith(b"\n"):
            line += connection.recv(65536)
        if pid := os.fork():
            for handle in handles:
                os.close(handle)
            self._children[pid] = connection
            self._tell(connection, pid)
            return None
        for other in (connection, self._listener, *self._children.values()):
            other.close()
        signal.set_wakeup_fd(-1)
        os.close(self._woken)
        os.close(self._waker)
        order: Order = json.loads(line)
        _become(order, handles)
        return order

    def _reap(self) -> None:
        for pid in list(self._children):
            ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is not None:
                # It is told before the id may go to another process, so nobody signals that one.
                with self._children.pop(pid) as connection:
                    is_exit = ended.si_code == os.CLD_EXITED
                    self._tell(connection, ended.si_status if is_exit else -ended.si_status)
                os.waitpid(pid, 0)

    def _end(self, pid: int) -> None:
        """Nobody waits for a process any more."""
        with self._children.pop(pid):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)

    @staticmethod
    def _tell(connection: socket.socket, number: int) -> None:
        with suppress(OSError):  # it has gone away, which is seen elsewhere
            connection.sendall(b"%d\n" % number)


def _become(order: Order, handles: list[int]) -> None:
    """Make this process what a new interpreter would be."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if order["session"]:
        os.setsid()
    for number, handle in enumerate(handles):
        os.dup2(handle, number)
        os.close(handle)
    # Whether a line is flushed at once depends on what is behind a handle.
    sys.stdin = sys.__stdin__ = open(0, closefd=False)  # type: ignore[misc]  # noqa: SIM115 - as long as the process
    sys.stdout = sys.__stdout__ = open(1, "w", closefd=False)  # type: ignore[misc]  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # type: ignore[misc]  # noqa: SIM115
    os.environ.clear()
    os.environ.update(order["environment"])
    os.chdir(order["directory"])
    time.tzset()
    tempfile.tempdir = None
    path = order["environment"].get("PYTHONPATH", "")
    sys.path[:1] = [order["directory"], *filter(None, path.split(os.pathsep))]
    sys.argv = [order["module"], *order["arguments"]]


def _import(names: list[str]) -> None:
    """Import modules; with `.*`, all that a package has inside, but not inside of its packages."""
    for name in names:
        module = importlib.import_module(name.removesuffix(".*"))
        inside = pkgutil.iter_modules(module.__path__) if name.endswith(".*") else ()
        for found in inside:
            if found.name != "__main__":  # that one is to be run
                importlib.import_module(f"{module.__name__}.{found.name}")


def _serve(names: list[str]) -> Order | None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for those who started us
    _import(names)
    assert threading.active_count() == 1, threading.enumerate()
    folder = Path(tempfile.mkdtemp(prefix="forks-"))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "socket"))
        listener.listen(128)
        print(folder / "socket", flush=True)
        gc.collect()
        gc.freeze()  # what is not looked at stays shared
        order = ForkServer(listener).work()
    if order is None:
        shutil.rmtree(folder)
    return order


def _follow(order: Order) -> None:
    """Run a module as Python does, and end likewise, only without taking apart all that was imported.

    That would take longer than most commands do. What ends otherwise than by a status is left to Python.
    """
    status = 0
    try:
        runpy.run_module(order["module"], run_name="__main__", alter_sys=True)
    except SystemExit as exc:
        if exc.code is not None and not isinstance(exc.code, int):
            raise
        status = exc.code or 0
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads
    atexit._run_exitfuncs()
    gc.collect()  # what complains about not being closed does so now
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        raise SystemExit(status) from None
    os._exit(status & 0xFF)


if __name__ == "__main__":
    _order = _serve(sys.argv[1:])
    if _order is not None:
        _follow(_order)
