"""bench/quality/trust.py at tiny sizes: tables of what labels gain and what doubt finds, per folder."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest

BENCH = Path(__file__).parents[3] / "bench" / "quality" / "trust.py"


def folder_of(folder, seed):
    random = np.random.default_rng(seed)
    classes = ["ash", "birch", "cedar", "elm"]
    labels = np.arange(80) % len(classes)
    vectors = np.eye(12)[labels] + 0.3 * random.standard_normal((80, 12)) + np.eye(12)[4 + seed]
    folder.mkdir()
    np.save(folder / "images.npy", vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    (folder / "image_ids.json").write_text(json.dumps([f"{row}" for row in range(80)]))
    rows = [json.dumps({"image": f"{row}", "target": classes[label]}) for row, label in enumerate(labels)]
    for name, some in (("examples-4", rows[:16]), ("dev", rows[16:])):
        (folder / f"{name}.jsonl").write_text("\n".join(some))
    return str(folder)


@pytest.mark.slow
def test_it_prints_two_tables_a_folder(tmp_path, capsys):
    folders = [folder_of(tmp_path / name, seed) for seed, name in enumerate(("one", "two"))]
    runpy.run_path(str(BENCH))["main"]([*folders, "--seeds", "2", "--rounds", "1"])
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "one: 32 pictures in the pool, 2 seeds"
    assert [line.split()[0] for line in said[3:5]] == ["random", "mixed"]
    found = [line[10:29].strip() for line in said[8:11]]
    assert found == ["wrong answers", "two", "half of the classes"]


def test_area_by_hand():
    bench = runpy.run_path(str(BENCH), run_name="bench")
    positive = np.array([True, False, True, False])
    assert bench["auroc"](positive, np.array([3.0, 1.0, 2.0, 2.0])) == 0.875
