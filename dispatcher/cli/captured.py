"""A request that somebody captured: raw HTTP/1.1 as it went over a socket (RFC 9112), or JSON that describes it.

JSON is `{"method", "url", "headers", "body" | "body_base64"}`: `headers` is an object (a value may be a list) or a list
of pairs, `body` the exact text, `body_base64` the exact bytes.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

_REQUEST_LINE = re.compile(r"(?P<method>[!#$%&'*+.^_`|~0-9A-Za-z-]+) (?P<target>[\x21-\x7e]+) HTTP/1\.[01]\Z")
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")
_CHUNK_SIZE = re.compile(rb"(?P<size>[0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n]*)?\Z")
#: optional white space (RFC 9110, section 5.6.3)
_SPACE = " \t"

Headers = tuple[tuple[str, str], ...]


class CaptureError(ValueError):
    """What was captured is not a whole request. The text says what is missing, and repeats no value of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Captured:
    """One request as its receiver got it."""

    method: str
    #: absolute URLs that may have been called: a raw request does not tell http from https
    urls: tuple[str, ...] = field(repr=False)
    headers: Headers = field(repr=False)
    #: without transfer coding
    body: bytes = field(repr=False)
    #: what was found odd in it
    remarks: tuple[str, ...] = ()

    def has(self, name: str) -> bool:
        """Whether there is such a header."""
        return self.header(name) is not None

    def header(self, name: str) -> str | None:
        """The first value of a header."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)


def read(content: bytes) -> Captured:
    """A request, from either form. Raises CaptureError."""
    if content.lstrip()[:1] == b"{":
        return _from_json(content)
    return _from_raw(content)


# --- raw --------------------------------------------------------------------------------------------------


def _from_raw(content: bytes) -> Captured:
    # RFC 9112, section 2.2: empty lines before the request line are ignored, and a line may end with LF alone
    lines = _Lines(content.lstrip(b"\r\n"))
    first = _REQUEST_LINE.match(lines.next_line().decode("latin-1"))
    if not first:
        raise CaptureError("The first line is not a request line, such as `POST /path HTTP/1.1`.")
    headers = tuple(_headers(lines))
    framed = _Framed(headers, lines.rest)
    return Captured(
        method=first["method"],
        urls=_urls(first["target"], headers),
        headers=headers,
        body=framed.body,
        remarks=tuple(framed.remarks),
    )


class _Lines:
    """The lines of a head, and what comes after."""

    def __init__(self, content: bytes) -> None:
        self.rest = content
        self.number = 0

    def next_line(self) -> bytes:
        line, end, rest = self.rest.partition(b"\n")
        if not end:
            raise CaptureError("There is no empty line after the headers: the request is cut off.")
        self.rest = rest
        self.number += 1
        return line.removesuffix(b"\r")


def _headers(lines: _Lines) -> Iterator[tuple[str, str]]:
    known: tuple[str, str] | None = None
    while line := lines.next_line():
        text = line.decode("latin-1")
        if text[0] in _SPACE and known is not None:
            # obsolete line folding (RFC 9112, section 5.2)
            known = (known[0], " ".join((known[1], text.strip(_SPACE))).strip())
            continue
        name, separator, value = text.partition(":")
        if not separator or not _NAME.match(name):
            raise CaptureError(f"Line {lines.number} is not a header, which is `Name: value`.")
        if known is not None:
            yield known
        known = (name, value.strip(_SPACE))
    if known is not None:
        yield known


class _Framed:
    """A body out of its framing (RFC 9112, section 6.3)."""

    def __init__(self, headers: Headers, rest: bytes) -> None:
        self.remarks: list[str] = []
        codings = [value.lower() for name, value in headers if name.lower() == "transfer-encoding"]
        lengths = {value for name, value in headers if name.lower() == "content-length"}
        if codings:
            if codings != ["chunked"]:
                raise CaptureError("Transfer-Encoding is not just `chunked`: give the body without it, as JSON.")
            self.body, rest = _unchunked(rest)
            self._note_rest(rest)
        elif lengths:
            self.body = self._counted(lengths, rest)
        else:
            self.body = rest
            if rest:
                self.remarks.append("There is no Content-Length: all that follows the headers is taken as the body.")

    def _counted(self, lengths: set[str], rest: bytes) -> bytes:
        if len(lengths) > 1:
            raise CaptureError("There are several Content-Length headers, and they differ.")
        [text] = lengths
        if not re.fullmatch(r"[0-9]{1,15}", text):
            raise CaptureError("Content-Length is not a number.")
        length = int(text)
        if len(rest) < length:
            raise CaptureError(
                f"The body has {len(rest)} of {length} bytes: the capture is cut off, or its line ends were changed."
            )
        self._note_rest(rest[length:])
        return rest[:length]

    def _note_rest(self, rest: bytes) -> None:
        if rest:
            self.remarks.append(f"{len(rest)} bytes follow the body; they are left out.")


def _unchunked(rest: bytes) -> tuple[bytes, bytes]:
    """The body of a chunked message and what comes after it (RFC 9112, section 7.1)."""
    body: list[bytes] = []
    while True:
        line, end, rest = rest.partition(b"\n")
        size = _CHUNK_SIZE.match(line.removesuffix(b"\r"))
        if not size or not end:
            what = "ends within the chunks" if body else "is not in chunks"
            raise CaptureError(
                f"Transfer-Encoding says chunked, and the body {what}. If it was decoded before, take that header out."
            )
        length = int(size["size"], 16)
        if not length:
            return b"".join(body), _without_trailers(rest)
        if len(rest) < length:
            raise CaptureError("The body ends within a chunk: the capture is cut off.")
        body.append(rest[:length])
        rest = rest[length:]
        line_end = b"\r\n" if rest.startswith(b"\r\n") else b"\n"
        if not rest.startswith(line_end):
            raise CaptureError("A chunk is longer than it says: the capture was changed.")
        rest = rest[len(line_end) :]


def _without_trailers(rest: bytes) -> bytes:
    while rest:
        line, _, rest = rest.partition(b"\n")
        if not line.removesuffix(b"\r"):
            break
    return rest


def _urls(target: str, headers: Headers) -> tuple[str, ...]:
    if re.match(r"https?://", target, re.IGNORECASE):
        return (target,)
    host = next((value for name, value in headers if name.lower() == "host"), None)
    if not host or not target.startswith("/"):
        return ()
    return (f"https://{host}{target}", f"http://{host}{target}")


# --- JSON -------------------------------------------------------------------------------------------------


def _from_json(content: bytes) -> Captured:
    try:
        request = msgspec.json.decode(content, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise CaptureError("It begins like JSON, and is not a JSON object in UTF-8.") from None
    unknown = set(request) - {"method", "url", "headers", "body", "body_base64"}
    if unknown:
        raise CaptureError("The JSON has other members than `method`, `url`, `headers`, `body` and `body_base64`.")
    method, url = request.get("method", "POST"), request.get("url")
    if not isinstance(method, str) or not _NAME.match(method):
        raise CaptureError("`method` is not the name of a method.")
    if url is not None and not (isinstance(url, str) and re.match(r"https?://[\x21-\x7e]+\Z", url, re.IGNORECASE)):
        raise CaptureError("`url` is not an absolute http or https URL.")
    return Captured(
        method=method,
        urls=() if url is None else (url,),
        headers=tuple(_json_headers(request.get("headers"))),
        body=_json_body(request),
    )


def _json_headers(headers: Any) -> Iterator[tuple[str, str]]:
    wrong = CaptureError("`headers` is an object of texts or lists of texts, or a list of [name, value] pairs.")
    if isinstance(headers, dict):
        pairs = [
            (name, value)
            for name, values in headers.items()
            for value in (values if isinstance(values, list) else [values])
        ]
    elif isinstance(headers, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in headers):
        pairs = [(name, value) for name, value in headers]
    else:
        raise wrong
    for name, value in pairs:
        if not isinstance(name, str) or not isinstance(value, str) or not _NAME.match(name):
            raise wrong
        yield name, value


def _json_body(request: dict[str, Any]) -> bytes:
    text, encoded = request.get("body"), request.get("body_base64")
    if (text is None) == (encoded is None):
        raise CaptureError("Give the body once: as `body`, its exact text, or as `body_base64`.")
    if encoded is not None:
        try:
            return base64.b64decode(encoded, validate=True)
        except (TypeError, ValueError):
            raise CaptureError("`body_base64` is not padded base64.") from None
    if not isinstance(text, str):
        raise CaptureError("`body` is not a text: what was signed are bytes, not the JSON that was read from them.")
    return text.encode()
