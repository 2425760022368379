"""What is measured, and what is made of it: medians, spreads, ratios, percentiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

#: what our own side of a case is called
OURS = "dispatcher"


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One contender's result in one round of a case: name of the figure -> value, its unit in the name."""

    contender: str
    figures: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Spread:
    """One figure over all rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of at least one value."""
        return cls(median=median(values), low=min(values), high=max(values))


@dataclass(kw_only=True)
class CaseResult:
    """All rounds of a case."""

    name: str
    about: str
    #: figures of which ratios are shown
    compared: Sequence[str] = ("per_s",)
    #: one list of measurements a round, in the order in which they were taken
    rounds: list[list[Measurement]] = field(default_factory=list)
    #: why there are no figures; then the rounds before it count for nothing either
    failed: str | None = None

    def contenders(self) -> list[str]:
        """Who took part, in the order of their first turn."""
        return list(dict.fromkeys(one.contender for round_ in self.rounds for one in round_))

    def figures(self, contender: str) -> list[str]:
        """The names of what was measured of one of them."""
        return list(dict.fromkeys(name for one in self._of(contender) for name in one.figures))

    def spread(self, contender: str, figure: str) -> Spread:
        """One figure of one contender over all rounds."""
        return Spread.of([one.figures[figure] for one in self._of(contender) if figure in one.figures])

    def ratio(self, rival: str, figure: str) -> Spread | None:
        """Ours to a rival's, round by round: what slowed a whole round slowed both. None where one lacks the figure."""
        ratios = []
        for round_ in self.rounds:
            found = {one.contender: one.figures.get(figure) for one in round_}
            ours, theirs = found.get(OURS), found.get(rival)
            if ours is not None and theirs:
                ratios.append(ours / theirs)
        return Spread.of(ratios) if ratios else None

    def ratios(self) -> dict[tuple[str, str], Spread]:
        """Ours to those of each rival, by (figure, rival)."""
        others = [name for name in self.contenders() if name != OURS]
        pairs = [(figure, name) for figure in self.compared for name in others]
        return {pair: found for pair in pairs if (found := self.ratio(pair[1], pair[0])) is not None}

    def _of(self, contender: str) -> list[Measurement]:
        return [one for round_ in self.rounds for one in round_ if one.contender == contender]


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` of all do not exceed (0.99 for the p99). `values` must be sorted and not empty."""
    return values[min(len(values) - 1, int(len(values) * share))]


def latencies(seconds: Sequence[float], prefix: str) -> dict[str, float]:
    """p50, p99 and p99.9 in milliseconds."""
    ordered = sorted(seconds)
    return {
        f"{prefix}_p50_ms": percentile(ordered, 0.5) * 1000,
        f"{prefix}_p99_ms": percentile(ordered, 0.99) * 1000,
        f"{prefix}_p99.9_ms": percentile(ordered, 0.999) * 1000,
    }
