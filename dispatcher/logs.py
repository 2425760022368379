"""Log lines: structured, to stderr, and free of URLs, tokens and secrets."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import logging
import sys
import time
from collections.abc import Callable, Iterable
from json.encoder import encode_basestring_ascii
from select import PIPE_BUF
from typing import Any, Literal, TextIO, cast

import msgspec
import structlog

#: libraries whose log lines hold the URL of a request
_TELLTALES = ("httpx", "httpcore", "hpack")

log = structlog.get_logger(__name__)


#: how plain values are written as JSON, in ASCII
_WRITTEN: dict[type, Callable[[Any], str]] = {
    str: encode_basestring_ascii,
    int: int.__repr__,
    float: float.__repr__,
    type(None): lambda _: "null",
}
#: lines that come by the thousand are written by hand
_by_hand = False


class _Stderr(io.TextIOBase):
    """Where log lines go. That nobody reads a pipe any more, or that a disk is full, stops no delivery."""

    def write(self, text: str) -> int:
        """Write it, if it can be written."""
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        """Nothing waits here."""
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()


_stderr = _Stderr()


class Line:
    """A kind of line, at level info, that comes by the thousand: what structlog does for each costs too much."""

    def __init__(self, event: str, *names: str) -> None:
        self._event = event
        self._names = names
        fields = "".join(f'"{name}": %s, ' for name in names)
        self._form = f'{{{fields}"event": "{event}", "level": "info", "timestamp": "%s"}}\n'

    def write(self, rows: Iterable[Iterable[str | float | None]]) -> None:
        """Log a line for each of these rows of values, which are in the order of the names."""
        if not _by_hand:
            for row in rows:
                log.info(self._event, **dict(zip(self._names, row, strict=True)))
            return
        now = _timestamp(time.time())
        piece = ""
        for row in rows:
            line = self._form % (*(_WRITTEN[type(value)](value) for value in row), now)
            if len(piece) + len(line) > PIPE_BUF:
                # In a pipe that others write to as well, no longer piece is sure to stay in one.
                _stderr.write(piece)
                piece = ""
            piece += line
        _stderr.write(piece)


def configure(*, level: str, style: Literal["auto", "json", "console"]) -> None:
    """Send our log lines, and other libraries' warnings, to stderr."""
    global _by_hand  # noqa: PLW0603 - there is one configuration of a process, as structlog's
    threshold = logging.getLevelNamesMapping()[level.upper()]
    console = style == "console" or (style == "auto" and sys.stderr.isatty())
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
        if console
        else structlog.processors.JSONRenderer(serializer=_json)
    )
    shared: list[structlog.typing.Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    # Tracebacks are plain: a rich one would print local variables, and those may be secrets.
    plain: list[structlog.typing.Processor] = [_tamed] if console else [structlog.processors.format_exc_info]
    structlog.configure(
        processors=[*shared, *plain, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.WriteLoggerFactory(file=cast("TextIO", _stderr)),
        cache_logger_on_first_use=True,
    )
    # Where nobody reads it, structlog drops it.
    _by_hand = not console and threshold <= logging.INFO
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *plain, renderer],
    )
    handler = logging.StreamHandler(_stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(max(threshold, logging.WARNING))
    for name in _TELLTALES:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)


def _tamed(_logger: object, _method: str, line: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """A line that does nothing to a terminal, whatever name somebody has written into a row of the outbox."""
    return {name: _harmless(value) if isinstance(value, str) else value for name, value in line.items()}


def _harmless(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() or one == "\n" else ascii(one)[1:-1] for one in text)


def _timestamp(now: float) -> str:
    """As structlog writes it (ISO 8601)."""
    second, part = divmod(int(now * 1_000_000), 1_000_000)
    return f"{_second(second)}.{part:06}Z"


@functools.lru_cache(2)
def _second(moment: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(moment))


#: what has no way of its own to print itself, which could be passed by
_PLAIN = frozenset({str, int, float, bool, type(None)})


def _json(line: object, default: Callable[[Any], Any] | None = None) -> str:
    """A line as JSON, in ASCII.

    `json.dumps` takes longer. It is for what msgspec would show more of than its `repr` does, or would not escape: a
    control character beyond ASCII can steer a terminal.
    """
    if isinstance(line, dict) and _PLAIN.issuperset(map(type, line.values())):
        with contextlib.suppress(UnicodeEncodeError):  # a lone surrogate
            text = msgspec.json.format(msgspec.json.encode(line), indent=0).decode()
            if text.isascii():
                return text
    return json.dumps(line, default=default)
