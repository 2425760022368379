"""This dispatcher as a sender under examination: a server of its own, driven by its API like anybody's.

Two of them: one with --dev, which may send to loopback, and one as in production, which must not.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from dispatcher.conformance.sender_examination.senders import ABILITIES, Names, Refused, Subscribed, Wish
from dispatcher.errors import ConfigError

#: seconds within which it has to start, and to stop
START_WITHIN = 30.0
STOP_WITHIN = 15.0
#: seconds within which its API answers
ANSWER_WITHIN = 60.0

#: an account's scopes that this needs
_SCOPES = ("tasks:write", "events:write", "subscriptions:read", "subscriptions:write")


class OurSender:
    """`dispatcher serve`, examined. An async context manager."""

    name = "webhook-dispatcher"
    abilities = frozenset(ABILITIES)
    names = Names()

    def __init__(self, *, authority: Path | None = None) -> None:
        """`authority`: a certificate in PEM that it trusts beside no other."""
        self._authority = authority
        self._stack = contextlib.AsyncExitStack()
        self._api: httpx.AsyncClient
        self._strict: httpx.AsyncClient

    async def __aenter__(self) -> Self:
        directory = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="conformance-")))
        try:
            self._api = await self._serve(directory / "dev", "--dev")
            self._strict = await self._serve(directory / "strict")
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def _serve(self, data_dir: Path, *options: str) -> httpx.AsyncClient:
        server = await _start(data_dir, *options, authority=self._authority)
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

    async def refuses(self, url: str) -> bool:
        """Whether the server without --dev takes this URL neither for a subscription nor for a callback.

        What it takes it may dial: ask only for what leads to this machine.
        """
        wish = Wish(url=url, event="strict", secret="not-used-anywhere")  # noqa: S106 - nothing is sent with it
        calls = (
            ("/webhooks/subscriptions", _subscription(wish)),
            ("/tasks", json.dumps({"payload": 1, "callback_url": url}).encode()),
        )
        refused = 0
        for path, body in calls:
            try:
                await self._send(self._strict, "POST", path, body)
            except Refused:
                refused += 1
        return refused == len(calls)

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


async def _start(data_dir: Path, *options: str, authority: Path | None) -> _Running:
    log_path = data_dir.with_suffix(".log")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DISPATCHER_")}
    environment.pop("DATABASE_URL", None)
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
    return json.dumps(wanted).encode()
