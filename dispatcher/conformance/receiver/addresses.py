"""Who a request comes from: the peer, or whom a trusted proxy names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from dispatcher.conformance.wire.requests import Received
from dispatcher.errors import ConfigError

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

#: what some proxies write: 192.0.2.1:4711, [2001:db8::1]:4711, [2001:db8::1]
_WITH_PORT = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+))(?::[0-9]{1,5})?")


def parse_networks(texts: Sequence[str], *, setting: str) -> tuple[Network, ...]:
    """Networks such as 192.0.2.0/24, or single addresses. Raises ConfigError that names the setting."""
    found = []
    for text in texts:
        try:
            found.append(ip_network(text))
        except ValueError as exc:
            raise ConfigError(f"{setting}: {exc}") from exc
    return tuple(found)


def parse_address(text: str) -> Address | None:
    """An address, with or without a port; IPv4 inside IPv6 (::ffff:…) becomes IPv4. None if it is none."""
    match = _WITH_PORT.fullmatch(text.strip())
    try:
        address = ip_address((match[1] or match[2]) if match else text.strip())
    except ValueError:
        return None
    # a dual-stack listener shows IPv4 peers so; a list of IPv4 networks has to hold for them
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


def is_within(address: Address | None, networks: Sequence[Network]) -> bool:
    """One of the networks has the address."""
    return address is not None and any(address in network for network in networks)


def client_address(request: Received, *, header: str, proxies: Sequence[Network]) -> Address | None:
    """The client's address; None if it cannot be told.

    The header counts only when the peer is a trusted proxy: anybody can write it. Each proxy appends whom it saw, so it
    is read from the right, and the first address that is no trusted proxy's is the client's; what stands left of it is
    the client's own word.
    """
    peer = parse_address(request.remote)
    if not header or not is_within(peer, proxies):
        return peer
    client = peer
    for text in reversed([part for value in request.values(header) for part in value.split(",")]):
        client = parse_address(text)
        if not is_within(client, proxies):
            break
    return client
