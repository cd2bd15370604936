"""How long the models of a diagnosis are trained, and in which precision."""

import pytest
import torch

from frevl.diagnosis import model_comparison as comparison_module
from frevl.diagnosis.model_comparison import fit, most_passes, quick_products
from frevl.diagnosis.model_specs import MODEL_SPECS
from frevl.diagnosis.splits import read_splits

pytestmark = pytest.mark.slow


def test_passes_are_more_where_pairs_are_fewer():
    assert [most_passes(12, n) for n in (8_001, 19_200, 24_000, 32_000, 400_000)] == [20, 20, 16, 12, 12]
    assert [most_passes(4, n) for n in (8_001, 16_000, 400_000)] == [15, 8, 4]


def test_networks_are_given_time_to_begin_in_matching(made, tmp_path, monkeypatch):
    """While every pair is called wrong the development score stands at one half; 5 such passes were the end."""
    given = []
    real = comparison_module.train
    monkeypatch.setattr(comparison_module, "train", lambda *args, **more: given.append(more) or real(*args, **more))
    splits = read_splits(made.store, made.captions, made.captions, task="matching", dev=None, encoder=None, seed=0)
    for name in ("text", "linear", "tiny"):
        spec = next(one for one in MODEL_SPECS if one.name == name)
        fit(splits, spec, folder=tmp_path / name, time_limit=5)
    assert [more["options"].get("patience") for more in given] == [20, None, 20]
    # A fusion makes 32 steps a pass, or as many as batches of 32 make.
    assert [more["options"].get("batch_size") for more in given] == [None, None, 32]


def test_what_a_launcher_has_set_is_of_no_concern(made, tmp_path, monkeypatch):
    """A model that is solved takes no workers, and a second process that diagnoses shares no steps with this one."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    splits = read_splits(made.store, made.train, made.test, task="classification", dev=None, encoder=None, seed=0)
    spec = next(one for one in MODEL_SPECS if one.name == "linear")
    assert fit(splits, spec, folder=tmp_path / "run", time_limit=5).run.results["development"]["n"] > 0


def test_products_are_rounded_only_while_networks_of_many_pairs_train():
    before = torch.get_float32_matmul_precision()
    with quick_products(wanted=False):
        assert torch.get_float32_matmul_precision() == before == "highest"
    with quick_products():
        assert torch.get_float32_matmul_precision() == "medium"
    assert torch.get_float32_matmul_precision() == before
    with pytest.raises(ZeroDivisionError), quick_products():
        _ = 1 / 0
    assert torch.get_float32_matmul_precision() == before
