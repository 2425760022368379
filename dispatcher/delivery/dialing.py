"""From a host's name to a connection: resolve once, vet every answer, dial what was vetted.

Nothing can change between the check and the dial: what is dialled is the address that was looked at.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from typing import TypeVar

from dispatcher.delivery.resolver import Resolver
from dispatcher.delivery.transport import Timing
from dispatcher.egress import Address, EgressPolicy, Target, vet
from dispatcher.errors import EgressRefused, SendError
from dispatcher.models import Outcome

P = TypeVar("P", bound=asyncio.Protocol)

#: an address that is not the last one gets no longer than this to answer
_SPLIT_S = 3.0
#: addresses tried for one connection
_MAX_DIALS = 8


async def addresses_of(host: str, resolver: Resolver, timing: Timing) -> tuple[Address, ...]:
    """The addresses that a host stands for, unvetted. Raises SendError: `dns_error`."""
    try:
        return (ip_address(host),)
    except ValueError:
        pass
    started = time.perf_counter()
    try:
        return await resolver.resolve(host)
    finally:
        timing.dns = elapsed_ms(started)


def vetted(addresses: Sequence[Address], target: Target, policy: EgressPolicy) -> tuple[Address, ...]:
    """The same addresses, if all of them may be dialled. Raises SendError: `egress_refused`."""
    try:
        return vet(addresses, target, policy)
    except EgressRefused as exc:
        raise SendError(Outcome.EGRESS_REFUSED, exc.detail) from exc


async def dial(
    addresses: Sequence[Address], port: int, make: Callable[[], P], timing: Timing, *, until: float
) -> tuple[Address, P]:
    """The first address that answers, and the connection to it. An address that hangs leaves time for those behind it.

    `until` is the deadline on the event loop's clock, by which the time is shared out; it ends nothing by itself.
    Raises SendError: `connection_error`.
    """
    loop = asyncio.get_running_loop()
    started = time.perf_counter()
    failure: OSError | None = None
    tried = addresses[:_MAX_DIALS]
    try:
        for waiting, address in zip(range(len(tried), 0, -1), tried, strict=True):
            share = None if waiting == 1 else min(_SPLIT_S, (until - loop.time()) / waiting)
            try:
                async with asyncio.timeout(share):
                    # a literal address, which neither event loop hands to getaddrinfo
                    _, protocol = await loop.create_connection(make, str(address), port)
                    return address, protocol
            except OSError as exc:  # TimeoutError is one
                failure = exc
    finally:
        timing.connect = elapsed_ms(started)
    raise SendError(Outcome.CONNECTION_ERROR, _explain_connect(failure)) from failure


def elapsed_ms(started: float) -> float:
    """Milliseconds since a moment on the clock of `time.perf_counter`."""
    return (time.perf_counter() - started) * 1000.0


def _explain_connect(exc: OSError | None) -> str:
    if isinstance(exc, ConnectionRefusedError):
        return "the connection was refused"
    if isinstance(exc, TimeoutError):
        return "the connection timed out"
    return "no connection could be made"


def explain_tls(exc: OSError) -> str:
    """What went wrong in a handshake, in words that show nothing of the URL."""
    if isinstance(exc, ssl.SSLCertVerificationError):
        return "the certificate is not valid for this host"
    if isinstance(exc, ssl.SSLError):
        return "the TLS handshake failed"
    return "the TLS handshake broke off"
