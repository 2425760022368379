"""What we send to, and what we refuse: the guard against being used to reach what is not public.

Pure functions of values; no DNS, no sockets. A URL passes three gates:

    parse(url)                      what it says, in one canonical reading
    admit(target, policy)           at intake and before each send: scheme, port, host, literal address, localhost
    vet(addresses, target, policy)  at connect: every address that the name stands for

Sources: IANA IPv4 and IPv6 Special-Purpose Address Registries (RFC 6890); the WHATWG URL host parser for
what counts as a number; RFC 3986 for the rest. Where a registry calls an anycast service globally
reachable (AS112, AMT, PCP) we refuse it all the same: no webhook lives there.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TYPE_CHECKING, Self

import idna

from dispatcher.discreet import Discreet
from dispatcher.errors import ConfigError, EgressRefused

if TYPE_CHECKING:
    from dispatcher.config import Settings  # whoever only checks a URL need not load what reads settings

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

#: the one text for every refusal by address or host, so that refusals are no oracle
REFUSED = "this address is not one we send to"

DEFAULT_PORTS = {"http": 80, "https": 443}


class Verdict(StrEnum):
    """What kind of address this is. Only `PUBLIC` is sent to without being asked for."""

    #: global unicast of the public internet
    PUBLIC = "public"
    #: "this host" and "this network"; on Linux, 0.0.0.0 and :: reach the machine itself
    UNSPECIFIED = "unspecified"
    #: the machine itself
    LOOPBACK = "loopback"
    #: private, shared and unique local networks
    PRIVATE = "private"
    #: this link only, and any address that carries a zone id
    LINK_LOCAL = "link_local"
    #: groups, and broadcast
    MULTICAST = "multicast"
    #: what clouds answer their own machines with: credentials, mostly
    METADATA = "metadata"
    #: an IPv4 address inside an IPv6 one, which some router may unpack
    TRANSITION = "transition"
    #: documentation, benchmarks, protocol assignments, unallocated space
    RESERVED = "reserved"


_METADATA = frozenset(
    {
        IPv4Address("169.254.169.254"),  # AWS, Azure, Google, Oracle, DigitalOcean and others
        IPv4Address("169.254.170.2"),  # AWS ECS task credentials
        IPv4Address("169.254.170.23"),  # AWS EKS pod identity
        IPv4Address("100.100.100.200"),  # Alibaba
        IPv4Address("168.63.129.16"),  # Azure wire server; public to look at, local in fact
        IPv4Address("192.0.0.192"),  # Oracle, classic
        IPv6Address("fd00:ec2::254"),  # AWS
        IPv6Address("fd00:ec2::23"),  # AWS EKS pod identity
        IPv6Address("fd20:ce::254"),  # Google
    }
)

#: IANA IPv4 Special-Purpose Address Registry; the first row that holds the address speaks
_IPV4 = (
    (IPv4Network("0.0.0.0/8"), Verdict.UNSPECIFIED),  # RFC 791: this network
    (IPv4Network("10.0.0.0/8"), Verdict.PRIVATE),  # RFC 1918
    (IPv4Network("100.64.0.0/10"), Verdict.PRIVATE),  # RFC 6598: shared, carrier-grade NAT
    (IPv4Network("127.0.0.0/8"), Verdict.LOOPBACK),  # RFC 1122
    (IPv4Network("169.254.0.0/16"), Verdict.LINK_LOCAL),  # RFC 3927
    (IPv4Network("172.16.0.0/12"), Verdict.PRIVATE),  # RFC 1918
    (IPv4Network("192.0.0.0/24"), Verdict.RESERVED),  # RFC 6890: IETF protocol assignments
    (IPv4Network("192.0.2.0/24"), Verdict.RESERVED),  # RFC 5737: documentation
    (IPv4Network("192.31.196.0/24"), Verdict.RESERVED),  # RFC 7535: AS112
    (IPv4Network("192.52.193.0/24"), Verdict.RESERVED),  # RFC 7450: AMT
    (IPv4Network("192.88.99.0/24"), Verdict.TRANSITION),  # RFC 7526: 6to4 relays, deprecated
    (IPv4Network("192.168.0.0/16"), Verdict.PRIVATE),  # RFC 1918
    (IPv4Network("192.175.48.0/24"), Verdict.RESERVED),  # RFC 7534: AS112
    (IPv4Network("198.18.0.0/15"), Verdict.RESERVED),  # RFC 2544: benchmarks
    (IPv4Network("198.51.100.0/24"), Verdict.RESERVED),  # RFC 5737: documentation
    (IPv4Network("203.0.113.0/24"), Verdict.RESERVED),  # RFC 5737: documentation
    (IPv4Network("224.0.0.0/4"), Verdict.MULTICAST),  # RFC 5771
    (IPv4Network("255.255.255.255/32"), Verdict.MULTICAST),  # RFC 919: broadcast
    (IPv4Network("240.0.0.0/4"), Verdict.RESERVED),  # RFC 1112
)

#: IANA IPv6 Special-Purpose Address Registry and RFC 4291; what no row holds must be in 2000::/3
_IPV6 = (
    (IPv6Network("::/128"), Verdict.UNSPECIFIED),  # RFC 4291
    (IPv6Network("::1/128"), Verdict.LOOPBACK),  # RFC 4291
    (IPv6Network("::/96"), Verdict.TRANSITION),  # RFC 4291: IPv4-compatible, deprecated
    (IPv6Network("::ffff:0:0/96"), Verdict.TRANSITION),  # RFC 4291: IPv4-mapped
    (IPv6Network("::ffff:0:0:0/96"), Verdict.TRANSITION),  # RFC 2765: IPv4-translated
    (IPv6Network("64:ff9b::/96"), Verdict.TRANSITION),  # RFC 6052: NAT64
    (IPv6Network("64:ff9b:1::/48"), Verdict.TRANSITION),  # RFC 8215: NAT64, local use
    (IPv6Network("100::/64"), Verdict.RESERVED),  # RFC 6666: discard only
    (IPv6Network("100:0:0:1::/64"), Verdict.RESERVED),  # RFC 9780: dummy prefix
    (IPv6Network("2001::/32"), Verdict.TRANSITION),  # RFC 4380: Teredo
    (IPv6Network("2001::/23"), Verdict.RESERVED),  # RFC 2928: protocol assignments (ORCHID, AMT, PCP …)
    (IPv6Network("2001:db8::/32"), Verdict.RESERVED),  # RFC 3849: documentation
    (IPv6Network("2002::/16"), Verdict.TRANSITION),  # RFC 3056: 6to4
    (IPv6Network("2620:4f:8000::/48"), Verdict.RESERVED),  # RFC 7534: AS112
    (IPv6Network("3ffe::/16"), Verdict.RESERVED),  # RFC 3701: 6bone, returned
    (IPv6Network("3fff::/20"), Verdict.RESERVED),  # RFC 9637: documentation
    (IPv6Network("5f00::/16"), Verdict.RESERVED),  # RFC 9602: segment routing
    (IPv6Network("fc00::/7"), Verdict.PRIVATE),  # RFC 4193: unique local
    (IPv6Network("fe80::/10"), Verdict.LINK_LOCAL),  # RFC 4291
    (IPv6Network("fec0::/10"), Verdict.PRIVATE),  # RFC 3879: site-local, deprecated
    (IPv6Network("ff00::/8"), Verdict.MULTICAST),  # RFC 4291
)

_GLOBAL_UNICAST = IPv6Network("2000::/3")  # RFC 4291, section 2.4
_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052, section 2.1

#: RFC 5214, section 6.1: bits 64 to 96 of an ISATAP address, with the global bit clear or set
_ISATAP_IDS = frozenset({0x00005EFE, 0x02005EFE})

#: what `localhost` and all names below it stand for, whatever name servers say (RFC 6761, section 6.3)
_LOCALHOST = IPv4Address("127.0.0.1")

#: no allow-list of ours opens these
_NEVER = frozenset({Verdict.UNSPECIFIED, Verdict.MULTICAST, Verdict.METADATA, Verdict.TRANSITION})


@functools.lru_cache(maxsize=4_096)
def classify(address: Address) -> Verdict:
    """What kind of address this is.

    IPv4 inside IPv6 is refused outright, whatever it embeds: no public endpoint needs these forms, and what
    a router makes of them is not ours to know.
    """
    if isinstance(address, IPv6Address) and address.scope_id is not None:
        return Verdict.LINK_LOCAL
    if address in _METADATA:
        return Verdict.METADATA
    table = _IPV4 if isinstance(address, IPv4Address) else _IPV6
    special = next((verdict for network, verdict in table if address in network), None)
    if special is not None:
        return special
    if isinstance(address, IPv4Address):
        return Verdict.PUBLIC
    if (int(address) >> 32) & 0xFFFFFFFF in _ISATAP_IDS:
        return Verdict.TRANSITION
    return Verdict.PUBLIC if address in _GLOBAL_UNICAST else Verdict.RESERVED


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)  # an identity is what `admit` can look up cheaply
class EgressPolicy:
    """What the operator lets us send to. Deny always wins over allow.

    Allow-lists only add to what is public; they never narrow it. Hosts are names or literal addresses;
    `*.example.com` stands for every name below example.com, and not for example.com itself.
    """

    #: ports we connect to; None is any
    ports: frozenset[int] | None = frozenset({443, 8443})
    #: plain http, too
    allow_http: bool = False
    #: 127.0.0.0/8 and ::1
    allow_loopback: bool = False
    #: networks that are sent to though they are not public. Cloud metadata, multicast and 0.0.0.0/8 stay
    #: refused. Of IPv4 inside IPv6 only 64:ff9b::/96 (for hosts behind NAT64) can be listed; the address
    #: inside must then pass by itself
    allow_networks: tuple[Network, ...] = ()
    #: hosts that are sent to whatever address they have, as far as `allow_networks` could admit it
    allow_hosts: frozenset[str] = frozenset()
    #: networks that are never sent to
    deny_networks: tuple[Network, ...] = ()
    #: hosts that are never sent to
    deny_hosts: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        """Bring host patterns into the one form that targets have.

        Raises:
            ConfigError: a pattern is not a host.
        """
        object.__setattr__(self, "allow_hosts", _canonical_patterns(self.allow_hosts))
        object.__setattr__(self, "deny_hosts", _canonical_patterns(self.deny_hosts))

    @classmethod
    def dev(cls) -> Self:
        """What `--dev` admits: plain http, loopback and any port. Private networks stay refused."""
        return cls(ports=None, allow_http=True, allow_loopback=True)

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Where these settings let deliveries go. Raises ConfigError."""
        base = cls.dev() if settings.dev else cls(ports=frozenset(settings.allow_ports))
        return replace(
            base,
            allow_networks=settings.allow_networks,
            allow_hosts=frozenset(settings.allow_hosts),
            deny_networks=settings.deny_networks,
            deny_hosts=frozenset(settings.deny_hosts),
        )


class Target(Discreet, frozen=True, kw_only=True, gc=False):
    """Where a request goes. Its path is a credential, so `repr` leaves it out."""

    HIDDEN = ("path",)

    #: "http" or "https"
    scheme: str
    #: lower-case ASCII name without a trailing dot, or a literal address without brackets
    host: str
    port: int
    #: path and query, byte for byte as they were given
    path: str
    #: the address, where the host is one
    literal: Address | None

    @property
    def authority(self) -> str:
        """The value of the Host header: the port is left out where it is the scheme's own."""
        host = f"[{self.host}]" if isinstance(self.literal, IPv6Address) else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def origin(self) -> str:
        """Scheme and authority; no secret."""
        return f"{self.scheme}://{self.authority}"


_URL = re.compile(r"(?P<scheme>[^:/?#]*)://(?P<authority>[^/?#]*)(?P<path>[^#]*)(?P<fragment>#.*)?", re.DOTALL)
_AUTHORITY = re.compile(r"(?:\[(?P<ipv6>[^\[\]]*)\]|(?P<host>[^:\[\]]*))(?::(?P<port>[^:\[\]]*))?")
_FORBIDDEN = re.compile(r"[\x00-\x20\x7f-\xa0\\]")
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_PORT = re.compile(r"[0-9]{1,5}")
_MAX_LABEL = 63
_MAX_NAME = 253  # RFC 1035, section 2.3.4, as text


def parse(url: str) -> Target:
    """Read a URL in the one way that leaves no doubt about where it goes.

    The path stays exactly as given. The URL's length is the caller's to bound.

    Raises:
        EgressRefused: the URL can be read in more than one way, or not at all; the detail names the part.
    """
    if _FORBIDDEN.search(url):
        raise EgressRefused("the URL holds a space, a control character or a backslash")
    match = _URL.fullmatch(url)
    if match is None:
        raise EgressRefused("the URL is not absolute")
    scheme, authority, path, fragment = match.groups()
    scheme = scheme.lower()
    if scheme not in DEFAULT_PORTS:
        raise EgressRefused("the scheme is not http or https")
    if fragment is not None:
        raise EgressRefused("the URL has a fragment")
    if not path.isascii():
        raise EgressRefused("the path is not ASCII; percent-encode it")
    host, literal, port = _parse_authority(authority)
    return Target(
        scheme=scheme,
        host=host,
        port=DEFAULT_PORTS[scheme] if port is None else port,
        path=path if path.startswith("/") else f"/{path}",
        literal=literal,
    )


@functools.lru_cache(maxsize=4_096)  # no secret stands there, and most of a service's messages go to a few hosts
def _parse_authority(text: str) -> tuple[str, Address | None, int | None]:
    """Host, its address if it is one, and port, if there is one."""
    if "@" in text:
        raise EgressRefused("the URL has user information")
    authority = _AUTHORITY.fullmatch(text)
    if authority is None:
        raise EgressRefused("the host is not valid")
    host, literal = _parse_ipv6(authority["ipv6"]) if authority["host"] is None else _parse_host(authority["host"])
    return host, literal, None if authority["port"] is None else _parse_port(authority["port"])


def admit(target: Target, policy: EgressPolicy) -> None:
    """Check what can be known without DNS, which at intake would be an oracle.

    Raises:
        EgressRefused: scheme, port, host or literal address are not ones we send to.
    """
    refusal = _refusal(target.scheme, target.host, target.port, target.literal, policy)
    if refusal is not None:
        raise EgressRefused(refusal)


@functools.lru_cache(maxsize=4_096)  # as for authorities: few hosts, and no secret
def _refusal(scheme: str, host: str, port: int, literal: Address | None, policy: EgressPolicy) -> str | None:
    """Why nothing is sent there, as far as that is known without DNS."""
    if scheme != "https" and not policy.allow_http:
        return "the scheme is not https"
    if policy.ports is not None and port not in policy.ports:
        return "this port is not one we send to"
    if _matches(host, policy.deny_hosts):
        return REFUSED
    known = _LOCALHOST if _is_localhost(host) else literal
    trusted = _matches(host, policy.allow_hosts)
    return None if known is None or _permitted(known, policy, trusted=trusted) else REFUSED


def vet(addresses: Sequence[Address], target: Target, policy: EgressPolicy) -> tuple[Address, ...]:
    """Check every address that the target's name stands for; one bad address refuses them all.

    Returns the addresses, in their order; nothing else may be dialled for this target.

    Raises:
        EgressRefused: always with the same text, so that it tells nothing about our network.
    """
    trusted = _matches(target.host, policy.allow_hosts)
    if not addresses or not all(_permitted(address, policy, trusted=trusted) for address in addresses):
        raise EgressRefused(REFUSED)
    return tuple(addresses)


def _permitted(address: Address, policy: EgressPolicy, *, trusted: bool) -> bool:
    if _inside(address, policy.deny_networks):
        return False
    verdict = classify(address)
    if verdict is Verdict.PUBLIC:
        return True
    if verdict is Verdict.LOOPBACK and policy.allow_loopback:
        return True
    listed = _inside(address, policy.allow_networks)
    if verdict in _NEVER:
        # NAT64 is how a host without IPv4 reaches the IPv4 internet: judge what the gateway will dial
        nat64 = listed and isinstance(address, IPv6Address) and address in _NAT64
        return nat64 and _permitted(IPv4Address(int(address) & 0xFFFFFFFF), policy, trusted=trusted)
    return trusted or listed


def _is_localhost(host: str) -> bool:
    return host == "localhost" or host.endswith(".localhost")


def _inside(address: Address, networks: Iterable[Network]) -> bool:
    return any(address in network for network in networks)


def _matches(host: str, patterns: frozenset[str]) -> bool:
    if not patterns:
        return False
    labels = host.split(".")
    return host in patterns or any(f"*.{'.'.join(labels[n:])}" in patterns for n in range(1, len(labels)))


def _canonical_patterns(patterns: Iterable[str]) -> frozenset[str]:
    try:
        return frozenset(
            "*." + _parse_name(pattern[2:]) if pattern.startswith("*.") else _parse_pattern(pattern)
            for pattern in patterns
        )
    except EgressRefused as exc:
        raise ConfigError(f"a host in the egress allow- or deny-list cannot be used: {exc.detail}") from exc


def _parse_pattern(pattern: str) -> str:
    return (_parse_ipv6(pattern.strip("[]")) if ":" in pattern else _parse_host(pattern))[0]


def _parse_ipv6(text: str) -> tuple[str, Address]:
    if "%" in text:
        raise EgressRefused("the host has a zone id")
    try:
        address = IPv6Address(text)
    except ValueError:
        raise EgressRefused("the host is not a valid IPv6 address") from None
    return str(address), address


def _parse_host(text: str) -> tuple[str, Address | None]:
    """A name, or an IPv4 address where the last label is a number (WHATWG URL, "ends in a number")."""
    if not text:
        raise EgressRefused("the host is empty")
    lowered = text.lower()
    last = lowered.removesuffix(".").rpartition(".")[2]
    if _NUMBER.fullmatch(last):
        try:
            # strict: four decimal parts, no leading zeros, no trailing dot
            address = IPv4Address(lowered)
        except ValueError:
            raise EgressRefused("the host is a number, but not a plain IPv4 address") from None
        return str(address), address
    return _parse_name(text), None


def _parse_name(text: str) -> str:
    name = text.lower().removesuffix(".")
    if len(name) > _MAX_NAME or max(map(len, name.split("."))) > _MAX_LABEL:
        # Before anything else is done with it: the time that IDNA takes grows with the square of a label.
        raise EgressRefused("the host is not a valid name")
    if not name.isascii():
        try:
            # strict IDNA 2008: nothing is mapped, so that no look-alike digit or dot turns into another host
            name = idna.encode(unicodedata.normalize("NFC", name)).decode("ascii")
        except (idna.IDNAError, UnicodeError):
            raise EgressRefused("the host is not a valid international name") from None
    labels = name.split(".")
    if len(name) > _MAX_NAME or not all(_LABEL.fullmatch(label) for label in labels):
        raise EgressRefused("the host is not a valid name")
    if _NUMBER.fullmatch(labels[-1]):
        raise EgressRefused("the host is a number, but not a plain IPv4 address")
    return name


def _parse_port(text: str) -> int:
    if not _PORT.fullmatch(text) or not 0 < int(text) <= 65535:
        raise EgressRefused("the port is not valid")
    return int(text)
