"""What ends a benchmark: a figure that cannot be trusted is not shown."""

from __future__ import annotations


class BenchmarkFailed(Exception):
    """A part did not start, did not finish in time, or what was counted does not add up; the text says which."""
