"""The garbage collector of a server, in a process of its own: what is set aside is so for the whole process."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import gc, weakref
from dispatcher.serving import collector

class Node:
    pass

def cycle():
    node = Node()
    node.itself = node
    return node

kept = [Node() for _ in range(50_000)]
collector.calm()
assert gc.get_freeze_count() > 50_000, "what there was is set aside"

passes = gc.get_stats()[0]["collections"]
under_way = [Node() for _ in range(collector.YOUNG // 2)]
del under_way
assert gc.get_stats()[0]["collections"] == passes, "what goes by itself is not looked at"

young = weakref.ref(cycle())
gc.collect()
assert young() is None, "what came since is collected"

node = cycle()
gc.collect()
old = weakref.ref(node)
del node
gc.collect()
assert old() is not None, "what was set aside is not looked at"
for _ in range(collector.PASSES + 1):
    gc.collect()
assert old() is None, "but now and then all is"
assert gc.get_freeze_count() > 50_000
"""


def test_what_is_old_is_set_aside_but_not_for_ever() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
