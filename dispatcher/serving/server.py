"""`dispatcher serve` and `dispatcher worker`: puts the parts together and runs them until told to stop.

A role leaves parts out. What is there is built in one way, whoever else works on the same database.
"""

from __future__ import annotations

import asyncio
import resource
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

import structlog

from dispatcher import metrics
from dispatcher.account_cache import AccountCache
from dispatcher.api.app import create_app, create_worker_app
from dispatcher.api.auth import Authenticator
from dispatcher.api.elsewhere import Elsewhere
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
from dispatcher.heartbeat import Heartbeat
from dispatcher.installation import Installation, open_installation, sole_server
from dispatcher.loops import repeat
from dispatcher.maintenance import Maintenance
from dispatcher.processors.engine import TaskEngine
from dispatcher.processors.registry import Registry, load_processors
from dispatcher.serving import collector
from dispatcher.serving.hearing import hearing
from dispatcher.serving.http_server import HttpServer
from dispatcher.serving.leash import Leash
from dispatcher.serving.listening import dev_token, listen, say_ready
from dispatcher.store import Store
from dispatcher.store.news import News

log = structlog.get_logger(__name__)

#: how long the taking of the outbox rests, as a multiple of the time that a step took: others wait for what it takes
OUTBOX_REST = 0.5


@dataclass(frozen=True, kw_only=True)
class Work:
    """What works on what was accepted."""

    store: Store
    engine: Engine
    tasks: TaskEngine
    chores: Chores
    maintenance: Maintenance

    def hear(self, news: News) -> None:
        """Take up what a commit, of this process or another, left to be done."""
        self.engine.hear(news)
        if news.tasks:
            self.tasks.wake()
        if news.chores:
            self.chores.wake()
        elif news.outbox:
            self.chores.wake("outbox")


async def serve(settings: Settings, leash: Leash | None = None) -> None:
    """Run what the settings' role has, until SIGTERM or SIGINT; on a leash, no longer than the parent.

    Raises ConfigError when it cannot start.
    """
    _check_role(settings)
    registry = load_processors(settings)
    _raise_file_limit()
    async with AsyncExitStack() as stack:
        stack.enter_context(sole_server(settings))
        installation = await open_installation(settings)
        stack.push_async_callback(installation.database.close)
        token = None if leash else await dev_token(settings, installation)
        listener = leash.listener if leash else stack.enter_context(listen(settings.host, settings.port))
        store = await Store.open(
            installation.database,
            installation.keyring,
            session_ttl=settings.session_ttl,
            alone=installation.embedded,
            role=settings.role,
        )
        stack.push_async_callback(store.close)
        heartbeat = Heartbeat(store, ttl=settings.session_ttl)
        policy = EgressPolicy.of(settings)
        accounts = AccountCache(store)
        reader = Reader(settings=settings, policy=policy, registry=registry, keyring=installation.keyring)
        work: Work | None = None
        if settings.does_work:
            sender = await stack.enter_async_context(_sender(settings, installation, policy, clock=store.now))
            work = _work(
                settings=settings,
                store=store,
                heartbeat=heartbeat,
                registry=registry,
                accounts=accounts,
                sender=sender,
            )
            if not installation.embedded:
                taker = OutboxTaker(store, reader, accounts, expect=work.engine.expect)
                work.chores.add(taker.outbox, rest=OUTBOX_REST)
        services = Services(
            settings=settings,
            installation=installation,
            store=store,
            registry=registry,
            engine=Elsewhere() if work is None else work.engine,
            accounts=accounts,
            auth=Authenticator(installation),
            reader=reader,
        )

        async def on_ready() -> None:
            collector.calm()
            if leash:
                await leash.say_ready()
            else:
                say_ready(settings, listener, token)

        create = create_app if settings.takes_requests else create_worker_app
        server = HttpServer(
            create(services, lambda _app: _running(heartbeat, work, settings)),
            grace=settings.grace,
            on_ready=on_ready,
        )
        if leash:
            await stack.enter_async_context(_held(leash, server))
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
    store: Store,
    heartbeat: Heartbeat,
    registry: Registry,
    accounts: AccountCache,
    sender: Sender,
) -> Work:
    return Work(
        store=store,
        engine=Engine(store, sender, accounts, settings, heartbeat),
        tasks=TaskEngine(store, registry, settings),
        chores=Chores(store, release_rate=settings.release_rate, source=settings.event_source),
        maintenance=Maintenance(store, settings),
    )


@asynccontextmanager
async def _sender(
    settings: Settings, installation: Installation, policy: EgressPolicy, *, clock: Callable[[], float]
) -> AsyncIterator[Sender]:
    resolver = Resolver(nameservers=settings.nameservers)
    transport = _transport(settings, resolver, policy)
    try:
        yield Sender(
            transport,
            deadline=settings.send_timeout,
            user_agent=settings.user_agent,
            schedule=settings.retry_schedule,
            handshakes=_handshakes(settings, installation),
            clock=clock,
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
async def _running(heartbeat: Heartbeat, work: Work | None, settings: Settings) -> AsyncIterator[None]:
    """What runs behind the routes."""
    await heartbeat.start()
    try:
        if work is None:
            yield
        else:
            async with _working(work, settings):
                yield
    finally:
        # What is in flight when we are told to stop still hangs on the session.
        await heartbeat.stop()


@asynccontextmanager
async def _working(work: Work, settings: Settings) -> AsyncIterator[None]:
    grace = settings.grace
    work.store.on_news(work.hear)
    # What dead processes left is freed before anything else happens.
    await work.maintenance.start()
    await work.engine.start()
    work.tasks.start()
    work.chores.start()
    try:
        async with hearing(settings, session=lambda: work.store.session, hear=work.hear):
            yield
    finally:
        await work.chores.stop()
        # Both stop taking work at once, and share the time that is left for what is under way.
        await asyncio.gather(work.tasks.stop(grace), work.engine.stop(grace))
        await work.maintenance.stop()


@asynccontextmanager
async def _held(leash: Leash, server: HttpServer) -> AsyncIterator[None]:
    """Stop the server when the parent is gone; until then, show its siblings what we are at."""

    async def stop_when_alone() -> None:
        await leash.parent_gone()
        log.warning("parent_gone")
        metrics.remove_shared()
        server.stop()

    tasks = [asyncio.create_task(stop_when_alone()), asyncio.create_task(repeat(metrics.sample))]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _raise_file_limit() -> None:
    """Every request in flight needs a file descriptor; take as many as we may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, 65_536) if hard != resource.RLIM_INFINITY else 65_536
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
