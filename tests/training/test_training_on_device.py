"""A training on an accelerator, simulated on the processor: embeddings moved once, losses read rarely."""

import contextlib
import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from fake_card import CARD, card
from frevl.errors import TrainingError
from frevl.models.baselines import Linear
from frevl.models.fusion import Fusion
from frevl.models.retrieval.two_tower import TwoTower
from frevl.runs.batches import EmbeddedPairs
from frevl.runs.targets import Answers
from frevl.training import examples, loop
from frevl.training.examples import Examples
from frevl.training.fitting import pairwise
from frevl.training.fitting.contrast import Positives, contrastive_loss
from frevl.training.options import DescentOptions, FusionOptions, Session
from frevl.training.retrieval.two_tower import _contrast

SESSION = Session(seed=3, time_limit=None, device="cpu", progress=False)
OPTIONS = DescentOptions(epochs=2, batch_size=2, learning_rate=0.01)


def made(kind):
    """Return 12 pairs of 6 images and texts, as classification or as matching."""
    random = torch.Generator().manual_seed(0)
    items = [torch.randn(6, 1, width, generator=random) for width in (8, 5)]
    every = torch.ones(6, 1, dtype=torch.bool)
    rows = torch.arange(12) % 6
    pairs = EmbeddedPairs(items[0], every, items[1], every, rows, rows)
    answers = Answers(torch.arange(12)[:, None] % 3, torch.ones(12, 1), soft=False)
    return Examples(pairs, answers if kind == "class" else torch.ones(12), rows)


def train(tmp_path, name, loss_of=None, kind="class"):
    torch.manual_seed(0)
    network = Fusion(image_dim=8, text_dim=5, outputs=3 if kind == "class" else 1, width=8, layers=1, heads=2)
    options = FusionOptions(epochs=2, batch_size=2)
    loss_of = loss_of or pairwise.fusion_loss(network, made(kind), 3, options=options, device="cpu")
    log = tmp_path / f"{name}.jsonl"
    loop.gradient_descent(network, loss_of, 12, options=options, session=SESSION, title="x", remedy="y", log_file=log)
    return network, [json.loads(line)["losses"] for line in log.read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["class", "match"])
@pytest.mark.parametrize("every", [4, 50])
def test_losses_that_are_looked_at_late_are_the_same(kind, every, tmp_path, monkeypatch):
    network, losses = train(tmp_path, "each", kind=kind)
    monkeypatch.setattr(loop, "looks_every", lambda _: every)
    again, late = train(tmp_path, "late", kind=kind)
    assert late == losses
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("every", [1, 4, 50])
def test_a_loss_that_is_not_finite_names_its_batch_also_when_it_is_seen_late(every, monkeypatch):
    network, count = nn.Linear(1, 1), iter(range(99))
    monkeypatch.setattr(loop, "looks_every", lambda _: every)

    def loss_of(*_):
        loss = network.weight.sum() * (float("nan") if next(count) == 2 else 1.0)
        return loss, {"task": loss}

    with pytest.raises(TrainingError, match=r"found nan in epoch 1, batch 3 of 6 \(task nan\); y"):
        loop.gradient_descent(network, loss_of, 12, options=OPTIONS, session=SESSION, title="x", remedy="y")


def test_a_processor_looks_at_every_loss_and_an_accelerator_now_and_then():
    assert loop.looks_every("cpu") == 1
    assert loop.looks_every("cuda:1") == 50


def test_examples_go_to_a_device_that_has_room_for_them(monkeypatch):
    kept = made("class")
    assert examples.on_device(kept, "cpu") is kept
    needed = 4 * sum(part.nbytes for part in (kept.pairs.images, kept.pairs.texts)) + 4 * 12
    moved = []
    monkeypatch.setattr(Examples, "on", lambda self, device: moved.append(device) or self)
    for free, expected in ((needed - 1, []), (needed, ["cuda"])):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free, free))
        assert examples.on_device(kept, "cuda") is kept
        assert moved == expected


def test_embeddings_and_answers_move_and_row_numbers_stay():
    there = made("class").on("meta")
    devices = {part.device.type for part in (there.pairs.images, there.pairs.texts, there.pairs.image_mask)}
    assert devices == {there.truth.classes.device.type} == {"meta"}
    assert there.pairs.image_rows.device.type == "cpu"
    assert there.pairs.inputs(torch.tensor([1, 2]), torch.tensor([0, 0]), "meta")[0].shape == (2, 8)
    assert there.truth.dense(torch.tensor([1, 2]), 3).shape == (2, 3)
    matching = made("match").on("meta")
    assert matching.truth.device.type == "cpu", "wrong pairs are drawn here, and their truth is made here"


def test_wrong_pairs_are_no_part_of_the_contrastive_term():
    torch.manual_seed(0)
    network = Fusion(image_dim=8, text_dim=5, outputs=1, width=8, layers=1, heads=2)
    kept, options = made("match"), FusionOptions(mixup_share=0.0, negatives=3)
    loss_of = pairwise.fusion_loss(network, kept, 1, options=options, device="cpu")
    rows = torch.tensor([1, 4, 7, 2])  # two of one image, which are positives of each other
    found = loss_of(rows, torch.Generator().manual_seed(0))[1]["contrastive"]
    right = kept.pairs.image_rows[rows], kept.pairs.text_rows[rows]
    image, text = network.project(kept.pairs.images[right[0]], kept.pairs.texts[right[1]])
    alone = contrastive_loss(image[:, 0], text[:, 0], Positives.of(*right), temperature=options.temperature)
    torch.testing.assert_close(found, alone)


def test_a_compiled_loss_is_the_same_loss(monkeypatch):
    modes = []
    monkeypatch.setattr(torch, "compile", lambda call, *, mode, dynamic: modes.append((mode, dynamic)) or call)
    torch.manual_seed(0)
    network = Fusion(image_dim=8, text_dim=5, outputs=3, width=8, layers=1, heads=2, dropout=0.0)
    found = []
    for compiled in ("", "default"):
        loss_of = pairwise.fusion_loss(
            network, made("class"), 3, options=FusionOptions(mixup_share=1.0), device="cpu", compiled=compiled
        )
        found.append(loss_of(torch.arange(12), torch.Generator().manual_seed(5))[0])
    torch.testing.assert_close(*found)
    assert modes == [("default", False)]


def on_meta(kind):
    """Return the losses of a fusion, of a plain network and of two towers, all on tensors without numbers."""
    kept, outputs = made(kind), 3 if kind == "class" else 1
    fusion = Fusion(image_dim=8, text_dim=5, outputs=outputs, width=8, layers=1, heads=2).to("meta")
    linear = Linear(image_dim=8, text_dim=5, outputs=outputs).to("meta")
    towers = TwoTower(image_dim=8, text_dim=5, hidden=6, width=4).to("meta")
    options = FusionOptions(mixup_share=0.0 if kind == "match" else 1.0, input_dropout=0.1)
    images, texts = kept.pairs.images[:, 0], kept.pairs.texts[:, 0]
    return {
        "fusion": pairwise.fusion_loss(fusion, kept, outputs, options=options, device="meta"),
        "linear": pairwise.pair_loss(linear, kept, outputs, options=options, device="meta"),
        "towers": _contrast(towers, images, texts, kept.pairs, 0.1, "meta"),
    }


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["class", "match"])
@pytest.mark.parametrize("name", ["fusion", "linear", "towers"])
def test_no_loss_waits_for_the_device(name, kind):
    # What has no numbers cannot be waited for: to ask for one (`item`, a count of flags, the largest id) is an error.
    loss, terms = on_meta(kind)[name](torch.arange(12), torch.Generator().manual_seed(0))
    torch.autograd.backward(loss)
    assert {part.device.type for part in (loss, *terms.values())} == {"meta"}
    losses = loop.SeenLosses("epoch 1", "x", "y", 9, loop.looks_every("meta"))
    losses.add(0, loss, terms)
    assert losses.means == dict.fromkeys(terms, 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["class", "match"])
def test_no_step_waits_for_the_card(kind, monkeypatch):
    # The engine of gradients needs a real driver; everything else of a step runs.
    monkeypatch.setattr(torch.autograd, "backward", lambda *_: None)
    monkeypatch.setattr(pairwise, "bfloat16_on_accelerators", lambda _: contextlib.nullcontext())
    session, seen = replace(SESSION, device=CARD), []
    for size in (1, 4):
        options = FusionOptions(epochs=1, batch_size=size)
        with card() as waits, torch.no_grad():
            network = Fusion(image_dim=8, text_dim=5, outputs=3 if kind == "class" else 1, width=8, layers=1, heads=2)
            loss_of = pairwise.fusion_loss(network, made(kind), 3, options=options, device=CARD)
            network.to(CARD)
            before = waits.back, waits.unpinned
            loop.gradient_descent(network, loss_of, 12, options=options, session=session, title="x", remedy="y")
            seen.append((waits.back - before[0], waits.unpinned - before[1]))
    assert seen[0] == seen[1], "12 steps wait as often as 3: once for the losses of the epoch, and for the weights"
    assert seen[0][1] == 0
