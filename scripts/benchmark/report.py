"""What came out: tables for people, JSON for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from scripts.benchmark.figures import CaseResult, Spread
from scripts.benchmark.noise import Noise

#: what the last part of a figure's name says about it
_UNITS = {"per_s": "deliveries/s", "cpu_us": "µs of CPU a delivery", "peak_mib": "MiB at most"}


@dataclass(frozen=True, kw_only=True)
class Report:
    """One run."""

    machine: Mapping[str, str]
    results: Sequence[CaseResult]
    noise: Noise
    quick: bool
    rounds: int
    #: contenders that took no part, and what they lacked
    left_out: Mapping[str, set[str]]

    def show(self, console: Console) -> None:
        """Print it."""
        console.print(
            ", ".join(f"{name}: {value}" for name, value in self.machine.items()), style="dim", soft_wrap=True
        )
        for result in self.results:
            if result.failed is None:
                console.print(_table(result))
            else:
                console.print(f"{result.name}: no figures: {result.failed}", style="bold red", markup=False)
        for name, lacking in sorted(self.left_out.items()):
            console.print(f"left out: {name}, since this machine lacks {', '.join(sorted(lacking))}")
        if self.quick:
            console.print("--quick: sizes too small for figures that count; look at the ratios")
        for reason in self.noise.reasons():
            console.print(f"too noisy: {reason}", style="bold red")

    def as_json(self) -> dict[str, Any]:
        """All of it, with the value of every round."""
        return {
            "machine": dict(self.machine),
            "quick": self.quick,
            "rounds": self.rounds,
            "left_out": {name: sorted(lacking) for name, lacking in self.left_out.items()},
            "noise": {
                "too_noisy": self.noise.reasons(),
                "load_before": self.noise.load_before,
                "spin_spread": self.noise.spread,
                "spins_s": self.noise.spins,
                "steal": self.noise.steal,
            },
            "cases": {result.name: _case_json(result) for result in self.results},
        }


def _table(result: CaseResult) -> Table:
    contenders = result.contenders()
    table = Table(title=f"{result.name}: {result.about}", title_justify="left", title_style="bold")
    table.add_column("median (lowest to highest)")
    for contender in contenders:
        table.add_column(contender, justify="right")
    names = list(dict.fromkeys(name for contender in contenders for name in result.figures(contender)))
    for name in names:
        row = [_shown(result.spread(who, name)) if name in result.figures(who) else "" for who in contenders]
        table.add_row(_UNITS.get(name, name.replace("_", " ")), *row)
    for figure in result.compared:
        of_this = {rival: spread for (name, rival), spread in result.ratios().items() if name == figure}
        if of_this:
            label = f"ours ÷ theirs, {_UNITS.get(figure, figure.replace('_', ' '))}"
            table.add_row(label, *(_shown(of_this[who]) if who in of_this else "" for who in contenders), style="bold")
    return table


def _case_json(result: CaseResult) -> dict[str, Any]:
    return {
        "about": result.about,
        "failed": result.failed,
        "figures": {
            who: {name: asdict(result.spread(who, name)) for name in result.figures(who)} for who in result.contenders()
        },
        "ratios": {
            figure: {rival: asdict(spread) for (name, rival), spread in result.ratios().items() if name == figure}
            for figure in result.compared
        },
        "rounds": [{one.contender: dict(one.figures) for one in round_} for round_ in result.rounds],
    }


def _shown(spread: Spread) -> str:
    if spread.low == spread.high:
        return _number(spread.median)
    return f"{_number(spread.median)} ({_number(spread.low)} to {_number(spread.high)})"


def _number(value: float) -> str:
    """Three digits that count."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"
