"""Processors for tests, registered with `--processors tests.support.processors`. Each does one thing."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import msgspec

from dispatcher.errors import ProcessorError
from dispatcher.processors import processor

#: what no caller may ever see
HIDDEN = "hidden-5f0c1b"


class Order(msgspec.Struct, forbid_unknown_fields=True):
    """A typed payload."""

    sku: str
    count: int


class Unknown:
    """A class that msgspec does not know."""


@processor("double")
async def double(payload: Any) -> Any:
    """On the event loop."""
    return {"twice": payload["n"] * 2}


@processor("double.thread")
def double_thread(payload: Any) -> Any:
    """In a thread."""
    return {"twice": payload["n"] * 2, "main": threading.current_thread() is threading.main_thread()}


@processor("double.cpu", cpu=True)
def double_cpu(payload: Any) -> Any:
    """In a process of its own."""
    return {"twice": payload["n"] * 2, "pid": os.getpid()}


@processor("pid")
async def pid(payload: Any) -> int:
    """The server's process."""
    return os.getpid()


@processor("order")
async def order(payload: Order) -> str:
    """Takes a typed payload."""
    return f"{payload.count} x {payload.sku}"


@processor("unknown.payload")
async def unknown_payload(payload: Unknown) -> str:
    """Annotated with what msgspec does not know: gets plain data."""
    return type(payload).__name__


@processor("slow", timeout=0.2, tries=1)
async def slow(payload: Any) -> None:
    """Outlasts its timeout."""
    await asyncio.Event().wait()


@processor("slow.cpu", timeout=2, tries=1, cpu=True)
def slow_cpu(payload: Any) -> None:
    """Outlasts its timeout in a process, which is killed for it."""
    Path(payload["pid_file"]).write_text(str(os.getpid()))
    while True:
        time.sleep(1)


@processor("hang.thread", timeout=0.2, tries=1)
def hang_thread(payload: Any) -> None:
    """Outlasts its timeout in a thread, which nobody can stop."""
    threading.Event().wait()


@processor("own.timeout", timeout=30, tries=1)
async def own_timeout(payload: Any) -> None:
    """Raises a TimeoutError that is not ours."""
    raise TimeoutError(HIDDEN)


@processor("flaky", tries=3, backoff=0.01)
async def flaky(payload: Any) -> int:
    """Fails until the third try. Counts its tries in a file."""
    count = _count_try(Path(payload["tries"]))
    if count < 3:
        raise RuntimeError(HIDDEN)
    return count


@processor("refuse", tries=3, backoff=0.01)
async def refuse(payload: Any) -> None:
    """Fails at once, with a text for the caller."""
    raise ProcessorError(payload["say"], retry=payload.get("retry", False))


@processor("refuse.cpu", tries=3, backoff=0.01, cpu=True)
def refuse_cpu(payload: Any) -> None:
    """The same from another process."""
    raise ProcessorError(payload["say"], retry=payload.get("retry", False))


@processor("raise", tries=1)
async def raises(payload: Any) -> None:
    """Fails with a text that is not for the caller."""
    raise ValueError(HIDDEN)


@processor("raise.thread", tries=1)
def raises_thread(payload: Any) -> None:
    """The same in a thread."""
    raise ValueError(HIDDEN)


@processor("raise.cpu", tries=1, cpu=True)
def raises_cpu(payload: Any) -> None:
    """The same in a process."""
    raise ValueError(HIDDEN)


@processor("exit", tries=1)
async def exits(payload: Any) -> None:
    """Tries to end the program."""
    sys.exit(HIDDEN)


@processor("exit.thread", tries=1)
def exits_thread(payload: Any) -> None:
    """The same from a thread."""
    sys.exit(HIDDEN)


@processor("cancelled", tries=1)
async def cancelled(payload: Any) -> None:
    """Lets a cancellation escape that nobody asked for."""
    raise asyncio.CancelledError(HIDDEN)


@processor("die.cpu", tries=2, backoff=0.01, cpu=True)
def dies_cpu(payload: Any) -> int:
    """Ends its process at the first try."""
    file = Path(payload["tries"])
    if not file.exists():
        file.touch()
        os._exit(9)
    return 2


@processor("unencodable", tries=1)
async def unencodable(payload: Any) -> object:
    """Returns what JSON cannot hold."""
    return object()


@processor("gate", timeout=20, tries=1)
async def gate(payload: Any) -> str:
    """Waits until a file is there."""
    while not Path(payload["gate"]).exists():  # noqa: ASYNC110 - it is the test, in another process, that makes the file
        await asyncio.sleep(0.02)
    return "opened"


def _count_try(file: Path) -> int:
    with file.open("a") as lines:
        lines.write(f"{time.time()}\n")
    return len(file.read_text().splitlines())
