"""A short run of `scripts/chaos`. A long one is done by hand; docs/reliability.md keeps its figures."""

from __future__ import annotations

import re
import subprocess
import sys

from tests.conftest import missing
from tests.e2e.chaos.processes import faketime
from tests.support import postgres
from tests.support.forking import ROOT

FAULTS = 12
DELIVERIES = 1500
#: the same faults each time; what they meet differs
SEED = "7"


def test_nothing_is_lost_whatever_breaks() -> None:
    """Every fault is seen to have had an effect, and the books agree, or its status is 1."""
    if (lacks := postgres.lacking()) is not None:
        missing(lacks)
    if faketime() is None:
        missing("libfaketime")
    run = subprocess.run(
        [
            *(sys.executable, "-m", "tests.e2e.chaos", "--seed", SEED, "--calm-every", "8"),
            *("--faults", str(FAULTS), "--deliveries", str(DELIVERIES)),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=280,
    )
    print(f"\n{run.stdout}")
    assert run.returncode == 0, run.stdout[-6000:]
    assert re.search(r"^wrong +0$", run.stdout, re.MULTILINE)
    assert re.search(rf"^all +{FAULTS}$", run.stdout, re.MULTILINE)
    ended = re.search(r"^deliveries ended +(\d+) .*lost: 0$", run.stdout, re.MULTILINE)
    assert ended is not None
    assert int(ended.group(1)) >= DELIVERIES
