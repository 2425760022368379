"""A request as it came over the wire, byte by byte; what everything here looks at."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import parse_qsl

Headers = tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Received:
    """One request. Its `repr` shows neither path nor headers nor body: each may hold a secret."""

    #: 1, 2, 3 … in the order in which they began to come in at this receiver
    number: int
    #: when its head was complete: Unix time, seconds
    at: float
    #: the same by the monotonic clock, for distances
    clock: float
    #: 1, 2, 3 …: requests with the same number came over the same connection
    connection: int
    #: IP address of the peer
    remote: str
    is_tls: bool = False
    method: str
    #: as it stands in the request line
    target: str = field(repr=False)
    #: names and values as they came (Latin-1), in their order, values without the white space around them
    headers: Headers = field(repr=False)
    #: without the chunks' frames
    body: bytes = field(repr=False)
    #: the request line, the headers and what came of the body, as it came
    raw: bytes = field(repr=False)
    #: the body came as a whole
    is_complete: bool = True

    @property
    def path(self) -> str:
        """The path of the target as it stands there, without its query."""
        return self._parts[0]

    @property
    def query(self) -> dict[str, str]:
        """The parameters of the target's query; of those that are named twice, the last."""
        return dict(parse_qsl(self._parts[1], keep_blank_values=True))

    @property
    def _parts(self) -> tuple[str, str]:
        target = self.target.partition("#")[0]
        if "://" in target.partition("?")[0] and not target.startswith("/"):
            # in absolute form, as a proxy gets it (RFC 9112 §3.2.2)
            target = "/" + target.partition("://")[2].partition("/")[2]
        path, _, query = target.partition("?")
        return path, query

    def header(self, name: str) -> str | None:
        """The first value of a header; None if there is none."""
        return next(iter(self.values(name)), None)

    def values(self, name: str) -> list[str]:
        """All values of a header, in their order."""
        return [value for key, value in self.headers if key.lower() == name.lower()]


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """An answer in good HTTP."""

    status: int = 200
    headers: Headers = ()
    body: bytes = field(default=b"", repr=False)
