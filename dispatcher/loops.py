"""Loops that live as long as the process: whatever one round runs into, there is another round."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from dispatcher.errors import StoreUnavailable

log = structlog.get_logger(__name__)

#: seconds to wait after a failed round: at first, doubling, and at most
FIRST_REST = 0.2
LAST_REST = 5.0


async def repeat(step: Callable[[], Awaitable[None]], *, while_: Callable[[], bool] = lambda: True) -> None:
    """Run a step again and again. One that fails is put off for longer each time; the database away is no news."""
    rest = FIRST_REST
    while while_():
        try:
            await step()
            rest = FIRST_REST
        except Exception as exc:
            if not isinstance(exc, StoreUnavailable):
                log.exception("round_failed", step=getattr(step, "__name__", "?"))
            await asyncio.sleep(rest)
            rest = min(LAST_REST, rest * 2)
