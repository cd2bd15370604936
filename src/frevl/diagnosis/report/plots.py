"""Draw the diagnosis page's plots: data from `findings.chart` as inline SVG in the page's colours.

Matplotlib draws with placeholder colours, which are then replaced by the page's CSS variables, so that one drawing
serves light, dark and print. Letters become outlines: axis ticks are a scale, not text of the page. Every plotted
number is in the finding, and in the table next to the plot.
"""

from __future__ import annotations

import importlib
import io
import math
import re
import warnings
from typing import TYPE_CHECKING, Any

from frevl.errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["NARROW", "PALETTE", "WIDE", "check_matplotlib", "draw_plot", "series_colours"]

WIDE, NARROW = 7.4, 3.7  # inches: the column width on a desktop, and on a phone

PALETTE = 6  # colours of series; further series start over
_INK, _GRID, _REFERENCE = "#010203", "#010204", "#010205"
_SERIES = [f"#0a0b0{number}" for number in range(PALETTE)]
_VARIABLES = {
    _INK: "var(--ink)",
    _GRID: "var(--grid)",
    _REFERENCE: "var(--reference)",
    **{colour: f"var(--series-{number})" for number, colour in enumerate(_SERIES)},
}
_STYLE: Any = {  # Matplotlib's type for this lists all of its several hundred settings
    "svg.hashsalt": "frevl",
    "svg.fonttype": "path",
    "font.size": 9.0,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _INK,
    "axes.linewidth": 0.8,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
}
_LONGEST = 26  # characters of a name next to a bar; the table has the full name


def check_matplotlib() -> None:
    """Fail early if Matplotlib is missing.

    Raises:
        MissingExtraError: Matplotlib is not installed (extra ``diagnose``).
    """
    try:
        importlib.import_module("matplotlib")
    except ModuleNotFoundError as error:
        raise MissingExtraError("matplotlib", "diagnose") from error


def draw_plot(plot: dict[str, Any], *, width: float, prefix: str) -> str:
    """Draw one plot.

    Args:
        plot: Plot data from `findings.chart`.
        width: Width in inches, `WIDE` or `NARROW`.
        prefix: Prefix of every id in the SVG, so that a page may contain several drawings.

    Returns:
        An ``<svg>`` element. The same data give the same text.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # Names in scripts that the built-in font lacks are drawn as boxes; the table has them as text.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        bars = plot["kind"] == "bars"
        figure = Figure(figsize=(width, _height(plot, width) if bars else min(3.4, 0.75 * width)), layout="constrained")
        figure.patch.set_visible(False)
        axes = figure.subplots()
        axes.patch.set_visible(False)
        (_draw_bars if bars else _draw_lines)(axes, plot)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        axes.tick_params(length=0)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return _inline(file.getvalue(), prefix)


def series_colours(plot: dict[str, Any]) -> list[int | None]:
    """Return the colour number of every series; None for a reference that belongs to no series.

    Measured series cycle through the colours. A dashed one named ``"x, law"`` has the colour of the series ``"x"``.
    """
    measured = [one["name"] for one in plot["series"] if not one["dashed"]]
    numbers = {name: number % PALETTE for number, name in enumerate(measured)}
    return [
        numbers.get(one["name"].rpartition(", ")[0]) if one["dashed"] else numbers[one["name"]]
        for one in plot["series"]
    ]


def _names(plot: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(str(name) for one in plot["series"] for name in one["x"]))


def _height(plot: dict[str, Any], width: float) -> float:
    measured = sum(not one["dashed"] for one in plot["series"])
    return 0.75 + len(_names(plot)) * (0.1 + 0.17 * max(measured, 1)) * (1.0 if width > NARROW else 0.95)


def _draw_bars(axes: Axes, plot: dict[str, Any]) -> None:
    """Draw horizontal bars, so that names of any length are readable; a reference series is a mark across the bars."""
    names = _names(plot)
    place = {name: number for number, name in enumerate(names)}
    measured = [
        (one, _SERIES[hue or 0])
        for one, hue in zip(plot["series"], series_colours(plot), strict=True)
        if not one["dashed"]
    ]
    thick = 0.8 / max(len(measured), 1)
    for number, (one, colour) in enumerate(measured):
        for x, y, low, high in _points(one):
            at = place[str(x)] - 0.4 + (number + 0.5) * thick
            axes.barh(at, y, height=0.86 * thick, color=colour, linewidth=0)
            if low is not None and high is not None:
                axes.plot([low, high], [at, at], color=_INK, linewidth=1.1, solid_capstyle="butt")
    for one in (one for one in plot["series"] if one["dashed"]):
        for x, y, _, _ in _points(one):
            at = place[str(x)]
            axes.plot([y, y], [at - 0.45, at + 0.45], color=_REFERENCE, linewidth=1.4, linestyle=(0, (2, 1.5)))
    axes.axvline(0, color=_GRID, linewidth=0.8)
    short = [name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…" for name in names]
    axes.set_yticks(range(len(names)), short, parse_math=False)
    axes.set_ylim(len(names) - 0.45, -0.55)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color=_GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel(plot["y_label"], parse_math=False)


def _draw_lines(axes: Axes, plot: dict[str, Any]) -> None:
    """Draw lines with their bands; a reference series is dashed."""
    for one, hue in zip(plot["series"], series_colours(plot), strict=True):
        points = _points(one)
        colour = _REFERENCE if hue is None else _SERIES[hue]
        xs, ys = [float(x) for x, *_ in points], [y for _, y, _, _ in points]
        if one["dashed"]:
            axes.plot(xs, ys, color=colour, linewidth=1.2, linestyle=(0, (3, 2)))
            continue
        bounded = [(float(x), low, high) for x, _, low, high in points if low is not None and high is not None]
        if bounded:
            at, lows, highs = (list(column) for column in zip(*bounded, strict=True))
            axes.fill_between(at, lows, highs, color=colour, alpha=0.18, linewidth=0)
        small = len(points) <= 15
        axes.plot(xs, ys, color=colour, linewidth=1.8, marker="o" if small else None, markersize=4)
    if plot["log_x"]:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}")
        axes.minorticks_off()
    low, high = axes.get_ylim()
    if "%" in plot["y_label"] and low > -10 and high < 110:  # no ticks outside the range of percentages
        axes.set_ylim(max(low, -2), min(high, 102))
    axes.grid(color=_GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel(plot["x_label"], parse_math=False)
    axes.set_ylabel(plot["y_label"], parse_math=False)


def _points(one: dict[str, Any]) -> list[tuple[Any, float, float | None, float | None]]:
    """Return ``(x, y, low, high)`` of the points that exist."""
    lows, highs = (one[side] or [None] * len(one["x"]) for side in ("low", "high"))
    return [
        (x, float(y), _finite(low), _finite(high))
        for x, y, low, high in zip(one["x"], one["y"], lows, highs, strict=True)
        if _finite(y) is not None
    ]


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _inline(svg: str, prefix: str) -> str:
    """Extract the element from the file and adapt it to the page: unique ids, the page's colours, no fixed size."""
    element = svg[svg.index("<svg") :].strip()
    element = re.sub(r"<!--.*?-->\s*|<metadata>.*?</metadata>\s*|<style.*?</style>\s*", "", element, flags=re.DOTALL)
    element = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{prefix}-", element)
    element = re.sub(r'^<svg[^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true">', element)
    element = element.replace("xlink:href", "href")
    for colour, variable in _VARIABLES.items():
        element = element.replace(colour, variable)
    return element
