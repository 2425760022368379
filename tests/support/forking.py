"""Real processes that start in no time: `dispatcher …` forked from one process that has all imports behind it.

A new interpreter for each would spend most of the tests' time on imports. What is forked is a process of its own like
any other: with its own id, files, environment, directory and end. The command itself, from the start of Python on, is
run by tests/dispatcher/test_cli.py (the port it picks), tests/dispatcher/test_docs.py (the README's first delivery), by
tests/e2e/test_image.py, the tests of the demo, and wherever a server is started with `prefix` or as a `real_start`.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from tests.support import fork_client
from tests.support.fork_client import ask

ROOT = Path(__file__).parents[2]
#: what `dispatcher` imports, sooner or later: of ours, and of others what is only imported once it is used
DISPATCHER = (
    *(
        "dispatcher.cli.*",
        "dispatcher.serving.server",
        "dispatcher.serving.supervisor",
        "dispatcher.store.*",
        "subscriptions.*",
    ),
    *("aiosqlite", "alembic.command", "anyio._backends._asyncio", "anyio.streams.stapled", "anyio.streams.tls"),
    *("apscheduler.executors.asyncio", "apscheduler.triggers.interval", "fastapi.telemetry._runtime", "httptools"),
    *("pydantic.v1", "sqlalchemy.dialects.sqlite.aiosqlite", "typer.rich_utils", "typer._click.decorators"),
    *("uvicorn.lifespan.on", "uvicorn.protocols.http.httptools_impl", "uvloop"),
)
#: seconds until a fork is told of
FORKED_WITHIN = 60.0

Handle = int | IO[Any] | None


class ForkServer:
    """The process that forks, as its users see it. It is started by the first that needs it."""

    def __init__(self, *modules: str) -> None:
        self._modules = modules
        #: by the network that they are in: what is forked is in the same one
        self._running: dict[int, tuple[str, subprocess.Popen[bytes]]] = {}
        self._lock = threading.Lock()

    @property
    def path(self) -> str:
        """Where it listens, in the network that this thread is in (see tests.support.netns)."""
        with self._lock:
            network = _network()
            if network not in self._running:
                self._running[network] = self._start()
            return self._running[network][0]

    def _start(self) -> tuple[str, subprocess.Popen[bytes]]:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.fork_server", *self._modules],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        path = process.stdout.readline().decode().strip()
        if not path:
            process.communicate()
            raise AssertionError("the fork server did not start; stderr says why")
        return path, process

    def command(self, module: str, *arguments: str) -> list[str]:
        """A command that runs a module, for those who start processes themselves."""
        return [sys.executable, "-I", "-S", fork_client.__file__, self.path, module, *arguments]

    def close(self) -> None:
        """End it, and all that it has forked."""
        with self._lock:
            for _, process in self._running.values():
                process.communicate()  # its stdin ends
            self._running.clear()


def _network() -> int:
    """What tells one network namespace from another; 0 where there is no such thing."""
    with contextlib.suppress(OSError):
        return Path("/proc/thread-self/ns/net").stat().st_ino
    return 0


class Forked:
    """A process that was forked to run a module. It is used like `subprocess.Popen`; its streams are of bytes."""

    def __init__(
        self,
        server: ForkServer,
        module: str,
        arguments: Sequence[str],
        *,
        stdin: Handle = None,
        stdout: Handle = None,
        stderr: Handle = None,
        env: dict[str, str] | None = None,
        cwd: Path = ROOT,
        start_new_session: bool = False,
    ) -> None:
        self.args = [module, *arguments]
        self.returncode: int | None = None
        self.stdin: IO[bytes] | None = None
        self.stdout: IO[bytes] | None = None
        self.stderr: IO[bytes] | None = None
        self._heard = b""
        self._lock = threading.Lock()
        with contextlib.ExitStack() as theirs:
            self._connection = ask(
                server.path,
                module,
                arguments,
                handles=[
                    self._handle("stdin", stdin, theirs),
                    self._handle("stdout", stdout, theirs),
                    self._handle("stderr", stderr, theirs),
                ],
                environment=dict(os.environ if env is None else env),
                directory=str(cwd.resolve()),
                session=start_new_session,
            )
            #: the real one
            self.pid = self._number(FORKED_WITHIN)

    def _handle(self, name: str, given: Handle, stack: contextlib.ExitStack) -> int:
        """The handle that the process is to have; ours is set where it is the other end of a pipe."""
        if given is None:
            return ("stdin", "stdout", "stderr").index(name)
        if given == subprocess.DEVNULL:
            return stack.enter_context(Path(os.devnull).open("r+b", buffering=0)).fileno()
        if given == subprocess.PIPE:
            read, write = os.pipe()
            ours, theirs = (write, read) if name == "stdin" else (read, write)
            setattr(self, name, os.fdopen(ours, "wb" if name == "stdin" else "rb"))
            stack.callback(os.close, theirs)
            return theirs
        return given if isinstance(given, int) else given.fileno()

    def _number(self, timeout: float | None) -> int:
        """The next number we are told. Raises TimeoutError, or BlockingIOError when we are not to wait."""
        self._connection.settimeout(timeout)
        while b"\n" not in self._heard:
            chunk = self._connection.recv(64)
            if not chunk:
                raise RuntimeError("the fork server has gone")
            self._heard += chunk
        line, _, self._heard = self._heard.partition(b"\n")
        return int(line)

    def _ended(self, timeout: float | None) -> int:
        if self.returncode is None:
            self.returncode = self._number(timeout)
            self._connection.close()
        return self.returncode

    def poll(self) -> int | None:
        """Its exit status, or minus the signal that ended it; None while it runs."""
        if self._lock.acquire(blocking=False):
            try:
                self._ended(0)
            except BlockingIOError:
                pass
            finally:
                self._lock.release()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The same, once it has ended. Raises subprocess.TimeoutExpired."""
        with self._lock:
            try:
                return self._ended(timeout)
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired(self.args, timeout or 0) from None

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def communicate(self, input: bytes = b"", timeout: float | None = None) -> tuple[bytes, bytes]:  # noqa: A002 - as Popen has it
        """Write, read all, and wait. Raises subprocess.TimeoutExpired, and then it has been killed."""
        with ThreadPoolExecutor(3) as pool:
            writing = pool.submit(self._write, input)
            reading = [pool.submit(self._read, stream) for stream in (self.stdout, self.stderr)]
            try:
                self.wait(timeout)
            except BaseException:
                self.kill()
                raise
            writing.result()
            out, err = (read.result() for read in reading)
        return out, err

    def _write(self, data: bytes) -> None:
        if self.stdin is not None:
            with contextlib.suppress(BrokenPipeError), self.stdin:
                self.stdin.write(data)

    @staticmethod
    def _read(stream: IO[bytes] | None) -> bytes:
        if stream is None:
            return b""
        with stream:
            return stream.read()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream is not None:
                stream.close()
        self.wait()


#: the one for `dispatcher`, in each process of the tests
_server = ForkServer(*DISPATCHER)

#: `dispatcher` with these arguments
dispatcher = partial(Forked, _server, "dispatcher.cli")
#: a module that starts `dispatcher` in a way of its own
launched = partial(Forked, _server)


def run(
    *arguments: str,
    input: bytes = b"",  # noqa: A002 - as subprocess.run has it
    env: dict[str, str] | None = None,
    cwd: Path = ROOT,
    check: bool = False,
    timeout: float = 120,
) -> subprocess.CompletedProcess[str]:
    """Run `dispatcher` with these arguments, and return its end and all that it printed."""
    pipe = subprocess.PIPE
    process = dispatcher(arguments, stdin=pipe, stdout=pipe, stderr=pipe, env=env, cwd=cwd)
    out, err = process.communicate(input, timeout)
    done = subprocess.CompletedProcess(process.args, process.wait(), out.decode(), err.decode())
    if check:
        done.check_returncode()
    return done


def on_path(folder: Path) -> str:
    """A PATH on which `dispatcher` is forked, too: for shells. The folder takes that command."""
    folder.mkdir()
    file = folder / "dispatcher"
    file.write_text(f'#!/bin/sh\nexec {shlex.join(_server.command("dispatcher.cli"))} "$@"\n')
    file.chmod(0o700)
    return f"{folder}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


@contextlib.contextmanager
def ending_with_us() -> Iterator[None]:
    """Nothing that was forked is left afterwards."""
    with contextlib.closing(_server):
        yield
