"""`python -m tests.e2e.crash.poison_launcher serve …`: the dispatcher, in a hurry to suspect.

Ten interruptions in a row take minutes: what was interrupted three times waits 2 s, then 4 s, and so on up to 2 min.
Here each of these waits is at most as long as this module says, which is still long beside what a request takes: what
is spread over less is under way together, and meets the guilty one each time. All else is as in production.
"""

from __future__ import annotations

from dispatcher import retry
from dispatcher.cli import main

#: seconds, instead of 120; chance makes 0.3 to 1.7 times as much
MAX_SUSPICION_DELAY = 2.0

if __name__ == "__main__":
    retry.MAX_SUSPICION_DELAY = MAX_SUSPICION_DELAY
    main()
