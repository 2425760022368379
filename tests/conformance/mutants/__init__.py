"""Senders with one fault each, and the checks that are there to find it.

Each is a good sender but for what its docstring says. `python -m tests.conformance.nursery mutant:NAME` runs one.
"""

from tests.conformance.mutants import (  # noqa: F401  # each enters its own
    cloudevents,
    destinations,
    endpoints,
    messages,
    requests,
    retries,
    rotations,
    signatures,
)
from tests.conformance.mutants.registry import MUTANTS, Mutant

__all__ = ["MUTANTS", "Mutant"]
