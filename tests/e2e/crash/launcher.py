"""`python -m tests.e2e.crash.launcher serve …`: the dispatcher, with a fuse that the environment describes."""

from __future__ import annotations

import os
from pathlib import Path

from dispatcher.cli import main
from tests.e2e.crash.stages import GAUGE, Fuse, Gauge, install

if __name__ == "__main__":
    install(Fuse.from_environment(), Gauge(Path(os.environ[GAUGE])))
    main()
