"""The processor of the chaos suite: its result shows which task it belongs to."""

from __future__ import annotations

import asyncio
from typing import Any

from dispatcher.processors import processor


@processor("chaos.work", tries=1)
async def work(payload: dict[str, Any]) -> dict[str, Any]:
    """Take a moment."""
    await asyncio.sleep(0.02)
    return {"n": payload["n"]}
