"""Records, formulas and pages of the benchmark; nothing here depends on the speed of this machine."""

import inspect
import json
import math
import re
import sys

import pytest
import torch

from energy_counter import FakeMonitor
from frevl.deployment.efficiency import comparison, encoder_forms, networks
from frevl.deployment.efficiency import stand_ins as architectures
from frevl.deployment.efficiency.bench import Benchmark, bench
from frevl.deployment.efficiency.comparison import Work, clip_records, joint_records, saved
from frevl.deployment.efficiency.encoder_forms import encoder_records
from frevl.deployment.efficiency.networks import fusion_records, goal_records, scaling_records
from frevl.deployment.efficiency.page import goals_table, page, write_page
from frevl.deployment.efficiency.profiles import fusion_flops, transformer_flops
from frevl.deployment.efficiency.records import Meter, Record, energy_record, open_meter
from frevl.deployment.efficiency.stages import photo, stage_records
from frevl.deployment.efficiency.stand_ins import (
    CLIPS,
    clip_config,
    drawn_embeddings,
    drawn_towers,
    open_clip_towers,
    write_drawn,
)
from frevl.deployment.efficiency.timing import (
    Limits,
    Timing,
    measure_limits,
)
from frevl.deployment.export.exporting import export
from frevl.errors import InputError, RunError
from frevl.models.fusion import PRESETS, Fusion
from networks import SMALL

TINY_CLIP = (32, 8, 128, 2, 64, 1, 24)


@pytest.fixture
def small(monkeypatch):
    """Presets and towers of a size for tests, under their own names."""
    for name in PRESETS:
        monkeypatch.setitem(PRESETS, name, SMALL)
    monkeypatch.setitem(architectures.CLIPS, "CLIP ViT-B/32", TINY_CLIP)
    monkeypatch.setattr(networks, "DIM", 24)
    monkeypatch.setattr(comparison, "_STORED", 37)
    monkeypatch.setattr(comparison, "_CACHED_PAIRS", 11)


# Measurements, on networks of a few thousand weights


@pytest.mark.slow
def test_every_form_is_timed_and_agrees_with_pytorch(small, monkeypatch):
    records = fusion_records(["tiny"], Limits(1e9, 1e9), batches=(1, 3), kinds=("pooled",), rounds=1)
    assert [record.name for record in records] == [
        f"tiny, pooled, {form}, batch {batch}" for batch in (1, 3) for form in networks.FORMS
    ]
    flops = fusion_flops(Fusion.from_preset("tiny", image_dim=24, text_dim=24, outputs=1).settings)
    for record in records:
        assert record.details["flops"] == flops
        assert record.details["reached"] == pytest.approx(record.value * flops, rel=1e-6)
        assert ("share_of_attainable" in record.details) == (record.details["form"] == "fused")
        assert record.details["largest_difference"] < (0.1 if record.details["form"] == "int8" else 1e-5)
    monkeypatch.setattr(Fusion, "for_inference", lambda self: lambda *inputs: self(*inputs) + 1)
    with pytest.raises(RunError, match="The logits of the tiny fusion as fused differ from PyTorch.s by up to 1"):
        fusion_records(["tiny"], Limits(1e9, 1e9), batches=(1,), kinds=("pooled",), forms=("fused",), rounds=1)


def test_tokens_are_timed_and_batches_beyond_all_patience_left_out(small, monkeypatch):
    monkeypatch.setattr(networks, "_MOST_FLOPS_A_CALL", 3e6)
    forms = ("PyTorch", "fused")
    records = fusion_records(["base"], Limits(1e9, 1e9), batches=(1, 999), kinds=("tokens",), forms=forms, rounds=2)
    assert [record.details["batch"] for record in records] == [1, 1]
    assert records[0].details["flops"] == fusion_flops(
        Fusion.from_preset("base", image_dim=24, text_dim=24, outputs=1).settings, image_tokens=49, text_tokens=16
    )


@pytest.mark.slow
def test_goals_compare_the_fastest_form_of_each_preset(small, monkeypatch):
    monkeypatch.setattr(networks, "PRODUCT_SIDE", 10)  # 2,000 operations
    monkeypatch.setattr(networks, "_sides", lambda run, forms: dict.fromkeys(forms, run.network.for_inference()))
    monkeypatch.setattr(networks, "fusion_flops", lambda _: 400)  # 2,000 in a batch of 5
    rounds = {"tiny, fused": 4.0, "tiny, ONNX": 2.0, "base, fused": 44.0, "base, ONNX": 50.0}
    found = {"product": Timing([1.0], [1.0]), **{name: Timing([s], [s]) for name, s in rounds.items()}}
    monkeypatch.setattr(networks, "take_turns", lambda calls, **_: {name: found[name] for name in calls})
    tiny, base, faster, why_tiny, why_base = goal_records(batch=5)
    assert tiny.name.startswith("tiny, ONNX, batch 5")
    assert (tiny.value, tiny.ratio, tiny.limit) == (2.5, 0.5, 0.7)
    assert base.name.startswith("base, fused, batch 5")
    assert (base.ratio, base.met) == (pytest.approx(1 / 44), False)
    assert (faster.value, faster.ratio, faster.limit, faster.met) == (22.0, 22.0, 20.0, True)
    for why in (why_tiny, why_base):  # both miss their limit
        assert why.part == "profile"
        assert 0 < why.details["shares"]["aten::mm"] < why.value < 1  # and others that multiply matrices
        assert sum(why.details["shares"].values()) <= 1 + 1e-9
    found |= {name: Timing([1.25], [1.25]) for name in rounds}  # 0.8 of the products
    *_, compared, why = goal_records(batch=5)
    assert (compared.ratio, compared.met) == (1.0, False)
    assert why.name.startswith("tiny, fused PyTorch, batch 5")
    monkeypatch.setattr(networks, "LEAST_TINY_OVER_BASE", 1.0)
    assert [record.part for record in goal_records(batch=5)] == ["goals"] * 3  # nothing to explain


def test_scaling_covers_pairs_items_tokens_and_width(small, monkeypatch):
    records = scaling_records(pairs=(2,), items=(3,), tokens=(4,), widths=(8,), rounds=1)
    assert [record.name.split(":")[0] for record in records] == ["pairs", "tokens", "width", "items"]
    assert records[2].details["flops"] == 2 * (2 * 24 * 8 + 2 * (2 * 64 + 4 * 8 * 16) + 4 * 8 * 8 + 8)


@pytest.mark.slow
def test_the_three_ways_of_scoring_with_a_clip(small, tmp_path):
    seconds = {"decode": 0.25, "write": 0.0, "read": 0.0}
    records, roads = clip_records(
        "CLIP ViT-B/32", open_meter(tmp_path), batch=2, rounds=1, held=True, stage_seconds=seconds
    )
    assert list(roads) == ["end to end", "half cached", "fully cached"]
    assert [roads[name].pairs for name in roads] == [2, 2, 11]
    towers = open_clip_towers("CLIP ViT-B/32")
    assert (towers.dim, towers.side) == (24, 32)
    fusion = fusion_flops(Fusion.from_preset("base", image_dim=24, text_dim=24, outputs=1).settings)
    text = transformer_flops(tokens=77, width=64, ffn_width=256, layers=1)
    image = transformer_flops(tokens=17, width=128, ffn_width=512, layers=2) + 2 * 16 * 3 * 64 * 128
    assert roads["fully cached"].flops == fusion
    assert roads["half cached"].flops == fusion + text
    assert roads["end to end"].flops == fusion + text + image
    goals = {record.name.partition(": ")[2]: record for record in records if record.part == "goals"}
    assert {name: record.limit for name, record in goals.items()} == {
        "fully cached over end to end": 100.0, "half cached over end to end": 2.3,
    }  # fmt: skip
    each = {name: work.timing.median / work.pairs for name, work in roads.items()}
    assert goals["half cached over end to end"].ratio == pytest.approx(each["end to end"] / each["half cached"])
    assert goals["fully cached over end to end"].ratio == pytest.approx(each["end to end"] / each["fully cached"])
    (uses,) = [record for record in records if record.part == "break-even"]
    assert uses.value == 2
    assert uses.details["encode_ms"] > 250
    assert [record.value for record in records if record.part == "energy"] == ["not measured"] * 3


@pytest.mark.slow
def test_a_joint_encoder_is_compared_with_all_ways(monkeypatch):
    network = torch.nn.Linear(5, 3)
    joint = architectures.Joint("Joint", network, lambda pairs: {"input": torch.randn(pairs, 5)})
    monkeypatch.setitem(architectures.JOINT, "ViLT", lambda _: joint)
    roads = {"half cached": Work(2, Timing([1e-9], [1e-9]), 10.0, 6.0)}
    meter = Meter(FakeMonitor([]), counters="RAPL")
    records = joint_records("ViLT", meter, roads, "CLIP", batch=4, rounds=1)
    assert records[0].details["flops"] == 2 * 5 * 3
    assert records[1].value == 2.5  # 10 J for 4 pairs
    faster = records[2]
    assert faster.name == "CLIP, half cached, over Joint"
    assert faster.value > 1
    assert faster.details["percent_less_energy"] == saved(2.5, 3.0)
    assert faster.details["percent_less_flops"] == saved(30.0, 10.0)


@pytest.mark.slow
def test_the_joint_encoders_have_their_published_sizes(monkeypatch):
    blip, vilt = [], []

    class Stop(Exception):  # noqa: N818
        pass

    def keep(where):
        def build(config):
            where.append(config)
            raise Stop

        return build

    import transformers

    # The first network that is loaded puts another module in the place of this one.
    assert transformers.BlipForImageTextRetrieval is not None
    transformers = sys.modules["transformers"]
    monkeypatch.setattr(transformers, "BlipForImageTextRetrieval", keep(blip))
    monkeypatch.setattr(transformers, "ViltForImageAndTextRetrieval", keep(vilt))
    for name in architectures.JOINT:
        with pytest.raises(Stop):
            architectures.open_joint(name)
    vision, text = blip[0].vision_config, blip[0].text_config
    assert (vision.image_size, vision.patch_size, vision.hidden_size, vision.num_hidden_layers) == (384, 16, 768, 12)
    assert (text.hidden_size, text.num_hidden_layers, text.num_attention_heads) == (768, 12, 12)
    assert text.encoder_hidden_size == 768
    assert (vilt[0].image_size, vilt[0].patch_size, vilt[0].hidden_size, vilt[0].num_hidden_layers) == (
        384,
        32,
        768,
        12,
    )
    large = clip_config(CLIPS["CLIP ViT-L/14"])
    assert (large.vision_config.hidden_size, large.vision_config.num_hidden_layers) == (1024, 24)
    assert (large.vision_config.patch_size, large.text_config.hidden_size) == (14, 768)


@pytest.mark.slow
def test_stages_are_timed_with_an_encoder_and_a_store():
    records, seconds = stage_records("toy", items=2, rows=19, rounds=1)
    assert {record.part for record in records} == {"stages"}
    names = " ".join(record.name for record in records)
    for words in (
        "decode a JPEG",
        "resize",
        "network, 2 images",
        "texts of",
        "frevl extract",
        "write 1,024",
        "19 random",
    ):
        assert words in names
    assert set(seconds) == {"decode", "write", "read"}
    assert all(value > 0 for value in seconds.values())
    assert photo(13, 7, 0).size == (13, 7)


@pytest.mark.slow
def test_the_image_tower_of_a_hub_is_held_against_transformers(monkeypatch):
    monkeypatch.setenv("FREVL_CACHE", "before")
    unreachable = {"ONNX Runtime": ("", 0.9999, 1e9), "ONNX Runtime, int8 weights": ("#int8", 0.99, 0.0)}
    monkeypatch.setattr(encoder_forms, "FORMS", unreachable)
    records = encoder_records(sizes=TINY_CLIP, name="CLIP", images=3, rounds=1)
    assert [record.met for record in records] == [None, False, True, None, None, None]
    assert [record.part for record in records] == ["encoders", "goals", "goals", "profile", "profile", "profile"]
    for why, operation in zip(records[3:], ("aten::addmm", "MatMul", "DynamicQuantizeMatMul"), strict=True):
        assert 0 < why.details["shares"][operation] <= why.value < 1
        assert re.search(
            r"; reaches \d+\.\d\d of the measured matrix-product rate", why.name
        )  # how fast this machine is plays no part
    # 16 patches of 8 x 8 and a class token in two layers of 128, and the convolution that makes the patches.
    flops = transformer_flops(tokens=17, width=128, ffn_width=512, layers=2) + 2 * 16 * 3 * 64 * 128
    assert [record.details["flops"] for record in records[1:3]] == [flops, flops]
    assert records[0].details["share_of_products"] * records[1].ratio == pytest.approx(
        records[1].details["share_of_products"]
    )
    assert records[1].details["cosine"] >= 0.9999
    assert records[2].details["cosine"] >= 0.99
    import os

    assert os.environ["FREVL_CACHE"] == "before"


def test_encoders_promise_what_the_project_promises():
    assert {form: limits for form, (_, *limits) in encoder_forms.FORMS.items()} == {
        "ONNX Runtime": [0.9999, 1.3],
        "ONNX Runtime, int8 weights": [0.99, 1.8],
    }


def test_the_drawn_store_is_an_ordinary_store(tmp_path):
    towers = drawn_towers(7, 5)
    store = write_drawn(tmp_path / "store", towers, images=3, texts=2)
    assert store.read_images(store.image_ids).shape == (3, 7)
    assert store.read_texts(["text 1"]).shape == (1, 5)
    values = drawn_embeddings(3, 7).values.astype(float)
    assert [math.dist(row[0], [0] * 7) for row in values] == pytest.approx([1, 1, 1], abs=1e-3)


# The page


@pytest.fixture
def record():
    spread = {"low": 1.0, "high": 4.0, "rounds": 3}
    point = {
        "preset": "tiny", "kind": "pooled", "form": "fused", "batch": 32, "flops": 100, "bytes": 800, "reached": 5e9,
        "attainable": 1e10, "share_of_attainable": 0.5,
    }  # fmt: skip
    savings = {"percent_less_cpu_seconds": 52.0, "percent_less_flops": 99.956}
    records = [
        Record("machine", "matrix products", 1.25e11, "operations/s", spread),
        Record("machine", "memory", 2e10, "bytes/s", spread),
        Record("fusion", "tiny, pooled, fused, batch 32", 12345.6, "pairs/s", spread, details=point),
        Record("goals", "half cached over end to end", 2.5, "times", None, 2.5, 2.3, details=savings),
        Record("goals", "tiny against products", 9.0, "pairs/s", spread, 0.625, 0.7),
        Record("profile", "tiny, fused", 0.75, "share", details={"shares": {"aten::addmm": 0.75}}),
        Record("break-even", "CLIP", 2, "uses", details={"encode_ms": 250.0, "write_ms": 0.5, "read_ms": 0.025}),
        energy_record("end to end", None, Meter(reason="no counter here"), pairs=1, cpu_seconds=0.5, flops=2e9),
    ]
    machine = {"processor": "Abacus", "cores": 2, "memory_gib": 24, "threads": 2}
    return Benchmark(records, False, "2026-01-02", 61.4, machine, {"torch": "2.13"}).record()


def test_the_page_says_what_the_record_says(record, tmp_path):
    text = page(record, "plot.svg")
    assert "`frevl bench --out docs/performance.md` on 2026-01-02" in text
    assert "61 seconds on 2 cores (threads: 2) of Abacus with 24 GiB; torch 2.13" in text
    assert "| half cached over end to end | 2.5 | 2.3 | yes |" in text
    assert "| tiny against products | 0.625 | 0.7 | **no** |" in text
    assert "1 of 2 are missed" in text
    assert "| half cached over end to end | 2.5 | 52.0 % | 99.96 % | not measured |" in text
    assert "## Why a goal is missed" in text
    assert "| `aten::addmm` | 75.0 % |" in text
    assert "| tiny, pooled, fused, batch 32 | 12,346 | 1 to 4, 3 rounds | 5 | 50 % |" in text
    assert "| CLIP | 2 | 250 | 0.5 | 0.025 |" in text
    assert "| end to end | not measured | 0.5 | 2 |" in text
    assert "Not measured: no counter here." in text
    assert "![Roofline](plot.svg)" in text
    for line in text.splitlines():
        if line.startswith("|"):
            assert line.count("|") in (3, 5, 6)
    json.dumps(record)


@pytest.mark.slow
def test_the_page_and_its_plot_are_written_together(record, tmp_path):
    write_page(record, tmp_path / "deep" / "performance.md")
    plot = tmp_path / "deep" / "performance-roofline.svg"
    assert sorted(path.name for path in plot.parent.iterdir()) == ["performance-roofline.svg", "performance.md"]
    drawn = plot.read_text(encoding="utf-8")
    assert "matrix products" in drawn
    assert ">32<" in drawn
    write_page(record, tmp_path / "again.md")
    assert (tmp_path / "again-roofline.svg").read_text(encoding="utf-8") == drawn
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="the page cannot be written"):
        write_page(record, tmp_path / "file" / "x.md")


def test_the_terminal_shows_goals_and_energy(record):
    shown = goals_table(record)
    assert re.search(r"tiny against products +0.625 +0.7 +NO", shown)
    assert shown.endswith("Energy: not measured, no counter here.")


@pytest.mark.slow
def test_the_command_writes_one_record_a_measurement(small, monkeypatch, frevl, tmp_path):
    from frevl.deployment.efficiency import bench as efficiency

    monkeypatch.setattr(efficiency, "measure_limits", lambda **_: measure_limits(rounds=1, side=8, megabytes=1))
    monkeypatch.setattr(
        efficiency,
        "_quick",
        lambda _, say: [say("Working"), Record("goals", "g", 3.0, "times", None, 3.0, 2.0)][1:],
    )
    done = frevl("bench", "--quick", "--json", tmp_path / "b.json", "--out", tmp_path / "performance.md")
    assert done.code == 0, done.err
    assert done.out.startswith("Working\n")
    said = json.loads((tmp_path / "b.json").read_text())
    assert said["quick"] is True
    for one in said["records"]:
        assert {"name", "value", "unit", "spread", "ratio", "limit", "hardware"} <= set(one)
    assert said["records"][-1]["met"] is True
    assert said["hardware"]["threads"] >= 1
    assert "transformers" in said["versions"]
    assert "`frevl bench --quick --out" in (tmp_path / "performance.md").read_text()
    for where, message in ((tmp_path / "b.json" / "x.md", "the page cannot be written"), (tmp_path, "found a folder")):
        failed = frevl("bench", "--quick", "--out", where)
        assert failed.code == 1
        assert message in failed.err
        assert failed.out == ""  # before anything was measured


@pytest.mark.parametrize(
    ("command", "function", "only_here"),
    [("bench", bench, {"quiet", "config"}), ("export", export, {"columns", "config", "vectors", "find"})],
)
def test_flags_are_the_signature_and_hold_no_default_of_their_own(command, function, only_here):
    import typer.main

    from frevl.cli.main import app

    options = {one.name: one for one in typer.main.get_command(app).commands[command].params}
    signature = set(inspect.signature(function).parameters) - {"show"}
    assert set(options) - {"json"} - only_here == signature
    assert all(option.default is None for name, option in options.items() if name in signature - {"run"})
