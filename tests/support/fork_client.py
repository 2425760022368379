"""Asks a fork server for a process; `python -I -S fork_client.py SOCKET MODULE [ARGUMENT]...` stands for one.

For those who have to start a command themselves: a shell, or a program under test. It imports next to nothing.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Sequence


def ask(
    path: str,
    module: str,
    arguments: Sequence[str],
    *,
    handles: Sequence[int],
    environment: dict[str, str],
    directory: str,
    session: bool = False,
) -> socket.socket:
    """Order a process with these handles as stdin, stdout and stderr. What comes back is its id, then its status."""
    order = {
        "module": module,
        "arguments": list(arguments),
        "environment": environment,
        "directory": directory,
        "session": session,
    }
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(path)
        socket.send_fds(connection, [b" "], handles)  # before a space JSON is the same
        connection.sendall(json.dumps(order).encode() + b"\n")
    except BaseException:
        connection.close()
        raise
    return connection


def main() -> None:
    """Be that process, as far as those can tell who started this one."""
    path, module, *arguments = sys.argv[1:]
    directory = os.getcwd()  # noqa: PTH109 - pathlib takes its time
    connection = ask(path, module, arguments, handles=(0, 1, 2), environment=dict(os.environ), directory=directory)
    numbers = connection.makefile()
    pid = int(numbers.readline())
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: os.kill(pid, number))
    status = int(numbers.readline())
    if status < 0:
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


if __name__ == "__main__":
    main()
