"""One processor that ends the process whenever it runs, and one that only works beside it."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

from dispatcher.processors import processor

#: environment: the file that gets a byte for each run of `poison.deadly`
RUNS = "POISON_RUNS"


@processor("poison.deadly", tries=1)
async def end_the_process(payload: Any) -> None:
    """As a fault in a C library would, or a payload that takes all memory."""
    os.write(os.open(os.environ[RUNS], os.O_WRONLY | os.O_APPEND), b".")
    os.kill(os.getpid(), signal.SIGKILL)


@processor("poison.innocent", tries=1)
async def work(payload: Any) -> Any:
    """Work that takes a while, so that it is under way when another task ends the process."""
    await asyncio.sleep(0.05)
    return payload
