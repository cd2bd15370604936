"""A handwritten curation as from ``frevl curate``: captions with copies and a repeated line, or classes."""

import json
from pathlib import Path

from frevl.diagnosis.curation.lines import NOT_LOOKED_AT

__all__ = ["captions", "classes", "write_result"]


def judged(image, caption, why=(), target=None, **said):
    line = {"image": image, "text": caption, **({} if target is None else {"target": target})}
    return {**line, "curate": {**NOT_LOOKED_AT, "copies": 1, **said, "kept": not why, "why": list(why)}}


def captions():
    """Nine captions: one wrong, one doubtful, three copies of one image, a line that stands twice, a file name."""
    return [
        judged("0.png", "a red square", match=0.99),
        judged("1.png", "a wrong one", ["match"], match=0.02),
        judged("2.png", "a doubtful one", match=0.55),
        judged("3.png", "the best copy", match=0.9, copies=3),
        judged("4.png", "a copy", ["duplicate"], match=0.8, copies=3, duplicate_of="3.png"),
        judged("5.png", "a bad copy", ["match", "duplicate"], match=0.1, copies=3, duplicate_of="3.png"),
        judged("6.png", "twice", match=0.97),
        judged("6.png", "twice", ["duplicate"], match=0.97, duplicate_of="6.png"),
        judged("7.png", "IMG_0001.jpg", ["text"], match=None, text=["file name"]),
    ]


def classes():
    """Three labels, one of them contradicted."""
    return [
        judged("0.png", "", target="cat", label=["cat", "cat", 0.9]),
        judged("1.png", "", ["label"], target="cat", label=["cat", "dog", 0.03]),
        judged("2.png", "", target="dog", label=["dog", None, None]),
    ]


def write_result(folder: Path, lines=None, *, task="matching", **more) -> Path:
    """Write the files of a result; return that of ``--json``."""
    lines = captions() if lines is None else lines
    folder.mkdir(parents=True, exist_ok=True)
    for name, kept in (("kept", True), ("dropped", False)):
        own = [line for line in lines if line["curate"]["kept"] is kept]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in own))
    names = {"matching": ("match", "text", "duplicate"), "classification": ("label", "duplicate")}[task]
    figures = {"match": {"wrong_share": 0.2, "ci95": [0.1, 0.3]}, "label": {"accuracy": {"kernel": 0.9, "mlp": 0.8}}}
    group = {
        "key": "season",
        "value": "winter",
        "lines": 40,
        "kept": 50.0,
        "at_random": [70.0, 80.0],
        "beyond_random": True,
    }
    record = {
        "task": task,
        "lines": len(lines),
        "kept": sum(line["curate"]["kept"] for line in lines),
        "filters": {name: {"flagged": 1, "dropped": 1, "dropped_alone": 1, **figures.get(name, {})} for name in names},
        "removed": {
            "sentence": "The filters do not affect all groups equally.",
            "kept": 60.0,
            "groups": [group],
            "vendi": {"before": 5.0, "after": 4.0, "at_random": [3.5, 4.5]},
        },
        "doubts": ["Look at a hundred of them first."],
        "notes": ["A note."],
        "rejects": [],
        "out": "elsewhere/kept.jsonl",
        "dropped": "elsewhere/dropped.jsonl",
        **more,
    }
    (folder / "result.json").write_text(json.dumps(record))
    return folder / "result.json"
