"""Host names to addresses: truly asynchronous, cached by TTL, one query per name at a time.

c-ares does the work, through aiodns: `getaddrinfo` in threads cannot be cancelled, and a few slow name
servers would hold every thread. c-ares has no queue: any number of unanswered queries delays no other.

Names mean what they say: the search list of resolv.conf and HOSTALIASES are not used. /etc/hosts is.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from itertools import chain, zip_longest

import aiodns
import pycares
from aiodns import error as dns_errors

from dispatcher.egress import Address
from dispatcher.errors import ConfigError, SendError
from dispatcher.models import Outcome

_FLAGS = pycares.ARES_FLAG_EDNS | pycares.ARES_FLAG_NOSEARCH | pycares.ARES_FLAG_NOALIASES
#: ARES_AI_NOSORT, which pycares does not name; sorting would open a socket towards every unvetted address
_NOSORT = 1 << 7
#: c-ares gives each try 250 ms or more and doubles it: four tries end within the default timeout
_TRIES = 4
#: the newest answers that are kept
_MAX_ENTRIES = 4096
#: a name with more addresses than this is cut; nobody needs them, and each is vetted
_MAX_ADDRESSES = 32

_NO_SUCH_NAME = frozenset({dns_errors.ARES_ENOTFOUND, dns_errors.ARES_ENODATA})


@dataclass(frozen=True, kw_only=True, slots=True)
class _Answer:
    #: empty when the name did not resolve
    addresses: tuple[Address, ...] = ()
    #: why there are none
    detail: str = ""
    #: seconds this answer may be used for
    ttl: float


class Resolver:
    """Resolves names for one event loop.

    `nameservers` are addresses, with a port where it is not 53 (`127.0.0.1:5353`, `[::1]:5353`); none means
    those of the system. All times are in seconds.

    Raises:
        ConfigError: a name server is not an address with, at most, a port.
    """

    def __init__(
        self,
        *,
        nameservers: Sequence[str] = (),
        timeout: float = 5.0,  # for one name, all tries together
        min_ttl: float = 1.0,
        max_ttl: float = 300.0,
        error_ttl: float = 2.0,  # how long a failure is remembered
    ) -> None:
        self._nameservers = tuple(map(_read_nameserver, nameservers))
        self._timeout = timeout
        self._min_ttl = min_ttl
        self._max_ttl = max_ttl
        self._error_ttl = error_ttl
        #: name -> (answer, loop time when it ends), least recently stored first
        self._cache: OrderedDict[str, tuple[_Answer, float]] = OrderedDict()
        self._running: dict[str, asyncio.Task[_Answer]] = {}
        self._client: aiodns.DNSResolver | None = None
        self._retired: aiodns.DNSResolver | None = None
        self._renew_at = 0.0
        self._closed = False

    async def resolve(self, host: str) -> tuple[Address, ...]:
        """All addresses of a name, families in turn, IPv4 first. Nothing is vetted here.

        Raises:
            SendError: `dns_error`, when the name has no address or no name server answered in time.
        """
        answer = self._cached(host)
        if answer is None:
            # shielded: a waiter that goes away leaves the query to the others, and to the cache
            answer = await asyncio.shield(self._running.get(host) or self._start(host))
        if not answer.addresses:
            raise SendError(Outcome.DNS_ERROR, answer.detail)
        return answer.addresses

    async def aclose(self) -> None:
        """End all queries; whoever waits for one gets a `SendError`."""
        self._closed = True
        for client in (self._client, self._retired):
            if client is not None:
                await client.close()
        await asyncio.gather(*self._running.values(), return_exceptions=True)
        self._client = self._retired = None
        self._cache.clear()

    def cached(self, host: str) -> tuple[Address, ...] | None:
        """The addresses of a name that was resolved lately; None: it has to be asked for."""
        answer = self._cached(host)
        return answer.addresses or None if answer is not None else None

    def _cached(self, host: str) -> _Answer | None:
        answer, expires_at = self._cache.get(host, (None, 0.0))
        return answer if asyncio.get_running_loop().time() < expires_at else None

    def _start(self, host: str) -> asyncio.Task[_Answer]:
        task = asyncio.create_task(self._look_up(host))
        self._running[host] = task
        return task

    async def _look_up(self, host: str) -> _Answer:
        """One query, bounded in time, its answer stored. A failure is an answer, too: it never raises."""
        try:
            answer = await self._query(host)
            self._store(host, answer)
        finally:
            del self._running[host]
        return answer

    async def _query(self, host: str) -> _Answer:
        if self._closed:
            return _Answer(detail="the resolver is closed", ttl=0)
        try:
            async with asyncio.timeout(self._timeout):
                found = await self._current_client().getaddrinfo(
                    host, family=socket.AF_UNSPEC, type=socket.SOCK_STREAM, flags=_NOSORT
                )
        except TimeoutError:
            return _Answer(detail="no name server answered in time", ttl=self._error_ttl)
        except (dns_errors.DNSError, pycares.AresError) as exc:
            return _Answer(detail=_explain(exc), ttl=self._error_ttl)
        addresses = _in_turn(ip_address(node.addr[0].decode("ascii")) for node in found.nodes)
        if not addresses:
            return _Answer(detail="the name has no address", ttl=self._error_ttl)
        ttl = min((node.ttl for node in found.nodes), default=0)
        return _Answer(addresses=addresses, ttl=min(max(ttl, self._min_ttl), self._max_ttl))

    def _store(self, host: str, answer: _Answer) -> None:
        self._cache[host] = (answer, asyncio.get_running_loop().time() + answer.ttl)
        self._cache.move_to_end(host)
        while len(self._cache) > _MAX_ENTRIES:
            self._cache.popitem(last=False)

    def _current_client(self) -> aiodns.DNSResolver:
        """The c-ares channel, a new one now and then.

        c-ares keeps a cache of its own, which cannot be set through pycares and would stretch `max_ttl` to an
        hour. A channel ends one renewal after it was replaced, when no query of ours can still be using it.
        """
        now = asyncio.get_running_loop().time()
        if self._client is None or now >= self._renew_at:
            if self._retired is not None:
                self._retired.cancel()
            self._retired = self._client
            self._client = aiodns.DNSResolver(
                nameservers=self._nameservers or None,
                loop=asyncio.get_running_loop(),
                timeout=self._timeout / 3,
                tries=_TRIES,
                flags=_FLAGS,
            )
            self._renew_at = now + max(self._max_ttl, 4 * self._timeout)
        return self._client


_NAMESERVER = re.compile(r"(?:\[(?P<ipv6>[^]]+)\]|(?P<ipv4>[^:]+))(?::(?P<port>[0-9]{1,5}))?")


def _read_nameserver(text: str) -> str:
    """One name server as c-ares wants it. What c-ares cannot read, it would leave out without a word."""
    try:
        match = _NAMESERVER.fullmatch(text)
        if match is None:
            return f"[{IPv6Address(text)}]:53"
        address = f"[{IPv6Address(match['ipv6'])}]" if match["ipv6"] else str(IPv4Address(match["ipv4"]))
        port = int(match["port"] or 53)
    except ValueError:
        port = 0
    if not 0 < port <= 65535:
        raise ConfigError("nameservers: give each as `address` or `address:port`, such as 127.0.0.1:53 or [::1]:53")
    return f"{address}:{port}"


def _explain(exc: Exception) -> str:
    code = exc.args[0] if exc.args else None
    if code in _NO_SUCH_NAME:
        return "the name has no address"
    if code == dns_errors.ARES_ETIMEOUT:
        return "no name server answered in time"
    return "the name did not resolve"


def _in_turn(addresses: Iterable[Address]) -> tuple[Address, ...]:
    """Each address once, IPv4 and IPv6 in turn: where one family is broken, the next try is the other."""
    unique = list(dict.fromkeys(addresses))
    pairs = zip_longest(
        (address for address in unique if address.version == 4),
        (address for address in unique if address.version == 6),
    )
    return tuple(address for address in chain.from_iterable(pairs) if address is not None)[:_MAX_ADDRESSES]
