"""`python -m tests.e2e.crash.poison_launcher serve …`: the dispatcher, in a hurry to suspect.

Ten interruptions in a row take minutes: what was interrupted three times waits 2 s, then 4 s, and so on up to 2 min.
Here each of these waits is at most as long as this module says. All else is as in production.
"""

from __future__ import annotations

from dispatcher import retry
from dispatcher.cli import main

#: seconds, instead of 120; chance makes 0.15 to 0.85 of it
MAX_SUSPICION_DELAY = 0.5

if __name__ == "__main__":
    retry.MAX_SUSPICION_DELAY = MAX_SUSPICION_DELAY
    main()
