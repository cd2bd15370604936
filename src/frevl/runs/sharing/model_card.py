"""The model card of a run for a model hub, written only from the run's own records.

The fields follow Mitchell et al., "Model Cards for Model Reporting" (arXiv 1810.03993); the head is the metadata that
hubs read. Missing numbers are reported as missing, never invented.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from frevl.data.formats.pair_rows import WITH_ARTICLE
from frevl.errors import misleading

__all__ = ["model_card"]

_MOST_LABELS = 20
_TITLES = {
    "i2t_r1": "image to text, recall at 1",
    "i2t_r5": "image to text, recall at 5",
    "i2t_r10": "image to text, recall at 10",
    "t2i_r1": "text to image, recall at 1",
    "t2i_r5": "text to image, recall at 5",
    "t2i_r10": "text to image, recall at 10",
    "i2t_median_rank": "image to text, median rank from 1 (not %)",
    "t2i_median_rank": "text to image, median rank from 1 (not %)",
    "accuracy": "accuracy",
    "vqa_accuracy": "VQA accuracy",
    "ece": "calibration error (ECE, lower is better)",
    "ece_debiased": "calibration error without what chance adds (lower is better)",
    "brier": "Brier score (lower is better)",
    "macro_f1": "F1, mean over classes",
}


def model_card(
    run: Mapping[str, Any],
    *,
    name: str,
    results: Sequence[Mapping[str, Any]] = (),
    diagnosis: Mapping[str, Any] | None = None,
) -> str:
    """Return the model card.

    Args:
        run: The contents of ``run.json``.
        name: Name of the model for headings and examples: an id on a hub.
        results: The JSON records of ``frevl evaluate --json``, one per test set.
        diagnosis: The JSON record of ``frevl diagnose --json``, whose verdict goes into the card.

    Returns:
        Markdown that starts with metadata.
    """
    parts = [
        _head(run),
        f"# {name.rpartition('/')[2]}",
        f"A network of the kind {_kind(run)} with {run['parameters']:,} parameters for {run['task']} on **frozen "
        f"embeddings**, trained with frevl {run['provenance']['versions'].get('frevl', '')}. The encoders are not part "
        f"of it: they embed {' and '.join(f'{side}s' for side in _sides(run))} first, and this network reads the "
        "embeddings.",
        _verdict(diagnosis),
        _metrics(run, results),
        _encoders(run),
        _training(run),
        _limits(run, results, diagnosis),
        _use(run, name),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(run: Mapping[str, Any]) -> str:
    lines = [
        "---",
        "library_name: frevl",
        "tags:",
        *(f"- {tag}" for tag in ("frevl", "frozen-embeddings", "vision-language", run["task"], run["model"])),
    ]
    return "\n".join([*lines, "---"])


def _sides(run: Mapping[str, Any]) -> list[str]:
    """Return the sides of a pair that the run reads: image, text, or both."""
    return [side for side, towers in run["towers"].items() if towers]


def _kind(run: Mapping[str, Any]) -> str:
    chosen = (run["results"].get("selection") or {}).get("chosen")
    return f"`{chosen}`, chosen by `{run['model']}`," if run["model"] == "auto" and chosen else f"`{run['model']}`"


def _verdict(diagnosis: Mapping[str, Any] | None) -> str:
    if diagnosis is None:
        return "No diagnosis was made, so this card cannot say whether simpler models would do: `frevl diagnose` can."
    return f"> **Verdict.** {diagnosis['verdict']['sentence']}"


def _metrics(run: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> str:
    lines = ["## Results"]
    for result in results:
        notes = result.get("notes", [])
        lines += ["", *(f"**{note}**\n" for note in misleading(notes))]
        lines += [f"{result['n']:,} test pairs; 95 % intervals by bootstrap over {_sides(run)[0]}s.", ""]
        lines += ["| metric | % | 95 % interval |", "|---|---|---|"]
        for metric, value in result["metrics"].items():
            low, high = result.get("ci95", {}).get(metric) or (None, None)  # one image has no interval
            interval = "not measured" if low is None else f"{low:.2f} to {high:.2f}"
            lines.append(f"| {_TITLES.get(metric, metric)} | {value:.2f} | {interval} |")
        lines += ["", *(f"- {note}" for note in notes if note not in misleading(notes))]
    if not results:
        lines += [
            "",
            "No test set was evaluated for this card. On the development data that also chose and calibrated it",
        ]
        lines += ["(an optimistic number):", ""]
        development = dict(run["results"].get("development", {}))
        bounds = development.pop("interval", None)
        lines += [f"- {_TITLES.get(key, key)}: {_number(value)}" for key, value in development.items()]
        lines += [] if bounds is None else [f"- 95 % interval of the accuracy: {bounds[0]:.2f} to {bounds[1]:.2f}"]
    return "\n".join(lines)


def _encoders(run: Mapping[str, Any]) -> str:
    lines = ["## Encoders", "", "Scores are meaningful only for embeddings made in exactly this way.", ""]
    lines += ["| encoder | tower | field | value |", "|---|---|---|---|"]
    for modality, towers in run["towers"].items():
        for tower, identity in towers.items():
            for field, value in sorted(identity.items()):
                lines.append(f"| {', '.join(run['encoders'])} | {modality} `{tower}` | {field} | {_cell(value)} |")
    return "\n".join(lines)


def _training(run: Mapping[str, Any]) -> str:
    results, settings, provenance = run["results"], run["settings"], run["provenance"]
    hardware = ", ".join(f"{key} {value}" for key, value in provenance.get("hardware", {}).items())
    lines = [
        "## Training data and procedure",
        "",
        f"- pairs: {results.get('train_pairs', 0):,}, from `{settings.get('pairs', 'unknown')}`; split by "
        f"{_sides(run)[0]}",
        f"- seconds: {results.get('train_seconds', 0):.1f}; seed {provenance.get('seed')}; {hardware}",
        f"- store: fingerprint `{provenance.get('store_fingerprint')}`",
        f"- calibration: logits are multiplied by {run['calibration']['scale']:.4g} and shifted by "
        f"{run['calibration']['offset']:.4g}",
    ]
    labels = run["labels"]
    if labels:
        shown = ", ".join(f"`{_cell(label)}`" for label in labels[:_MOST_LABELS])
        lines.append(f"- {len(labels):,} labels: {shown}{', ...' if len(labels) > _MOST_LABELS else ''}")
    lines += [f"- {note}" for note in results.get("notes", [])]
    changed = {key: value for key, value in settings.items() if value is not None and key != "pairs"}
    return "\n".join([*lines, "", "```json", json.dumps(changed, indent=1, sort_keys=True), "```"])


def _limits(run: Mapping[str, Any], results: Sequence[Mapping[str, Any]], diagnosis: Mapping[str, Any] | None) -> str:
    lines = [
        "## Limits",
        "",
        f"- Information that the frozen encoders lose about {' or '.join(WITH_ARTICLE[side] for side in _sides(run))} "
        "cannot be recovered: counting,",
        "  spatial relations and reading are weak in most encoders.",
        "- It inherits the biases of its encoders and of the pairs above, and was tested only on the data named here.",
    ]
    unknown = run["results"].get("unknown")
    if unknown:
        lines.append(
            "- It answers 'unknown' for items unlike any of its labels, and for about "
            f"{100 - 100 * unknown['share']:.3g} % of those that do have one."
        )
    elif run["labels"]:
        lines.append(
            "- It always answers with one of its labels, even if none applies; low probabilities are a sign of this."
        )
    else:
        lines.append("- Its probability assumes that half of the pairs match, as in its development data.")
    for result in results:
        for key, slices in result.get("slices", {}).items():
            worst = min(slices.items(), key=lambda item: _score(item[1]), default=None)
            if worst is not None:
                lines.append(
                    f"- weakest slice of `{key}`: `{worst[0]}` with {_score(worst[1]):.2f} % ({worst[1]['n']} pairs)"
                )
    findings = diagnosis["findings"] if diagnosis else []
    lines += [f"- {finding['claim']}" for finding in findings if finding.get("section") in ("skills", "data")]
    return "\n".join(lines)


def _use(run: Mapping[str, Any], name: str) -> str:
    encoders = " ".join(f"--encoder {encoder}" for encoder in run["encoders"])
    images = " --images images" if "image" in _sides(run) else ""
    return "\n".join(
        [
            "## Use",
            "",
            "```bash",
            f"frevl extract{images} --pairs pairs.jsonl {encoders} --store STORE",
            f"frevl score --store STORE --run hf:{name} --pairs pairs.jsonl --out scores.jsonl",
            "```",
        ]
    )


def _score(record: Mapping[str, Any]) -> float:
    return float(next((value for key, value in record.items() if key not in ("n", "ci95")), 0.0))


def _number(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _cell(value: str) -> str:
    """Escape text so that it cannot break a table."""
    return " ".join(str(value).split()).replace("|", "\\|").replace("`", "'").replace("<", "&lt;")
