"""What is forked is a process like any other: the tests that use it rely on that."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.forking import ROOT, Forked, ForkServer, on_path
from tests.support.server import until

#: a module that does what it is told; nothing of it is there when it is forked
PROGRAM = """
import asyncio, os, random, signal, sys, threading, time

def say(*words):
    print(*words, flush=True)

match sys.argv[1:]:
    case ["facts"]:
        say(os.getpid(), os.getcwd(), sorted(os.environ), __name__, os.path.basename(sys.argv[0]))
        say(sorted(os.listdir("/proc/self/fd"))) if os.path.exists("/proc/self/fd") else None
    case ["chance"]:
        say(random.random())
    case ["echo"]:
        data = sys.stdin.buffer.read()
        sys.stdout.buffer.write(data)
        sys.stderr.write(f"{len(data)} bytes, a terminal: {sys.stdin.isatty()}\\n")
    case ["end", status]:
        sys.exit(int(status) if status.lstrip("-").isdigit() else status)
    case ["fail"]:
        raise ZeroDivisionError
    case ["lasting"]:
        threading.Thread(target=lambda: (time.sleep(0.2), say("the thread is done"))).start()
        import atexit
        atexit.register(say, "at exit")
        print("not flushed")
    case ["sleep"]:
        say("ready")
        time.sleep(600)
    case ["stoppable"]:
        async def work():
            ended = asyncio.Event()
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
            say("ready")
            await ended.wait()
        asyncio.run(work())
        sys.exit(7)
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the module is."""
    folder = tmp_path_factory.mktemp("program")
    (folder / "program.py").write_text(PROGRAM)
    return folder


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    with closing(ForkServer("json")) as running:
        yield running


def start(server: ForkServer, program: Path, *arguments: str, env: dict[str, str] | None = None) -> Forked:
    pipe = subprocess.PIPE
    given = {"PYTHONPATH": str(program), **(env or {})}
    return Forked(server, "program", arguments, stdin=pipe, stdout=pipe, stderr=pipe, env=given)


def run(server: ForkServer, program: Path, *arguments: str, data: bytes = b"") -> tuple[int, str, str]:
    process = start(server, program, *arguments)
    out, err = process.communicate(data, timeout=60)
    return process.wait(), out.decode(), err.decode()


def ready(process: Forked) -> Forked:
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


def is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_it_is_what_was_asked_for(server: ForkServer, program: Path, tmp_path: Path) -> None:
    pipe = subprocess.PIPE
    environment = {"PYTHONPATH": str(program), "ONLY": "this"}
    process = Forked(server, "program", ["facts"], stdout=pipe, env=environment, cwd=tmp_path)
    out, _ = process.communicate(timeout=60)
    facts, *handles = out.decode().splitlines()
    assert facts == f"{process.pid} {tmp_path} ['ONLY', 'PYTHONPATH'] __main__ program.py"
    assert handles in ([], ["['0', '1', '2', '3']"])  # the last is the folder that it looks at
    assert process.poll() == 0


def test_it_has_the_environment_of_the_test_unless_told_otherwise(
    server: ForkServer, program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(program))
    monkeypatch.setenv("SET_BY_THIS_TEST", "1")
    out, _ = Forked(server, "program", ["facts"], stdout=subprocess.PIPE).communicate(timeout=60)
    assert b"'SET_BY_THIS_TEST'" in out


def test_no_two_have_the_same_chance(server: ForkServer, program: Path) -> None:
    assert len({run(server, program, "chance")[1] for _ in range(3)}) == 3


def test_streams_are_its_own(server: ForkServer, program: Path) -> None:
    data = bytes(range(256)) * 4096  # more than any pipe holds
    process = start(server, program, "echo")
    out, err = process.communicate(data, timeout=60)
    assert out == data
    assert err == f"{len(data)} bytes, a terminal: False\n".encode()


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["end", "0"], 0, ""),
        (["end", "3"], 3, ""),
        (["end", "-1"], 255, ""),
        (["end", "a reason"], 1, "a reason\n"),
        (["fail"], 1, "ZeroDivisionError\n"),
    ],
)
def test_it_ends_as_python_does(
    server: ForkServer, program: Path, arguments: list[str], status: int, says: str
) -> None:
    forked = run(server, program, *arguments)
    done = subprocess.run(
        [sys.executable, "-m", "program", *arguments], capture_output=True, text=True, cwd=program, check=False
    )
    assert (forked[0], done.returncode) == (status, status)
    assert (forked[2] or done.stderr).endswith(says)
    assert forked[2].splitlines()[-1:] == done.stderr.splitlines()[-1:]


def test_threads_and_what_is_to_be_done_at_exit_are_waited_for(server: ForkServer, program: Path) -> None:
    assert run(server, program, "lasting") == (0, "not flushed\nthe thread is done\nat exit\n", "")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it(server: ForkServer, program: Path, number: int) -> None:
    with ready(start(server, program, "sleep")) as process:
        assert process.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.01)
        process.send_signal(number)
        assert process.wait(60) == process.poll() == process.returncode == -number
        until(lambda: not is_there(process.pid))  # it is told of a moment before its id is free
        process.kill()  # nobody


def test_it_can_handle_a_signal(server: ForkServer, program: Path) -> None:
    with ready(start(server, program, "stoppable")) as process:
        process.terminate()
        assert process.wait(60) == 7


def test_several_at_once_do_not_hold_each_other_up(server: ForkServer, program: Path) -> None:
    with ready(start(server, program, "sleep")) as first, ready(start(server, program, "sleep")) as second:
        assert run(server, program, "end", "3")[0] == 3
        second.kill()
        assert second.wait(60) == -signal.SIGKILL
        assert first.poll() is None
        first.kill()


def test_a_command_stands_for_it(server: ForkServer, program: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(program)}

    def launch(*arguments: str) -> subprocess.Popen[bytes]:
        command = server.command("program", *arguments)
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, cwd=program)

    with launch("echo") as process:
        assert process.communicate(b"some", timeout=60)[0] == b"some"
        assert process.returncode == 0
    for number, status in ((signal.SIGTERM, 7), (signal.SIGKILL, -signal.SIGKILL)):
        with launch("stoppable") as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            process.send_signal(number)
            assert process.wait(60) == status


def test_dispatcher_is_a_command_on_the_path(tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": on_path(tmp_path / "bin")}
    done = subprocess.run(
        ["sh", "-c", "dispatcher --version | cat; exec dispatcher nothing"],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        check=False,
    )
    assert done.stdout.startswith("webhook-dispatcher ")
    assert done.returncode == 2


HOLDER = """
import subprocess, sys, time
from tests.support.forking import Forked, ForkServer

server = ForkServer("json")
process = Forked(server, "program", ["sleep"], stdout=subprocess.PIPE)
process.stdout.readline()
print(process.pid, next(iter(server._running.values()))[1].pid, server.path, flush=True)
time.sleep(600)
"""


def test_all_end_with_the_process_of_the_tests_even_if_that_is_killed(program: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{program}{os.pathsep}{ROOT}"}
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, env=environment, cwd=ROOT, text=True
    ) as holder:
        assert holder.stdout is not None
        pid, server, path = holder.stdout.readline().split()
        assert is_there(int(pid))
        holder.kill()
    until(lambda: not is_there(int(pid)))
    until(lambda: not Path(path).exists())
    until(lambda: not is_there(int(server)) or _is_zombie(int(server)))


def _is_zombie(pid: int) -> bool:
    """Whether it has ended, and nobody asks how: in a container the first process may not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_a_server_that_cannot_import_says_so(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(AssertionError, match="did not start"):
        Forked(ForkServer("there.is.no.such.module"), "program", [])
    assert "ModuleNotFoundError" in capfd.readouterr().err
