"""Python's garbage collector, taught that what is old stays: its full passes are short then, and callers do not wait.

A full pass looks at every object there is. With 20,000 subscriptions in memory that is a stop of a tenth of a second,
several times a minute. So what has survived one is set aside (`gc.freeze`), and the next looks only at what came since.
A cycle of objects that were set aside and are not needed any more stays until one of the passes looks at all again.
"""

from __future__ import annotations

import gc
from typing import Any

#: full passes until one looks at all again
PASSES = 100
#: objects that come without others going until the young ones are looked at. Requests under way have thousands, which
#: go by themselves as they end: with Python's own 700 they were looked at again and again, to find nothing
YOUNG = 10_000


class _Collector:
    def __init__(self) -> None:
        self._passes = 0

    def __call__(self, phase: str, info: dict[str, Any]) -> None:
        if phase != "stop" or info["generation"] < 2:
            return
        gc.freeze()
        self._passes += 1
        if self._passes % PASSES == 0:
            gc.unfreeze()


def calm() -> None:
    """Collect what starting up has left, and set the rest aside; from now on too. Once a process."""
    gc.set_threshold(YOUNG)
    gc.callbacks.append(_Collector())
    gc.collect()
