from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

from dispatcher.ids import TOGETHER, id_floor, is_id, new_id

#: prints the ids that a process and its fork make after the parent has made one
FORKING = """
import os
from dispatcher.ids import new_id
new_id()
child = os.fork()
if child:
    os.waitpid(child, 0)
print("\\n".join(new_id()[16:] for _ in range(600)), flush=True)
os._exit(0)
"""


def test_an_id_is_a_uuid_of_version_7() -> None:
    before = time.time_ns() // 1_000_000
    made = [new_id() for _ in range(3 * TOGETHER)]
    after = time.time_ns() // 1_000_000
    for text in made:
        assert is_id(text)
        read = uuid.UUID(hex=text)
        assert read.version == 7
        assert read.variant == uuid.RFC_4122
    assert id_floor(before) <= made[0]
    # the counter may run ahead of the clock by a little
    assert made[-1] < id_floor(after + 100)


def test_ids_of_a_process_increase_and_their_ends_are_random() -> None:
    made = [new_id() for _ in range(20_000)]
    assert made == sorted(set(made))
    tails = [text[16:] for text in made]
    assert len(set(tails)) == len(tails)
    assert {tail[0] for tail in tails} == set("89ab")
    # each of the other 60 bits is set about half the time
    for bit in range(60):
        ones = sum(int(tail[1:], 16) >> bit & 1 for tail in tails)
        assert 0.45 < ones / len(tails) < 0.55


def test_threads_share_no_end() -> None:
    with ThreadPoolExecutor(4) as threads:
        made = list(threads.map(lambda _: [new_id()[16:] for _ in range(5_000)], range(4)))
    assert len({tail for part in made for tail in part}) == 20_000


def test_a_fork_makes_ids_of_its_own() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    told = subprocess.run([sys.executable, "-c", FORKING], capture_output=True, text=True, check=True, env=environment)
    tails = told.stdout.split()
    assert len(tails) == 1_200
    assert len(set(tails)) == 1_200
