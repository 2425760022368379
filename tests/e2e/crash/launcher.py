"""`python -m tests.e2e.crash.launcher serve …`: the dispatcher, with a fuse that the environment describes."""

from __future__ import annotations

import os
from pathlib import Path

from dispatcher import retry
from dispatcher.cli import main
from tests.e2e.crash.stages import GAUGE, Fuse, Gauge, install

#: seconds, instead of 120; chance makes 5 to 27 of it. Else a run may wait minutes for its last delivery.
MAX_SUSPICION_DELAY = 16.0

if __name__ == "__main__":
    retry.MAX_SUSPICION_DELAY = MAX_SUSPICION_DELAY
    install(Fuse.from_environment(), Gauge(Path(os.environ[GAUGE])))
    main()
