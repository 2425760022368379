"""Work on the database that has to be done, however long the database is away."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from tenacity import AsyncRetrying, retry_if_exception_type, wait_random_exponential

from dispatcher.errors import StoreUnavailable

T = TypeVar("T")


async def until_available(work: Callable[[], Awaitable[T]]) -> T:
    """Do this, again and again while the database is away. Raises what else it runs into."""
    try:
        # Nearly always this is all; the retrying around it costs more than the work itself.
        return await work()
    except StoreUnavailable:
        pass
    async for attempt in AsyncRetrying(
        retry=retry_if_exception_type(StoreUnavailable),
        wait=wait_random_exponential(multiplier=0.1, max=5),
    ):
        with attempt:
            found = await work()
    return found
