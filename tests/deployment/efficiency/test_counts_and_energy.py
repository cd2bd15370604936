"""Formulas of the benchmark by hand and against what PyTorch counts, and energy with and without a counter."""

import sys
import types

import pytest
import torch

from energy_counter import FakeMonitor, counter
from frevl.deployment.efficiency.comparison import break_even, saved
from frevl.deployment.efficiency.profiles import counted_flops, fusion_bytes, fusion_flops, transformer_flops
from frevl.deployment.efficiency.records import NOT_MEASURED, Record, energy_record, open_meter
from frevl.deployment.efficiency.stand_ins import (
    open_clip_towers,
)
from frevl.deployment.efficiency.timing import (
    Limits,
    Timing,
    measure_limits,
    rate_record,
    ratio,
    take_turns,
    time_record,
)
from frevl.models.fusion import Fusion
from networks import SMALL

# Arithmetic


def test_caching_pays_after_a_number_of_uses():
    assert break_even(1.0, 0.5, 0.0) == 2  # 1.5 + 0 < 2
    assert break_even(1.0, 0.5, 0.25) == 3  # at 2 both cost 2.0; at 3 it is 2.25 against 3
    assert break_even(10.0, 0.0, 0.0) == 2  # with one use it is a tie
    assert break_even(2.0, 8.0, 1.0) == 11
    assert break_even(1.0, 0.0, 1.0) is None
    assert break_even(1.0, 0.0, 2.0) is None


def test_savings_are_percent_of_before():
    assert saved(200.0, 50.0) == 75.0
    assert saved(100.0, 150.0) == -50.0


def test_a_ratio_compares_the_same_rounds():
    slow, fast = Timing([8.0, 2.0, 30.0], []), Timing([2.0, 1.0, 3.0], [])
    assert ratio(slow, fast) == 4.0  # of 4, 2 and 10


def test_records_hold_the_spread_and_what_was_promised():
    timing = Timing([0.2, 0.4, 0.1], [0.3, 0.6, 0.2])
    rate = rate_record("fusion", "x", timing, items=4, unit="pairs/s", flops=7)
    assert rate.value == 20.0
    assert rate.spread == {"low": 10.0, "high": 40.0, "rounds": 3}
    assert rate.details == {"cpu_seconds": 0.075, "flops": 7}
    each = time_record("stages", "y", timing, items=4)
    assert each.value == 50.0
    assert each.spread == {"low": 25.0, "high": 100.0, "rounds": 3}
    said = Record("goals", "z", 3.0, "times", ratio=3.0, limit=2.3, details={"k": 1}).json({"cores": 2})
    assert said == {
        "part": "goals", "name": "z", "value": 3.0, "unit": "times", "spread": None, "ratio": 3.0, "limit": 2.3,
        "met": True, "hardware": {"cores": 2}, "k": 1,
    }  # fmt: skip
    assert Record("goals", "z", 2.0, "times", ratio=2.0, limit=2.3).met is False
    assert Record("machine", "z", 2.0, "times").met is None


def test_calls_take_turns_and_short_ones_are_repeated():
    called = []
    found = take_turns({"a": lambda: called.append("a"), "b": lambda: called.append("b")}, rounds=3, warm_up=False)
    assert "".join(called) == "ababab"
    assert [len(timing.seconds) for timing in found.values()] == [3, 3]
    assert len(found["a"].cpu_seconds) == 3
    called.clear()
    take_turns({"a": lambda: called.append("a")}, rounds=1)
    assert len(called) > 10
    called.clear()
    take_turns({"a": lambda: called.append("a")}, rounds=5, warm_up=False, most_seconds=-1.0)
    assert called == ["a"]


def test_the_roofline_is_the_lower_of_two_limits():
    limits = Limits(flops=100.0, bytes=10.0)
    assert limits.attainable(flops=60.0, moved=3.0) == 100.0  # 20 operations a byte
    assert limits.attainable(flops=60.0, moved=30.0) == 20.0
    records = measure_limits(rounds=1, side=16, megabytes=1)
    assert [record.part for record in records] == ["machine", "machine"]
    assert [record.unit for record in records] == ["operations/s", "bytes/s"]
    assert all(record.value > 0 for record in records)


# Operations


def test_operations_of_a_fusion_with_a_pencil():
    sizes = {"image_dim": 5, "text_dim": 3, "outputs": 2, "width": 4, "layers": 1, "ffn_width": 6, "head_width": 7}
    full = {**sizes, "cross_attention": True, "product": True, "difference": True}
    # projections 32, attention 2 * 16, feed-forward 2 * 2 * 24, head 16 * 7 + 14
    assert fusion_flops(full) == 2 * (32 + 32 + 96 + 126)
    # image 3 tokens, text 2: projections 60 + 24, attention 2 * (2*3*16 + 2*2*16 + 2*3*2*4), feed-forward 5 * 48
    assert fusion_flops(full, image_tokens=3, text_tokens=2) == 2 * (84 + (208 + 208) + 240 + 126)
    bare = {**full, "cross_attention": False, "product": False, "difference": False}
    assert fusion_flops(bare) == 2 * (32 + 96 + 8 * 7 + 14)


@pytest.mark.slow
@pytest.mark.parametrize(("image_tokens", "text_tokens"), [(1, 1), (5, 3), (1, 3), (7, 1)])
@pytest.mark.parametrize("changes", [{}, {"cross_attention": False}, {"interactions": False}, {"layers": 3}])
def test_operations_of_a_fusion_are_what_pytorch_counts(image_tokens, text_tokens, changes):
    network = Fusion(image_dim=13, text_dim=11, outputs=5, **{**SMALL, **changes}).for_inference()
    counted = counted_flops(network, torch.randn(1, image_tokens, 13), torch.randn(1, text_tokens, 11))
    assert fusion_flops(network.settings, image_tokens=image_tokens, text_tokens=text_tokens) == counted


@pytest.mark.slow
def test_operations_of_clip_are_what_pytorch_counts():
    towers = open_clip_towers("CLIP ViT-B/32", device="meta")
    pixels = torch.zeros(1, 3, 224, 224, device="meta")
    patches = 2 * 49 * 3 * 32 * 32 * 768
    layers = transformer_flops(tokens=50, width=768, ffn_width=3072, layers=12)
    assert counted_flops(towers.model.vision_model, pixel_values=pixels) == layers + patches
    ids = torch.zeros(1, 77, dtype=torch.long, device="meta")
    expected = transformer_flops(tokens=77, width=512, ffn_width=2048, layers=12)
    assert counted_flops(towers.model.text_model, input_ids=ids) == expected
    assert sum(parameter.numel() for parameter in towers.model.parameters()) == 151_277_313  # the published CLIP


def test_bytes_are_weights_once_and_inputs_and_outputs_of_every_pair():
    network = Fusion(image_dim=13, text_dim=11, outputs=5, **SMALL).for_inference()
    flops = fusion_flops(network.settings)
    assert fusion_bytes(network, flops, network.settings, pairs=7) == 4 * (flops // 2 + 7 * (13 + 11 + 5))


# Energy


def test_without_a_counter_energy_is_not_measured_and_stand_ins_are_named(tmp_path):
    meter = open_meter(tmp_path / "intel-rapl")
    assert "the CPU of this machine has no readable energy counter" in meter.reason
    assert meter.joules(lambda: None) is None
    record = energy_record("road", None, meter, pairs=4, cpu_seconds=0.5, flops=7.0)
    assert record.value == NOT_MEASURED == "not measured"
    assert record.details == {"reason": meter.reason, "stand_ins": {"cpu_seconds": 0.5, "flops": 7.0}}


def test_with_a_counter_energy_is_that_of_the_cpu_and_its_memory(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zeus", types.ModuleType("zeus"))
    fake = types.ModuleType("zeus.monitor")
    monkeypatch.setitem(sys.modules, "zeus.monitor", fake)
    fake.ZeusMonitor = FakeMonitor
    called = []
    meter = open_meter(counter(tmp_path))
    assert meter.joules(lambda: called.append(1)) == 10.0
    assert called == [1]
    assert meter.counters == "RAPL"
    assert energy_record("road", 10.0, meter, pairs=4, cpu_seconds=0.5, flops=7.0).value == 2.5

    def refuse(gpu_indices):
        raise PermissionError("no permission\nto read RAPL")

    fake.ZeusMonitor = refuse
    meter = open_meter(counter(tmp_path / "other"))
    assert meter.reason == "the energy counters cannot be read (no permission to read RAPL)"
    assert meter.joules(lambda: None) is None


def test_without_zeus_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zeus", None)
    meter = open_meter(counter(tmp_path))
    assert meter.joules(lambda: None) is None
    assert "pip install 'frevl[energy]'" in meter.reason
