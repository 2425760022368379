"""Reads a task or an event out of a request: every check that needs no database, each error with its field."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request

from dispatcher import egress
from dispatcher.api import problems, shapes
from dispatcher.api.problems import invalid, too_large
from dispatcher.bodies import Body, Message, compose, rfc3339
from dispatcher.config import Settings
from dispatcher.egress import EgressPolicy, Target
from dispatcher.errors import EgressRefused, FieldError, Problem
from dispatcher.headers import RESERVED
from dispatcher.ids import new_id
from dispatcher.models import BodyMode
from dispatcher.processors.registry import RELAY, Registry
from dispatcher.store.accounts import Account
from dispatcher.store.records import Callback, IdempotencyKey, NewEvent, NewTask
from dispatcher.window import MAX_EXPIRY, Token, TokenKind, find_token
from subscriptions import signatures
from subscriptions.keyring import Keyring
from subscriptions.models import Headers
from subscriptions.secrets import Secret, SecretError
from subscriptions.secrets import check as check_secret
from subscriptions.signatures import SignatureError

#: what a task's request may hold beside its payload: URL, headers, metadata and the JSON around them, bytes
MAX_AROUND_PAYLOAD = 192 * 1024
#: bytes of a body that says nothing
MAX_EMPTY_BODY = 1024
#: a task's or a subscription's metadata, bytes
MAX_METADATA = 16 * 1024
#: seconds between the end of processing and the end of the window, at least: time for one delivery
WINDOW_SLACK = 10.0

_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"')
_BRACKET = re.compile(rb"[\[\]{}]")
_KEY = re.compile(r"[\x21-\x7e]{1,255}\Z")
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}\Z")
_HEADER_VALUE = re.compile(r"(?:[\x21-\x7e](?:[\x20-\x7e\t]*[\x21-\x7e])?)?\Z")
_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}\Z")

Shape = TypeVar("Shape", bound=msgspec.Struct)

_decode_task = msgspec.json.Decoder(shapes.TaskRequest).decode
_decode_event = msgspec.json.Decoder(shapes.EventRequest).decode


def header(request: Request, name: bytes) -> str | None:
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


def decode(body: bytes, shape: type[Shape]) -> Shape:
    """JSON as a shape. Raises Problem."""
    check_text(body)
    try:
        return msgspec.json.decode(body, type=shape)
    except (msgspec.DecodeError, RecursionError) as exc:
        raise problems.of_decoding(exc) from None


def check_text(body: bytes) -> None:
    """Raises Problem unless the bytes are UTF-8: raw payloads are kept unparsed, and JSON is UTF-8 (RFC 8259)."""
    try:
        body.decode()
    except UnicodeDecodeError:
        raise Problem("invalid-json", "The body is not valid JSON in UTF-8.") from None


def traceparent(request: Request) -> str | None:
    """The caller's trace context, to be passed on (W3C Trace Context); None if there is no valid one."""
    value = header(request, b"traceparent")
    return value if value is not None and _TRACEPARENT.match(value) else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Reader:
    """What it takes to read a task."""

    settings: Settings
    policy: EgressPolicy
    registry: Registry
    keyring: Keyring

    def task(
        self, raw: bytes | msgspec.Raw, *, account: Account, trace: str | None, prefix: str = ""
    ) -> tuple[NewTask, Token]:
        """A task, ready to be stored. `prefix` is its place in the body, as a JSON pointer. Raises Problem."""
        try:
            request = _decode_task(raw)
        except (msgspec.DecodeError, RecursionError) as exc:
            raise problems.of_decoding(exc, prefix) from None
        payload = bytes(request.payload)
        self.check_json(payload, f"{prefix}/payload", self.settings.max_body)
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
        try:
            request = _decode_event(raw)
        except (msgspec.DecodeError, RecursionError) as exc:
            raise problems.of_decoding(exc, prefix) from None
        payload = bytes(request.payload)
        self.check_json(payload, f"{prefix}/payload", self.settings.max_body)
        event = NewEvent(
            id=new_id(),
            account=account,
            type=request.type,
            payload=payload,
            reference=request.id,
            subject=request.subject,
            ordering_key=request.ordering_key,
            traceparent=trace,
        )
        if request.id is None:
            return event, None
        return event, self._key(request.id, bytes(raw), account=account, route="event id", field=f"{prefix}/id")

    def idempotency_key(self, request: Request, body: bytes, *, account: str, route: str) -> IdempotencyKey | None:
        """The request's idempotency key, if it has one. Raises Problem."""
        key = header(request, b"idempotency-key")
        if key is None:
            return None
        if not _KEY.match(key):
            raise invalid("/Idempotency-Key", "must have 1 to 255 visible ASCII characters")
        return self._key(key, body, account=account, route=route)

    def _key(self, key: str, body: bytes, *, account: str, route: str, field: str | None = None) -> IdempotencyKey:
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
        target = self.target(request.callback_url, f"{prefix}/callback_url")
        token = find_token(target.path)
        window_end = _check_window(token, request.deliver_before, timeout, prefix)
        callback = Callback(
            url=Secret(request.callback_url),
            secret=read_secret(request.secret, f"{prefix}/secret"),
            headers=self.headers(request.headers, f"{prefix}/headers") if request.headers else (),
            schemes=None if request.schemes is None else tuple(request.schemes),
            origin=target.origin,
            fingerprint=self.keyring.fingerprint(request.callback_url, account=account.id),
            token=token.kind,
            window_end=None if window_end is None else int(window_end * 1000),
        )
        schemes, secret = callback.schemes or account.schemes, callback.secret or account.default_secret
        if schemes is not None:
            check_schemes(schemes, secret, f"{prefix}/schemes" if callback.schemes else f"{prefix}/secret")
        return callback, token

    def target(self, url: str, field: str) -> Target:
        """What a URL says, vetted as far as that goes without DNS. Raises Problem."""
        if len(url) > self.settings.max_url:
            raise too_large(field, self.settings.max_url, unit="characters")
        try:
            target = egress.parse(url)
            egress.admit(target, self.policy)
        except EgressRefused as exc:
            raise Problem(
                "egress",
                "The URL is not one we send to.",
                errors=[FieldError(field=field, detail=exc.detail)],
            ) from None
        return target

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

    def metadata(self, raw: msgspec.Raw, field: str) -> bytes | None:
        """A JSON object of the caller's. Raises Problem."""
        metadata = bytes(raw)
        if metadata == b"null":
            return None
        if not metadata.startswith(b"{"):
            raise invalid(field, "must be an object")
        self.check_json(metadata, field, MAX_METADATA)
        return metadata

    def check_json(self, raw: bytes, field: str, limit: int) -> None:
        """Raises Problem when JSON is longer than `limit` bytes, or nested too deeply."""
        if len(raw) > limit:
            raise too_large(field, limit)
        if is_nested_deeper(raw, self.settings.max_nesting):
            raise invalid(field, f"must not be nested deeper than {self.settings.max_nesting}")

    def headers(self, headers: Mapping[str, str], field: str) -> Headers:
        """Custom headers of deliveries. Raises Problem for one that is not well-formed, or ours to set."""
        if len(headers) > self.settings.max_headers:
            raise invalid(field, f"must not have more than {self.settings.max_headers} headers")
        if len({name.lower() for name in headers}) < len(headers):
            raise invalid(field, "must not name a header twice")
        for name, value in headers.items():
            if not _HEADER_NAME.match(name):
                raise invalid(field, "must have header names as in RFC 9110, of at most 100 characters")
            # a JSON pointer writes ~ as ~0 (RFC 6901); a header's name has no slash
            pointer = f"{field}/{name.replace('~', '~0')}"
            # CGI folds _ into -, so there the one name is the other.
            if RESERVED.match(name.replace("_", "-")):
                raise invalid(pointer, "is a header that the dispatcher sets itself")
            if not _HEADER_VALUE.match(value):
                raise invalid(pointer, "must be printable ASCII without space at its ends")
            if len(name) + len(value) > self.settings.max_header:
                raise too_large(pointer, self.settings.max_header)
        return tuple(headers.items())


def is_nested_deeper(raw: bytes, limit: int) -> bool:
    """Whether valid JSON is nested deeper than a limit."""
    if raw.count(b"[") + raw.count(b"{") <= limit:
        return False
    depth = 0
    for bracket in _BRACKET.findall(_STRING.sub(b"", raw)):
        depth += 1 if bracket in b"[{" else -1
        if depth > limit:
            return True
    return False


def check_schemes(schemes: tuple[str, ...], secret: Secret | None, field: str, *, has_key_pair: bool = False) -> None:
    """Raises Problem unless these schemes go together and the secret, if it is known by now, can serve them."""
    named = [signatures.Scheme(scheme) for scheme in schemes]
    try:
        if secret is None:
            signatures.check_combination(named)
        else:
            signatures.check_schemes(named, secret, has_key_pair=has_key_pair)
    except SignatureError as exc:
        raise invalid(field, str(exc)) from None


def read_secret(text: str | None, field: str) -> Secret | None:
    """A secret, if one was given. Raises Problem when it cannot be used."""
    if text is None:
        return None
    try:
        return check_secret(text)
    except SecretError as exc:
        raise invalid(field, str(exc)) from None


def _check_window(token: Token, deliver_before: datetime | None, timeout: float, prefix: str) -> float | None:
    """The end of the window, Unix seconds, if there is one. Raises Problem when that is too soon."""
    if token.expires_at is None and deliver_before is None:
        return None
    ends: dict[str, float] = {}
    if token.expires_at is not None:
        ends["callback_url"] = token.expires_at
    if deliver_before is not None:
        # An offset can lead beyond the last year that a date can show.
        ends["deliver_before"] = min(deliver_before.timestamp(), MAX_EXPIRY)
    earliest = time.time() + timeout + WINDOW_SLACK
    soon = [field for field, end in ends.items() if end < earliest]
    if soon:
        raise Problem(
            "token-expired",
            "The token, or deliver_before, ends before a result could be delivered.",
            errors=[FieldError(field=f"{prefix}/{field}", detail="must not end before earliest_exp") for field in soon],
            extra={"earliest_exp": rfc3339(int(earliest * 1000) + 1000)},
        )
    return min(ends.values(), default=None)


def warnings_of(token: Token) -> list[str]:
    """What the caller should know about their callback."""
    if token.kind is TokenKind.JWT and token.expires_at is None:
        return ["the token in the callback URL has no exp, so nothing tells when to stop trying"]
    return []
