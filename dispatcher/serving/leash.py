"""What holds the processes of `--workers` to the parent that started them: a pair of sockets for each.

The child writes one byte when it takes requests. The parent writes nothing: when its end closes, it is gone, however
it ended, and the child stops. No process is ever left over, on any system.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from typing import Self

from dispatcher.errors import ConfigError

_READY = b"r"


class Leash:
    """A child's end, with the listening socket that it was given. A context manager that closes both."""

    def __init__(self, listener: socket.socket, parent: socket.socket) -> None:
        self.listener = listener
        self._parent = parent
        for one in (listener, parent):
            # Neither is for the processes that processors run in.
            one.set_inheritable(False)
            one.setblocking(False)

    @classmethod
    def taken_from(cls, text: str) -> Leash:
        """The one that an argument of the command line names. Raises ConfigError."""
        try:
            listener, parent = (int(number) for number in text.split(","))
            return cls(socket.socket(fileno=listener), socket.socket(fileno=parent))
        except (ValueError, OSError):
            raise ConfigError("--leash is for the processes that --workers starts") from None

    async def say_ready(self) -> None:
        """Tell the parent that requests are taken."""
        try:
            await asyncio.get_running_loop().sock_sendall(self._parent, _READY)
        except OSError:
            return  # it is gone, which `parent_gone` tells

    async def parent_gone(self) -> None:
        """Wait until the parent is gone."""
        await _heard(self._parent)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._parent.close()
        self.listener.close()


class Child:
    """A process on a leash, as its parent sees it."""

    def __init__(self, process: asyncio.subprocess.Process, leash: socket.socket) -> None:
        self.pid = process.pid
        self._process = process
        self._leash = leash

    @classmethod
    async def start(cls, command: Sequence[str], listener: socket.socket, environment: dict[str, str]) -> Child:
        """Run this command, which takes `--leash`, as a process that has the listening socket, too."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with theirs:
            handles = (listener.fileno(), theirs.fileno())
            process = await asyncio.create_subprocess_exec(
                *command,
                *("--leash", "{},{}".format(*handles)),
                pass_fds=handles,
                env=environment,
                # Ctrl-C is for the parent, which passes it on; from the terminal as well it would come twice.
                start_new_session=True,
            )
        return cls(process, ours)

    async def is_ready(self) -> bool:
        """Wait until it takes requests; False if it ends before."""
        return await _heard(self._leash) == _READY

    async def ended(self) -> int:
        """Wait until it has ended; its exit status, or minus the signal that ended it."""
        status = await self._process.wait()
        self._leash.close()
        return status

    def signal(self, number: int) -> None:
        """Send it a signal, if it still runs."""
        if self._process.returncode is None:
            self._process.send_signal(number)


async def _heard(end: socket.socket) -> bytes:
    """The next byte from the other end; none when that is gone."""
    try:
        return await asyncio.get_running_loop().sock_recv(end, 1)
    except OSError:
        return b""
