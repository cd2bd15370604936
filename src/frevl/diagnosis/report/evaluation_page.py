"""Write an evaluation as one HTML file in the layout of a diagnosis: metrics, groups, search results, slices."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from frevl.diagnosis.findings import Finding, chart, series
from frevl.diagnosis.report.page import render, write_text
from frevl.diagnosis.report.shareable import shareable
from frevl.errors import misleading
from frevl.files import plain

__all__ = ["evaluation_findings", "write_evaluation_page"]

_HEADINGS = {
    "fairness": "Does it serve all groups alike?",
    "queries": "Whom do searches show?",
    "metrics": "How good is it?",
    "slices": "Where is it better, and where worse?",
}
_WORDS = {
    "title": "Evaluation",
    "kicker": "Evaluation of a run",
    "cases": "Cases",
    "truth": "Truth",
    "answer": "Answer",
    "nothing": "Not examined.",
}
_GROUPS = (
    "Rate of each group in percent with its 95 % interval, resampling images (with their copies); the gap is the "
    "largest minus the smallest rate, and chance is how often one as large occurs when the groups are permuted at "
    "random (docs/fairness.md)."
)
_OPPORTUNITY = (
    "Rate of right answers among the pairs of one class, by group; the class with the largest difference, of those "
    "that every group has in 20 images (docs/fairness.md)."
)
_SHOWN = (
    "Share of each group in the first hits of a query against its share in the pool; a skew is the logarithm of their "
    "ratio. Even a random order does not match the pool exactly, so compare runs with each other, not a run with 0 "
    "(docs/fairness.md)."
)
_METRICS = "In percent (median ranks are ranks), with 95 % intervals from resampling images."
_LOOK = "Look at the pairs of the worst group: wrong targets, odd images and too little training data look the same."
_MORE = "That does not prove that they are equal: more pairs of the smallest group make the interval narrower."
_MOST_BARS = 20
_UNITS = {"share_gap": "points"}


def write_evaluation_page(record: Mapping[str, Any], path: str | Path) -> None:
    """Write the page.

    Args:
        record: The record of ``frevl evaluate --json``, for pairs or for queries.
        path: HTML file to write; its folder is created if missing.

    Raises:
        MissingExtraError: Jinja2 or Matplotlib is not installed.
        InputError: The file cannot be written.
    """
    findings = evaluation_findings(record)
    # Misleading figures come first, as in `frevl.cli.tables`, then the claims on groups.
    notes = list(record["notes"])
    first = misleading(notes)
    sentences = [*first, *(one.claim for one in findings)]
    claims = {one.claim for one in findings}
    page = {
        "verdict": {"sentence": sentences[0], "detail": sentences[1 : 1 + len(first)]},
        "findings": [one.record() for one in findings],
        "notes": [note for note in notes if note not in claims and note not in first],
        "provenance": record["provenance"],
    }
    counted = "Pictures" if "queries" in record else "Pairs"
    facts = [("Task", record["task"]), (counted, record["n"])]
    headings = {one.section: _HEADINGS[one.section] for one in findings}
    write_text(render(shareable(plain(page)), headings, facts, _WORDS), path)


def evaluation_findings(record: Mapping[str, Any]) -> list[Finding]:
    """Return the findings of an evaluation, groups first if they were compared."""
    if "queries" in record:
        return _queries(record)
    found = [one for key, table in record.get("fairness", {}).items() for one in _compared(record, key, table)]
    return [*found, _metrics(record), *_slices(record)]


def _compared(record: Mapping[str, Any], key: str, found: Mapping[str, Any]) -> list[Finding]:
    """Return the findings on the groups of a key."""
    findings = []
    for metric, one in found["metrics"].items():
        groups = one["groups"]
        table = [
            {"group": name, "pairs": group["n"], f"{metric} %": group[metric], **_bounds(group["ci95"])}
            for name, group in groups.items()
        ]
        own_notes = [
            note for note in record["notes"] if note.startswith(f"Groups of '{key}' ") and f" in {metric}: " in note
        ]
        chance = "" if one["chance"] is None else f" Chance: {100 * one['chance']:.1f} %."
        claim = own_notes[0] if own_notes else f"{metric} by '{key}': {_extremes(one)}."
        names = list(groups)
        bars = series(
            metric,
            names,
            [groups[name][metric] for name in names],
            low=[_end(groups[name]["ci95"], 0) for name in names],
            high=[_end(groups[name]["ci95"], 1) for name in names],
        )
        plot = chart("bars", key, f"{metric} %", bars) if len(names) <= _MOST_BARS else {}
        name, advice = f"{key} {metric}", _MORE if " do not measurably differ " in claim else _LOOK
        findings.append(
            Finding(name, "fairness", claim, one["gap"], one["gap_ci95"], f"{_GROUPS}{chance}", advice, table, plot)
        )
    equal = found["equal_opportunity"]
    if equal is not None:
        claim = (
            f"Equal opportunity by '{key}': right answers '{equal['class']:.60}' are found {equal['difference']:.2f} "
            "points less often in one group than in another."
        )
        table = [{"group": name, "found %": rate} for name, rate in equal["groups"].items()]
        findings.append(
            Finding(
                f"{key} equal opportunity",
                "fairness",
                claim,
                equal["difference"],
                equal["ci95"],
                _OPPORTUNITY,
                _LOOK,
                table,
            )
        )
    return findings


def _extremes(one: Mapping[str, Any]) -> str:
    return f"'{one['worst']:.60}' is lowest and '{one['best']:.60}' highest, {one['gap']:.2f} points apart"


def _metrics(record: Mapping[str, Any]) -> Finding:
    metrics = record["metrics"]
    name, value = next(iter(metrics.items()))
    ci95 = record["ci95"][name]
    interval = "" if ci95 is None else f" (95 % interval {ci95[0]:.2f} to {ci95[1]:.2f})"
    table = [{"metric": one, "value": number, **_bounds(record["ci95"][one])} for one, number in metrics.items()]
    claim = f"{name} is {value:.2f}{interval} on {record['n']:,} pairs."
    return Finding("metrics", "metrics", claim, value, ci95, _METRICS, "", table)


def _slices(record: Mapping[str, Any]) -> list[Finding]:
    metric = next(iter(record["metrics"]))
    found = []
    for key, groups in record["slices"].items():
        table = [
            {"value": name, "pairs": one["n"], f"{metric} %": one[metric], **_bounds(one["ci95"])}
            for name, one in groups.items()
        ]
        worst = min(groups, key=lambda name: groups[name][metric])
        best = max(groups, key=lambda name: groups[name][metric])
        claim = (
            f"{metric} by '{key}': from {groups[worst][metric]:.2f} % ('{worst:.60}') to {groups[best][metric]:.2f} % "
            f"('{best:.60}')."
        )
        how = "Every value with enough pairs; among many, extremes are far apart by chance alone. --groups tests that."
        found.append(Finding(f"slice {key}", "slices", claim, None, None, how, "", table))
    return found


def _queries(record: Mapping[str, Any]) -> list[Finding]:
    k, metrics, ci95 = record["k"], record["metrics"], record["ci95"]
    groups = record["groups"]
    names = list(groups)
    shares = [
        {
            "group": name,
            "pictures": one["pictures"],
            "pool %": one["pool_share"],
            f"first {k} %": one["top_share"],
        }
        for name, one in groups.items()
    ]
    bars = [
        series(name, names, [one[key] for one in groups.values()])
        for name, key in (("pool", "pool_share"), (f"first {k}", "top_share"))
    ]
    plot = chart("bars", "group", "share, %", *bars) if len(names) <= _MOST_BARS else {}
    gap = metrics["share_gap"]
    claim = (
        f"The first {k} hits of {len(record['queries']):,} queries show groups {gap:.2f} points away from their share "
        f"of the {record['n']:,} images, on average."
    )
    means = [
        {"mean": f"{name} ({_UNITS[name]})" if name in _UNITS else name, "value": value, **_bounds(ci95[name])}
        for name, value in metrics.items()
    ]
    each = [
        {name: one[name] for name in ("query", "max_skew", "min_skew", "share_gap")}
        for one in sorted(record["queries"], key=lambda one: -one["max_skew"])
    ]
    worst = each[0]
    return [
        Finding("shown", "queries", claim, gap, ci95["share_gap"], _SHOWN, "", shares, plot),
        Finding(
            "skews", "queries",
            f"MaxSkew@{k} is {metrics['max_skew']:.3f} and MinSkew@{k} {metrics['min_skew']:.3f}, means over queries.",
            metrics["max_skew"], ci95["max_skew"], _SHOWN, "", means,
        ),
        Finding(
            "by query", "queries",
            f"The most skewed query is '{worst['query']:.80}' ({worst['max_skew']:.3f}).",
            worst["max_skew"], None, "The same for every query, the most skewed first.",
            "A query that names a group is meant to be skewed; leave it out of the file.", each,
        ),
    ]  # fmt: skip


def _bounds(ci95: list[float] | None) -> dict[str, float | None]:
    return {"low": _end(ci95, 0), "high": _end(ci95, 1)}


def _end(ci95: list[float] | None, end: int) -> float | None:
    return None if ci95 is None else ci95[end]
