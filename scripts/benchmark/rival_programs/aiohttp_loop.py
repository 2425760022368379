"""A bare aiohttp loop: workers that share a session and post one after the other. Nothing is kept, nothing signed.

python aiohttp_loop.py URL SECONDS WORKERS <payload
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

import aiohttp
import uvloop


async def work(session: aiohttp.ClientSession, url: str, body: bytes, deadline: float) -> int:
    """One worker."""
    count = 0
    while time.monotonic() < deadline:
        async with session.post(url, data=body, headers={"Content-Type": "application/json"}) as answer:
            answer.raise_for_status()
            await answer.read()
        count += 1
    return count


async def main(url: str, seconds: float, workers: int) -> None:
    """Run the workers, and print what they did."""
    body = sys.stdin.buffer.read()
    connector = aiohttp.TCPConnector(limit=workers)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=15)) as session:
        began, cpu = time.monotonic(), time.process_time()
        counts = await asyncio.gather(*(work(session, url, body, began + seconds) for _ in range(workers)))
        result = {"count": sum(counts), "seconds": time.monotonic() - began, "cpu": time.process_time() - cpu}
    print(json.dumps(result))  # noqa: T201 - for the benchmark


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3])))
