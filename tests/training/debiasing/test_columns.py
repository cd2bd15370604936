"""A run trained on files with other column names is debiased from those files."""

import json

import pytest

from frevl.training.debiasing.debias import debias
from frevl.training.training import train


@pytest.mark.slow
def test_columns_are_those_of_the_training(made, tmp_path):
    rows = [json.loads(line) for line in made.train_file.read_text().splitlines()]
    file = tmp_path / "named.jsonl"
    file.write_text(
        "".join(json.dumps({"picture": r["image"], "question": r["text"], "target": r["target"]}) + "\n" for r in rows)
    )
    columns = {"image": "picture", "text": "question"}
    train(made.store, file, run=tmp_path / "run", task="classification", model="linear", columns=columns)
    made_of = debias(tmp_path / "run", out=tmp_path / "less", without="text", strength=0.3)
    assert made_of.results["debias"]["strength"] == 0.3
    again = debias(tmp_path / "run", out=tmp_path / "given", without="text", strength=0.3, pairs=file, columns=columns)
    assert again.calibration == made_of.calibration
