"""Any other sender under examination: a command that stands between it and us, and speaks JSON lines.

docs/conformance.md describes the calls, and examples/other_sender is a whole one.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from dispatcher.conformance.sender_examination.neighbourhood import ADMITTED_NETWORK, Neighbourhood
from dispatcher.conformance.sender_examination.senders import ABILITIES, Names, Refused, Subscribed, Wish
from dispatcher.conformance.signatures.schemes import parse_public_key
from dispatcher.errors import ConfigError

#: seconds within which each call is answered, and within which the command ends when stdin does
ANSWER_WITHIN = 30.0
END_WITHIN = 10.0
#: bytes of one answer
MAX_LINE_BYTES = 1 << 20

#: stands in a command for the interpreter that runs the kit, and so for whatever is installed beside it
PYTHON = "{python}"

_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}")


class CommandSender:
    """A sender behind a command. An async context manager: the command runs within."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        authority: Path | None = None,
        neighbourhood: Neighbourhood | None = None,
        cwd: Path | None = None,
    ) -> None:
        """`authority`: a certificate in PEM that the sender may trust, if it can. `neighbourhood`: one that runs."""
        self._command = tuple(sys.executable if word == PYTHON else word for word in command)
        self._surroundings = {
            "authority": str(authority) if authority else None,
            "name_server": neighbourhood.names.address if neighbourhood else None,
            "allowed_network": ADMITTED_NETWORK if neighbourhood else None,
            "allowed_ports": list(neighbourhood.ports.values()) if neighbourhood else [],
        }
        self._cwd = cwd
        self.name = self._command[0] if self._command else ""
        self.abilities: frozenset[str] = frozenset()
        self.names = Names()
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._process: asyncio.subprocess.Process
        self._reading: asyncio.Task[None]

    async def __aenter__(self) -> Self:
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                cwd=self._cwd,
                limit=MAX_LINE_BYTES,
                # so that what it starts itself can be ended with it
                start_new_session=True,
            )
        except OSError as exc:
            raise ConfigError(f"the command of the sender cannot be run: {exc.strerror}") from exc
        self._reading = asyncio.create_task(self._read())
        try:
            about = await self._call("hello", **self._surroundings)
            self.name = str(about.get("name", self.name))
            self.abilities = _abilities(about)
            unknown = sorted(self.abilities - ABILITIES.keys())
            if unknown:
                raise ConfigError(f"the sender says that it can {unknown[0]!r}, which is no ability")
            self.names = Names(
                id=_header(about, "id_header", self.names.id),
                timestamp=_header(about, "timestamp_header", self.names.timestamp),
            )
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._end()

    async def subscribe(self, wish: Wish) -> Subscribed:
        """Make a subscription. Raises Refused."""
        made = await self._call(
            "subscribe",
            url=wish.url,
            event=wish.event,
            secret=wish.secret,
            schemes=list(wish.schemes),
            schedule=list(wish.schedule),
            timeout=wish.timeout,
            **_further(wish),
        )
        public_key = made.get("public_key")
        if public_key is not None:
            # now, and not where it is first needed: there it would look like a fault of the kit
            parse_public_key(str(public_key))
        return Subscribed(id=str(made.get("id", "")), public_key=public_key and str(public_key))

    async def publish(self, event: str, payload: bytes) -> None:
        """Publish an event with these bytes as its payload. Raises Refused."""
        await self._call("publish", event=event, payload=base64.b64encode(payload).decode())

    async def call_back(self, url: str, payload: bytes, *, secret: str) -> None:
        """Send one answer to a URL. Raises Refused."""
        await self._call("call_back", url=url, payload=base64.b64encode(payload).decode(), secret=secret)

    async def is_active(self, subscription_id: str) -> bool:
        """Whether a subscription is sent to."""
        return bool((await self._call("is_active", subscription=subscription_id)).get("active"))

    async def enable(self, subscription_id: str) -> None:
        """Enable a subscription. Raises Refused."""
        await self._call("enable", subscription=subscription_id)

    async def rotate(self, subscription_id: str, secret: str, *, overlap: float) -> None:
        """Sign with another secret; the old one is good for `overlap` seconds more."""
        await self._call("rotate", subscription=subscription_id, secret=secret, overlap=overlap)

    async def send_strictly(self, url: str) -> bool:
        """Have the sender, run as in production, take this URL and send a message there; whether it took it."""
        try:
            return bool((await self._call("send_strictly", url=url)).get("taken"))
        except Refused:
            return False

    async def _call(self, name: str, **arguments: object) -> dict[str, Any]:
        id_ = next(self._ids)
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[id_] = answer
        line = msgspec.json.encode({"id": id_, "call": name} | arguments) + b"\n"
        try:
            if self._reading.done():
                raise ConnectionError
            assert self._process.stdin is not None
            self._process.stdin.write(line)
            await self._process.stdin.drain()
            async with asyncio.timeout(ANSWER_WITHIN):
                found = await answer
        except TimeoutError:
            raise ConfigError(f"the sender did not answer `{name}` within {ANSWER_WITHIN:g} s") from None
        except ConnectionError:
            raise ConfigError(f"the command of the sender ended before it answered `{name}`") from None
        finally:
            self._waiting.pop(id_, None)
        if "refused" in found:
            raise Refused(str(found["refused"])[:200])
        if "result" not in found:
            raise ConfigError(f"the sender failed at `{name}`: {str(found.get('error', 'no result'))[:200]}")
        result = found["result"]
        return result if isinstance(result, dict) else {}

    async def _read(self) -> None:
        assert self._process.stdout is not None
        try:
            async for line in self._process.stdout:
                with contextlib.suppress(msgspec.DecodeError, RecursionError):
                    found = msgspec.json.decode(line)
                    id_ = found.get("id") if isinstance(found, dict) else None
                    answer = self._waiting.get(id_) if isinstance(id_, int) else None
                    if answer is not None and not answer.done():
                        answer.set_result(found)
        except ValueError:
            # A line longer than the limit: nothing that follows can be trusted.
            self._kill()
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(ConnectionError())

    async def _end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(END_WITHIN):
                await self._over()
        except TimeoutError:
            self._kill()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(END_WITHIN):
                    await self._over()
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)

    async def _over(self) -> None:
        """Wait until the command has ended, and nothing that it has started can write any more."""
        await self._process.wait()
        await asyncio.wait({self._reading})

    def _kill(self) -> None:
        """End it with what it has started: its pipes are open as long as any of them has them."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)


def _further(wish: Wish) -> dict[str, object]:
    """What is asked only of senders that said they can: others need not know of it."""
    return {name: value for name, value in (("handshake", wish.handshake), ("body", wish.body)) if value}


def _abilities(about: dict[str, Any]) -> frozenset[str]:
    """What the sender says that it can do. Raises ConfigError."""
    named = about.get("abilities", [])
    if not isinstance(named, list) or not all(isinstance(one, str) for one in named):
        raise ConfigError("the sender's `abilities` are not a list of texts")
    return frozenset(named)


def _header(about: dict[str, Any], key: str, otherwise: tuple[str, ...]) -> tuple[str, ...]:
    """The one header that the sender names. Raises ConfigError."""
    name = about.get(key)
    if name is None:
        return otherwise
    if not isinstance(name, str) or not _HEADER_NAME.fullmatch(name):
        raise ConfigError(f"the sender's `{key}` is not the name of a header")
    return (name,)
