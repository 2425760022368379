"""Where mutants are entered, with the checks that are there to find them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from examples.other_sender.sender import Sender


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """A bad sender."""

    name: str
    #: a sentence: what it does wrong
    fault: str
    #: each of them has to fail
    checks: tuple[str, ...]
    make: type[Sender]
    #: what the checks say then; where it is empty, anything but that nothing came
    says: str = ""

    @property
    def turn(self) -> int:
        """When it is best examined: floods first, then what the kit waits for."""
        groups = {check.partition("-")[0] for check in self.checks}
        if "LIMIT" in groups or "RETRY-05" in self.checks:
            return 0
        return 1 if groups & {"RETRY", "HEALTH", "REDIR", "ROT", "TLS", "EGRESS"} else 2

    @property
    def is_known_by_distances(self) -> bool:
        """Whether nothing tells it from a good one but how long it waits."""
        return bool({"RETRY-03", "RETRY-04"} & set(self.checks))


MUTANTS: dict[str, Mutant] = {}


_Made = TypeVar("_Made", bound=Sender)


def mutant(*checks: str, says: str = "") -> Callable[[type[_Made]], type[_Made]]:
    def register(made: type[_Made]) -> type[_Made]:
        name = re.sub(r"(?<!^)(?=[A-Z])", "-", made.__name__).lower()
        assert name not in MUTANTS
        fault = (made.__doc__ or "").strip()
        MUTANTS[name] = Mutant(name=name, fault=fault, checks=checks, make=made, says=says)
        return made

    return register
