"""The fusion, fused for inference, in blocks of rows with one core per block, against the plain network."""

import threading

import pytest
import torch
import torch.nn.functional as F

from frevl.models import fusion_cpu
from frevl.models.fusion import Fusion
from frevl.models.fusion_cpu import SharedItems, suits
from frevl.runs.batches import EmbeddedPairs, grid_scorer
from networks import IMAGE_DIM, TEXT_DIM, network

PAIRS = 37
CHANGES = [
    {},
    {"layers": 0},
    {"layers": 3},
    {"cross_attention": False},
    {"product": False},
    {"difference": False},
    {"interactions": False},
    {"outputs": 1},
]


def drawn(count, dim, seed):
    return F.normalize(torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of 5 rows, so that the last one of 37 is smaller."""
    monkeypatch.setattr(fusion_cpu, "_FEW_ROWS", 5)


@pytest.fixture
def two_cores(monkeypatch):
    monkeypatch.setattr(fusion_cpu, "_LEAST_SHARE", 7)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
    fusion_cpu._workers.cache_clear()


@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_pairs_score_as_in_the_plain_network(changes):
    fusion = network(**changes)
    image, text = drawn(PAIRS, IMAGE_DIM, 1), drawn(PAIRS, TEXT_DIM, 2)
    with torch.inference_mode():
        found = fusion.for_inference()(image, text)
    torch.testing.assert_close(found, fusion(image, text), atol=1e-6, rtol=1e-6)


def test_a_fused_network_takes_this_way(monkeypatch):
    fused = network().for_inference()
    image, text = drawn(PAIRS, IMAGE_DIM, 1), drawn(PAIRS, TEXT_DIM, 2)
    monkeypatch.setattr("frevl.models.fusion.pair_logits", lambda *_: "blocks")
    assert fused(image, text) == "blocks"
    assert network()(image, text) != "blocks"
    mask = torch.ones(PAIRS, 1, dtype=torch.bool)
    assert isinstance(fused(image[:, None], text[:, None], mask, mask), torch.Tensor)
    assert isinstance(fused(image, text, mask, mask), torch.Tensor)


def test_what_is_differentiated_or_not_float32_takes_the_plain_road():
    fused = network().for_inference()
    image, text = drawn(3, IMAGE_DIM, 1), drawn(3, TEXT_DIM, 2)
    assert suits(fused, image, text)
    assert not suits(fused, image.double(), text)
    assert not suits(fused.double(), image, text)
    fused.float()
    image.requires_grad_()
    assert not suits(fused, image, text)
    fused(image, text).sum().backward()
    assert image.grad is not None
    with torch.no_grad():
        assert suits(fused, image, text)


def test_cores_share_the_rows_and_keep_their_order(two_cores):
    fusion = network()
    image, text = drawn(PAIRS, IMAGE_DIM, 1), drawn(PAIRS, TEXT_DIM, 2)
    seen = []
    fusion_cpu.parallel_rows(lambda start, stop: seen.append((start, stop, torch.get_num_threads())), PAIRS)
    assert sorted(seen) == [(0, 19, 1), (19, 37, 1)]
    with torch.inference_mode():
        found = fusion.for_inference()(image, text)
    torch.testing.assert_close(found, fusion(image, text), atol=1e-6, rtol=1e-6)
    here: list[int] = []
    later = threading.Thread(target=lambda: here.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert [torch.get_num_threads(), *here] == [2, 2]  # neither this thread nor one to come is slowed down


def test_a_failure_on_another_core_is_not_lost(two_cores):
    def fail(start, stop):
        raise ValueError(f"rows {start} to {stop}")

    with pytest.raises(ValueError, match="rows 0 to 19"):
        fusion_cpu.parallel_rows(fail, PAIRS)


def test_few_rows_stay_in_the_callers_thread(two_cores):
    seen = []
    fusion_cpu.parallel_rows(lambda start, stop: seen.append((start, stop, threading.current_thread())), 13)
    assert seen == [(0, 13, threading.current_thread())]


def items(images, texts):
    none = torch.zeros(0, dtype=torch.long)
    image, text = drawn(images, IMAGE_DIM, 1)[:, None], drawn(texts, TEXT_DIM, 2)[:, None]
    masks = torch.ones(images, 1, dtype=torch.bool), torch.ones(texts, 1, dtype=torch.bool)
    return EmbeddedPairs(image, masks[0], text, masks[1], none, none)


@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_work_shared_by_items_gives_the_scores_of_pairs(changes):
    fusion, given = network(**changes), items(7, 11)
    rows, columns = torch.arange(77) // 11, torch.arange(77) % 11
    with torch.inference_mode():
        logits = grid_scorer(fusion.for_inference(), given, 3, "cpu")
        shared = isinstance(getattr(logits, "__self__", None), SharedItems)
        assert shared == (changes.get("layers") != 0 and changes.get("cross_attention", True))
        found = logits(rows, columns)
        some = torch.tensor([76, 3, 3, 41])
        torch.testing.assert_close(logits(rows[some], columns[some]), found[some], atol=1e-6, rtol=1e-6)
    expected = fusion(given.images[rows, 0], given.texts[columns, 0])
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=2e-6)


def test_items_that_take_too_much_memory_are_not_shared(monkeypatch):
    fusion = Fusion(image_dim=IMAGE_DIM, text_dim=TEXT_DIM, width=16, ffn_width=24, head_width=8).for_inference()
    given = items(7, 11)
    # 18 items, 2 sides, 16 + 24 numbers of 4 bytes.
    monkeypatch.setattr(fusion_cpu, "_MOST_SHARED_BYTES", 18 * 2 * 40 * 4)
    with torch.inference_mode():
        kept = grid_scorer(fusion, given, 3, "cpu")
        monkeypatch.setattr(fusion_cpu, "_MOST_SHARED_BYTES", 18 * 2 * 40 * 4 - 1)
        plain = grid_scorer(fusion, given, 3, "cpu")
        assert isinstance(kept.__self__, SharedItems)
        assert not hasattr(plain, "__self__")
        rows, columns = torch.tensor([6, 0, 3]), torch.tensor([0, 10, 5])
        torch.testing.assert_close(kept(rows, columns), plain(rows, columns), atol=1e-6, rtol=1e-6)


def test_the_shared_part_by_hand():
    """One side at a time: width 2, all maps zero but the one under test."""
    fusion = Fusion(image_dim=1, text_dim=1, width=2, heads=1, layers=1, ffn_width=1, head_width=1, outputs=1)
    with torch.no_grad():
        for parameter in fusion.parameters():
            if parameter.dim() > 1:
                parameter.zero_()
        for name, parameter in fusion.named_parameters():
            if name.endswith("bias") and "norm" not in name:
                parameter.zero_()
        block = fusion.blocks[0]
        block.image_ffn.inner.weight.copy_(torch.tensor([[3.0, 1.0]]))
        block.image_ffn.inner.bias.fill_(0.5)
        block.image_ffn.outer.weight.copy_(torch.tensor([[2.0], [0.0]]))
        fusion.head.inner.weight[0, 0] = 1.0  # reads hv's first number
        fusion.head.outer.weight.fill_(1.0)
    shared = SharedItems(fusion.for_inference(), torch.tensor([[4.0, 2.0]]), torch.tensor([[0.0, 0.0]]))
    # LN(4, 2) = (1, -1); 3 - 1 + 0.5 = 2.5; GELU(2.5) = 2.48447; hv = (4 + 2 * 2.48447, 2) = (8.96895, 2)
    found = shared.logits(torch.tensor([0]), torch.tensor([0]))
    assert float(found) == pytest.approx(8.96895, abs=2e-5)  # GELU(8.97) is 8.97
