"""User code that turns a task's payload into a result: registering it, and running it.

from dispatcher.processors import processor

@processor("invoice.total", timeout=10)
async def total(payload): ...
"""

from dispatcher.processors.registry import Processor, Registry, processor, registry

__all__ = ["Processor", "Registry", "processor", "registry"]
