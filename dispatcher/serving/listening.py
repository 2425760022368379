"""Where requests are taken: the socket, and what is said on stdout once they are."""

from __future__ import annotations

import socket

import structlog

from dispatcher import tokens
from dispatcher.config import Settings
from dispatcher.errors import ConfigError
from dispatcher.installation import Installation
from dispatcher.store import accounts

log = structlog.get_logger(__name__)

#: connections that wait until they are accepted
BACKLOG = 2048
#: the account that `--dev` makes a token for
DEV_ACCOUNT = "dev"
#: and the note by which that token is known
DEV_NOTE = "made by serve --dev"
#: seconds for which it is good
DEV_TTL = 30 * 86_400.0


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there. Raises ConfigError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as exc:
        listener.close()
        raise ConfigError(f"cannot listen on {host} port {port}: {exc.strerror}") from exc
    return listener


async def dev_token(settings: Settings, installation: Installation) -> str | None:
    """The token that `--dev` prints. Without it there is none, and one that was made before is good no more."""
    if not settings.takes_requests:
        return None
    if not settings.dev:
        await accounts.revoke_noted(installation.database, DEV_NOTE, actor="serve without --dev")
        return None
    return await tokens.issue(
        installation,
        account=DEV_ACCOUNT,
        scopes=tokens.SCOPES,
        actor="serve --dev",
        ttl=DEV_TTL,
        note=DEV_NOTE,
    )


def say_ready(settings: Settings, listener: socket.socket, token: str | None) -> None:
    """Say on stdout where requests are taken, and how."""
    if settings.dev:
        log.warning("dev_mode", admits="plain http, loopback addresses and any port for what is sent")
    if token is not None:
        print("token", token, flush=True)  # noqa: T201 - for the caller of --dev
    name = "dispatcher" if settings.takes_requests else "dispatcher worker"
    print(f"{name} ready on {_url(listener)}", flush=True)  # noqa: T201 - stdout's one line


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}"
