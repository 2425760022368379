"""How a test's own server stops listening: no connection outlives it."""

from __future__ import annotations

import asyncio


async def close(server: asyncio.Server) -> None:
    """Close a server and all its connections, also those that were accepted this moment or are amid a TLS handshake.

    What Python 3.13's `Server.abort_clients` does, and more: that one knows no connection amid its handshake.
    """
    server.close()
    # One just accepted has its transport a round of the loop later; one that was cut is gone a round later.
    for _ in range(10):
        await asyncio.sleep(0)
        for transport in list(asyncio.get_running_loop()._transports.values()):  # type: ignore[attr-defined]
            if transport._server is server:
                transport.abort()
