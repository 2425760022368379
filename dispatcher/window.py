"""The token in a callback's URL, read for the time it ends. It is not ours, so it is never verified.

Nothing here logs, and no result or error holds any part of the URL.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from urllib.parse import unquote

#: characters of a target that are looked at; the URL limit of the API is below this
MAX_TARGET = 16_384
#: path segments and query values that are looked at
MAX_CANDIDATES = 64
#: Unix seconds at the end of the year 9999; a later `exp` is no time
MAX_EXPIRY = 253_402_300_799
#: characters from which on a text may be a credential
OPAQUE_LENGTH = 16
#: different characters that such a text has at least
OPAQUE_VARIETY = 10

_AUTHORITY = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*")
_JWT = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.[A-Za-z0-9_-]*")
_TOKEN_TEXT = re.compile(rf"[A-Za-z0-9._~+/=:-]{{{OPAQUE_LENGTH},}}")
_UUID = re.compile(r"[0-9a-f]{8}(-?)[0-9a-f]{4}\1[0-9a-f]{4}\1[0-9a-f]{4}\1[0-9a-f]{12}", re.IGNORECASE)


class TokenKind(StrEnum):
    """What a callback's URL seems to carry."""

    #: nothing that looks like a credential
    NONE = "none"
    #: something that looks like one, and says nothing about its end
    OPAQUE = "opaque"
    #: a JSON Web Token
    JWT = "jwt"


@dataclass(frozen=True, kw_only=True, slots=True)
class Token:
    """What was found in a callback's URL; never the token itself."""

    #: what it seems to be
    kind: TokenKind
    #: Unix seconds at which it ends; None where it does not say so in a usable way
    expires_at: float | None = None


def find_token(target: str) -> Token:
    """What the path segments and query values of a URL (or of a request target) carry.

    Each is percent-decoded once. A JWT (RFC 7519) is three base64url parts, of which the first is a JSON
    object with `alg` and the second a JSON object; of several, the earliest `exp` counts. `exp` is a number
    of seconds from 0 to the year 9999; anything else counts as absent. Opaque is a text of at least 16
    letters, digits and `._~+/=:-`, with a letter, a digit and 10 different characters, that is not a UUID.
    Takes any text, and never raises.
    """
    candidates = list(islice(_candidates(target[:MAX_TARGET]), MAX_CANDIDATES))
    payloads = [payload for payload in map(_jwt_payload, candidates) if payload is not None]
    if payloads:
        ends = [end for end in map(_expiry, payloads) if end is not None]
        return Token(kind=TokenKind.JWT, expires_at=min(ends, default=None))
    if any(map(_looks_opaque, candidates)):
        return Token(kind=TokenKind.OPAQUE)
    return Token(kind=TokenKind.NONE)


def _candidates(target: str) -> Iterator[str]:
    authority = _AUTHORITY.match(target)
    path, _, query = target[authority.end() if authority else 0 :].partition("#")[0].partition("?")
    for segment in path.split("/"):
        yield unquote(segment)
    for pair in query.split("&"):
        name, equals, value = pair.partition("=")
        yield unquote(value if equals else name)


def _jwt_payload(text: str) -> dict[str, object] | None:
    parts = _JWT.fullmatch(text)
    if parts is None:
        return None
    header = _json_object(parts[1])
    if header is None or not isinstance(header.get("alg"), str):
        return None
    return _json_object(parts[2])


def _json_object(part: str) -> dict[str, object] | None:
    try:
        text = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)).decode()
        # every number as a float: a whole one of any length is then at worst infinite
        value = json.loads(text, parse_int=float)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _expiry(payload: dict[str, object]) -> float | None:
    end = payload.get("exp")
    if isinstance(end, float) and math.isfinite(end) and 0 <= end <= MAX_EXPIRY:
        return end
    return None


def _looks_opaque(text: str) -> bool:
    return (
        _TOKEN_TEXT.fullmatch(text) is not None
        and any(character.isalpha() for character in text)
        and any(character.isdigit() for character in text)
        and len(set(text)) >= OPAQUE_VARIETY
        and _UUID.fullmatch(text) is None
    )
