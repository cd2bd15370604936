"""bench/quality/bias.py on the synthetic data: one line per run and setting."""

import json
import runpy
from pathlib import Path

import pytest

from frevl.training.training import train

BENCH = Path(__file__).parents[3] / "bench" / "quality" / "bias.py"


@pytest.mark.slow
def test_it_prints_a_line_a_run_and_setting(made, tmp_path, capsys):
    rows = [json.loads(line) for line in made.captions_file.read_text().splitlines()]
    cut, end = 160, 200
    for name, part in (("train", rows[:cut]), ("dev", rows[cut:end]), ("test", rows)):
        said = [
            {**row, "text": f"a {'man' if number // 2 % 2 else 'woman'} and {row['text']}"}
            for number, row in enumerate(part)
        ]
        chosen = said if name == "test" else part
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chosen))
    small = {"epochs": 1, "hidden": 16, "width": 8, "members": 1}
    common = ["--store", str(made.store.path)]
    files = [f"--{name}={tmp_path / f'{name}.jsonl'}" for name in ("train", "dev", "test")]
    train(made.store, tmp_path / "train.jsonl", dev=tmp_path / "dev.jsonl", run=tmp_path / "dual", task="matching",
          model="dual", options=small)  # fmt: skip
    main = runpy.run_path(str(BENCH))["main"]
    main(["neutral", *common, *files, "--run", str(tmp_path / "dual")])
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["texts"] for one in found] == ["as they are", "weight 1", "weight 100", "weight 1000"]
    assert found[0]["pool"] == [120, 60]
    assert found[0]["gap fell by"] == [0, 0, 0]
    assert found[3]["after"] < found[3]["before"]
    train(made.store, made.train_file, dev=made.test_file, run=tmp_path / "mlp", task="classification", model="mlp",
          options={"epochs": 1, "hidden": 8})  # fmt: skip
    files = [f"--train={made.train_file}", f"--dev={made.test_file}", f"--test={made.test_file}"]
    main(["prior", *common, *files, "--strength", "0", "--run", str(tmp_path / "mlp")])
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["as they are"] == [0, 0, 0]
