"""How long tests wait for what is to happen. A wait ends with what it waits for, so patience costs nothing.

Tests that are only slow because the machine is must not fail. So none names a time of its own, unless it is the point.
"""

from __future__ import annotations

#: seconds until something is given up
PATIENCE = 120.0
#: seconds for what is promised within one or two: much less than what would happen anyhow, some time
PROMPTLY = 30.0
