"""This dispatcher as a sender under examination: a server of its own, driven by its API like anybody's.

Two of them: one with --dev, which may send to loopback, and one as in production, which must not.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import signal
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from dispatcher.conformance.sender_examination.neighbourhood import ADMITTED_NETWORK, Neighbourhood
from dispatcher.conformance.sender_examination.senders import ABILITIES, Names, Refused, Subscribed, Wish
from dispatcher.errors import ConfigError

#: seconds within which it has to start, and to stop
START_WITHIN = 30.0
STOP_WITHIN = 15.0
#: seconds within which its API answers
ANSWER_WITHIN = 60.0

#: an account's scopes that this needs
_SCOPES = ("tasks:write", "events:write", "subscriptions:read", "subscriptions:write")

#: seconds between tries of what is sent as in production: answers of name servers are kept for one
_STRICT_SCHEDULE = (0.3, 1.2)


class OurSender:
    """`dispatcher serve`, examined. An async context manager."""

    name = "webhook-dispatcher"
    abilities = frozenset(ABILITIES)
    names = Names()

    def __init__(self, *, authority: Path | None = None, neighbourhood: Neighbourhood | None = None) -> None:
        """`authority`: a certificate in PEM that it trusts beside no other. `neighbourhood`: one that runs."""
        self._authority = authority
        self._neighbourhood = neighbourhood
        self._stack = contextlib.AsyncExitStack()
        self._api: httpx.AsyncClient
        self._strict: httpx.AsyncClient

    async def __aenter__(self) -> Self:
        directory = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="conformance-")))
        try:
            self._api = await self._serve(directory / "dev", "--dev")
            self._strict = await self._serve(directory / "strict", settings=_settings(self._neighbourhood))
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def _serve(
        self, data_dir: Path, *options: str, settings: Mapping[str, str] | None = None
    ) -> httpx.AsyncClient:
        server = await _start(data_dir, *options, authority=self._authority, settings=settings or {})
        self._stack.push_async_callback(_end, server.process)
        client = httpx.AsyncClient(
            base_url=server.url,
            headers={"Authorization": f"Bearer {server.token}"},
            timeout=ANSWER_WITHIN,
            trust_env=False,
        )
        return await self._stack.enter_async_context(client)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def subscribe(self, wish: Wish) -> Subscribed:
        """Make a subscription. Raises Refused."""
        made = await self._send(self._api, "POST", "/webhooks/subscriptions", _subscription(wish))
        return Subscribed(id=made["id"], public_key=made["config"].get("public_key"))

    async def publish(self, event: str, payload: bytes) -> None:
        """Publish an event with these bytes as its payload. Raises Refused."""
        body = b'{"type": ' + json.dumps(event).encode() + b', "payload": ' + payload + b"}"
        await self._send(self._api, "POST", "/events", body)

    async def call_back(self, url: str, payload: bytes, *, secret: str) -> None:
        """Send one answer to a URL. Raises Refused."""
        rest = json.dumps({"callback_url": url, "secret": secret}).encode()
        await self._send(self._api, "POST", "/tasks", b'{"payload": ' + payload + b", " + rest[1:])

    async def is_active(self, subscription_id: str) -> bool:
        """Whether a subscription is sent to."""
        found = await self._send(self._api, "GET", f"/webhooks/subscriptions/{subscription_id}")
        return bool(found["is_active"])

    async def enable(self, subscription_id: str) -> None:
        """Enable a subscription. Raises Refused."""
        await self._send(self._api, "POST", f"/webhooks/subscriptions/{subscription_id}/enable")

    async def rotate(self, subscription_id: str, secret: str, *, overlap: float) -> None:
        """Sign with another secret; the old one is good for `overlap` seconds more."""
        wish = {"secret": secret, "overlap": overlap} if overlap else {"secret": secret, "revoke_now": True}
        path = f"/webhooks/subscriptions/{subscription_id}/secrets"
        await self._send(self._api, "POST", path, json.dumps(wish).encode())

    async def send_strictly(self, url: str) -> bool:
        """Have the server without --dev take this URL and send there; whether it took it.

        It is asked in both ways that there are: by a subscription to an event, and by the callback of a task.
        """
        event = f"strict.t{secrets.token_hex(8)}"
        wish = Wish(url=url, event=event, secret="not-used-anywhere", schedule=_STRICT_SCHEDULE)  # noqa: S106 - made up
        taken = []
        for path, body in (
            ("/webhooks/subscriptions", _subscription(wish)),
            ("/tasks", json.dumps({"payload": 1, "callback_url": url}).encode()),
        ):
            with contextlib.suppress(Refused):
                await self._send(self._strict, "POST", path, body)
                taken.append(path)
        if taken:
            await self._send(self._strict, "POST", "/events", json.dumps({"type": event, "payload": 1}).encode())
        return bool(taken)

    async def _send(self, api: httpx.AsyncClient, method: str, path: str, body: bytes = b"") -> Any:
        answer = await api.request(method, path, content=body)
        if answer.is_success:
            return answer.json()
        problem = answer.json()
        if answer.status_code < 500:
            raise Refused(f"{answer.status_code} {problem.get('detail', '')}")
        raise ConfigError(f"the sender answered {method} {path.partition('?')[0]} with {answer.status_code}")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Running:
    """A server in a process of its own."""

    process: asyncio.subprocess.Process
    url: str
    token: str = field(repr=False)


def _settings(neighbourhood: Neighbourhood | None) -> dict[str, str]:
    """What an operator sets who has a receiver next door."""
    if neighbourhood is None:
        return {}
    return {
        "DISPATCHER_NAMESERVERS": neighbourhood.names.address,
        "DISPATCHER_ALLOW_NETWORKS": ADMITTED_NETWORK,
        "DISPATCHER_ALLOW_PORTS": ",".join(map(str, neighbourhood.ports.values())),
    }


async def _start(data_dir: Path, *options: str, authority: Path | None, settings: Mapping[str, str]) -> _Running:
    log_path = data_dir.with_suffix(".log")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DISPATCHER_")}
    environment.pop("DATABASE_URL", None)
    # The machine's own name, which would be taken else, may be none that DNS knows.
    environment["DISPATCHER_WEBHOOK_ORIGIN"] = "dispatcher.test"
    environment |= settings
    if authority is not None:
        environment["SSL_CERT_FILE"] = str(authority)
    command = (sys.executable, "-m", "dispatcher.cli")
    with log_path.open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *command, "serve", "--port", "0", "--data-dir", str(data_dir), *options,
            stdout=asyncio.subprocess.PIPE, stderr=log, env=environment,
        )  # fmt: skip
    token = ""
    try:
        async with asyncio.timeout(START_WITHIN):
            assert process.stdout is not None
            async for line in process.stdout:
                word, _, rest = line.decode().strip().partition(" ")
                if word == "token":
                    token = rest
                elif word == "dispatcher":
                    url = rest.removeprefix("ready on ")
                    token = token or await _token(data_dir, environment)
                    return _Running(process=process, url=url, token=token)
    except BaseException:
        await _end(process)
        raise
    await _end(process)
    raise ConfigError(f"the dispatcher did not start: {log_path.read_text()[-500:]}")


async def _token(data_dir: Path, environment: dict[str, str]) -> str:
    scopes = [part for scope in _SCOPES for part in ("--scope", scope)]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "dispatcher.cli", "token", "create", "--account", "conformance", *scopes,
        "--data-dir", str(data_dir), stdout=asyncio.subprocess.PIPE, env=environment,
    )  # fmt: skip
    out, _ = await process.communicate()
    return out.decode().strip()


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    process.send_signal(signal.SIGTERM)
    try:
        async with asyncio.timeout(STOP_WITHIN):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


def _subscription(wish: Wish) -> bytes:
    wanted: dict[str, Any] = {
        "name": wish.event[:200],
        "events": [wish.event],
        "config": {"url": wish.url, "secret": wish.secret},
        "timeout": wish.timeout,
    }
    if wish.schemes:
        wanted["schemes"] = list(wish.schemes)
    if wish.schedule:
        wanted["retry_schedule"] = list(wish.schedule)
    if wish.handshake:
        wanted["verification"] = "handshake"
    if wish.body:
        wanted["body"] = wish.body
    return json.dumps(wanted).encode()
