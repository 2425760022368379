"""`dispatcher conformance`, as a process: what it writes agrees with how it ends."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as Xml

import pytest

#: a system whose encoding is ASCII
PLAIN = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "utf-8"}


@pytest.fixture
def nobody() -> Iterator[str]:
    """A URL where nobody listens, and nobody else begins to."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}/hooks"


def conformance(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dispatcher.cli", "conformance", *words]
    return subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, encoding="utf-8", timeout=60, check=False
    )


@pytest.mark.parametrize(("strictness", "levels"), [("must", {"MUST"}), ("should", {"MUST", "SHOULD"})])
def test_what_fails_the_command_fails_in_junit(strictness: str, levels: set[str], nobody: str, tmp_path: Path) -> None:
    """A build reads the one or the other."""
    secret = tmp_path / "secret"
    secret.write_text("whsec_c2VjcmV0IHNlY3JldCBzZWNyZXQ=")
    junit, told = tmp_path / "report.xml", tmp_path / "report.json"
    ran = conformance(
        *("receiver", nobody, "--secret-file", str(secret), "--strictness", strictness),
        *("--junit", str(junit), "--json", str(told)),
    )
    assert ran.returncode == 1, ran.stderr
    failed = {one["id"]: one["level"] for one in json.loads(told.read_text())["results"] if one["outcome"] == "failed"}
    assert {"MUST", "SHOULD"} <= set(failed.values())
    cases = Xml.parse(junit).getroot().iter("testcase")
    in_junit = {case.get("name", "").split()[0] for case in cases if case.find("failure") is not None}
    assert in_junit == {id_ for id_, level in failed.items() if level in levels}


def test_reports_are_in_utf_8_wherever_they_are_written(nobody: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("whsec_c2VjcmV0IHNlY3JldCBzZWNyZXQ=")
    page = tmp_path / "report.html"
    ran = conformance("receiver", nobody, "--secret-file", str(secret), "--html", str(page), **PLAIN)
    assert ran.returncode == 1, ran.stderr
    assert "✗" in page.read_text("utf-8")


def test_a_profile_in_another_encoding_is_told(tmp_path: Path) -> None:
    profile = tmp_path / "profile.toml"
    profile.write_bytes('command = ["é"]'.encode("latin-1"))
    ran = conformance("run", "--profile", str(profile))
    assert ran.returncode == 2
    assert ran.stderr == "dispatcher: --profile: the file is no TOML: it is not in UTF-8\n"
