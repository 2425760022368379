"""Runs the cases: in each round of a case every contender has its turn, so that all meet the same machine."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from scripts.benchmark.failures import BenchmarkFailed
from scripts.benchmark.figures import CaseResult, Measurement
from scripts.benchmark.noise import Noise
from scripts.benchmark.scene import Case, Scene, Sizes
from scripts.benchmark.tools import has


def run(
    cases: Sequence[Case],
    *,
    rounds: int,
    sizes: Sizes,
    folder: Path,
    noise: Noise,
    say: Callable[[str], None],
) -> list[CaseResult]:
    """All rounds of each case, case by case. A case with a figure that cannot be trusted has none, and says why."""
    results = []
    for case in cases:
        result = CaseResult(name=case.name, about=case.about, compared=case.compared)
        results.append(result)
        try:
            for number in range(1, rounds + 1):
                say(f"{case.name}: round {number} of {rounds}")
                noise.spin()
                result.rounds.append(_round(case, sizes, folder))
        except BenchmarkFailed as exc:
            say(f"{case.name}: no figures: {exc}")
            result.failed = str(exc)
            result.rounds.clear()
    return results


def left_out(cases: Sequence[Case]) -> dict[str, set[str]]:
    """Contenders that cannot take part here, and what they lack."""
    found: dict[str, set[str]] = {}
    for case in cases:
        for contender in case.contenders:
            if lacking := {need for need in contender.needs if not has(need)}:
                found.setdefault(contender.name, set()).update(lacking)
    return found


def _round(case: Case, sizes: Sizes, folder: Path) -> list[Measurement]:
    shared: dict[str, float] = {}
    measured = []
    for contender in case.contenders:
        if not all(has(need) for need in contender.needs):
            continue
        with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as own:
            figures = contender.run(Scene(folder=Path(own), sizes=sizes, shared=shared))
        measured.append(Measurement(contender=contender.name, figures=figures))
    return measured
