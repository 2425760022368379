"""`dispatcher serve` and `dispatcher worker`: puts the parts together and runs them until told to stop.

A role leaves parts out. What is there is built in one way, whoever else works on the same database.
"""

from __future__ import annotations

import asyncio
import resource
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

import structlog

from dispatcher import collector, tokens
from dispatcher.account_cache import AccountCache
from dispatcher.api.app import create_app, create_worker_app
from dispatcher.api.auth import Authenticator
from dispatcher.api.elsewhere import Elsewhere
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
from dispatcher.heartbeat import Heartbeat
from dispatcher.installation import Installation, open_installation, sole_server
from dispatcher.listening import HttpServer, listen, url_of
from dispatcher.maintenance import Maintenance
from dispatcher.processors.engine import TaskEngine
from dispatcher.processors.registry import Registry, load_processors
from dispatcher.store import Store
from dispatcher.store import accounts as token_store

log = structlog.get_logger(__name__)

#: the account that `--dev` makes a token for
DEV_ACCOUNT = "dev"
#: and the note by which that token is known
DEV_NOTE = "made by serve --dev"


@dataclass(frozen=True, kw_only=True)
class Work:
    """What works on what was accepted."""

    engine: Engine
    tasks: TaskEngine
    chores: Chores
    maintenance: Maintenance


async def serve(settings: Settings) -> None:
    """Run what the settings' role has, until SIGTERM or SIGINT. Raises ConfigError when it cannot start."""
    _check_role(settings)
    registry = load_processors(settings)
    _raise_file_limit()
    async with AsyncExitStack() as stack:
        stack.enter_context(sole_server(settings))
        installation = await open_installation(settings)
        stack.push_async_callback(installation.database.close)
        if settings.takes_requests and not settings.dev:
            await token_store.revoke_noted(installation.database, DEV_NOTE, actor="serve without --dev")
        listener = stack.enter_context(listen(settings.host, settings.port))
        store = await Store.open(
            installation.database,
            installation.keyring,
            session_ttl=settings.session_ttl,
            alone=installation.embedded,
        )
        stack.push_async_callback(store.close)
        heartbeat = Heartbeat(store, ttl=settings.session_ttl)
        policy = EgressPolicy.of(settings)
        accounts = AccountCache(store)
        work: Work | None = None
        if settings.does_work:
            sender = await stack.enter_async_context(_sender(settings, installation, policy))
            work = _work(
                settings=settings,
                alone=installation.embedded,
                store=store,
                heartbeat=heartbeat,
                registry=registry,
                accounts=accounts,
                sender=sender,
            )
        elsewhere = Elsewhere()
        services = Services(
            settings=settings,
            installation=installation,
            store=store,
            registry=registry,
            engine=elsewhere if work is None else work.engine,
            chores=elsewhere if work is None else work.chores,
            tasks=elsewhere if work is None else work.tasks,
            accounts=accounts,
            auth=Authenticator(installation),
            reader=Reader(settings=settings, policy=policy, registry=registry, keyring=installation.keyring),
        )
        create = create_app if settings.takes_requests else create_worker_app
        server = HttpServer(
            create(services, lambda _app: _running(heartbeat, work, grace=settings.grace)),
            grace=settings.grace,
            on_ready=lambda: _say_ready(settings, installation, listener),
        )
        await server.serve(sockets=[listener])
        if server.has_failed:
            raise DispatcherError("the service did not start or stop as it should; the log says why")


def _check_role(settings: Settings) -> None:
    if settings.role != "all" and settings.database_url is None:
        raise ConfigError(
            f"the role {settings.role} is for one of several processes, and those need PostgreSQL: set DATABASE_URL"
        )


# --- parts ------------------------------------------------------------------------------------------------


def _work(
    *,
    settings: Settings,
    alone: bool,
    store: Store,
    heartbeat: Heartbeat,
    registry: Registry,
    accounts: AccountCache,
    sender: Sender,
) -> Work:
    engine = Engine(
        store,
        sender,
        accounts,
        settings,
        heartbeat,
        alone=alone,
        on_moves=lambda: chores.wake(),  # noqa: PLW0108 - it does not exist yet
    )
    chores = Chores(store, release_rate=settings.release_rate, source=settings.event_source, on_due=engine.wake)
    tasks = TaskEngine(store, registry, settings, on_result=engine.wake)

    def on_freed() -> None:
        engine.scan_soon()
        tasks.wake()

    return Work(engine=engine, tasks=tasks, chores=chores, maintenance=Maintenance(store, settings, on_freed=on_freed))


@asynccontextmanager
async def _sender(settings: Settings, installation: Installation, policy: EgressPolicy) -> AsyncIterator[Sender]:
    resolver = Resolver(nameservers=settings.nameservers)
    transport = _transport(settings, resolver, policy)
    try:
        yield Sender(
            transport,
            deadline=settings.send_timeout,
            user_agent=settings.user_agent,
            schedule=settings.retry_schedule,
            handshakes=_handshakes(settings, installation),
        )
    finally:
        await transport.aclose()
        await resolver.aclose()


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


# --- life -------------------------------------------------------------------------------------------------


@asynccontextmanager
async def _running(heartbeat: Heartbeat, work: Work | None, *, grace: float) -> AsyncIterator[None]:
    """What runs behind the routes."""
    await heartbeat.start()
    try:
        if work is None:
            yield
        else:
            async with _working(work, grace=grace):
                yield
    finally:
        # What is in flight when we are told to stop still hangs on the session.
        await heartbeat.stop()


@asynccontextmanager
async def _working(work: Work, *, grace: float) -> AsyncIterator[None]:
    # What dead processes left is freed before anything else happens.
    await work.maintenance.start()
    await work.engine.start()
    work.tasks.start()
    work.chores.start()
    try:
        yield
    finally:
        await work.chores.stop()
        # Both stop taking work at once, and share the time that is left for what is under way.
        await asyncio.gather(work.tasks.stop(grace), work.engine.stop(grace))
        await work.maintenance.stop()


async def _say_ready(settings: Settings, installation: Installation, listener: socket.socket) -> None:
    """Say on stdout that requests are taken, and how."""
    if settings.dev:
        log.warning("dev_mode", admits="plain http, loopback addresses and any port for what is sent")
        if settings.takes_requests:
            print("token", await _dev_token(installation), flush=True)  # noqa: T201 - for the caller of --dev
    collector.calm()
    name = "dispatcher" if settings.takes_requests else "dispatcher worker"
    print(f"{name} ready on {url_of(listener)}", flush=True)  # noqa: T201 - stdout's one line


async def _dev_token(installation: Installation) -> str:
    return await tokens.issue(
        installation,
        account=DEV_ACCOUNT,
        scopes=tokens.SCOPES,
        actor="serve --dev",
        ttl=30 * 86_400,
        note=DEV_NOTE,
    )


def _raise_file_limit() -> None:
    """Every request in flight needs a file descriptor; take as many as we may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, 65_536) if hard != resource.RLIM_INFINITY else 65_536
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
