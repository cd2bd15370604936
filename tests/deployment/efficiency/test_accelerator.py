"""The script that measures an accelerator, with tiny sizes on a processor; the page that it writes."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "bench" / "accelerator.py"

# What a machine that only has PyTorch and transformers lacks.
WITHOUT = """
import runpy, sys
class Without:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        missing = name.partition(".")[0] in ("PIL", "lance", "pyarrow", "numkong", "usearch", "typer")
        return None if missing else self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Run every part without a store and without Pillow."""
    folder = tmp_path_factory.mktemp("accelerator")
    found, page = folder / "found.json", folder / "page.md"
    command = [sys.executable, "-c", WITHOUT, SCRIPT, "--quick", "--json", found, "--page", page]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return json.loads(found.read_text()), page.read_text()


def test_every_part_runs_on_a_processor_without_store_or_pillow(measured):
    found, _ = measured
    assert found["failures"] == {}
    parts = {record["part"].split()[0] for record in found["records"]}
    assert parts == {"limits", "a", "b", "c", "d", "e", "f", "g"}
    assert any("Pillow is not installed" in record["name"] for record in found["records"])
    rates = [record["value"] for record in found["records"] if record["unit"].endswith("/s")]
    assert all(value is None or value > 0 for value in rates)


def test_search_and_scores_are_right_where_they_are_timed(measured):
    records = measured[0]["records"]
    assert all(r["details"]["found_the_exact_ten"] for r in records if r["part"] == "g search")
    differences = [r["value"] for r in records if r["name"].startswith("largest difference") and "fp32" in r["name"]]
    assert len(differences) == 1
    assert differences[0] < 1e-5


def test_nothing_without_a_counter_passes_for_joules(measured):
    records = [record for record in measured[0]["records"] if record["part"] == "e comparison"]
    idle = next(record for record in records if "idle" in record["name"])
    assert idle["value"] is None
    assert "reads no counter" in idle["details"]["reason"]
    assert all(record["details"].get("joules_a_pair") is None for record in records)


def test_the_page_names_what_missed_its_goal_first(measured):
    found, text = measured
    first = text.split("\n\n")[1]
    missed = [one["name"] for one in found["records"] if one["met"] is False]
    assert missed
    assert all(name in first for name in missed)
    assert "## (g) Exact search" in text
    assert "nan" not in text


def test_a_part_that_fails_costs_no_other(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    from on_chip import neighbours

    def fail(*_):
        raise RuntimeError("no room")
        yield

    monkeypatch.setattr(neighbours, "search", fail)
    found = tmp_path / "found.json"
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--quick", "--only", "g,f", "--json", str(found)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    record = json.loads(found.read_text())
    assert record["failures"] == {"g": "RuntimeError: no room"}
    assert "f rerank" in {one["part"] for one in record["records"]}
