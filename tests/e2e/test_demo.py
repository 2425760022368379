"""The demo from outside: a process of its own that ends by itself, with everything delivered and verified."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_demo_delivers_and_verifies_everything() -> None:
    demo = subprocess.run(
        [sys.executable, "-m", "examples.results.demo"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )

    assert demo.returncode == 0, demo.stdout + demo.stderr
    assert demo.stderr == ""
    assert "all 13 results were delivered, and verified by the receiver" in demo.stdout
    assert "the ledger reconciles: 13 accepted = 13 delivered" in demo.stdout
    assert "the receiver refused 5 of 5 forged requests" in demo.stdout

    _, _, table = demo.stdout.partition("what the receiver found")
    summary = {row.split()[0]: row for row in table.splitlines() if row.strip()}
    assert "503 503 200" in summary["inv-2043"]
    # half up by line, tax by rate: 855,485 net, 151,664 at 19 % and 4,008 at 7 %
    assert "10,111.57 EUR" in summary["inv-2041"]
    assert "failed: line 3: tax_rate" in summary["inv-2047"]
    assert "eyJ" not in demo.stdout
