"""Checks of what somebody asks for that need neither a request nor a database, each error with its field.

`reading` makes them of what comes over HTTP; `dispatcher.outbox` makes them in the process of whoever publishes by a
database of their own, and so loads nothing of the server here.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from datetime import datetime
from typing import TypeVar

import msgspec

from dispatcher import egress
from dispatcher.api import problems, shapes
from dispatcher.api.problems import invalid, too_large
from dispatcher.bodies import rfc3339
from dispatcher.discreet import Discreet
from dispatcher.egress import EgressPolicy, Target
from dispatcher.errors import EgressRefused, FieldError, Problem
from dispatcher.headers import RESERVED
from dispatcher.limits import MAX_METADATA, Limits
from dispatcher.window import MAX_EXPIRY, Token, find_token
from subscriptions import signatures
from subscriptions.models import Headers
from subscriptions.secrets import Secret, SecretError
from subscriptions.secrets import check as check_secret
from subscriptions.signatures import SignatureError

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


def check_key(key: str, field: str) -> None:
    """Raises Problem unless this can be an idempotency key."""
    if not _KEY.match(key):
        raise invalid(field, "must have 1 to 255 visible ASCII characters")


def check_traceparent(text: str, field: str) -> None:
    """Raises Problem unless this is a trace context."""
    if not is_traceparent(text):
        raise invalid(field, "must be as in W3C Trace Context")


def is_traceparent(text: str) -> bool:
    """Whether this is a trace context (W3C Trace Context)."""
    return _TRACEPARENT.match(text) is not None


class Destination(Discreet, frozen=True, kw_only=True):
    """Where a callback goes, as far as that can be told without DNS."""

    HIDDEN = ("headers",)

    target: Target
    #: what was found in its URL
    token: Token
    #: Unix seconds after which it cannot be used; None if nothing says so
    window_end: float | None
    #: signs the deliveries; None leaves it to the account's default
    secret: Secret | None
    headers: Headers
    #: None means the account's
    schemes: tuple[str, ...] | None


class Checker:
    """What it takes to check a task or an event: how much is taken, and what may be sent to."""

    def __init__(self, *, limits: Limits, policy: EgressPolicy) -> None:
        self.limits = limits
        self.policy = policy

    def task_request(self, raw: bytes | msgspec.Raw, prefix: str = "") -> shapes.TaskRequest:
        """A task as it was asked for. Its callback is for `destination`. Raises Problem."""
        try:
            request = _decode_task(raw)
        except (msgspec.DecodeError, RecursionError) as exc:
            raise problems.of_decoding(exc, prefix) from None
        self.check_json(bytes(request.payload), f"{prefix}/payload", self.limits.max_body)
        return request

    def event_request(self, raw: bytes | msgspec.Raw, prefix: str = "") -> shapes.EventRequest:
        """An event as it was published. Raises Problem."""
        try:
            request = _decode_event(raw)
        except (msgspec.DecodeError, RecursionError) as exc:
            raise problems.of_decoding(exc, prefix) from None
        self.check_json(bytes(request.payload), f"{prefix}/payload", self.limits.max_body)
        return request

    def destination(
        self, request: shapes.TaskRequest | shapes.CallbackRequest, *, timeout: float, prefix: str = ""
    ) -> Destination:
        """A callback, with `timeout` seconds of work before it. Raises Problem."""
        target = self.target(request.callback_url, f"{prefix}/callback_url")
        token = find_token(target.path)
        return Destination(
            target=target,
            token=token,
            window_end=_check_window(token, request.deliver_before, timeout, prefix),
            secret=read_secret(request.secret, f"{prefix}/secret"),
            headers=self.headers(request.headers, f"{prefix}/headers") if request.headers else (),
            schemes=None if request.schemes is None else tuple(request.schemes),
        )

    def target(self, url: str, field: str) -> Target:
        """What a URL says, vetted as far as that goes without DNS. Raises Problem."""
        if len(url) > self.limits.max_url:
            raise too_large(field, self.limits.max_url, unit="characters")
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
        if is_nested_deeper(raw, self.limits.max_nesting):
            raise invalid(field, f"must not be nested deeper than {self.limits.max_nesting}")

    def headers(self, headers: Mapping[str, str], field: str) -> Headers:
        """Custom headers of deliveries. Raises Problem for one that is not well-formed, or ours to set."""
        if len(headers) > self.limits.max_headers:
            raise invalid(field, f"must not have more than {self.limits.max_headers} headers")
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
            if len(name) + len(value) > self.limits.max_header:
                raise too_large(pointer, self.limits.max_header)
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
