"""bench/quality/estimators.py at tiny sizes: one record per estimator, from drawn vectors and from a file."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest

BENCH = Path(__file__).parents[3] / "bench" / "quality" / "estimators.py"


@pytest.mark.slow
def test_it_prints_a_record_per_estimator(tmp_path, capsys):
    main = runpy.run_path(str(BENCH))["main"]
    main(["--quick"])
    drawn = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["data"] for one in drawn] == ["drawn"] * 5 + ["drawn, many"] * 5
    assert len({one["what"] for one in drawn}) == 5
    y = np.arange(90) % 3
    x = np.eye(12)[y] + 0.1 * np.random.default_rng(0).standard_normal((90, 12))
    np.savez(tmp_path / "clear.npz", x=x, y=y, g=np.arange(90) // 2)
    main([str(tmp_path / "clear.npz"), "--quick", "--only", "probe"])
    (found,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (found["data"], found["rows"], found["dim"], found["classes"]) == ("clear", 72, 12, 3)
    assert found["accuracy"] == 100
    assert found["points"] == 0 == found["interval"][0]
    assert found["ratio"] > 0
    assert set(found["logistic_accuracy"]) == {"one", "chosen"}
