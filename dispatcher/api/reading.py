"""Reads a task or an event out of a request: every check that needs no database, each error with its field."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request

from dispatcher.api import shapes
from dispatcher.api.checking import (
    Checker,
    check_key,
    check_schemes,
    decode,
    is_traceparent,
)
from dispatcher.api.problems import invalid, too_large
from dispatcher.bodies import Body, Message, compose
from dispatcher.config import Settings
from dispatcher.egress import EgressPolicy
from dispatcher.errors import FieldError, Problem
from dispatcher.ids import new_id
from dispatcher.limits import MAX_AROUND_PAYLOAD
from dispatcher.models import BodyMode
from dispatcher.processors.registry import RELAY, Registry
from dispatcher.store.accounts import Account
from dispatcher.store.records import Callback, IdempotencyKey, NewEvent, NewTask
from dispatcher.window import Token, TokenKind
from subscriptions.keyring import Keyring
from subscriptions.secrets import Secret

#: bytes of a body that says nothing
MAX_EMPTY_BODY = 1024

Shape = TypeVar("Shape", bound=msgspec.Struct)


class Asked(Protocol):
    """What was asked, as ASGI has it: a request, of whatever kind."""

    @property
    def scope(self) -> Mapping[str, Any]: ...


def header(request: Asked, name: bytes) -> str | None:
    """A header of a request, by its name in lower case; the first one of several. What Starlette has is slower."""
    for key, value in request.scope["headers"]:
        if key == name:
            return bytes(value).decode("latin-1")
    return None


async def read_body(request: Request, *, limit: int) -> bytes:
    """The body of a request. Raises Problem `too-large` without reading further than `limit` bytes."""
    declared = header(request, b"content-length") or ""
    if declared.isdigit() and len(declared) < 20 and int(declared) > limit:
        raise too_large("", limit)
    chunks: list[bytes] = []
    size, more = 0, True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk, more = message.get("body", b""), message.get("more_body", False)
        size += len(chunk)
        if size > limit:
            raise too_large("", limit)
        chunks.append(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


async def read_shape(request: Request, shape: type[Shape], *, limit: int = MAX_AROUND_PAYLOAD) -> Shape:
    """The body of a request as a shape. Raises Problem."""
    return decode(await read_body(request, limit=limit), shape)


async def read_empty(request: Request) -> bytes:
    """The body of a request that says nothing: none, or an empty object. Raises Problem for anything else."""
    body = await read_body(request, limit=MAX_EMPTY_BODY)
    if body.strip() not in {b"", b"{}"}:
        raise invalid("", "this call takes no body")
    return body


def traceparent(request: Asked) -> str | None:
    """The caller's trace context, to be passed on; None if there is no valid one."""
    value = header(request, b"traceparent")
    return value if value is not None and is_traceparent(value) else None


class Reader(Checker):
    """What it takes to read a task."""

    def __init__(self, *, settings: Settings, policy: EgressPolicy, registry: Registry, keyring: Keyring) -> None:
        super().__init__(limits=settings.limits, policy=policy)
        self.settings = settings
        self.registry = registry
        self.keyring = keyring

    def task(
        self, raw: bytes | msgspec.Raw, *, account: Account, trace: str | None, prefix: str = ""
    ) -> tuple[NewTask, Token]:
        """A task, ready to be stored. `prefix` is its place in the body, as a JSON pointer. Raises Problem."""
        request = self.task_request(raw, prefix)
        payload = bytes(request.payload)
        timeout = self._timeout(request.type, prefix)
        callback, token = self.callback(request, account=account, timeout=timeout, prefix=prefix)
        task_id, delivery_id = new_id(), new_id()
        body: Body | None = None
        if request.type == RELAY:
            mode = request.body or BodyMode.RAW
            message = Message(
                wire_id=delivery_id,
                type=request.type,
                payload=payload,
                created_at_ms=time.time_ns() // 1_000_000,
                task_id=task_id,
            )
            body = compose(mode, message, source=self.settings.event_source)
        else:
            mode = request.body or BodyMode.ENVELOPE
        task = NewTask(
            id=task_id,
            delivery_id=delivery_id,
            account=account.id,
            type=request.type,
            body_mode=mode,
            callback=callback,
            payload=payload if body is None else None,
            body=body,
            metadata=self.metadata(request.metadata, f"{prefix}/metadata"),
            traceparent=trace,
        )
        return task, token

    def event(
        self, raw: bytes | msgspec.Raw, *, account: str, trace: str | None, prefix: str = ""
    ) -> tuple[NewEvent, IdempotencyKey | None]:
        """An event, ready to be stored, and the key that its publisher's own id of it makes. Raises Problem."""
        request = self.event_request(raw, prefix)
        event = NewEvent(
            id=new_id(),
            account=account,
            type=request.type,
            payload=bytes(request.payload),
            reference=request.id,
            subject=request.subject,
            ordering_key=request.ordering_key,
            traceparent=trace,
        )
        if request.id is None:
            return event, None
        return event, self.key_of(request.id, bytes(raw), account=account, route="event id", field=f"{prefix}/id")

    def idempotency_key(self, request: Asked, body: bytes, *, account: str, route: str) -> IdempotencyKey | None:
        """The request's idempotency key, if it has one. Raises Problem."""
        key = header(request, b"idempotency-key")
        if key is None:
            return None
        check_key(key, "/Idempotency-Key")
        return self.key_of(key, body, account=account, route=route)

    def key_of(self, key: str, body: bytes, *, account: str, route: str, field: str | None = None) -> IdempotencyKey:
        """What a key stands for: this body, sent to this route."""
        # Keyed, because the body holds a callback URL and perhaps a secret.
        fingerprint = self.keyring.fingerprint(hashlib.sha256(body).hexdigest(), account=account)
        return IdempotencyKey(account=account, route=route, key=key, fingerprint=fingerprint.encode(), field=field)

    def callback(
        self,
        request: shapes.TaskRequest | shapes.CallbackRequest,
        *,
        account: Account,
        timeout: float,
        prefix: str = "",
    ) -> tuple[Callback, Token]:
        """A callback, vetted as far as that goes without DNS, and the token in its URL. Raises Problem."""
        destination = self.destination(request, timeout=timeout, prefix=prefix)
        callback = Callback(
            url=Secret(request.callback_url),
            secret=destination.secret,
            headers=destination.headers,
            schemes=destination.schemes,
            origin=destination.target.origin,
            fingerprint=self.keyring.fingerprint(request.callback_url, account=account.id),
            token=destination.token.kind,
            window_end=None if destination.window_end is None else int(destination.window_end * 1000),
        )
        schemes, secret = callback.schemes or account.schemes, callback.secret or account.default_secret
        if schemes is not None:
            check_schemes(schemes, secret, f"{prefix}/schemes" if callback.schemes else f"{prefix}/secret")
        return callback, destination.token

    def _timeout(self, task_type: str, prefix: str) -> float:
        if task_type == RELAY:
            return 0.0
        processor = self.registry.get(task_type)
        if processor is None:
            raise Problem(
                "unknown-type",
                "GET /processors lists the types there are.",
                errors=[FieldError(field=f"{prefix}/type", detail="is not the name of a processor")],
            )
        return processor.timeout


def warnings_of(token: Token) -> list[str]:
    """What the caller should know about their callback."""
    if token.kind is TokenKind.JWT and token.expires_at is None:
        return ["the token in the callback URL has no exp, so nothing tells when to stop trying"]
    return []
