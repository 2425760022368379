"""A name server whose names change their minds: what a name stands for is a script, one step for each query.

It is the authority of the names that it was told, over UDP, and sends nobody on to another. Whatever a datagram holds,
it is answered by RFC 1035 or dropped.
"""

from __future__ import annotations

import asyncio
import re
import socket
import struct
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from types import TracebackType
from typing import Self, cast

from dispatcher.errors import ConfigError

Address = IPv4Address | IPv6Address

#: types of records (RFC 1035, section 3.2.2; RFC 3596)
A, AAAA = 1, 28
#: answers that are errors (RFC 1035, section 4.1.1)
FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED = 1, 2, 3, 4, 5

#: stands for every name that has no script of its own
ANY_NAME = "*"
#: addresses of one step: with the longest name they still fit into the 512 bytes of a datagram
MAX_ADDRESSES = 8
#: steps of a script
MAX_STEPS = 1_000
#: the newest queries that are kept
MAX_ASKED = 1_000
#: seconds that an answer may be kept for at most
MAX_TTL = 604_800

_HEAD = struct.Struct("!HHHHHH")
_RESPONSE, _AUTHORITATIVE = 0x8000, 0x0400
_OPCODE, _RECURSION_DESIRED = 0x7800, 0x0100
_IN = 1
_MAX_LABEL, _MAX_NAME = 63, 255
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_TYPES = {A: "A", AAAA: "AAAA", 2: "NS", 5: "CNAME", 6: "SOA", 12: "PTR", 15: "MX", 16: "TXT", 33: "SRV", 65: "HTTPS"}
_CODES = {FORMERR: "formerr", SERVFAIL: "servfail", NXDOMAIN: "nxdomain", NOTIMP: "notimp", REFUSED: "refused"}
_WORDS = {"nxdomain": NXDOMAIN, "servfail": SERVFAIL, "refused": REFUSED}


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """What a name stands for at one query."""

    addresses: tuple[Address, ...] = ()
    #: an error instead
    code: int = 0
    is_silent: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class NameScript:
    """What a name stands for: one step after the other, the last for ever.

    Queries are counted for each type of record by itself, since most clients ask for IPv4 and IPv6 at once.
    """

    text: str
    steps: tuple[Step, ...]

    @classmethod
    def parse(cls, text: str) -> NameScript:
        """Read a script: "127.0.0.2,127.0.0.3", "127.0.0.2+::1", "nxdomain", "servfail,silence,127.0.0.1".

        Raises:
            ConfigError: it names the step that is wrong, and what would be right.
        """
        parts = text.split(",")
        if len(parts) > MAX_STEPS:
            raise ConfigError(f"a name has {MAX_STEPS} steps at most")
        return cls(text=text, steps=tuple(_step(number, part.strip()) for number, part in enumerate(parts, 1)))


def _step(number: int, text: str) -> Step:
    if text == "silence":
        return Step(is_silent=True)
    if text in _WORDS:
        return Step(code=_WORDS[text])
    try:
        addresses = tuple(ip_address(part.strip()) for part in text.split("+"))
    except ValueError:
        words = ", ".join([*_WORDS, "silence"])
        raise ConfigError(f"step {number} is neither addresses, such as 127.0.0.2+::1, nor one of: {words}") from None
    if any(isinstance(address, IPv6Address) and address.scope_id is not None for address in addresses):
        raise ConfigError(f"step {number} has an address with a zone, which stands in no record")
    if len(addresses) > MAX_ADDRESSES:
        raise ConfigError(f"step {number} has more than {MAX_ADDRESSES} addresses")
    return Step(addresses=addresses)


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """One query."""

    #: Unix time, seconds
    at: float
    #: in small letters; what is no visible ASCII as `\\009`
    name: str
    #: "A", "AAAA", or "TYPE99"
    kind: str
    #: addresses with + between them, the name of an error, "silence", or "nothing" of that type
    answer: str


class NameServer:
    """Listens on UDP. An async context manager.

    Names that it was not told do not exist. Answers may be kept for `ttl` seconds. Names that share the script of `*`
    share its steps, too.
    """

    def __init__(self, *, host: str = "127.0.0.1", port: int = 0, ttl: int = 0) -> None:
        """Port 0 picks a free one. Raises ConfigError."""
        if not 0 <= ttl <= MAX_TTL:
            raise ConfigError(f"answers of a name server are kept for 0 to {MAX_TTL} seconds")
        self._host, self._port, self._ttl = host, port, ttl
        self._scripts: dict[str, NameScript] = {}
        #: (name, type) -> queries so far, of names with a script only, so that nobody makes it grow
        self._counts: Counter[tuple[str, int]] = Counter()
        self._transport: asyncio.DatagramTransport | None = None
        #: the newest queries, the oldest first
        self.asked: deque[Asked] = deque(maxlen=MAX_ASKED)
        #: queries that were answered, or met with silence as a script says
        self.queries = 0
        #: datagrams that are no query
        self.malformed = 0

    async def __aenter__(self) -> Self:
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_DGRAM)
        try:
            listener.bind((self._host, self._port))
        except OSError as exc:
            listener.close()
            reason = exc.strerror or exc
            raise ConfigError(f"the name server cannot listen on {self._host}, port {self._port}: {reason}") from exc
        self._port = listener.getsockname()[1]
        made, _ = await asyncio.get_running_loop().create_datagram_endpoint(lambda: _Datagrams(self), sock=listener)
        self._transport = made
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._transport is not None:
            self._transport.close()
            self._transport = None
            # its socket is closed a round of the loop later
            await asyncio.sleep(0)

    @property
    def address(self) -> str:
        """Where it listens: `127.0.0.1:5353`."""
        return f"[{self._host}]:{self._port}" if ":" in self._host else f"{self._host}:{self._port}"

    def script(self, name: str, text: str) -> None:
        """What a name stands for from now on, counted anew; `*` is every name without a script. No text: nothing.

        Raises:
            ConfigError: this can be no name, or the script is none.
        """
        key = _canonical(name)
        for counted in [one for one in self._counts if one[0] == key]:
            del self._counts[counted]
        if text:
            self._scripts[key] = NameScript.parse(text)
        else:
            self._scripts.pop(key, None)

    def report(self) -> dict[str, object]:
        """What names stand for, and what was asked."""
        return {
            "address": self.address,
            "queries": self.queries,
            "malformed": self.malformed,
            "names": {name: script.text for name, script in sorted(self._scripts.items())},
            "asked": [{"at": one.at, "name": one.name, "type": one.kind, "answer": one.answer} for one in self.asked],
        }

    def reply(self, datagram: bytes) -> bytes | None:
        """What a datagram is answered; None: nothing."""
        if len(datagram) < _HEAD.size:
            self.malformed += 1
            return None
        number, flags, questions = _HEAD.unpack_from(datagram)[:3]
        if flags & _RESPONSE:
            # An answer to an answer would go to and fro for ever.
            self.malformed += 1
            return None
        said = flags & (_OPCODE | _RECURSION_DESIRED)
        if flags & _OPCODE:
            self.malformed += 1
            return _head(number, said, NOTIMP)
        question = _Question.read(datagram) if questions == 1 else None
        if question is None:
            self.malformed += 1
            return _head(number, said, FORMERR)
        step = self._decide(question)
        self.queries += 1
        fitting = [one for one in step.addresses if (A if one.version == 4 else AAAA) == question.kind]
        self.asked.append(
            Asked(
                at=time.time(),
                name=question.name,
                kind=_TYPES.get(question.kind, f"TYPE{question.kind}"),
                answer=_told(step, fitting),
            )
        )
        if step.is_silent:
            return None
        records = b"".join(
            # the name is the question's, which begins behind the head
            struct.pack("!HHHIH", 0xC000 | _HEAD.size, question.kind, _IN, self._ttl, len(one.packed)) + one.packed
            for one in fitting
        )
        return _head(number, said, step.code, questions=1, answers=len(fitting)) + question.raw + records

    def _decide(self, question: _Question) -> Step:
        if question.class_ != _IN:
            return Step(code=REFUSED)
        script = self._scripts.get(question.name)
        key = question.name if script else ANY_NAME
        script = script or self._scripts.get(ANY_NAME)
        if script is None:
            return Step(code=NXDOMAIN)
        if question.kind not in {A, AAAA}:
            # There is such a name, and it has nothing of that type.
            return Step()
        at = self._counts[key, question.kind]
        self._counts[key, question.kind] += 1
        return script.steps[min(at, len(script.steps) - 1)]


class _Datagrams(asyncio.DatagramProtocol):
    """Takes them from the loop."""

    def __init__(self, server: NameServer) -> None:
        self._server = server
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str | int, ...]) -> None:
        answer = self._server.reply(data)
        # Nobody listens on port 0, and the system says so with an error.
        if answer is not None and self._transport is not None and addr[1]:
            self._transport.sendto(answer, addr)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Question:
    """The one question of a query."""

    name: str
    kind: int
    class_: int
    #: as it came: clients look whether it comes back in the same letters
    raw: bytes

    @classmethod
    def read(cls, datagram: bytes) -> _Question | None:
        """None: it is malformed. There is nothing before it that its name could point to, so no pointer is one."""
        labels: list[bytes] = []
        at = _HEAD.size
        while True:
            if at >= len(datagram) or at - _HEAD.size >= _MAX_NAME:
                return None
            size = datagram[at]
            if size == 0:
                break
            if size > _MAX_LABEL or at + 1 + size > len(datagram):
                return None
            labels.append(datagram[at + 1 : at + 1 + size])
            at += 1 + size
        if at + 5 > len(datagram):
            return None
        kind, class_ = struct.unpack_from("!HH", datagram, at + 1)
        name = ".".join(_visible(label) for label in labels) or "."
        return cls(name=name, kind=kind, class_=class_, raw=datagram[_HEAD.size : at + 5])


def _head(number: int, said: int, code: int, *, questions: int = 0, answers: int = 0) -> bytes:
    return _HEAD.pack(number, _RESPONSE | _AUTHORITATIVE | said | code, questions, answers, 0, 0)


def _visible(label: bytes) -> str:
    """A label in small letters; a full stop, a backslash and what cannot be seen by number (RFC 1035, section 5.1)."""
    return "".join(
        chr(byte) if 0x21 <= byte <= 0x7E and byte not in b".\\" else f"\\{byte:03}" for byte in label.lower()
    )


def _told(step: Step, addresses: Sequence[Address]) -> str:
    if step.is_silent:
        return "silence"
    return _CODES.get(step.code) or "+".join(map(str, addresses)) or "nothing"


def _canonical(name: str) -> str:
    found = name.lower().removesuffix(".")
    if found == ANY_NAME:
        return found
    if len(found) > _MAX_NAME - 2 or not all(_LABEL.fullmatch(label) for label in found.split(".")):
        raise ConfigError("a name is a host's in ASCII, such as hooks.test, or *")
    return found
