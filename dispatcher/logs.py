"""Log lines: structured, to stderr, and free of URLs, tokens and secrets."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from typing import Any, Literal

import msgspec
import structlog

#: libraries whose log lines hold the URL of a request
_TELLTALES = ("httpx", "httpcore", "hpack")


def configure(*, level: str, style: Literal["auto", "json", "console"]) -> None:
    """Send our log lines, and other libraries' warnings, to stderr."""
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
    plain = [] if console else [structlog.processors.format_exc_info]
    structlog.configure(
        processors=[*shared, *plain, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *plain, renderer],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(max(threshold, logging.WARNING))
    for name in _TELLTALES:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)


def _json(line: object, default: Callable[[Any], Any]) -> str:
    """A line as JSON: there is one for each attempt, and `json.dumps` takes several times as long."""
    try:
        return msgspec.json.format(msgspec.json.encode(line, enc_hook=default), indent=0).decode()
    except UnicodeEncodeError:
        # A lone surrogate, which JSON can only hold escaped.
        return json.dumps(line, default=default)
