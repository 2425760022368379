"""User code that turns a task's payload into a result: registering it, and running it.

from dispatcher.processors import processor

@processor("invoice.total", timeout=10)
async def total(payload): ...
"""

from dispatcher.processors.registry import processor

__all__ = ["processor"]
