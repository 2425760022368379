"""Reads the bytes of one answer. No I/O: bytes go in, and what they mean can be asked.

llhttp (httptools) knows HTTP; what it lets through is bounded and judged here. It lets a head grow without end, reports
each interim answer as a message of its own, and goes on with a second answer that nobody asked for.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import httptools

from dispatcher.delivery.transport import (
    MAX_ANSWER_BYTES,
    MAX_BODY_BYTES,
    MAX_HEADER_BYTES,
    MAX_HEADERS,
    MAX_PIECES,
    Response,
)

#: bytes that may come before the answer's own head is whole, interim answers included
_MAX_HEAD_BYTES = 100 * 1024
#: statuses of answers that never have a body (RFC 9110, section 6.4.1)
_WITHOUT_BODY = frozenset({204, 304})


class _Cut(Exception):
    """Enough was read."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Why there will be no answer."""

    detail: str


class AnswerReader:
    """One answer. Feed it until `is_over`; then `fault` says why there is none, or `response()` is the answer.

    With `has_body` False, as after HEAD, it is whole with its head.
    """

    __slots__ = (
        "_body",
        "_body_bytes",
        "_has_body",
        "_headers",
        "_is_broken",
        "_parser",
        "_pieces",
        "_reads_to_end",
        "_size",
        "fault",
        "has_leftover",
        "head_at",
        "is_over",
        "keeps_alive",
        "status",
    )

    def __init__(self, *, has_body: bool = True) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._headers: list[tuple[bytes, bytes]]
        self._body: list[bytes]
        self._begin(has_body=has_body)

    def following(self, *, has_body: bool = True) -> AnswerReader:
        """What reads the next answer of the same connection: this reader, after an answer that was whole.

        To make one takes as long as to read an answer, and since it and its parser hold each other, only Python's
        garbage collector frees them.
        """
        if not self.keeps_alive or self.has_leftover:
            return AnswerReader(has_body=has_body)
        self._begin(has_body=has_body)
        return self

    def _begin(self, *, has_body: bool) -> None:
        self.release()
        self._has_body = has_body
        #: of the final answer, once its head is whole; 0 before
        self.status = 0
        #: when the head was whole, on the clock of `time.perf_counter`
        self.head_at = 0.0
        #: nothing more is to be read
        self.is_over = False
        #: why the answer is none
        self.fault: Fault | None = None
        #: bytes came beyond the answer: the connection must not be used again (RFC 9112, section 6.3)
        self.has_leftover = False
        #: another request may follow over the same connection
        self.keeps_alive = False
        self._body_bytes = 0
        self._pieces = 0
        #: bytes that came, interim answers and framing included
        self._size = 0
        #: the body ends with the connection
        self._reads_to_end = True
        self._is_broken = False

    @property
    def has_begun(self) -> bool:
        """Whether any byte came."""
        return self._size > 0

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""
        if self.is_over:
            self.has_leftover = True
            return
        self._size += len(data)
        self._pieces += 1
        self._parse(data)

    def _parse(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            # What follows the answer in the same piece may be anything; the answer stands.
            if not self.is_over:
                self._break("the answer is not HTTP")
            return
        most = MAX_ANSWER_BYTES if self.status else _MAX_HEAD_BYTES
        if not self.is_over and (self._size > most or self._pieces > MAX_PIECES):
            self._break("the answer is too large")

    def end(self) -> None:
        """The peer sends nothing more."""
        if self.is_over:
            return
        if self.status and self._reads_to_end:
            self.is_over = True
        else:
            self.cut()

    def cut(self) -> None:
        """Nothing more is waited for. A head that is whole decides; without one there is no answer."""
        self.is_over = True
        self._is_broken = True

    def response(self) -> Response:
        """The answer. Only when there is a status."""
        kept = []
        size = 0
        for name, value in self._headers[:MAX_HEADERS]:
            size += len(name) + len(value)
            if size > MAX_HEADER_BYTES:
                break
            kept.append((name.decode("latin-1"), value.decode("latin-1")))
        body = b"".join(self._body)
        return Response(
            status=self.status,
            headers=tuple(kept),
            body=body[:MAX_BODY_BYTES],
            complete=not self._is_broken and len(body) <= MAX_BODY_BYTES,
        )

    def release(self) -> None:
        """Hold nothing of the answer any more, once it was taken."""
        self._headers, self._body = [], []

    def _break(self, detail: str) -> None:
        """It is broken here. After a whole head that is the body's matter only."""
        if not self.status:
            self.fault = Fault(detail)
        self.cut()

    # what the parser calls

    def on_message_begin(self) -> None:
        """An answer begins: the one that is waited for, or one too many."""
        if self.is_over:
            self.has_leftover = True
            raise _Cut

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header line, or one of the trailers."""
        if self.status:
            return
        if len(self._headers) <= MAX_HEADERS:
            self._headers.append((name, value))
        lowered = name.lower()
        if lowered == b"content-length":
            self._reads_to_end = False
        elif lowered == b"transfer-encoding":
            self._reads_to_end = not value.lower().rstrip().endswith(b"chunked")

    def on_headers_complete(self) -> None:
        """The head is whole: of the answer, or of an interim one."""
        status = self._parser.get_status_code()
        if self._parser.get_http_version() not in {"1.1", "1.0"}:
            self._break("the answer is of another version of HTTP")
            raise _Cut
        if status == 101 or status < 100:
            self._break("the answer switches to another protocol" if status == 101 else "the answer is not HTTP")
            raise _Cut
        if status < 200:
            self._headers.clear()
            self._reads_to_end = True
            return
        self.status = status
        self.head_at = time.perf_counter()
        if not self._has_body:
            # llhttp would wait for the body that the headers speak of. The connection is not used again: what follows
            # the head is not looked at.
            self.is_over = True
            raise _Cut
        if status in _WITHOUT_BODY:
            self._reads_to_end = False

    def on_body(self, data: bytes) -> None:
        """A piece of the body, without its framing."""
        self._body.append(data)
        self._body_bytes += len(data)
        self._pieces += 1
        if self._body_bytes > MAX_BODY_BYTES or self._pieces > MAX_PIECES:
            self.cut()
            raise _Cut

    def on_message_complete(self) -> None:
        """The answer is whole, or an interim one was."""
        if self.status:
            self.is_over = True
            self.keeps_alive = self._parser.should_keep_alive()
