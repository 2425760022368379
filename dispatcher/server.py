"""`dispatcher serve`: puts the parts together and runs them until told to stop."""

from __future__ import annotations

import asyncio
import resource
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from urllib.parse import urlsplit

import structlog
import uvicorn

from dispatcher import collector, tokens
from dispatcher.account_cache import AccountCache
from dispatcher.api.app import create_app
from dispatcher.api.auth import Authenticator
from dispatcher.api.outbox import OutboxTaker
from dispatcher.api.reading import Reader
from dispatcher.api.services import Services
from dispatcher.chores import Chores
from dispatcher.config import Settings
from dispatcher.delivery.engine import Engine
from dispatcher.delivery.handshake import Handshakes
from dispatcher.delivery.http1_transport import Http1Transport
from dispatcher.delivery.httpx_transport import HttpxTransport
from dispatcher.delivery.resolver import Resolver
from dispatcher.delivery.sender import Sender
from dispatcher.delivery.tls import client_context
from dispatcher.delivery.transport import Transport
from dispatcher.egress import EgressPolicy
from dispatcher.errors import ConfigError, DispatcherError
from dispatcher.installation import Installation, open_installation, sole_server
from dispatcher.maintenance import Maintenance
from dispatcher.processors.engine import TaskEngine
from dispatcher.processors.registry import load_processors
from dispatcher.store import Store
from dispatcher.store import accounts as token_store
from dispatcher.store.outbox import Taken

log = structlog.get_logger(__name__)

#: how long the taking of the outbox rests, as a multiple of the time that a step took
OUTBOX_REST = 0.5
#: the account that `--dev` makes a token for
DEV_ACCOUNT = "dev"
#: and the note by which that token is known
DEV_NOTE = "made by serve --dev"


async def serve(settings: Settings) -> None:
    """Run the whole service until SIGTERM or SIGINT. Raises ConfigError when it cannot start."""
    registry = load_processors(settings)
    _raise_file_limit()
    async with AsyncExitStack() as stack:
        stack.enter_context(sole_server(settings))
        installation = await open_installation(settings)
        stack.push_async_callback(installation.database.close)
        if not settings.dev:
            await token_store.revoke_noted(installation.database, DEV_NOTE, actor="serve without --dev")
        listener = stack.enter_context(_listen(settings.host, settings.port))
        store = await Store.open(
            installation.database,
            installation.keyring,
            session_ttl=settings.session_ttl,
            alone=installation.embedded,
        )
        stack.push_async_callback(store.close)
        policy = EgressPolicy.of(settings)
        resolver = Resolver(nameservers=settings.nameservers)
        stack.push_async_callback(resolver.aclose)
        transport = _transport(settings, resolver, policy)
        stack.push_async_callback(transport.aclose)
        accounts = AccountCache(store)
        sender = Sender(
            transport,
            deadline=settings.send_timeout,
            user_agent=settings.user_agent,
            schedule=settings.retry_schedule,
            handshakes=_handshakes(settings, installation),
        )
        engine = Engine(store, sender, accounts, settings, on_moves=lambda: chores.wake())  # noqa: PLW0108 - it does not exist yet
        chores = Chores(store, release_rate=settings.release_rate, source=settings.event_source, on_due=engine.wake)
        reader = Reader(settings=settings, policy=policy, registry=registry, keyring=installation.keyring)
        services = Services(
            settings=settings,
            installation=installation,
            store=store,
            registry=registry,
            engine=engine,
            chores=chores,
            tasks=TaskEngine(store, registry, settings, on_result=engine.wake),
            accounts=accounts,
            auth=Authenticator(installation),
            reader=reader,
        )
        if not installation.embedded:
            taker = OutboxTaker(store, reader, accounts, then=lambda taken: _on_taken(services, taken))
            # What others have published waits for nothing but its turn.
            chores.add(taker.outbox, rest=OUTBOX_REST)
        server = _Server(services, listener)
        await server.serve(sockets=[listener])
        if not server.started or server.lifespan.should_exit:
            raise DispatcherError("the service did not start or stop as it should; the log says why")


def _on_taken(services: Services, taken: Taken) -> None:
    """Rows of the outbox have become tasks and events."""
    services.engine.expect(taken.deliveries + sum(task.body is not None for task in taken.tasks))
    if any(task.body is None for task in taken.tasks):
        services.tasks.wake()
    if taken.unfinished:
        services.chores.wake("fan_out")


def _transport(settings: Settings, resolver: Resolver, policy: EgressPolicy) -> Transport:
    context = client_context(certificate=settings.client_certificate)
    if settings.egress_proxy is None and settings.transport == "http1":
        return Http1Transport(resolver=resolver, policy=policy, context=context)
    return HttpxTransport(resolver=resolver, policy=policy, ssl_context=context, proxy=settings.egress_proxy)


def _handshakes(settings: Settings, installation: Installation) -> Handshakes:
    host = urlsplit(settings.public_url).hostname if settings.public_url else None
    return Handshakes(
        origin=settings.webhook_origin or host or socket.gethostname(),
        public_url=settings.public_url,
        keyring=installation.keyring,
    )


@asynccontextmanager
async def _running(services: Services) -> AsyncIterator[None]:
    """What works behind the API: maintenance and both engines."""

    def on_freed() -> None:
        services.engine.scan_soon()
        services.tasks.wake()

    maintenance = Maintenance(services.store, services.settings, on_freed=on_freed)
    # What dead processes left is freed before anything else happens.
    await maintenance.start()
    await services.engine.start()
    services.tasks.start()
    services.chores.start()
    try:
        yield
    finally:
        grace = services.settings.grace
        await services.chores.stop()
        # Both stop taking work at once, and share the time that is left for what is under way.
        await asyncio.gather(services.tasks.stop(grace), services.engine.stop(grace))
        await maintenance.stop()


class _Server(uvicorn.Server):
    """Uvicorn, with our line on stdout once it takes requests."""

    def __init__(self, services: Services, listener: socket.socket) -> None:
        settings = services.settings
        config = uvicorn.Config(
            create_app(services, lambda _app: _running(services)),
            loop="uvloop",
            http="httptools",
            ws="none",
            lifespan="on",
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,  # nothing here depends on who the caller seems to be
            date_header=True,
            timeout_graceful_shutdown=max(1, round(settings.grace)),
        )
        super().__init__(config)
        self._services = services
        self._listener = listener

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop at SIGTERM and SIGINT, and then end by ourselves; uvicorn's own would end the process half-way."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        yield
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then say so."""
        await super().startup(sockets=sockets)
        if self.should_exit:
            return
        settings = self._services.settings
        if settings.dev:
            log.warning("dev_mode", admits="plain http, loopback addresses and any port for what is sent")
            print("token", await _dev_token(self._services.installation), flush=True)  # noqa: T201 - for the caller of --dev
        host, port = self._listener.getsockname()[:2]
        collector.calm()
        shown = f"[{host}]" if ":" in host else host
        print(f"dispatcher ready on http://{shown}:{port}", flush=True)  # noqa: T201 - stdout's one line


async def _dev_token(installation: Installation) -> str:
    return await tokens.issue(
        installation,
        account=DEV_ACCOUNT,
        scopes=tokens.SCOPES,
        actor="serve --dev",
        ttl=30 * 86_400,
        note="made by serve --dev",
    )


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as exc:
        listener.close()
        raise ConfigError(f"cannot listen on {host} port {port}: {exc.strerror}") from exc
    return listener


def _raise_file_limit() -> None:
    """Every request in flight needs a file descriptor; take as many as we may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, 65_536) if hard != resource.RLIM_INFINITY else 65_536
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
