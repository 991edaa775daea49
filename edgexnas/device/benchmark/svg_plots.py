"""Bars and lines as SVG, so that a device makes plots without a plotting library."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
import numpy.typing as npt

__all__ = ["bar_chart", "line_chart"]

COLOURS = ("#1f6f8b", "#d95f02", "#5b8c2a", "#7b4fa3", "#b8336a", "#8a6d1a")
"""Told apart by people who see red and green alike, too."""

WIDTH, HEIGHT = 560, 300
LEFT, RIGHT, TOP, BOTTOM = 72, 16, 34, 44
LEGEND_ROW, LETTER = 18, 7.2
"""Height of a row of names, and width of a letter at most, or near it."""

FloatArray = npt.NDArray[np.float64]


def bar_chart(
    title: str,
    unit: str,
    bars: Sequence[tuple[str, float, float]],
) -> str:
    """Draw bars with error bars from 0 up.

    Parameters
    ----------
    title
        Above the plot.
    unit
        Of the axis.
    bars
        (label, value, half-width of its interval) of each bar.
    """
    most = max((value + width for _, value, width in bars), default=1.0)
    axis = _Axis(0.0, most or 1.0, HEIGHT - BOTTOM, TOP)
    parts = [_frame(title, unit, axis)]
    step = (WIDTH - LEFT - RIGHT) / max(len(bars), 1)
    for number, (label, value, width) in enumerate(bars):
        middle, half = LEFT + step * (number + 0.5), min(step * 0.35, 60)
        top, bottom = axis.place(value), axis.place(0.0)
        parts.append(
            f'<rect x="{middle - half:.1f}" y="{top:.1f}" width="{2 * half:.1f}" '
            f'height="{bottom - top:.1f}" fill="{_colour(number)}"><title>{escape(label)}: '
            f"{value:.4g} ± {width:.2g} {escape(unit)}</title></rect>"
        )
        low, high = axis.place(value - width), axis.place(value + width)
        parts.append(
            f'<path d="M{middle:.1f} {low:.1f}V{high:.1f}M{middle - 6:.1f} {low:.1f}h12'
            f'M{middle - 6:.1f} {high:.1f}h12" stroke="#222" fill="none"/>'
        )
        parts.append(_text(middle, HEIGHT - BOTTOM + 16, label, "middle"))
        parts.append(_text(middle, HEIGHT - BOTTOM + 30, f"{value:.4g} {unit}", "middle"))
    return _svg(parts)


def line_chart(
    title: str,
    unit: str,
    series: Mapping[str, tuple[Sequence[float] | FloatArray, Sequence[float] | FloatArray]],
    *,
    x_label: str,
    bands: Sequence[tuple[str, float, float]] = (),
    logarithmic: bool = False,
) -> str:
    """Draw lines.

    Parameters
    ----------
    title
        Above the plot.
    unit
        Of the vertical axis, which starts at 0.
    series
        Name → x and y, of one length each.
    x_label
        Below the plot.
    bands
        (name, from, to) of x ranges to shade; bands of one name have one colour. Lines and bands
        are named below the plot.
    logarithmic
        Space x by its logarithm.
    """
    every_x = [float(x) for xs, _ in series.values() for x in xs] or [0.0, 1.0]
    every_y = [float(y) for _, ys in series.values() for y in ys if math.isfinite(y)] or [1.0]
    across = _Axis(min(every_x), max(every_x), LEFT, WIDTH - RIGHT, logarithmic=logarithmic)
    up = _Axis(0.0, max(every_y) or 1.0, HEIGHT - BOTTOM, TOP)
    parts = [_frame(title, unit, up)]
    names = list(dict.fromkeys(name for name, _, _ in bands))
    for name, start, end in bands:
        left, right = across.place(start), across.place(end)
        parts.append(
            f'<rect x="{left:.1f}" y="{TOP}" width="{right - left:.1f}" '
            f'height="{HEIGHT - BOTTOM - TOP}" fill="{_colour(names.index(name))}" '
            f'opacity="0.2"><title>{escape(name)}</title></rect>'
        )
    for tick in across.ticks():
        parts.append(_text(across.place(tick), HEIGHT - BOTTOM + 16, f"{tick:g}", "middle"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, x_label, "middle"))
    for number, (name, (xs, ys)) in enumerate(series.items()):
        points = " ".join(
            f"{across.place(float(x)):.1f},{up.place(float(y)):.1f}"
            for x, y in zip(xs, ys, strict=True)
            if math.isfinite(y)
        )
        colour = _colour(number)
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5">'
            f"<title>{escape(name)}</title></polyline>"
        )
    legend, rows = _legend(list(series) if len(series) > 1 else [], names)
    return _svg([*parts, legend], HEIGHT + LEGEND_ROW * rows)


def _legend(lines: Sequence[str], bands: Sequence[str]) -> tuple[str, int]:
    """Names beside a stroke or a patch of their colours, and how many rows they take."""
    parts, x, row = [], float(LEFT), 0
    for names, opacity, thickness in ((lines, 1.0, 3), (bands, 0.2, 12)):
        for number, name in enumerate(names):
            width = 34 + LETTER * len(name)
            if x > LEFT and x + width > WIDTH:
                x, row = float(LEFT), row + 1
            y = HEIGHT + LEGEND_ROW * row + 8
            parts.append(
                f'<rect x="{x:.1f}" y="{y - thickness / 2}" width="16" height="{thickness}" '
                f'fill="{_colour(number)}" opacity="{opacity}"/>'
            )
            parts.append(_text(x + 21, y + 4, name, "start"))
            x += width
    return "".join(parts), row + 1 if parts else 0


class _Axis:
    """From values to pixels."""

    def __init__(
        self, low: float, high: float, start: float, end: float, *, logarithmic: bool = False
    ) -> None:
        self._logarithmic = logarithmic and low > 0
        self.low, self.high = low, high if high > low else low + (abs(low) or 1.0)
        self._start, self._end = start, end

    def place(self, value: float) -> float:
        low, high = self.low, self.high
        if self._logarithmic:
            low, high, value = math.log(low), math.log(high), math.log(max(value, low * 1e-9))
        share = min(max((value - low) / (high - low), 0.0), 1.0)
        return self._start + share * (self._end - self._start)

    def ticks(self) -> list[float]:
        """About five round values."""
        if self._logarithmic:
            first, last = math.floor(math.log2(self.low)), math.ceil(math.log2(self.high))
            powers = [2.0**k for k in range(first, last + 1)]
            return [value for value in powers if self.low <= value <= self.high]
        step = 10 ** math.floor(math.log10((self.high - self.low) / 4))
        step *= next((k for k in (1, 2, 5) if (self.high - self.low) / (step * k) <= 6), 10)
        first = math.ceil(self.low / step)
        return [k * step for k in range(first, math.floor(self.high / step) + 1)]


def _frame(title: str, unit: str, axis: _Axis) -> str:
    parts = [_text(LEFT, 18, title, "start", weight="bold"), _text(8, TOP - 8, unit, "start")]
    for tick in axis.ticks():
        y = axis.place(tick)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        parts.append(_text(LEFT - 6, y + 4, f"{tick:,.10g}", "end"))
    return "".join(parts)


def _text(x: float, y: float, text: str, anchor: str, *, weight: str = "normal") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}" '
        f'fill="#222">{escape(text)}</text>'
    )


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _svg(parts: Sequence[str], height: int = HEIGHT) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" font-family="sans-serif" font-size="12">'
        f"{''.join(parts)}</svg>"
    )
