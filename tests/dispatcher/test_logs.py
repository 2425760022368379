"""Lines of a kind that comes by the thousand are written by hand, and look like all others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

FIELDS = {
    "delivery": "0192",
    "outcome": "success",
    "status": 200,
    "error": None,
    "duration_ms": 1.5,
    "origin": "http://é",
}
PROGRAM = f"""
import sys, structlog
from dispatcher import logs
logs.configure(level=sys.argv[1], style=sys.argv[2])
fields = {FIELDS!r}
structlog.get_logger("x").info("attempt", **fields)
line = logs.Line("attempt", *fields)
line.write([fields.values(), (fields | {{"error": "\\ud800"}}).values()])
"""


def _said(level: str, style: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, level, style], capture_output=True, text=True, check=True, encoding="utf-8"
    )
    return done.stderr.splitlines()


@pytest.mark.parametrize("level", ["debug", "info"])
def test_a_line_by_hand_is_as_structlog_writes_it(level: str) -> None:
    usual, by_hand, surrogate = (json.loads(line) for line in _said(level, "json"))
    first, second = (datetime.fromisoformat(line.pop("timestamp")) for line in (usual, by_hand))
    assert 0 <= (second - first).total_seconds() < 60
    assert list(usual.items()) == list(by_hand.items()) == [*FIELDS.items(), ("event", "attempt"), ("level", "info")]
    assert surrogate["error"] == "\ud800"


def test_what_keeps_a_part_to_itself_keeps_it_from_logs_too() -> None:
    program = (
        "import structlog; from dispatcher import egress, logs; from subscriptions.secrets import Secret, SigningKey\n"
        "logs.configure(level='info', style='json')\n"
        "key = SigningKey(secret=Secret('the-secret'), seed=b's' * 32)\n"
        "target = egress.parse('https://example.com/the-token')\n"
        "structlog.get_logger('x').info('odd', key=key, target=target, nested={'key': key}, text='\\x9b\\u2028')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    line = json.loads(done.stderr)
    assert line["text"] == "\x9b\u2028"
    assert done.stderr.isascii()
    for hidden in (b"the-secret", b"the-token", b"ssss", b"c3Nz"):
        assert hidden not in done.stderr


def test_nothing_is_written_where_nobody_reads_it() -> None:
    assert _said("warning", "json") == []


def test_lines_of_several_processes_stay_whole_in_one_pipe() -> None:
    program = (
        "import sys; from dispatcher import logs\n"
        "logs.configure(level='info', style='json')\n"
        "line = logs.Line('attempt', 'process', 'error')\n"
        "for _ in range(50): line.write([(sys.argv[1], 'x' * length) for length in range(100)])"
    )
    reading, writing = os.pipe()
    processes = [subprocess.Popen([sys.executable, "-c", program, name], stderr=writing) for name in "abc"]
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        lines = [json.loads(line) for line in pipe]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    for name in "abc":
        assert [len(line["error"]) for line in lines if line["process"] == name] == [*range(100)] * 50


def test_a_log_that_nobody_reads_any_more_stops_nothing() -> None:
    program = (
        "import sys, structlog; from dispatcher import logs\n"
        "logs.configure(level='info', style='json')\n"
        "sys.stdin.read()\n"
        "logs.Line('attempt', 'error').write([(None,)] * 100)\n"
        "structlog.get_logger('x').info('one of ours')\n"
        "import logging; logging.getLogger('theirs').warning('one of theirs')\n"
        "print('goes on')"
    )
    reading, writing = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=writing, text=True
    )
    os.close(writing)
    os.close(reading)
    said, _ = process.communicate(timeout=60)
    assert said == "goes on\n"


def test_people_get_their_own_form() -> None:
    usual, by_hand, _ = _said("info", "console")
    assert "outcome" in by_hand
    assert usual.partition(" ")[2] == by_hand.partition(" ")[2]


def test_what_a_command_logs_is_no_part_of_what_it_prints(tmp_path: Path) -> None:
    program = (
        "import structlog, sys; from pathlib import Path; from dispatcher.cli.running import read_settings\n"
        "read_settings(data_dir=Path(sys.argv[1])); structlog.get_logger('x').warning('commit_unavailable')"
    )
    done = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, check=True)
    assert (done.stdout, json.loads(done.stderr)["event"]) == (b"", "commit_unavailable")


def test_what_somebody_wrote_does_nothing_to_a_terminal() -> None:
    """The id and the account of an outbox row are whatever its writer put there."""
    program = (
        "import structlog; from dispatcher import logs\n"
        "logs.configure(level='info', style='console')\n"
        "structlog.get_logger('x').warning('outbox_refused', account='a\\x1b]52;c;eA==\\x07\\x9b1m\\u202e')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, encoding="utf-8")
    assert "]52;c;eA==" in done.stderr
    for steering in ("\x1b]", "\x07", "\x9b", "\u202e"):
        assert steering not in done.stderr
