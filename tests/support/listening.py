"""How a test's own server stops listening: no connection outlives it."""

from __future__ import annotations

import asyncio


async def close(server: asyncio.Server) -> None:
    """Close a server and all its connections, also those that were accepted this moment or are amid a TLS handshake.

    What Python 3.13's `Server.abort_clients` does, and more: that one knows no connection amid its handshake.
    """
    loop = asyncio.get_running_loop()
    # Not yet closed, but deaf: a server that is closed gives no transport to what it has accepted this moment, and
    # Python 3.11 then loses the socket.
    for listener in server.sockets:
        loop.remove_reader(listener.fileno())
    for _ in range(5):
        await asyncio.sleep(0)
    server.close()
    # One that was cut is gone a round of the loop later.
    for _ in range(5):
        for transport in list(loop._transports.values()):  # type: ignore[attr-defined]  # asyncio has no name for them
            if transport._server is server:
                transport.abort()
        await asyncio.sleep(0)
