"""Takes what identifies a delivery's callback out of texts that are kept: answers and errors.

An endpoint may echo the request it got. Its URL is a credential, so the echo must not outlive the request.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import unquote

from dispatcher.store.records import Callback, Headers
from subscriptions.secrets import PREFIX, Secret

REDACTED = "[redacted]"
#: characters from which on a part of a URL could be told from a common word
MIN_PART = 6
#: characters of an answer's body that are kept
KEPT_BODY = 2048
#: headers of an answer that are kept, and characters of each
KEPT_HEADERS = 30
KEPT_HEADER = 300


class Scrubber:
    """Removes one callback's URL parts, secret and header values from texts."""

    def __init__(self, callback: Callback, *, path: str, secret: Secret | None) -> None:
        needles = {needle for needle in _needles(callback, path, secret) if len(needle) >= MIN_PART}
        # The longest first: a part of a needle must not be taken out of its middle.
        longest_first = sorted(needles, key=len, reverse=True)
        pattern = "|".join(re.escape(needle) for needle in longest_first)
        self._pattern = re.compile(pattern, re.IGNORECASE) if pattern else None

    def text(self, text: str) -> str:
        """The text without them."""
        return self._pattern.sub(REDACTED, text) if self._pattern else text

    def answer(self, headers: Headers, body: bytes) -> tuple[Headers, str | None]:
        """What is kept of an answer: its headers and its body."""
        return self._headers(headers), self._body(body)

    def _body(self, body: bytes) -> str | None:
        if not body:
            return None
        # NUL cannot be stored as text everywhere.
        return self.text(body.decode(errors="replace").replace("\0", "\ufffd"))[:KEPT_BODY]

    def _headers(self, headers: Headers) -> Headers:
        return tuple(
            (self.text(name)[:KEPT_HEADER], self.text(value)[:KEPT_HEADER])
            for name, value in headers[:KEPT_HEADERS]
            if name.lower() not in {"set-cookie", "set-cookie2"}
        )


def _needles(callback: Callback, path: str, secret: Secret | None) -> Iterator[str]:
    for part in (path, *re.split(r"[/?&=;#]", path)):
        for form in (part, unquote(part, errors="replace")):
            yield form
            yield from form.split(".")
    for owned in (callback.secret, secret):
        if owned is not None:
            yield owned.reveal()
            yield owned.reveal().removeprefix(PREFIX)
    for _, value in callback.headers:
        yield value
        yield from value.split()
