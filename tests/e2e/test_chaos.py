"""A short run of `scripts/chaos`. A long one is done by hand; docs/reliability.md keeps its figures."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.conftest import missing
from tests.e2e.chaos.processes import faketime
from tests.support import postgres
from tests.support.forking import ROOT

FAULTS = 10
DELIVERIES = 500
#: deliveries in a second, and faults until there is a rest
RATE, REST_AFTER = 60, 6
#: the same faults each time; what they meet differs
SEED = "7"


# It takes a minute, and longer where the machine has other things to do.
@pytest.mark.timeout(900)
def test_nothing_is_lost_whatever_breaks() -> None:
    """Every fault is seen to have had an effect, and the books agree, or its status is 1."""
    if (lacks := postgres.lacking()) is not None:
        missing(lacks)
    if faketime() is None:
        missing("libfaketime")
    run = subprocess.run(
        [
            *(sys.executable, "-m", "tests.e2e.chaos", "--seed", SEED, "--faults", str(FAULTS)),
            *("--deliveries", str(DELIVERIES), "--rate", str(RATE), "--calm-every", str(REST_AFTER)),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=840,
    )
    print(f"\n{run.stdout}")
    assert run.returncode == 0, run.stdout[-6000:]
    assert re.search(r"^wrong +0$", run.stdout, re.MULTILINE)
    faults = re.search(r"^all +(\d+)$", run.stdout, re.MULTILINE)
    assert faults is not None
    assert int(faults.group(1)) >= FAULTS
    ended = re.search(r"^deliveries ended +(\d+) .*lost: 0$", run.stdout, re.MULTILINE)
    assert ended is not None
    assert int(ended.group(1)) >= DELIVERIES
