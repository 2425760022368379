"""Senders that trust whom they must not, or send to their own machine."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import ssl
import warnings
from typing import Any
from urllib.parse import urlsplit

from examples.other_sender.sender import Sender, Subscription
from tests.conformance.good_senders import Complete, Strict
from tests.conformance.mutants.registry import mutant

# --- TLS ------------------------------------------------------------------------------------------------


@mutant("TLS-01", "TLS-02", "TLS-03")
class TrustsAll(Sender):
    """No certificate is looked at."""

    async def hello(self, authority: str | None, **others: Any) -> dict[str, Any]:
        self.context.check_hostname = False
        self.context.verify_mode = ssl.CERT_NONE
        return await super().hello(authority, **others)


@mutant("TLS-02")
class AnyHost(Sender):
    """A certificate may be for any host."""

    async def hello(self, authority: str | None, **others: Any) -> dict[str, Any]:
        self.context.check_hostname = False
        return await super().hello(authority, **others)


@mutant("TLS-04", says="no request came")
class TrustsNobody(Sender):
    """The authority that it was told of is not trusted."""

    async def hello(self, authority: str | None, **others: Any) -> dict[str, Any]:
        return await super().hello(None, **others)


@mutant("TLS-05")
class OldTls(Sender):
    """TLS 1.0 and 1.1 are spoken, too."""

    async def hello(self, authority: str | None, **others: Any) -> dict[str, Any]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            self.context.minimum_version = ssl.TLSVersion.TLSv1
        # OpenSSL 3 has no signature for them at its usual level.
        self.context.set_ciphers("DEFAULT:@SECLEVEL=0")
        return await super().hello(authority, **others)


@mutant("TLS-05", says="TLS 1.1")
class LastTlsButOne(OldTls):
    """TLS 1.1 is spoken, but not 1.0."""

    async def hello(self, authority: str | None, **others: Any) -> dict[str, Any]:
        made = await super().hello(authority, **others)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            self.context.minimum_version = ssl.TLSVersion.TLSv1_1
        return made


# --- its own machine ------------------------------------------------------------------------------------


@mutant("EGRESS-01", "EGRESS-02")
class AsksFirst(Complete):
    """A URL is tried before it is taken or refused."""

    async def takes(self, url: str) -> bool:
        host = urlsplit(url).hostname or ""
        if host in {"127.0.0.1", "localhost"}:
            tried = Subscription(url=url, secret="", timeout=1.0)
            await self.post(tried, [("User-Agent", "other/1")], b"{}")
        return True


@mutant("EGRESS-01", "EGRESS-02")
class VetsWhatIsGiven(Complete):
    """Loopback is refused by its usual spellings when it is given; addresses are not looked at again."""

    async def takes(self, url: str) -> bool:
        return urlsplit(url).hostname not in {"127.0.0.1", "localhost", "::1"}

    async def found(self, subscription: Strict, host: str) -> list[str]:
        self.is_literal = bool(self.literal(host))
        return await super().found(subscription, host)

    def vetted(self, found: list[str]) -> list[str]:
        return found if self.is_literal else super().vetted(found)


@mutant("EGRESS-01", says="connections came")
class ConnectsFirst(Complete):
    """Before a URL is refused, it is looked whether anybody is there."""

    async def takes(self, url: str) -> bool:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", urlsplit(url).port or 443), 1.0).close()
        return await super().takes(url)


@mutant("EGRESS-02")
class ListOfHosts(Complete):
    """Loopback is known by its usual spellings only, until it is connected to."""

    async def takes(self, url: str) -> bool:
        return urlsplit(url).hostname not in {"127.0.0.1", "localhost", "::1"}


@mutant("EGRESS-02")
class ParsesAddresses(Complete):
    """Loopback is known in any spelling that is an address by RFC, and 127.1 is none."""

    async def takes(self, url: str) -> bool:
        return "127.1:" in url or await super().takes(url)


@mutant("EGRESS-02", says="taken: localhost")
class TakesLocalhost(Complete):
    """That localhost is loopback is seen only when it is connected to."""

    async def takes(self, url: str) -> bool:
        return "://localhost:" in url or await super().takes(url)


@mutant("EGRESS-03", says="no request came")
class AdmitsNobody(Complete):
    """What the operator admits is refused like anything that is not public."""

    def admits(self, text: str) -> bool:
        return ipaddress.ip_address(text).is_global


@mutant("EGRESS-03", says="was not taken")
class AsksWhenGiven(Complete):
    """A name is taken if it can be resolved at once, by a name server that knows nothing of it."""

    async def takes(self, url: str) -> bool:
        return bool(self.literal(urlsplit(url).hostname or "")) and await super().takes(url)


@mutant("EGRESS-04", "EGRESS-05", "EGRESS-06", "EGRESS-07")
class VetsNames(Complete):
    """Names are looked at, and their addresses are not."""

    def vetted(self, found: list[str]) -> list[str]:
        return found


@mutant("EGRESS-04", says="::1")
class VetsIpv4(Complete):
    """Addresses are looked at if they are IPv4."""

    def admits(self, text: str) -> bool:
        return (":" in text and "ffff" not in text) or super().admits(text)


@mutant("EGRESS-04", says="127.0.0.78")
class TakesMappedForIpv6(Complete):
    """IPv4 inside IPv6 is taken for an address of IPv6 that nothing speaks against."""

    def admits(self, text: str) -> bool:
        return "ffff" in text or super().admits(text)


@mutant("EGRESS-04", says="connections came")
class LooksWhoIsThere(Complete):
    """It connects to all addresses of a name, to see which are there, before it vets them."""

    async def found(self, subscription: Strict, host: str) -> list[str]:
        found = await super().found(subscription, host)
        for address in found:
            with contextlib.suppress(OSError):
                socket.create_connection((address, urlsplit(subscription.url).port or 443), 1.0).close()
        return found


class _AsksTwice(Complete):
    """It has vetted a name, and asks for its address again."""

    async def found(self, subscription: Strict, host: str) -> list[str]:
        if not self.vetted(await super().found(subscription, host)):
            return []
        return [_Unvetted(address) for address in await super().found(subscription, host)]

    def admits(self, text: str) -> bool:
        return isinstance(text, _Unvetted) or super().admits(text)


class _Unvetted(str):
    """An address that nobody looks at any more."""

    __slots__ = ()


@mutant("EGRESS-05")
class AsksTwice(_AsksTwice):
    """A name is vetted, and asked for again to connect."""


@mutant("EGRESS-05")
class AsksThrice(_AsksTwice):
    """A name is asked for when its URL is given, vetted later, and asked for again to connect."""

    async def takes(self, url: str) -> bool:
        await self.asked_for(urlsplit(url).hostname or "")
        return await super().takes(url)


@mutant("EGRESS-05")
class VetsWhenGiven(Complete):
    """A name is vetted when its URL is given, and asked for again to connect."""

    async def takes(self, url: str) -> bool:
        if not await super().takes(url):
            return False
        host = urlsplit(url).hostname or ""
        return bool(self.vetted(self.literal(host) or await self.asked_for(host)))

    async def found(self, subscription: Strict, host: str) -> list[str]:
        return [_Unvetted(address) for address in await super().found(subscription, host)]

    def admits(self, text: str) -> bool:
        return isinstance(text, _Unvetted) or super().admits(text)


@mutant("EGRESS-05")
class VetsOnce(_AsksTwice):
    """A name that was vetted is good for every other try."""

    async def found(self, subscription: Strict, host: str) -> list[str]:
        found = await Complete.found(self, subscription, host)
        if host in self.good:
            return [_Unvetted(address) for address in found]
        if self.vetted(found):
            self.good.add(host)
        return found

    def __init__(self) -> None:
        super().__init__()
        self.good: set[str] = set()


@mutant("EGRESS-06", "EGRESS-07")
class VetsFirst(Complete):
    """Only the first of a name's addresses is looked at."""

    def vetted(self, found: list[str]) -> list[str]:
        return found if all(map(self.admits, found[:1])) else []


@mutant("EGRESS-06", "EGRESS-07")
class OneIsEnough(Complete):
    """A name is good if one of its addresses is."""

    def vetted(self, found: list[str]) -> list[str]:
        return found if any(map(self.admits, found)) else []


@mutant("EGRESS-07")
class PicksTheGood(Complete):
    """Of a name's addresses those are left out that it must not send to."""

    def vetted(self, found: list[str]) -> list[str]:
        return list(filter(self.admits, found))
