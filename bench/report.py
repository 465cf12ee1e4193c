"""Turns measured rounds into what people read: medians, ratios, a Markdown table and a bar chart as SVG.

Pure; knows neither engines nor servers. The chart needs no plotting library. Called by the two `compare` commands.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

COLOURS = ("#1f6f8b", "#e07a3f", "#6b9a4b", "#8a5fa8", "#c44e52", "#937860", "#4c4c4c")
_WIDTH, _LEFT, _BAR, _GAP = 720, 190, 16, 18

Samples = Mapping[str, Mapping[str, Sequence[float]]]  # case -> side -> one value a round


def medians(samples: Samples) -> dict[str, dict[str, float]]:
    """Case -> side -> median; sides without a value are left out."""
    return {
        case: {side: statistics.median(values) for side, values in sides.items() if values}
        for case, sides in samples.items()
    }


def paired_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """Median over the rounds of ours / theirs, so that a machine that drifts moves both; None without a round."""
    pairs = [a / b for a, b in zip(ours, theirs, strict=False) if b > 0]
    return statistics.median(pairs) if pairs else None


def ratios(samples: Samples, ours: str) -> dict[str, dict[str, float]]:
    """Case -> peer -> ours / theirs."""
    made: dict[str, dict[str, float]] = {}
    for case, sides in samples.items():
        found = {name: paired_ratio(sides.get(ours, ()), values) for name, values in sides.items() if name != ours}
        made[case] = {name: ratio for name, ratio in found.items() if ratio is not None}
    return made


def number(value: float) -> str:
    """Three significant digits without an exponent."""
    if value == 0 or not math.isfinite(value):
        return str(value)
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}"


def markdown_table(samples: Samples, sides: Sequence[str], unit: str) -> str:
    """A row a case, a column a side, then our ratio to each peer; the first side is ours. `unit` heads the table."""
    middle, ratio = medians(samples), ratios(samples, sides[0])
    head = [unit, *sides, *(f"{sides[0]} / {name}" for name in sides[1:])]
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    for case in samples:
        cells = [number(middle[case][side]) if side in middle[case] else "-" for side in sides]
        cells += [f"{ratio[case][name]:.2f}x" if name in ratio[case] else "-" for name in sides[1:]]
        lines.append("| " + " | ".join([case, *cells]) + " |")
    return "\n".join(lines) + "\n"


def bar_chart(title: str, values: Mapping[str, Mapping[str, float]], sides: Sequence[str]) -> str:
    """An SVG: a group a case, a bar a side, each group drawn to its own longest bar."""
    body, y = [], 58
    for index, side in enumerate(sides):
        x = _LEFT + index % 4 * 130
        body.append(_box(x, 30 + index // 4 * 14 - 9, 10, 10, COLOURS[index % len(COLOURS)]))
        body.append(_text(x + 14, 30 + index // 4 * 14, side))
    y += (len(sides) - 1) // 4 * 14
    for case, by_side in values.items():
        longest = max(by_side.values(), default=0.0) or 1.0
        body.append(_text(_LEFT - 8, y + _BAR * max(1, len(by_side)) / 2 + 4, case, "end"))
        for side in (name for name in sides if name in by_side):
            length = (_WIDTH - _LEFT - 80) * by_side[side] / longest
            body.append(_box(_LEFT, y, length, _BAR - 2, COLOURS[sides.index(side) % len(COLOURS)]))
            body.append(_text(_LEFT + length + 5, y + _BAR - 5, number(by_side[side])))
            y += _BAR
        y += _GAP
    view = f'viewBox="0 0 {_WIDTH} {y}" font-family="sans-serif" font-size="11"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {view}>'
    back = f'<rect width="{_WIDTH}" height="{y}" fill="#ffffff"/>'
    return "\n".join([head, back, _text(12, 16, title), *body, "</svg>"]) + "\n"


def _box(x: float, y: float, width: float, height: float, colour: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{colour}"/>'


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="#222222">{escape(text)}</text>'
