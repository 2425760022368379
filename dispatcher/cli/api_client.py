"""Subscriptions by the API of a server."""

from __future__ import annotations

import ssl
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

import httpx
import msgspec
from msgspec import Raw, Struct

from dispatcher.api import shapes
from dispatcher.api import subscription_reading as reading
from dispatcher.api.checking import decode
from dispatcher.api.problems import MEDIA_TYPE
from dispatcher.api.shapes.subscriptions import PATH
from dispatcher.cli.clients import Revealed
from dispatcher.errors import PROBLEMS, ConfigError, FieldError, Problem
from subscriptions.secrets import Secret

Shape = TypeVar("Shape")

#: subscriptions in one page
PAGE = 200
#: seconds; an answer may have to wait for what an endpoint says to a ping
TIMEOUT = httpx.Timeout(10.0, connect=5.0, read=90.0)

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


class _Subscription(shapes.Subscription, kw_only=True):
    """A subscription as it is read: msgspec cannot read a union with raw JSON, so null is raw, too."""

    metadata: Raw


class _Page(Struct, kw_only=True):
    """One page of subscriptions."""

    items: list[_Subscription]
    next_cursor: str | None


class ApiClient:
    """The subscriptions of the account that a token speaks for. An async context manager."""

    later = "the ping is still under way; `show` tells what came of it"
    takes_seeds = False

    def __init__(self, url: str, token: Secret) -> None:
        """`url` is one that `check_url` has passed."""
        is_secure = url.startswith("https:")
        self._http = httpx.AsyncClient(
            base_url=url,
            headers={"Authorization": f"Bearer {token.reveal()}", "Accept": "application/json"},
            timeout=TIMEOUT,
            follow_redirects=False,
            # A proxy of the environment is for other machines: plain http goes to this one only, and needs none of
            # the world's authorities, which take longer to load than an answer.
            trust_env=is_secure,
            verify=True if is_secure else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
        )

    async def close(self) -> None:
        """Close the connection."""
        await self._http.aclose()

    async def create(self, body: bytes, *, seed: bytes | None = None) -> shapes.Subscription:
        """Create a subscription."""
        if seed is not None:
            raise ConfigError("the API takes no private keys")
        return _one(await self._send("POST", PATH, body))

    async def check(self, body: bytes) -> None:
        """Check the form; what a server checks beyond it is not known here."""
        reading.wanted_active(decode(body, shapes.SubscriptionRequest))

    async def list_all(self, *, is_active: bool | None) -> list[shapes.Subscription]:
        """All subscriptions, newest first."""
        params: dict[str, str] = {"limit": str(PAGE)}
        if is_active is not None:
            params["is_active"] = "true" if is_active else "false"
        items: list[shapes.Subscription] = []
        while True:
            page = _read(await self._send("GET", PATH, params=params), _Page)
            items += map(_plain, page.items)
            if page.next_cursor is None:
                return items
            params["cursor"] = page.next_cursor

    async def read(self, id_: str) -> shapes.Subscription:
        """One subscription, with its recent history."""
        return _one(await self._send("GET", _path(id_)))

    async def secrets(self, id_: str) -> list[shapes.SecretView]:
        """A subscription's secrets, newest first."""
        return _read(await self._send("GET", _path(id_, "secrets")), shapes.SecretList).items

    async def rotate(self, id_: str, body: bytes) -> shapes.SecretView:
        """Give a subscription a new secret."""
        return _read(await self._send("POST", _path(id_, "secrets"), body), shapes.SecretView)

    async def revoke(self, id_: str, secret_id: str) -> None:
        """End a secret at once."""
        await self._send("DELETE", _path(id_, "secrets", secret_id))

    async def enable(self, id_: str, body: bytes) -> shapes.Subscription:
        """Enable a subscription, once its endpoint has answered."""
        return _one(await self._send("POST", _path(id_, "enable"), body))

    async def disable(self, id_: str) -> shapes.Subscription:
        """Disable a subscription."""
        return _one(await self._send("POST", _path(id_, "disable")))

    async def ping(self, id_: str) -> shapes.Ping:
        """Send a signed ping, and wait for what comes of it."""
        return _read(await self._send("POST", _path(id_, "ping")), shapes.Ping)

    async def delete(self, id_: str) -> None:
        """Delete a subscription."""
        await self._send("DELETE", _path(id_))

    async def reveal(self, ids: Sequence[str]) -> dict[str, Revealed]:  # noqa: ARG002 - see the Protocol
        """The API never shows what is secret."""
        raise ConfigError("the API never shows URLs and secrets; export them on the server's machine, with --account")

    async def _send(
        self, method: str, path: str, body: bytes | None = None, *, params: Mapping[str, str] | None = None
    ) -> bytes:
        headers = {} if body is None else {"Content-Type": "application/json"}
        try:
            answer = await self._http.request(method, path, content=body, params=params, headers=headers)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError):
            raise Problem("unavailable", f"There is no answer from {self._http.base_url.host}.") from None
        except httpx.HTTPError as exc:
            fate = "" if method == "GET" else " It may have been done: look before you try again."
            raise Problem("unavailable", f"The answer did not come ({type(exc).__name__}).{fate}") from None
        if not answer.is_success:
            raise _problem(answer)
        return answer.content


def check_url(url: str) -> str:
    """The URL of an API, without a slash at its end. Raises ConfigError unless it can be one."""
    try:
        parts = urlsplit(url)
        is_right = parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        is_right = False
    if not is_right or not url.isascii() or not url.isprintable() or " " in url:
        raise ConfigError("the server's URL is http:// or https://, and a host")
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise ConfigError("the server's URL has no user, query or fragment; the token stands in a file")
    return url.rstrip("/")


def is_in_clear(url: str) -> bool:
    """Whether a token sent there can be read on the way."""
    parts = urlsplit(url)
    return parts.scheme == "http" and parts.hostname not in _LOOPBACK


def check_token(text: str) -> Secret:
    """A bearer token. Raises ConfigError unless it can be one (RFC 6750, section 2.1)."""
    token = text.strip()
    if not token or not all("\x21" <= character <= "\x7e" for character in token):
        raise ConfigError("the API token is one word of ASCII")
    return Secret(token)


def _path(*parts: str) -> str:
    return "/".join([PATH, *(quote(part, safe="") for part in parts)])


def _read(body: bytes, shape: type[Shape]) -> Shape:
    try:
        return msgspec.json.decode(body, type=shape)
    except (msgspec.DecodeError, RecursionError):
        raise Problem("unavailable", "The answer is not one that this version knows.") from None


def _one(body: bytes) -> shapes.Subscription:
    return _plain(_read(body, _Subscription))


def _plain(read: _Subscription) -> shapes.Subscription:
    fields = {name: getattr(read, name) for name in read.__struct_fields__}
    return shapes.Subscription(**fields | {"metadata": None if bytes(read.metadata) == b"null" else read.metadata})


def _problem(answer: httpx.Response) -> Problem:
    """The problem that an answer is."""
    strange = Problem(
        "unavailable", f"The answer was status {answer.status_code}, and not one of a dispatcher's problems."
    )
    if answer.headers.get("content-type", "").partition(";")[0] != MEDIA_TYPE:
        return strange
    try:
        body: dict[str, Any] = msgspec.json.decode(answer.content, type=dict[str, Any])
        slug = str(body.pop("type")).rpartition("/")[2]
        if slug not in PROBLEMS:
            return strange
        errors = [
            FieldError(field=str(error["field"]), detail=str(error["detail"])) for error in body.pop("errors", ())
        ]
        detail = str(body.pop("detail", ""))
    except (msgspec.DecodeError, KeyError, TypeError):
        return strange
    extra = {name: value for name, value in body.items() if name not in {"title", "status"}}
    return Problem(slug, detail, errors=errors, status=answer.status_code, extra=extra)
