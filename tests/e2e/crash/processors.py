"""Processors of the crash test: short work whose result anyone can check."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

from dispatcher.processors import processor

#: a kill costs no task a try
TRIES = 1


def digest(payload: dict[str, Any]) -> dict[str, Any]:
    """What both processors answer."""
    text = f"{payload['number']}:{payload['text']}"
    return {"number": payload["number"], "sha256": hashlib.sha256(text.encode()).hexdigest()}


@processor("crash.async", tries=TRIES)
async def on_the_loop(payload: dict[str, Any]) -> dict[str, Any]:
    """Work on the event loop."""
    await asyncio.sleep(0.01)
    return digest(payload)


@processor("crash.thread", tries=TRIES)
def in_a_thread(payload: dict[str, Any]) -> dict[str, Any]:
    """Work in a thread."""
    return digest(payload)
