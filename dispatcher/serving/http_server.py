"""Uvicorn, as we want it."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import cast

import uvicorn
from starlette.types import ASGIApp

from dispatcher.serving.http_protocol import HttpProtocol, Traffic


class HttpServer(uvicorn.Server):
    """Serves an app until it is told to stop. `on_ready` is called once it takes requests."""

    def __init__(self, app: ASGIApp, *, grace: float, on_ready: Callable[[], Awaitable[None]]) -> None:
        config = uvicorn.Config(
            app,
            loop="uvloop",
            http=cast("type[HttpProtocol]", partial(HttpProtocol, traffic=Traffic())),
            ws="none",
            lifespan="on",
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,  # nothing here depends on who the caller seems to be
            date_header=True,
            timeout_graceful_shutdown=max(1, round(grace)),
        )
        super().__init__(config)
        self._on_ready = on_ready

    def stop(self) -> None:
        """Take no more requests, and end when those under way are answered."""
        self.should_exit = True

    @property
    def has_failed(self) -> bool:
        """Whether it did not start, or not stop, as it should."""
        return not self.started or bool(self.lifespan.should_exit)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop at SIGTERM and SIGINT, and then end by ourselves; uvicorn's own would end the process half-way."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        yield
        # Told once more to stop, it goes on to its end; but Ctrl-C ends it at once.
        loop.remove_signal_handler(signal.SIGINT)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then say so."""
        await super().startup(sockets=sockets)
        if not self.should_exit:
            await self._on_ready()
