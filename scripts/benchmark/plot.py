"""The throughput of everybody in every case, as an SVG that any browser shows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape

from scripts.benchmark.figures import OURS, CaseResult, Spread

FIGURE = "per_s"
_WIDTH, _LEFT, _RIGHT, _ROW, _TOP = 900, 210, 90, 24, 56
_OURS_COLOUR, _THEIRS_COLOUR = "#0b6e4f", "#8a8f98"


def draw(results: Sequence[CaseResult]) -> str:
    """Deliveries per second: a dot for the median, a line from the slowest round to the fastest, on a log scale."""
    rows = [
        (result.name, who, result.spread(who, FIGURE))
        for result in results
        for who in result.contenders()
        if FIGURE in result.figures(who)
    ]
    low = 10 ** math.floor(math.log10(min((spread.low for *_, spread in rows), default=1)))
    high = 10 ** math.ceil(math.log10(max((spread.high for *_, spread in rows), default=10)))
    scale = _Scale(low, max(high, low * 10))
    height = _TOP + _ROW * len(rows) + 16
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
            'font-family="system-ui, sans-serif" font-size="13">',
            f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
            '<text x="12" y="22" font-size="15">Deliveries per second: median, slowest and fastest round</text>',
            *_axis(scale, height),
            *_rows(rows, scale),
            "</svg>\n",
        ]
    )


class _Scale:
    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low, high

    def x(self, value: float) -> float:
        """Where a value stands."""
        share = math.log10(value / self.low) / math.log10(self.high / self.low)
        return round(_LEFT + share * (_WIDTH - _LEFT - _RIGHT), 1)


def _axis(scale: _Scale, height: int) -> Iterator[str]:
    value = scale.low
    while value <= scale.high:
        x = scale.x(value)
        yield f'<line x1="{x}" y1="{_TOP - 10}" x2="{x}" y2="{height - 10}" stroke="#e3e5e8"/>'
        yield f'<text x="{x}" y="{_TOP - 14}" text-anchor="middle" fill="#5b6069">{value:,.0f}</text>'
        value *= 10


def _rows(rows: Sequence[tuple[str, str, Spread]], scale: _Scale) -> Iterator[str]:
    above = None
    for index, (case, who, spread) in enumerate(rows):
        y = _TOP + index * _ROW + _ROW // 2
        colour = _OURS_COLOUR if who == OURS else _THEIRS_COLOUR
        if case != above:
            yield f'<text x="12" y="{y + 4}" font-weight="bold">{escape(case)}</text>'
            above = case
        yield f'<text x="{_LEFT - 12}" y="{y + 4}" text-anchor="end" fill="{colour}">{escape(who)}</text>'
        yield (
            f'<line x1="{scale.x(spread.low)}" y1="{y}" x2="{scale.x(spread.high)}" y2="{y}" '
            f'stroke="{colour}" stroke-width="3"/>'
        )
        yield f'<circle cx="{scale.x(spread.median)}" cy="{y}" r="5" fill="{colour}"/>'
        yield f'<text x="{scale.x(spread.high) + 10}" y="{y + 4}" fill="{colour}">{spread.median:,.0f}</text>'
