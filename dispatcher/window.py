"""The token in a callback's URL, read for the time it ends. It is not ours, so it is never verified.

Nothing here logs, and no result or error holds any part of the URL.
"""

from __future__ import annotations

import base64
import functools
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
#: what every token begins with, and most tokens of one issuer share: headers of tokens that are remembered, and the
#: longest of them, characters
KNOWN_HEADERS = 256
MAX_KNOWN_HEADER = 512

_AUTHORITY = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*")
_JWT = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.[A-Za-z0-9_-]*")
_TOKEN_TEXT = re.compile(rf"[A-Za-z0-9._~+/=:-]{{{OPAQUE_LENGTH},}}")
_UUID = re.compile(r"[0-9a-f]{8}(-?)[0-9a-f]{4}\1[0-9a-f]{4}\1[0-9a-f]{4}\1[0-9a-f]{12}", re.IGNORECASE)


# every number as a float: a whole one of any length is then at worst infinite
_parse_json = json.JSONDecoder(parse_int=float).decode


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


_NOTHING = Token(kind=TokenKind.NONE)
_OPAQUE = Token(kind=TokenKind.OPAQUE)


def find_token(target: str) -> Token:
    """What the path segments and query values of a URL (or of a request target) carry.

    Each is percent-decoded once. A JWT (RFC 7519) is three base64url parts, of which the first is a JSON
    object with `alg` and the second a JSON object; of several, the earliest `exp` counts. `exp` is a number
    of seconds from 0 to the year 9999; anything else counts as absent. Opaque is a text of at least 16
    letters, digits and `._~+/=:-`, with a letter, a digit and 10 different characters, that is not a UUID.
    Takes any text, and never raises.
    """
    if len(target) < OPAQUE_LENGTH:
        return _NOTHING
    candidates = list(_candidates(target[:MAX_TARGET]))
    payloads = [payload for payload in map(_jwt_payload, candidates) if payload is not None]
    if payloads:
        ends = [end for end in map(_expiry, payloads) if end is not None]
        return Token(kind=TokenKind.JWT, expires_at=min(ends, default=None))
    return _OPAQUE if any(map(_looks_opaque, candidates)) else _NOTHING


def _candidates(target: str) -> Iterator[str]:
    """Those of the first texts that are long enough. No JWT is shorter than what is opaque: its header alone has 14
    characters; and percent-decoding makes nothing longer."""
    return (
        unquote(text) if "%" in text else text
        for text in islice(_texts(target), MAX_CANDIDATES)
        if len(text) >= OPAQUE_LENGTH
    )


def _texts(target: str) -> Iterator[str]:
    authority = _AUTHORITY.match(target)
    path, _, query = target[authority.end() if authority else 0 :].partition("#")[0].partition("?")
    yield from path.split("/")
    for pair in query.split("&"):
        name, equals, value = pair.partition("=")
        yield value if equals else name


def _jwt_payload(text: str) -> dict[str, object] | None:
    parts = _JWT.fullmatch(text)
    if parts is None:
        return None
    header, payload = parts.groups()
    is_header = _is_known_header if len(header) <= MAX_KNOWN_HEADER else _is_header
    return _json_object(payload) if is_header(header) else None


def _is_header(part: str) -> bool:
    header = _json_object(part)
    return header is not None and isinstance(header.get("alg"), str)


_is_known_header = functools.lru_cache(KNOWN_HEADERS)(_is_header)


def _json_object(part: str) -> dict[str, object] | None:
    try:
        value = _parse_json(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)).decode())
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
