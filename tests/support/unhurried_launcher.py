"""`python -m tests.support.unhurried_launcher …`: the dispatcher, whose looks around for work are out of reach.

What nobody is told of waits for an hour here. So what is done was heard of.
"""

from __future__ import annotations

from dispatcher import chores
from dispatcher.cli import main
from dispatcher.delivery import engine
from dispatcher.processors import engine as task_engine

#: seconds
HOUR = 3600.0

if __name__ == "__main__":
    engine.SCAN_INTERVAL = task_engine.POLL_INTERVAL = chores.LOOK_INTERVAL = HOUR
    main()
