"""A bare httpx loop: workers that each have a client and post one after the other. Nothing is kept, nothing signed.

python httpx_loop.py URL SECONDS WORKERS <payload
"""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
import time
from contextlib import AsyncExitStack

import httpx
import uvloop


async def work(client: httpx.AsyncClient, url: str, body: bytes, deadline: float) -> int:
    """One worker."""
    count = 0
    while time.monotonic() < deadline:
        answer = await client.post(url, content=body, headers={"Content-Type": "application/json"})
        answer.raise_for_status()
        count += 1
    return count


async def main(url: str, seconds: float, workers: int) -> None:
    """Run the workers, and print what they did."""
    body, context = sys.stdin.buffer.read(), ssl.create_default_context()
    async with AsyncExitStack() as stack:
        # Made before the clock begins: a client takes far longer to make than to use.
        clients = [
            await stack.enter_async_context(httpx.AsyncClient(verify=context, timeout=15, trust_env=False))
            for _ in range(workers)
        ]
        began, cpu = time.monotonic(), time.process_time()
        counts = await asyncio.gather(*(work(client, url, body, began + seconds) for client in clients))
        result = {"count": sum(counts), "seconds": time.monotonic() - began, "cpu": time.process_time() - cpu}
    print(json.dumps(result))  # noqa: T201 - for the benchmark


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3])))
