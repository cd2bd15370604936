"""Report an ablation as a table, Markdown and a plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from frevl.errors import counted
from frevl.terminal import table
from frevl.training.ablation.variants import NO_MORE_THAN_CHANCE

if TYPE_CHECKING:
    from frevl.training.ablation.variants import Ablation, AblationRow

__all__ = ["ablation_markdown", "ablation_table", "draw_ablation", "verdict"]

_COLOURS = {
    "full": "#000000",
    "parts": "#1f77b4",
    "layers": "#2ca02c",
    "training": "#9467bd",
    "encoders": "#ff7f0e",
    "baselines": "#7f7f7f",
}


def ablation_table(ablation: Ablation) -> str:
    """Return the plain-text table with its verdict and notes."""
    header, rows = _cells(ablation)
    doubts, notes = _doubts(ablation)
    return "\n\n".join([*doubts, _heading(ablation), table(header, rows), verdict(ablation), *notes])


def ablation_markdown(ablation: Ablation) -> str:
    """Return the table as a Markdown page."""
    header, rows = _cells(ablation)
    lines = [
        "| " + " | ".join(header) + " |",
        "|" + "|".join(["---", *["---:"] * (len(header) - 1)]) + "|",
        *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows),
    ]
    doubts, notes = _doubts(ablation)
    parts = ["# Ablation", *doubts, _heading(ablation), "\n".join(lines), verdict(ablation)]
    return "\n\n".join([*parts, *notes, "![Intervals](ablation.svg)"]) + "\n"


def _doubts(ablation: Ablation) -> tuple[list[str], list[str]]:
    """Return the notes that put the whole comparison in doubt, which come first, and the others."""
    grave = [note for note in ablation.notes if note.startswith(("Leak: ", NO_MORE_THAN_CHANCE))]
    return grave, [note for note in ablation.notes if note not in grave]


def verdict(ablation: Ablation) -> str:
    """State which variants are measurably worse or better than the full fusion, and which are not.

    The interval over images holds for these trainings only. A difference is called measurable only if it also exceeds
    two standard errors over seeds, so that other images and other seeds would be expected to show it again.
    """
    worse: list[str] = []
    better: list[str] = []
    level: list[str] = []
    for row in ablation.rows[1:]:
        if row.difference is None or row.runs.path == ablation.rows[0].runs.path:
            continue  # the full fusion under another name
        gap, bounds = row.difference["difference"], row.difference["ci95"]
        error = row.difference["standard_error_over_seeds"] or 0.0
        measured = bounds is not None and not bounds[0] <= 0 <= bounds[1] and abs(gap) > 2 * error
        (level if not measured else worse if gap < 0 else better).append(row.variant.name)
    sentences = [
        f"{title}: {', '.join(names)}."
        for title, names in (
            ("Measurably worse than the full fusion", worse),
            ("Measurably better", better),
            ("No measurable difference", level),
        )
        if names
    ]
    compared = len(worse) + len(better) + len(level)
    sentences.append(
        f"Each interval is at 95 %: among {compared} comparisons about {0.05 * compared:.1f} would exclude zero by "
        "chance alone."
    )
    if len(ablation.seeds) == 1:
        sentences.append("Only one seed: how much of a difference is due to chance in training is unknown.")
    else:
        sentences.append(
            "Measurable means that the interval excludes zero and the difference exceeds two standard "
            "errors over seeds."
        )
    return " ".join(sentences)


def draw_ablation(ablation: Ablation, path: Path) -> None:
    """Write a plot: intervals of the metric, and of the paired difference from the full fusion.

    Args:
        ablation: The table.
        path: SVG file to write; the same table gives the same bytes.
    """
    import matplotlib
    from matplotlib.figure import Figure

    rows = ablation.rows
    # Text stays text in the SVG, and its ids follow from the salt instead of chance.
    with matplotlib.rc_context({"svg.hashsalt": "frevl", "svg.fonttype": "none"}):
        figure = Figure(figsize=(10, 1.2 + 0.3 * len(rows)), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        for place, row in enumerate(rows):
            colour = _COLOURS[row.variant.group]
            value = row.result.metrics[ablation.metric]
            for axes, centre, bounds in (
                (left, value, row.result.ci95[ablation.metric]),
                (right, row.difference["difference"] if row.difference else 0.0, _bounds(row)),
            ):
                if bounds is not None:
                    axes.plot(bounds, [place, place], color=colour, linewidth=2, solid_capstyle="butt")
                axes.plot([centre], [place], marker="o", markersize=5, color=colour, linestyle="none")
        left.axvline(rows[0].result.metrics[ablation.metric], color="#cccccc", zorder=0)
        right.axvline(0, color="#cccccc", zorder=0)
        left.set_yticks(range(len(rows)), [row.variant.name for row in rows], parse_math=False)
        left.invert_yaxis()
        left.set_xlabel(f"{ablation.metric} %")
        right.set_xlabel(f"difference from the full fusion, points of {ablation.metric}")
        figure.suptitle(_heading(ablation), fontsize=9, parse_math=False)
        figure.savefig(path, format="svg", metadata={"Date": None})


def _cells(ablation: Ablation) -> tuple[list[str], list[list[str]]]:
    metric = ablation.metric
    header = ["variant", "parameters", f"{metric} %", "95 % interval", "difference", "95 % interval", "deviation",
              "train s"]  # fmt: skip
    rows = []
    for row in ablation.rows:
        spread = row.result.seeds["deviation"][metric]
        rows.append(
            [
                row.variant.name,
                f"{row.runs.parameters:,}",
                f"{row.result.metrics[metric]:.2f}",
                _interval(row.result.ci95[metric]),
                f"{row.difference['difference']:+.2f}" if row.difference else "",
                _interval(_bounds(row)) if row.difference else "",
                "" if spread is None else f"{spread:.2f}",
                f"{sum(row.runs.train_seconds) / len(row.runs.train_seconds):.1f}",
            ]
        )
    return header, rows


def _bounds(row: AblationRow) -> Sequence[float] | None:
    bounds: Sequence[float] | None = row.difference["ci95"] if row.difference else None
    return bounds


def _interval(bounds: Sequence[float] | None) -> str:
    return "unknown" if bounds is None else f"{bounds[0]:.2f} to {bounds[1]:.2f}"


def _heading(ablation: Ablation) -> str:
    seeds = ", ".join(map(str, ablation.seeds))
    means = "one seed" if len(ablation.seeds) == 1 else f"means of {len(ablation.seeds)} seeds"
    return (
        f"{ablation.model}, {ablation.task}: {counted(ablation.n, 'test pair')} of "
        f"{counted(ablation.images, 'image')}, {means} ({seeds}); intervals by bootstrap over images, "
        "differences paired by image"
    )
