"""bench/quality/few_shot.py at tiny sizes: one table per folder, one record per measurement."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest

BENCH = Path(__file__).parents[3] / "bench" / "quality" / "few_shot.py"


@pytest.mark.slow
def test_it_prints_a_table_and_records(tmp_path, capsys):
    random = np.random.default_rng(5)
    classes = ["ash", "birch", "cedar", "elm", "fir"]
    labels = np.arange(100) % len(classes)
    vectors = np.eye(12)[labels] + 0.2 * random.standard_normal((100, 12))
    for of, one, values, ids in (
        ("images", "image", vectors, [f"{row}" for row in range(100)]),
        ("texts", "text", np.eye(12)[:5] + 0.1, classes),
    ):
        np.save(tmp_path / f"{of}.npy", values / np.linalg.norm(values, axis=1, keepdims=True))
        (tmp_path / f"{one}_ids.json").write_text(json.dumps(ids))
    rows = [json.dumps({"image": f"{row}", "target": classes[label]}) for row, label in enumerate(labels)]
    for name, some in (("examples-8", rows[:40]), ("dev", rows[40:])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(some))
    runpy.run_path(str(BENCH))["main"]([str(tmp_path), "--quick"])
    table, records = capsys.readouterr().out.split("\n\n")
    said = {tuple(line.split("  ")[0].split()) for line in table.splitlines()}
    assert {
        ("names", "alone"),
        ("classify", "auto"),
        ("classify", "probe"),
        ("nearest", "class", "mean,", "raw"),
    } < said
    assert ("scikit-learn", "logistic", "regression") in said
    found = [json.loads(line) for line in records.splitlines()]
    assert {"ratio", "goal", "logistic_seconds"} < set(found[0])
    assert found[-1]["rows"] == 200
    assert any("chosen" in record for record in found)
