"""Untrusted and damaged runs: one message, and nothing allocated beyond what their files hold."""

import json
import math
import resource

import pytest
import torch
from safetensors.torch import load_file, save_file

from frevl import Fusion, Scorer
from frevl.errors import RunError
from frevl.models.registry import NETWORKS
from frevl.runs.run import Run
from served import runs

__all__ = ["runs"]  # a fixture


@pytest.fixture
def copied(runs, tmp_path):
    """A copy of a run: ``.record`` is what is in run.json, ``write`` changes it."""

    class Copied:
        path = tmp_path / "run"

        def __init__(self, name):
            self.path.mkdir()
            for file in ("weights.safetensors", "seen.safetensors"):
                (self.path / file).write_bytes((runs / name / file).read_bytes())
            self.record = json.loads((runs / name / "run.json").read_text())

        def write(self, record):
            (self.path / "run.json").write_text(json.dumps(record))

    return Copied


def refused(path):
    with pytest.raises(RunError) as caught:
        Run.load(path)
    sentence = str(caught.value)
    assert sentence.startswith(f"{path}: the run is damaged (")
    assert sentence.endswith("); train again")
    assert len(sentence) < 500
    assert "\n" not in sentence
    return sentence


@pytest.mark.parametrize(
    "settings",
    [
        {"layers": 1_000_000},
        {"layers": 10**18},
        {"width": 2**40, "heads": 1},
        {"ffn_width": 2**60},
        {"outputs": 10**9},
        {"image_dim": 10**12, "text_dim": 10**12},
        {"head_width": 10**400},
    ],
)
def test_sizes_that_the_weights_do_not_have_are_refused_before_anything_is_allocated(copied, settings):
    run = copied("ask")
    run.record["network_settings"] |= settings
    run.write(run.record)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(run.path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # KiB


def test_a_million_layers_are_counted_not_built(copied):
    run = copied("ask")
    tensors = load_file(run.path / "weights.safetensors")
    run.record["network_settings"]["layers"] = 1_000_000
    run.write(run.record)
    numbers = sum(value.numel() for value in tensors.values())
    assert f"the settings ask for more than the {len(tensors)} tensors with {numbers:,} numbers" in refused(run.path)


VALUES = [None, True, -1, 0, 1.5, 10**400, "x", [], [[]], {}, {"a": None}, ["x", "x"]]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ask", "find"])
def test_entries_of_another_kind_are_refused(copied, name):
    """Every entry, every setting of the network and both numbers of the calibration, each with every value."""
    run = copied(name)
    run.write(run.record)
    Run.load(run.path)
    counted = 0
    for place in ((), ("network_settings",), ("calibration",), ("towers",), ("towers", "image")):
        inner = run.record
        for key in place:
            inner = inner[key]
        for key, right in list(inner.items()):
            for value in VALUES:
                if type(value) is type(right) or (isinstance(right, bool) and value in (0, 1)):
                    continue
                inner[key] = value
                run.write(run.record)
                try:
                    Run.load(run.path)
                except RunError:
                    counted += 1
                inner[key] = right
            del inner[key]
            run.write(run.record)
            if place != ("network_settings",):
                refused(run.path)
            inner[key] = right
    assert counted > 150


@pytest.mark.slow
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"null",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"\xff\xfe",
        b'{"format": 1}',
        b'{"format": NaN}',
        b"1" * 10_000,
        b'{"format": ' + b"9" * 10_000 + b"}",
    ],
)
def test_what_is_no_record_is_refused(copied, content):
    run = copied("ask")
    (run.path / "run.json").write_bytes(content)
    refused(run.path)
    for name in ("weights.safetensors", "seen.safetensors"):
        run.write(run.record)
        kept = (run.path / name).read_bytes()
        (run.path / name).write_bytes(content)
        refused(run.path)
        (run.path / name).write_bytes(kept)
    (run.path / "run.json").unlink()
    (run.path / "config.json").write_bytes(content)
    (run.path / "model.safetensors").write_bytes((run.path / "weights.safetensors").read_bytes())
    with pytest.raises(RunError, match="damaged or of another kind"):
        Fusion.from_pretrained(str(run.path))


def test_a_record_without_end_is_not_read(copied):
    run = copied("ask")
    with (run.path / "run.json").open("wb") as file:
        file.truncate(1 << 40)
    assert "'run.json' has 1,099,511,627,776 bytes, expected at most 33,554,432" in refused(run.path)


@pytest.mark.slow
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["ask", "find"])
def test_weights_that_are_not_finite_are_refused_on_load_and_on_save(copied, bad, name):
    run = copied(name)
    run.write(run.record)
    loaded = Run.load(run.path)
    weights = load_file(run.path / "weights.safetensors")
    deviations = [key for key in weights if key.rpartition(".")[2].endswith("scale") and weights[key].dim() == 1]
    assert bool(deviations) == (name == "find")
    for key in weights:
        spoilt = {one: value.clone() for one, value in weights.items()}
        spoilt[key].view(-1)[-1] = bad
        save_file(spoilt, run.path / "weights.safetensors")
        if key in deviations and bad == math.inf:
            Run.load(run.path)  # an input that never varies
            continue
        count = spoilt[key].numel()
        assert f"1 of {count:,} numbers in the weight '{key}' are not finite" in refused(run.path)
    save_file(weights, run.path / "weights.safetensors")
    key, parameter = next(iter(loaded.network.named_parameters()))
    with torch.no_grad():
        parameter.view(-1)[0] = bad
    with pytest.raises(
        RunError, match=f"the run was not written, because 1 of .* numbers in the weight '{key}' are not"
    ):
        loaded.save()
    Run.load(run.path)  # what was there is still there


@pytest.mark.parametrize("calibration", [{"scale": None, "offset": 0.0}, {"scale": 1.0}, {"scale": 1.0, "offset": "0"}])
def test_a_calibration_that_is_not_finite_is_refused_on_load_and_on_save(copied, calibration):
    run = copied("ask")
    run.write({**run.record, "calibration": calibration})
    assert "of the calibration to be a finite number, found" in refused(run.path)
    run.write(run.record)
    loaded = Run.load(run.path)
    loaded.calibration = {"scale": math.nan, "offset": 0.0}
    with pytest.raises(RunError, match="expected the scale of the calibration to be a finite number, found nan"):
        loaded.save()


def test_a_network_that_is_not_finite_is_not_published(tmp_path):
    network = Fusion(image_dim=4, text_dim=3, outputs=2, width=8, heads=2, layers=1)
    with torch.no_grad():
        network.head.outer.bias[0] = math.nan
    with pytest.raises(RunError, match="the network is not written, because 1 of 2 numbers in the weight 'head"):
        network.save_pretrained(str(tmp_path / "network"))


def test_networks_that_do_not_fit_what_the_run_says_are_refused_when_it_is_opened(copied, made):
    run = copied("ask")
    run.write({**run.record, "labels": [*run.record["labels"], "a third"]})
    with pytest.raises(RunError, match="expected 3 outputs of its network, found 2"):
        Scorer.open(run.path, store=made.store)
    run.write({**run.record, "task": "matching", "labels": []})
    with pytest.raises(RunError, match="expected 1 outputs of its network, found 2"):
        Scorer.open(run.path, store=made.store)
    network = Fusion(image_dim=63, text_dim=48, outputs=2, width=24, heads=4, layers=1)
    save_file(network.state_dict(), run.path / "weights.safetensors")
    run.write({**run.record, "network_settings": network.settings})
    with pytest.raises(RunError, match="its network fails on embeddings of 64 numbers per image and 48 per text"):
        Scorer.open(run.path, store=made.store)


def test_every_network_is_built_without_memory_for_its_numbers(made, runs):
    """The check of sizes builds networks on the device ``meta``: a constructor that reads numbers would fail there."""
    from frevl.models.hub import restored

    dims = {"image_dim": 7, "text_dim": 5, "outputs": 3}
    settings = {
        "adapted-cosine": {"spaces": [[0, 5, 0, 5]], "rank": 3, "weight": 0.1},
        "classes": {
            "image_dim": 7,
            "outputs": 3,
            "examples": 4,
            "memories": [{"width": 1.0, "on_unit": False}],
        },
        "cosine": {"spaces": [[0, 5, 0, 5]]},
        "fusion": {**dims, "width": 8, "heads": 2, "layers": 1},
        "kernel": {**dims, "pairs": 4, "images": 3, "texts": 2},
        "linear": dims,
        "majority": {"outputs": 3},
        "mlp": dims,
        "dual": {"image_dim": 7, "text_dim": 5, "hidden": 8, "width": 4},
    }
    made_of_others = {"average", "reranked", "without-prior"}
    assert settings.keys() | made_of_others == NETWORKS.keys()
    for key, own in settings.items():
        network = NETWORKS[key](**own)
        for parameter in network.parameters():
            if not parameter.is_floating_point():
                parameter.data.zero_()
        save_file({k: v.contiguous() for k, v in network.state_dict().items()}, runs / f"{key}.safetensors")
        back = restored(lambda key=key, own=own: NETWORKS[key](**own), runs / f"{key}.safetensors")
        for (name, one), (_, other) in zip(network.named_parameters(), back.named_parameters(), strict=True):
            assert one.shape == other.shape, name
            assert not other.is_meta
        with pytest.raises(ValueError, match="the settings ask for more than the"):
            restored(lambda: torch.nn.Linear(10**7, 10**7), runs / f"{key}.safetensors")


def test_hashes_of_another_kind_are_refused(copied):
    run = copied("ask")
    run.write(run.record)
    for wrong in (torch.zeros(3), torch.zeros(2, 3, dtype=torch.long)):
        save_file({"images": wrong}, run.path / "seen.safetensors")
        assert "expected one row of hashes in 'seen.safetensors', found" in refused(run.path)
        save_file({"images": torch.zeros(0, dtype=torch.uint64), "space_images": wrong}, run.path / "seen.safetensors")
        assert "expected one row of hashes in 'seen.safetensors', found" in refused(run.path)
    save_file({"others": torch.zeros(3)}, run.path / "seen.safetensors")
    assert "'images' is missing" in refused(run.path)
