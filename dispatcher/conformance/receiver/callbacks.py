"""Callback URLs that carry their own permission: `https://host/<path>/<res_id>/<jwt>`.

Whoever starts a long job hands such a URL to it. The token allows one result, at one place, until a set time; the
service that takes results keeps no list of the URLs it gave away. The token's claims are `_id` (under which the result
is to be stored), `path`, `res_id` and `exp`. A URL like that is a credential: it never belongs in a log.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote, unquote, urlsplit

import jwt

from dispatcher.conformance.receiver.memory import Memory
from dispatcher.errors import ConfigError

#: the only algorithm, whatever a token's header says (RFC 8725 §3.1)
ALGORITHM = "HS256"
#: bytes; a shorter key could be found by trying (RFC 7518 §3.2)
MIN_SECRET = 32
#: characters of a path that are looked at
MAX_PATH = 8192

_PATH = re.compile(r"(?:/[A-Za-z0-9._~-]+)+")


@dataclass(frozen=True, kw_only=True, slots=True)
class Claims:
    """What a good token allows."""

    #: claim `_id`
    id: str
    path: str
    res_id: str
    #: claim `exp`: Unix seconds; at this moment it is over
    expires_at: float

    @property
    def key(self) -> tuple[str, str, str]:
        """What makes one permission another."""
        return (self.path, self.res_id, self.id)


@dataclass(frozen=True, kw_only=True, slots=True)
class CallbackRefused:
    """Why a URL is refused, without any part of it."""

    #: 401: no good token; 403: a good token, but not for this; 503: ask again
    status: int
    reason: str


class CallbackIssuer:
    """Makes callback URLs, and checks the paths that they come back as.

    `secret` has at least 32 bytes of UTF-8. With `single_use`, each permission is good for one result, and up to
    `capacity` used ones are remembered, each until its token has expired. Raises ConfigError.
    """

    def __init__(self, secret: str, *, single_use: bool = False, capacity: int = 100_000) -> None:
        if len(secret.encode()) < MIN_SECRET:
            raise ConfigError(f"the secret of callbacks has at least {MIN_SECRET} bytes")
        if capacity < 1:
            raise ConfigError("the capacity of callbacks is at least 1")
        self._secret = secret
        self.single_use = single_use
        self._used = Memory(capacity)

    def url(self, base: str, *, id: str, path: str, res_id: str, ttl: float, now: float | None = None) -> str:  # noqa: A002 - the claim's name
        """A callback URL, good for `ttl` seconds from now.

        `base` is scheme and host; `path` is plain segments, such as /results. Raises ConfigError, without any part of
        the URL, when one of them is not fit for it.
        """
        place = "/" + path.strip("/")
        if not _PATH.fullmatch(place) or not _has_no_dots(place):
            raise ConfigError("the path of a callback has segments of letters, digits and ._~- between slashes")
        if not id or not res_id or res_id in {".", ".."}:
            raise ConfigError("a callback needs an id and a res_id")
        if not (_is_text(id) and _is_text(res_id)):
            raise ConfigError("the id and the res_id of a callback are texts that UTF-8 can hold")
        if not (math.isfinite(ttl) and ttl > 0):
            raise ConfigError("ttl, the life of a callback, is a number of seconds above 0")
        # rounded up: a life below a second would be over at once
        end = math.ceil((time.time() if now is None else now) + ttl)
        claims = {"_id": id, "path": place, "res_id": res_id, "exp": end}
        token = jwt.encode(claims, self._secret, algorithm=ALGORITHM)
        return f"{_origin(base)}{place}/{quote(res_id, safe='')}/{token}"

    def check(self, path: str, now: float | None = None) -> Claims | CallbackRefused:
        """What the path of a request allows, or why nothing; with `single_use`, only once. `path` as it was sent."""
        moment = time.time() if now is None else now
        found = self.read(path, moment)
        if isinstance(found, Claims):
            self.use(found, moment)
        return found

    def read(self, path: str, now: float, *, is_repeat: bool = False) -> Claims | CallbackRefused:
        """As `check`, but nothing counts as used by it. A repeat may come with what was used."""
        prefix, _, rest = path.rpartition("/")
        prefix, _, segment = prefix.rpartition("/")
        if len(path) > MAX_PATH or not prefix or not segment or not rest:
            return CallbackRefused(status=401, reason="the path carries no token")
        found = self._claims(rest, now)
        if isinstance(found, CallbackRefused):
            return found
        if "/" + found.path.removeprefix("/") != prefix:
            return CallbackRefused(status=403, reason="the token is for another path")
        if found.res_id != unquote(segment):
            return CallbackRefused(status=403, reason="the token is for another resource")
        if self.single_use and not is_repeat:
            return self._unused(found, now)
        return found

    def use(self, claims: Claims, now: float) -> None:
        """From now on the permission counts as used. Nothing happens without `single_use`."""
        if self.single_use:
            self._used.add(claims.key, now=now, needed=claims.expires_at)

    def release(self, claims: Claims) -> None:
        """As if it had not been used: what came with it could not be processed."""
        self._used.forget(claims.key)

    def _claims(self, token: str, now: float) -> Claims | CallbackRefused:
        """Which claims a token has, whatever it was sent to."""
        try:
            # times are compared below, with the caller's clock
            values = jwt.decode(
                token,
                self._secret,
                algorithms=[ALGORITHM],
                options={
                    "require": ["_id", "path", "res_id", "exp"],
                    "verify_exp": False,
                    "verify_nbf": False,
                    "verify_iat": False,
                },
            )
        except (jwt.InvalidTokenError, ValueError, TypeError, RecursionError):
            return CallbackRefused(status=401, reason="the token is not valid")
        end, start = _time(values, "exp"), _time(values, "nbf") if "nbf" in values else -math.inf
        texts = [values[name] for name in ("_id", "path", "res_id")]
        if end is None or start is None or not all(isinstance(text, str) and text for text in texts):
            return CallbackRefused(status=401, reason="the token is not valid")
        if now >= end:
            return CallbackRefused(status=401, reason="the token has expired")
        if now < start:
            return CallbackRefused(status=401, reason="the token is not valid yet")
        return Claims(id=values["_id"], path=values["path"], res_id=values["res_id"], expires_at=end)

    def _unused(self, claims: Claims, now: float) -> Claims | CallbackRefused:
        # by its claims: the text of one token can be written in four ways (unused bits at the end of its base64)
        if self._used.has(claims.key, now):
            return CallbackRefused(status=403, reason="the token has been used")
        if not self._used.has_room(now):
            return CallbackRefused(status=503, reason="too many used tokens are remembered")
        return claims


def _origin(base: str) -> str:
    try:
        parts = urlsplit(base)
        _ = parts.port
    except ValueError:
        raise ConfigError("the base of a callback is no URL") from None
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username is not None:
        raise ConfigError("the base of a callback is http or https and a host")
    if parts.path.strip("/") or parts.query or parts.fragment:
        raise ConfigError("the base of a callback ends with its host: name the rest in the path")
    return f"{parts.scheme}://{parts.netloc}"


def _is_text(text: str) -> bool:
    # JSON can escape half a surrogate pair, which is no character
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _has_no_dots(path: str) -> bool:
    # clients take such segments out before they send
    return not {".", ".."} & set(path.split("/"))


def _time(values: Mapping[str, object], name: str) -> float | None:
    """A NumericDate (RFC 7519 §2); None if it is none."""
    value = values[name]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None
