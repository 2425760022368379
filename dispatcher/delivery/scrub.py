"""Takes what identifies a delivery's endpoint out of texts that are kept: answers and errors.

An endpoint may echo the request it got. Its URL is a credential, so the echo must not outlive the request, whether
it comes as it was, cut short, or escaped for JSON, HTML or a URL.
"""

from __future__ import annotations

import base64
import functools
import html
import re
from collections.abc import Iterable, Iterator
from urllib.parse import unquote

from subscriptions.models import Headers
from subscriptions.secrets import PREFIX, Secret

REDACTED = "[redacted]"
#: characters from which on a part of a URL could be told from a common word
MIN_PART = 6
#: characters that give away the beginning of a longer credential, whatever of it follows
TELLING_START = 12
#: escapings within escapings that are undone
MAX_LAYERS = 3
#: characters of an answer's body that are kept
KEPT_BODY = 2048
#: bytes of it that are looked at for that
SEEN_BODY = KEPT_BODY + 10_000
#: things to look for, beyond which nothing of an answer is kept: looking would take too long
MAX_NEEDLES = 300
#: headers of an answer that are kept, and characters of each
KEPT_HEADERS = 30
KEPT_HEADER = 300

#: headers with values that any server sends to anybody
_COMMON = {
    "connection": re.compile(r"close|keep-alive", re.IGNORECASE),
    "content-length": re.compile(r"[0-9]{1,5}"),
    "content-type": re.compile(
        r"(?:application/(?:problem\+)?json|text/(?:plain|html))(?:; ?charset=utf-8)?", re.IGNORECASE
    ),
    "date": re.compile(r"[A-Z][a-z]{2}, [0-9]{2} [A-Z][a-z]{2} [0-9]{4} [0-9]{2}:[0-9]{2}:[0-9]{2} GMT"),
    "keep-alive": re.compile(r"timeout=[0-9]{1,3}(?:, max=[0-9]{1,4})?"),
    "server": re.compile(r"(?:nginx|cloudflare|uvicorn|gunicorn|envoy|Apache)(?:/[0-9]{1,2}(?:\.[0-9]{1,2}){1,2})?"),
    "transfer-encoding": re.compile(r"chunked", re.IGNORECASE),
}
_BETWEEN_PARTS = re.compile(r"[/?&=;#]")
_TOKEN_REST = r"[\w.~+/=%-]*"  # noqa: S105 - a pattern, not a token
_ESCAPING = re.compile(r"[%&\\]")
_BACKSLASHED = re.compile(r"\\+(?:u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2}))?")


#: headers of whole answers that tell nothing: for a second, most answers of a server have the same ones
_seen_plain: set[Headers] = set()
#: of which so many are remembered
MAX_PLAIN = 1024


def is_plain(headers: Headers, body: bytes) -> bool:
    """Whether an answer can say nothing about the request, whatever that was: all of it is kept, as it is."""
    if body:
        return False
    if headers in _seen_plain:
        return True
    if len(headers) > KEPT_HEADERS or not all(_tells_nothing(name, value) for name, value in headers):
        return False
    if len(_seen_plain) >= MAX_PLAIN:
        _seen_plain.clear()
    _seen_plain.add(headers)
    return True


class Scrubber:
    """Removes one endpoint's URL parts, secrets and header values from texts."""

    def __init__(self, headers: Headers, *, path: str, secrets: Iterable[Secret]) -> None:
        self._headers_sent = headers
        self._path = path
        self._secrets = secrets

    @functools.cached_property
    def _needles(self) -> set[str]:
        # Only when there is something to look at: most answers have no body, and headers that tell nothing.
        needles = _needles(self._headers_sent, self._path, self._secrets)
        return {needle for needle in needles if len(needle) >= MIN_PART}

    @property
    def _blind(self) -> bool:
        return len(self._needles) > MAX_NEEDLES

    @functools.cached_property
    def _starts(self) -> set[str]:
        return {needle[:TELLING_START] for needle in self._needles if len(needle) > TELLING_START}

    @functools.cached_property
    def _folded(self) -> set[str]:
        return {needle.casefold() for needle in self._needles | self._starts}

    def text(self, text: str) -> str:
        """The text without them; nothing of it, if one is in there that only shows when escapes are undone."""
        if self._blind:
            return REDACTED
        if self._is_clean(text):
            return text
        scrubbed = self._pattern.sub(REDACTED, text) if self._pattern else text
        if _ESCAPING.search(scrubbed):
            plain = _unescaped(scrubbed)
            if any(needle in plain for needle in self._plain):
                return REDACTED
        return scrubbed

    def _is_clean(self, text: str) -> bool:
        """Whether it can be seen without more ado that there is nothing to take out: of most answers it can.

        To compile the pattern takes longer than all else that is done for an attempt.
        """
        if not text.isascii() or _ESCAPING.search(text):
            return False
        folded = text.casefold()
        return not any(needle in folded for needle in self._folded)

    @functools.cached_property
    def _pattern(self) -> re.Pattern[str] | None:
        # The longest first: a part of a needle must not be taken out of its middle.
        whole = [re.escape(needle) for needle in sorted(self._needles, key=len, reverse=True)]
        begun = [re.escape(start) + _TOKEN_REST for start in sorted(self._starts)]
        return re.compile("|".join([*whole, *begun]), re.IGNORECASE) if whole else None

    @functools.cached_property
    def _plain(self) -> set[str]:
        return {_unescaped(needle) for needle in self._needles | self._starts}

    def answer(self, headers: Headers, body: bytes) -> tuple[Headers, str | None]:
        """What is kept of an answer: its headers and its body."""
        return self._headers(headers), self._body(body)

    def _body(self, body: bytes) -> str | None:
        if not body:
            return None
        if b"\0" in body:
            # Not text, or text in an encoding in which nothing would be recognised.
            return REDACTED
        # What is looked at reaches beyond what is kept by more than the longest URL.
        return self.text(body[:SEEN_BODY].decode(errors="replace"))[:KEPT_BODY]

    def _headers(self, headers: Headers) -> Headers:
        return tuple(
            (name, value)
            if _tells_nothing(name, value)
            else (self.text(name)[:KEPT_HEADER], self.text(value)[:KEPT_HEADER])
            for name, value in headers[:KEPT_HEADERS]
            if name.lower() not in {"set-cookie", "set-cookie2"}
        )


def _tells_nothing(name: str, value: str) -> bool:
    """Whether a header can say nothing about a request, whatever it was: its value is one of a few that all send."""
    common = _COMMON.get(name.lower())
    return common is not None and common.fullmatch(value) is not None


def _needles(headers: Headers, path: str, secrets: Iterable[Secret]) -> Iterator[str]:
    parts = {path, *_BETWEEN_PARTS.split(path)}
    if "%" in path:
        parts |= {unquote(part, errors="replace") for part in parts}
    for part in parts:
        yield part
        yield from part.split(".")
    for secret in secrets:
        yield secret.reveal()
        yield secret.reveal().removeprefix(PREFIX)
    for _, value in headers:
        yield value
        for word in value.split():
            yield word
            yield from _basic(word)


def _basic(word: str) -> Iterator[str]:
    """Name and password of HTTP's Basic scheme (RFC 7617), if that is what a word is."""
    try:
        name, _, password = base64.b64decode(word, validate=True).decode().partition(":")
    except ValueError:
        return
    yield name
    yield password


def _unescaped(text: str) -> str:
    """The text with the escapes of JSON, HTML and URLs undone, in one case."""
    for _ in range(MAX_LAYERS):
        plain = _BACKSLASHED.sub(_character, text)
        plain = unquote(html.unescape(plain), errors="replace")
        if plain == text:
            break
        text = plain
    return text.replace("+", " ").casefold()


def _character(escape: re.Match[str]) -> str:
    code = escape[1] or escape[2]
    return chr(int(code, 16)) if code else ""
