"""The accelerator benchmark with tiny sizes on a processor, and the page that it writes."""

import json
import os
import runpy
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from frevl.deployment.efficiency import bench, comparison, records
from frevl.deployment.efficiency.records import CardMeter

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


@pytest.mark.slow
def test_every_part_runs_on_a_processor_without_store_or_pillow(measured):
    found, _ = measured
    assert found["failures"] == {}
    parts = {record["part"].split()[0] for record in found["records"]}
    assert parts == {"limits", "a", "b", "c", "d", "e", "f", "g", "p"}
    assert any("Pillow is not installed" in record["name"] for record in found["records"])
    rates = [record["value"] for record in found["records"] if record["unit"].endswith("/s")]
    assert all(value is None or value > 0 for value in rates)


@pytest.mark.slow
def test_search_and_scores_are_right_where_they_are_timed(measured):
    records = measured[0]["records"]
    assert all(r["details"]["found_the_exact_ten"] for r in records if r["part"] == "g search")
    differences = [r["value"] for r in records if r["name"].startswith("largest difference") and "fp32" in r["name"]]
    assert len(differences) == 1
    assert differences[0] < 1e-5


@pytest.mark.slow
def test_what_the_commands_run_gives_the_results_of_a_processor_and_halves_batches(measured):
    records = {r["name"]: r for r in measured[0]["records"] if r["part"] == "p product"}
    met = {name: record["met"] for name, record in records.items()}
    waits = [name for name in records if "waits for the device" in name]
    assert len(waits) == 3
    assert all(met[name] is None for name in waits), "a processor cannot tell"
    rates = [name for name in records if "steps recorded" in name and records[name]["unit"] == "pairs/s"]
    assert len(rates) == 2
    assert all(met[name] for name in records if name not in waits + rates)
    assert (
        "ran out of memory"
        in records["scores of tokens pairs where memory ends: a smaller batch was used"]["details"]["last_note"]
    )


@pytest.mark.slow
def test_a_missed_share_says_how_its_time_is_divided(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    from on_chip import page

    details = {"milliseconds": 12.0, "profile": {"milliseconds a call": 10.0, "norm": 0.25}}
    lines = page._profiles([{"name": "a step", "ratio": 0.3, "goal": 0.45, "details": details}])
    assert lines[3] == (
        "a step: a call takes 12 ms, of which the device computes for 10 ms. The operations counted would take 3.6 ms "
        "at the rate of the large product, and the goal allows 8 ms:"
    )
    assert lines[-1] == "| 25.0% | `norm` |"


@pytest.mark.slow
def test_nothing_without_a_counter_passes_for_joules(measured):
    records = [record for record in measured[0]["records"] if record["part"] == "e comparison"]
    idle = next(record for record in records if "idle" in record["name"])
    assert idle["value"] is None
    assert "no GPU counter is read" in idle["details"]["reason"]
    assert all(record["details"].get("joules_a_pair") is None for record in records)


@pytest.mark.slow
def test_the_page_names_what_missed_its_goal_first(measured):
    found, text = measured
    first = text.split("\n\n")[1]
    missed = [one["name"] for one in found["records"] if one["met"] is False]
    assert missed
    assert all(name in first for name in missed)
    assert "## (g) Exact search" in text
    assert "nan" not in text


@pytest.mark.slow
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


class Card(types.ModuleType):
    """A card that uses 100 W at rest and 400 W at work; its clock is the counter's."""

    def __init__(self):
        super().__init__("pynvml")
        self.now, self.used, self.watts = 0.0, 0.0, 100.0
        self.nvmlInit = lambda: None
        self.nvmlDeviceGetHandleByIndex = lambda index: index
        self.nvmlDeviceGetTotalEnergyConsumption = lambda _: 1e3 * self.used

    def run(self, seconds, watts):
        self.now += seconds
        self.used += watts * seconds


@pytest.fixture
def card(monkeypatch):
    card = Card()
    monkeypatch.setitem(sys.modules, "pynvml", card)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    monkeypatch.setattr(records.time, "perf_counter", lambda: card.now)
    monkeypatch.setattr(records.time, "sleep", lambda seconds: card.run(seconds, 100.0))
    return card


def test_joules_of_a_card_are_those_above_the_idle_card(card):
    meter = CardMeter("cuda:0")
    assert meter.reason == ""
    assert meter.rest(2.0) == pytest.approx(100.0)
    found = meter.measure(lambda: card.run(0.25, 400.0), 1.0)
    assert found.seconds == pytest.approx([0.25] * 3)
    assert found.watts == pytest.approx([400.0] * 3)
    assert found.joules == pytest.approx([75.0] * 3)


def test_time_and_energy_a_pair_are_records_of_the_bench(card):
    meter = CardMeter("cuda:1")
    way = comparison.DeviceWay("half cached", lambda: card.run(0.5, 300.0), 10, 7.0)
    speed, joules = comparison.device_records(meter, [way], seconds=1.0)
    assert (speed.name, speed.value, speed.unit) == ("half cached", pytest.approx(20.0), "pairs/s")
    assert (joules.value, joules.unit) == (pytest.approx(10.0), "joules per pair")
    assert joules.name == "half cached, minus the idle GPU's 100 W"
    assert {speed.part, joules.part} == {"accelerator"}
    assert json.dumps([one.json({}) for one in (speed, joules)])


def test_a_card_without_a_counter_is_timed_and_its_energy_is_not_measured(card):
    def refuse(_):
        raise RuntimeError("Not Supported")

    card.nvmlDeviceGetTotalEnergyConsumption = refuse
    meter = CardMeter("cuda:0")
    assert meter.reason == "NVML: Not Supported"
    way = comparison.DeviceWay("end to end", lambda: card.run(0.5, 300.0), 4, 7.0)
    speed, joules = comparison.device_records(meter, [way])
    assert speed.value == pytest.approx(8.0)
    assert (joules.value, joules.details) == ("not measured", {"reason": "NVML: Not Supported"})


def test_the_bench_measures_a_card_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert bench._on_accelerator(str) == []
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(bench, "open_clip_towers", lambda name, device: asked.append((name, device)))
    monkeypatch.setattr(bench, "device_ways", lambda device, *_: [device])
    monkeypatch.setattr(bench, "joint_on_device", lambda device, name: f"{name} on {device}")
    monkeypatch.setattr(bench, "CardMeter", lambda device: f"meter of {device}")
    monkeypatch.setattr(bench, "device_records", lambda meter, ways, **_: [meter, *ways])
    assert bench._on_accelerator(str) == ["meter of cuda:0", "cuda:0", "ViLT on cuda:0", "BLIP on cuda:0"]
    assert asked == [("CLIP ViT-L/14", "cuda:0")]
