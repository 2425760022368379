"""What commands read beside their options: files, secrets, spans and moments. A secret is never an option itself."""

from __future__ import annotations

import getpass
import re
import sys
from datetime import datetime
from pathlib import Path

from dispatcher.cli.speaking import fail

#: stands for stdin in place of a file
STDIN = Path("-")
#: bytes of a file that are read at most
MAX_FILE = 256 * 1024 * 1024

_SPAN = re.compile(r"(?P<number>[0-9]{1,10}(?:\.[0-9]{1,6})?)(?P<unit>[smhd]?)\Z")
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}


def check_stdin(*files: Path | None) -> None:
    """End the command when stdin is to be several files."""
    if files.count(STDIN) > 1:
        fail("only one of the files can be -, which is stdin")


def read_file(file: Path, what: str) -> bytes:
    """A file's bytes. Ends the command when it cannot be read; `what` it is goes into the message."""
    try:
        if file == STDIN:
            content = sys.stdin.buffer.read(MAX_FILE + 1)
        else:
            with file.open("rb") as opened:
                content = opened.read(MAX_FILE + 1)
    except OSError as exc:
        fail(f"{what} cannot be read from {file}: {exc.strerror}")
    if len(content) > MAX_FILE:
        fail(f"{what} is larger than {MAX_FILE} bytes")
    return content


def read_secret(file: Path, what: str) -> str:
    """The one line of a file, without its line end. `-` is stdin, or a question on the terminal, without an echo."""
    if file == STDIN and sys.stdin.isatty():
        return ask_secret(what)
    content = read_file(file, what)
    try:
        text = content.decode()
    except UnicodeDecodeError:
        fail(f"{what} is not UTF-8")
    text = text.removesuffix("\n").removesuffix("\r")
    if not text:
        fail(f"{what} is empty")
    return text


def ask_secret(what: str) -> str:
    """Ask for a secret on the terminal. Ends the command where there is nobody to ask."""
    if not sys.stdin.isatty():
        fail(f"{what} is missing; give a file, or - for stdin")
    try:
        text = getpass.getpass(f"{what}: ")
    except (EOFError, KeyboardInterrupt):
        text = ""
    if not text:
        fail(f"{what} is missing")
    return text


def read_span(text: str, option: str) -> float:
    """A span in seconds: `90`, `90s`, `30m`, `24h` or `7d`. Ends the command for anything else."""
    match = _SPAN.match(text)
    if not match:
        fail(f"{option} is a number of seconds, or has a unit: 90s, 30m, 24h, 7d")
    return float(match["number"]) * _SECONDS[match["unit"]]


def read_moment(text: str, option: str) -> datetime:
    """A moment as in RFC 3339, with its offset. Ends the command for anything else."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        fail(f"{option} is a time with its offset, as in RFC 3339: 2026-01-31T12:00:00Z")
    return moment
