"""A network of its own for a test: nothing that happens inside can reach any other machine.

A thread moves into a new, empty network namespace; whatever it starts from there on (sockets, threads, processes)
is inside, too. Addresses that are public elsewhere are then nothing but names for the loopback interface.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

CLONE_NEWNET = 0x40000000


def why_not() -> str | None:
    """What a network namespace of our own takes that is not here; None when all is."""
    if os.geteuid() != 0:
        return "root, to make a network namespace"
    if shutil.which("ip") is None:
        return "ip (iproute2)"
    tried = subprocess.run(["unshare", "-n", "true"], capture_output=True, check=False, timeout=10)
    return None if tried.returncode == 0 else "the right to make a network namespace"


@contextmanager
def own_network(addresses: Sequence[str]) -> Iterator[None]:
    """Move this thread into a new network namespace where these addresses are local, and back at the end."""
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        outside = os.fstat(before).st_ino
        _check(libc.unshare(CLONE_NEWNET))
        try:
            assert os.stat("/proc/thread-self/ns/net").st_ino != outside  # noqa: PTH116 - a link of the kernel's
            _ip("link", "set", "lo", "up")
            for address in addresses:
                # nodad: an IPv6 address can be used at once
                width = ["128", "nodad"] if ":" in address else ["32"]
                _ip("address", "add", f"{address}/{width[0]}", "dev", "lo", *width[1:])
            yield
        finally:
            _check(libc.setns(before, CLONE_NEWNET))
    finally:
        os.close(before)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, timeout=10, capture_output=True)


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
