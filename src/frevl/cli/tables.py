"""Format results as tables and sentences for people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frevl.errors import counted, misleading
from frevl.terminal import table

if TYPE_CHECKING:
    from frevl.cli.demo import DemoReport
    from frevl.evaluation.evaluation import Result
    from frevl.runs.labelling.label_store import Labelling
    from frevl.runs.run import Run
    from frevl.runs.search.searching import SearchResult

__all__ = [
    "classify_sentence",
    "demo_table",
    "labelling_sentence",
    "queries_table",
    "result_table",
    "run_record",
    "run_sentence",
    "search_table",
    "seeds_sentence",
    "store_table",
]


def demo_table(report: DemoReport) -> str:
    """Describe the results of the demo, where its files are, and how to do the same with other files."""
    rows = [
        [
            row.model,
            f"{row.parameters:,}",
            f"{row.result.metrics['accuracy']:.2f} {_interval(row.result.ci95['accuracy'])}",
            f"{row.train_seconds:.1f}",
        ]
        for row in report.rows
    ]
    examples = [
        f"  {e['image']}: {e['text']} -> {e['label']} ({100 * e['probability']:.0f} %)"
        + ("" if e["label"] == e["target"] else f"  WRONG: it is {e['target']}")
        for e in report.examples
    ]
    verdict = " ".join(
        f"The fusion {'beats' if gain['ci95'][0] > 0 else 'does not measurably beat'} {name}: "
        f"{gain['difference']:+.2f} points {_interval(gain['ci95'])}."
        for name, gain in (
            ("the linear probe", report.gain),
            (f"the best baseline ({Path(report.gain_over_best['versus']).name})", report.gain_over_best),
        )
    )
    folder = report.folder
    return "\n".join(
        [
            "",
            table(["model", "parameters", "test accuracy % (95 % interval)", "training s"], rows),
            "",
            verdict,
            "",
            "Six test questions, answered by the fusion:",
            *examples,
            "",
            f"Images and pairs, the store ({folder}/store) and the runs ({folder}/runs) are in {folder}.",
            "The same with your own files (pairs.jsonl: one {'image', 'text', 'target'} object per line):",
            "  frevl extract --images DIR --pairs pairs.jsonl --store STORE",
            "  frevl train --store STORE --pairs pairs.jsonl --task classification --run RUN",
            "  frevl evaluate --store STORE --run RUN --pairs test.jsonl",
        ]
    )


def result_table(result: Result) -> str:
    """Return metrics (percent; median ranks are ranks) with intervals, slices of the first metric, and notes."""
    rows = [[name, f"{value:.2f}", _interval(result.ci95[name])] for name, value in result.metrics.items()]
    first = misleading(result.notes)
    parts = [
        *first,
        f"{counted(result.n, 'pair')}, task {result.task}",
        table(["metric", "value", "95 % interval"], rows),
    ]
    metric = next(iter(result.metrics))
    for key, groups in result.slices.items():
        rows = [[v, f"{g['n']:,}", f"{g[metric]:.2f}", _interval(g["ci95"])] for v, g in groups.items()]
        parts.append(table([key, "n", f"{metric} %", "95 % interval"], rows))
    parts += [line for key, found in (result.fairness or {}).items() for line in _fairness(key, found)]
    if result.sets is not None:
        sets, bounds = result.sets, result.sets["ci95"]
        parts.append(
            f"Sets of {100 * sets['level']:g} %: the right class is in {sets['set_coverage']:.2f} % of them "
            f"{_interval(bounds['set_coverage'])}; {sets['set_size']:.2f} classes on average "
            f"{_interval(bounds['set_size'])}, {sets['single']:.2f} % contain exactly one."
        )
    if result.difference is not None:
        parts.append(
            f"Difference from {result.difference['versus']}: {result.difference['difference']:+.2f} points of "
            f"{result.difference['metric']} {_interval(result.difference['ci95'])}"
        )
    return "\n\n".join([*parts, *(note for note in result.notes if note not in first)])


def _fairness(key: str, found: dict[str, Any]) -> list[str]:
    """Return the groups of a key as one table per metric, and equal opportunity as a sentence."""
    parts = []
    for metric, compared in found["metrics"].items():
        rows = [[v, f"{g['n']:,}", f"{g[metric]:.2f}", _interval(g["ci95"])] for v, g in compared["groups"].items()]
        worst = f"worst '{compared['worst']:.60}', gap" if compared["gap"] else "no group is worst, gap"
        parts.append(
            f"{metric} by {key}: {worst} {compared['gap']:.2f} points "
            f"{_interval(compared['gap_ci95'])}\n{table([key, 'n', f'{metric} %', '95 % interval'], rows)}"
        )
    equal = found["equal_opportunity"]
    if equal is not None:
        parts.append(
            f"Equal-opportunity difference by {key}: {equal['difference']:.2f} points {_interval(equal['ci95'])}, the "
            f"largest for the class '{equal['class']:.60}'"
        )
    return parts


def queries_table(record: dict[str, Any]) -> str:
    """Return who appears in search results compared with the pool, and the notes."""
    k, units = record["k"], {"share_gap": " points"}
    rows = [
        [name, f"{value:.3f}{units.get(name, '')}", _interval(record["ci95"][name], places=3)]
        for name, value in record["metrics"].items()
    ]
    groups = [
        [name, f"{one['pictures']:,}", f"{one['pool_share']:.1f}", f"{one['top_share']:.1f}"]
        for name, one in record["groups"].items()
    ]
    queries = [[one["query"][:60], f"{one['max_skew']:.3f}", f"{one['min_skew']:.3f}"] for one in record["queries"]]
    return "\n\n".join(
        [
            f"{counted(len(queries), 'query', 'queries')}, a pool of {counted(record['n'], 'image')}, "
            f"the first {k} hits of each",
            table([f"mean at {k}", "value", "95 % interval"], rows),
            table(["group", "images", "pool %", f"first {k} %"], groups),
            table(["query", "max skew", "min skew"], queries),
            *record["notes"],
        ]
    )


def run_record(run: Run) -> dict[str, Any]:
    """Return what `frevl train --json` writes."""
    return {
        "run": str(run.path),
        "model": run.model,
        "task": run.task,
        "parameters": run.parameters,
        "encoders": run.encoders,
        "labels": len(run.labels),
        "results": run.results,
        "settings": run.settings,
        "provenance": run.provenance,
    }


def run_sentence(run: Run) -> str:
    """Describe what was trained and how well it does."""
    development = run.results["development"]
    done = (
        f"Trained {run.model} ({run.parameters:,} parameters) on {counted(run.results['train_pairs'], 'pair')} in "
        f"{run.results['train_seconds']:.1f} s: {_reached(development)} on "
        f"{counted(development['n'], 'development pair')}. Saved in {run.path}"
    )
    return _with_notes(done, run)


def _reached(development: dict[str, Any]) -> str:
    """Return the accuracy with its interval; runs of earlier versions have none, nor do pairs of a single image."""
    bounds = development.get("interval")
    return f"{development['accuracy']:.2f} %" + ("" if bounds is None else f" {_interval(bounds)}")


def classify_sentence(run: Run) -> str:
    """Describe what a classifier was built from and how well it does."""
    development, selection = run.results["development"], run.results["selection"]
    made = " and ".join(
        [
            *(["their names"] if selection["names"] else []),
            *([counted(run.results["train_pairs"], "example")] if run.results["train_pairs"] else []),
        ]
    )
    reached = f"{_reached(development)} of {selection['judged_on']}" if development["n"] else "not measured"
    done = (
        f"Classifier of {len(run.labels):,} classes from {made} in {run.results['train_seconds']:.1f} s: {reached} "
        f"(method {selection['chosen']}: {selection['reason']}). Saved in {run.path}"
    )
    return _with_notes(done, run)


def labelling_sentence(labelling: Labelling) -> str:
    """State how many images were labelled, and the largest classes."""
    largest = ", ".join(f"{label:.60} {count:,}" for label, count in labelling.counts.most_common(_LARGEST))
    rest = len(labelling.counts) - _LARGEST
    more = f" and {counted(rest, 'more class', 'more classes')}" if rest > 0 else ""
    unknown = f"; {labelling.unknown:,} unknown" if labelling.unknown else ""
    if not labelling.labelled:
        return f"No image was labelled: the store has none, or none meets --where.{_written_to(labelling)}"
    return f"Labelled {counted(labelling.labelled, 'image')}: {largest}{more}{unknown}.{_written_to(labelling)}"


def _written_to(labelling: Labelling) -> str:
    return "" if labelling.out is None else f" Written to {labelling.out}"


_LARGEST = 5


def _with_notes(done: str, run: Run) -> str:
    # Reasons to doubt the figures come first; a run of an earlier version has no such list.
    warnings = run.results.get("warnings", [])
    return "\n".join([*warnings, done, *(note for note in run.results["notes"] if note not in warnings)])


def search_table(found: SearchResult) -> str:
    """Return the notes of a search, and its hits as a table."""
    reranked = any(hit.probability is not None for hit in found.hits)
    rows = [
        [
            str(hit.rank),
            f"{hit.similarity:.3f}",
            *(["-" if hit.probability is None else f"{100 * hit.probability:.1f}"] if reranked else []),
            " ".join((hit.path or hit.id).split())
            + (f" (and {counted(len(hit.copies), 'copy', 'copies')})" if hit.copies else ""),
        ]
        for hit in found.hits
    ]
    width = max((len(row[-1]) for row in rows), default=0)
    rows = [[*row[:-1], row[-1].ljust(width)] for row in rows]
    header = ["#", "similarity", *(["match %"] if reranked else []), found.find.ljust(width)]
    return "\n".join([*found.notes, *([table(header, rows)] if rows else [])])


def seeds_sentence(record: dict[str, Any]) -> str:
    """Describe the result of several seeds after their warnings, from `frevl.training.seeds.SeedRuns.record`."""
    development, seeds = record["development"], record["seeds"]
    spread = "" if development["deviation"] is None else f", standard deviation {development['deviation']:.2f}"
    done = (
        f"Trained {record['model']} ({record['parameters']:,} parameters) with {len(seeds)} seeds "
        f"({', '.join(map(str, seeds))}) in {sum(record['train_seconds']):.1f} s: {development['accuracy']:.2f} % on "
        f"development pairs{spread}. Saved in {record['run']}"
    )
    return "\n".join([*record["warnings"], done])


def store_table(description: dict[str, Any]) -> str:
    """Return what a store holds as a table."""
    rows = [
        [tower["name"], tower["modality"], str(tower["dim"]), tower["identity"]["tokens"], tower["identity"]["dtype"],
         f"{tower['lacking']:,}", tower["fingerprint"]]
        for tower in description["towers"]
    ]  # fmt: skip
    rejects = ", ".join(f"{n:,} {kind}" for kind, n in description["rejects"].items()) or "none"
    return "\n".join(
        [
            *description["unfinished"],
            f"{description['path']}: {counted(description['images'], 'image')}, "
            f"{counted(description['texts'], 'text')}, {description['bytes'] / 1e6:,.1f} MB, "
            f"encoders: {', '.join(description['encoders']) or 'none'}",
            table(["tower", "of", "width", "tokens", "type", "missing", "fingerprint"], rows),
            f"rejects: {rejects}; fingerprint of the store: {description['fingerprint']}",
            *_shard(description),
        ]
    )


def _shard(description: dict[str, Any]) -> list[str]:
    if "shard" not in description:
        return []
    state = "complete" if description["complete"] else "incomplete: its extraction did not finish"
    return [f"part {description['shard']} of a sharded extraction, {state}; frevl store merge joins all parts"]


def _interval(bounds: Sequence[float] | None, *, places: int = 2) -> str:
    return "(no interval)" if bounds is None else f"({bounds[0]:.{places}f} to {bounds[1]:.{places}f})"
