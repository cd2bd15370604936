"""Write a diagnosis as Markdown: verdict, findings by section, tables. All its numbers are in the JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from frevl.diagnosis.findings import sections_of
from frevl.diagnosis.report.shareable import shareable

if TYPE_CHECKING:
    from frevl.diagnosis.diagnosis import Diagnosis

__all__ = ["diagnosis_markdown", "diagnosis_summary"]

_MOST_ROWS = 30


def diagnosis_markdown(diagnosis: Diagnosis) -> str:
    """Return the whole diagnosis as Markdown, the verdict first."""
    record = shareable(diagnosis.record())
    origin, verdict = record["provenance"], record["verdict"]
    parts = [f"# {verdict['sentence']}", *verdict["detail"], *record["notes"]]
    for section, heading in sections_of(verdict).items():
        found = [finding for finding in record["findings"] if finding["section"] == section]
        if found:
            parts.append(f"## {heading}")
            parts += [_finding(finding) for finding in found]
    if record["cases"]:
        columns = ("kind", "image", "text", "target", "answer", "confidence")
        parts += ["## Example pairs", _table([{name: case[name] for name in columns} for case in record["cases"]])]
    parts.append(
        f"Task {diagnosis.task}, store {origin['store_fingerprint']}, seed {origin['seed']}; "
        + ", ".join(f"{name} {version}" for name, version in origin["versions"].items())
        + f"; `{origin['command']}`"
    )
    return "\n\n".join(parts) + "\n"


def diagnosis_summary(diagnosis: Diagnosis) -> str:
    """Return verdict and claims for the terminal, one per line."""
    lines = [diagnosis.verdict["sentence"], *diagnosis.verdict["detail"]]
    for section, heading in sections_of(diagnosis.verdict).items():
        claims = [
            finding.claim
            for finding in diagnosis.findings
            if finding.section == section and not finding.name.startswith("fusion-against-")  # stated in the verdict
        ]
        if claims:
            lines += ["", heading, *(f"  {claim}" for claim in claims)]
    return "\n".join([*lines, *(["", *diagnosis.notes] if diagnosis.notes else [])])


def _finding(finding: dict[str, Any]) -> str:
    value, ci95 = finding["value"], finding["ci95"]
    number = "" if value is None else f" Value {_cell(value)}"
    if value is not None and ci95 is not None:
        number += f" (95 % interval {_cell(ci95[0])} to {_cell(ci95[1])})"
    lines = [
        f"**{finding['claim']}**{number}{'.' if number else ''}",
        f"What to do: {finding['advice']}",
        f"How: {finding['how']}",
    ]
    if finding["table"]:
        lines.append(_table(finding["table"]))
    return "\n\n".join(lines)


def _table(rows: list[dict[str, Any]]) -> str:
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(_cell(row[name]) for name in names) + " |" for row in rows[:_MOST_ROWS]]
    if len(rows) > _MOST_ROWS:
        lines.append(f"\n... and {len(rows) - _MOST_ROWS:,} more, in the JSON.")
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.2f}"
    return str(value).replace("|", "\\|").replace("\n", " ")
