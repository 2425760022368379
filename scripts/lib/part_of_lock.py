"""Prints the part of a lock file that one package needs: `python part_of_lock.py NAME <requirements.lock`.

The lock is uv's: each package stands with its hashes and, in comments, with those `via` whom it is there. For a package
that is in the lock, its part is itself and all that it needs; for the project, all that it needs to run, and nothing of
its groups of dependencies (`NAME (pyproject.toml)`, not `NAME (pyproject.toml:dev)`).
"""

from __future__ import annotations

import re
import sys


def blocks_of(lock: str) -> dict[str, str]:
    """The lines of each package, by its name."""
    found = re.finditer(r"^(?P<name>[a-z0-9][a-z0-9._-]*)(?:\[[^]]*\])?==.*\n(?:[ \t]+.*\n?)*", lock, re.MULTILINE)
    return {block["name"]: block[0] for block in found}


def needed_by(block: str) -> set[str]:
    """Via whom a package is in the lock."""
    comments = "".join(line.strip().lstrip("#") + "\n" for line in block.splitlines() if line.strip().startswith("#"))
    return {name.strip() for name in comments.replace("via", "", 1).splitlines() if name.strip()}


def part(lock: str, root: str) -> str:
    """The part that `root` needs. Raises ValueError if nothing in the lock is there for it."""
    blocks = blocks_of(lock)
    wanted = {f"{root} (pyproject.toml)", *({root} & blocks.keys())}
    while more := {name for name, block in blocks.items() if name not in wanted and needed_by(block) & wanted}:
        wanted |= more
    chosen = [block for name, block in blocks.items() if name in wanted]
    if not chosen:
        raise ValueError(f"nothing in this lock is there for {root}")
    return "".join(chosen)


if __name__ == "__main__":
    sys.stdout.write(part(sys.stdin.read(), sys.argv[1]))
