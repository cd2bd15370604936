"""Scoring on an accelerator, simulated on a processor: float16, and smaller batches when memory runs out."""

import numpy as np
import pytest
import torch
from torch import nn

from frevl import devices
from frevl.devices import Shares, Steps
from frevl.encoders import runtime
from frevl.errors import UsageError
from frevl.evaluation.evaluation import evaluate
from frevl.models.fusion import Fusion
from frevl.models.retrieval.two_tower import TwoTower
from frevl.runs import batches
from frevl.runs.scorer import Scorer
from frevl.training.training import train


@pytest.fixture(scope="module")
def answering(made, tmp_path_factory):
    folder = tmp_path_factory.mktemp("answering")
    train(made.store, made.train_file, run=folder, task="classification", options={"epochs": 2, "layers": 1})
    return folder


@pytest.fixture(scope="module")
def matching(made, tmp_path_factory):
    folder = tmp_path_factory.mktemp("matching")
    train(made.store, made.captions_file, run=folder, task="matching", options={"epochs": 2, "layers": 1})
    return folder


@pytest.fixture
def accelerator(monkeypatch):
    """Let the processor pass for an accelerator whose memory the embeddings would fill."""
    for module in (devices, batches):
        monkeypatch.setattr(module, "is_accelerator", lambda _: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (0, 0))


def pairs_of(pairs):
    return list(zip(pairs.images, pairs.texts, strict=True))


@pytest.mark.slow
def test_scores_in_float16_are_near_those_in_float32(made, answering, accelerator):
    pairs = pairs_of(made.test)
    half = Scorer.open(answering, store=made.store)
    assert half.batch_size == 16_384
    assert {one.dtype for one in half.network.parameters()} == {torch.float16}
    exact = Scorer(half.run, made.store)
    exact.network = half.run.network.for_inference()
    found, expected = half.score(pairs), exact.score(pairs)
    assert found.dtype == np.float32
    assert 0 < np.abs(found - expected).max() < 5e-3
    assert evaluate(half, made.test_file).metrics["accuracy"] == evaluate(exact, made.test_file).metrics["accuracy"]


@pytest.mark.slow
def test_a_grid_on_an_accelerator_is_that_of_single_pairs(made, matching, accelerator):
    scorer = Scorer.open(matching, store=made.store)
    images, texts = made.store.image_ids[:5], made.store.texts[:4]
    grid = scorer.grid(images, texts)
    alone = scorer.score([(image, text) for image in images for text in texts])
    np.testing.assert_allclose(grid.reshape(-1), alone, atol=2e-3)


@pytest.mark.slow
def test_scores_that_float16_does_not_hold_are_computed_in_float32(made, matching, accelerator, monkeypatch, caplog):
    pairs, images, texts = pairs_of(made.captions)[:6], made.store.image_ids[:3], made.store.texts[:2]
    whole = Fusion.fuse

    def fuse(self, image, text, *masks):
        fused = whole(self, image, text, *masks)
        return fused * 1e6 if image.dtype == torch.float16 else fused

    monkeypatch.setattr(Fusion, "fuse", fuse)
    for ask in (lambda scorer: scorer.score(pairs), lambda scorer: scorer.grid(images, texts)):
        scorer = Scorer.open(matching, store=made.store)
        found = ask(scorer)
        assert np.isfinite(found).all()
        assert scorer.network.image_projection.weight.dtype == torch.float32
        assert caplog.messages == ["frevl: the scores of this run overflow in float16; scoring in float32 instead."]
        caplog.clear()


@pytest.mark.slow
def test_a_batch_that_does_not_fit_in_memory_is_halved_and_the_scores_stay(
    made, answering, matching, monkeypatch, caplog
):
    pairs, images, texts = pairs_of(made.test)[:11], made.store.image_ids[:4], made.store.texts[:3]
    scorer, ranked = (Scorer.open(run, store=made.store) for run in (answering, matching))
    expected, grid = scorer.score(pairs), ranked.grid(images, texts)
    forward, score_items, seen = Fusion.forward, Fusion.score_items, []

    def limited(whole):
        def call(self, first, *rest):
            count = len(first[0] if isinstance(first, tuple) else first)
            seen.append(count)
            if count > 3:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB.")
            return whole(self, first, *rest)

        return call

    monkeypatch.setattr(Fusion, "forward", limited(forward))
    np.testing.assert_allclose(scorer.score(pairs), expected, atol=1e-5)
    assert seen == [11, 5, 2, 2, 2, 2, 2, 1]
    assert caplog.messages == [
        "frevl: cpu ran out of memory with 11 rows at once; using 5 from now on.",
        "frevl: cpu ran out of memory with 5 rows at once; using 2 from now on.",
    ]
    seen.clear()
    monkeypatch.setattr(Fusion, "score_items", limited(score_items))
    monkeypatch.setattr(Fusion, "shared_scorer", lambda *_: None)
    np.testing.assert_allclose(ranked.grid(images, texts), grid, atol=1e-5)
    assert seen == [12, 6, 3, 3, 3, 3]


@pytest.mark.parametrize("tokens", [1, 3])
def test_items_that_do_not_fit_in_memory_together_are_prepared_in_smaller_steps(tokens, caplog):
    torch.manual_seed(0)
    towers = TwoTower(image_dim=8, text_dim=5, hidden=6, width=4).eval()
    images, mask = torch.randn(7, tokens, 8), torch.ones(7, tokens, dtype=torch.bool)

    def limited(values, mask=None):
        if len(values) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return towers.image_vectors(values, mask)

    expected = batches.vectors_of(towers.image_vectors, images.numpy(), mask.numpy(), 7, "cpu")
    np.testing.assert_allclose(batches.vectors_of(limited, images.numpy(), mask.numpy(), 7, "cpu"), expected, atol=1e-6)
    values, own = (images[:, 0], None) if tokens == 1 else (images, mask)
    (items,) = batches._items(lambda v, m: (limited(v if m is not None else v[:, 0], m),), images, mask, 7, "cpu")
    torch.testing.assert_close(items, towers.image_vectors(values, own))
    assert [message.split("memory with ")[1] for message in caplog.messages] == [
        "7 rows at once; using 3 from now on.", "3 rows at once; using 1 from now on.",
    ] * 2  # fmt: skip


def test_steps_cover_every_row_once():
    steps, seen = Steps(7, 3, "cuda"), []
    while steps.left:
        seen.append((steps.rows.start, steps.rows.stop))
        if len(seen) == 2:
            steps.halve(RuntimeError("full"))
            continue
        steps.done()
    assert seen == [(0, 3), (3, 6), (3, 4), (4, 5), (5, 6), (6, 7)]
    empty = Steps(0, 3, "cuda")
    assert empty.left, "a network tells the width of its logits of no rows, too"
    empty.done()
    assert not empty.left
    with pytest.raises(UsageError, match="--device: the memory of 'cuda:1' is too small .* one row \\(full\\); stop"):
        Steps(1, 3, "cuda:1").halve(RuntimeError("full. Really."))


def test_gradients_of_shares_are_those_of_the_whole_step(caplog):
    torch.manual_seed(0)
    network, x = nn.Linear(3, 1), torch.randn(10, 3)
    optimiser = torch.optim.SGD(network.parameters(), lr=1.0)

    def loss_of(most):
        def of(rows, _):
            loss = network(x[rows]).square().mean()
            if len(rows) > most:
                torch.autograd.backward(loss)  # what was computed before the memory ended must not count
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return loss, {"task": loss}

        return of

    found = []
    for most in (10, 3):
        optimiser.zero_grad(set_to_none=True)
        shares = Shares("cuda:0")
        loss, terms = shares.gradients(loss_of(most), torch.arange(10), torch.Generator(), optimiser)
        found.append((loss.item(), terms["task"].item(), network.weight.grad.clone()))
    assert found[0][:2] == pytest.approx(found[1][:2])
    torch.testing.assert_close(found[0][2], found[1][2])
    assert shares.count == 4
    assert caplog.messages == [
        "frevl: cuda:0 ran out of memory with 10 rows at once; using 5 from now on.",
        "frevl: cuda:0 ran out of memory with 5 rows at once; using 3 from now on.",
    ]
    with pytest.raises(UsageError, match="is too small to run the network on one row"):
        Shares("cuda").gradients(loss_of(0), torch.arange(3), torch.Generator(), optimiser)


def test_encoders_run_on_the_device_that_was_chosen(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for chosen, expected in (
        (None, ["cuda:0", "cuda:1"]), ("cuda", ["cuda:0", "cuda:1"]), ("cuda:1", ["cuda:1"]), ("cpu", []),
    ):  # fmt: skip
        with runtime.on_device(chosen):
            assert runtime.accelerators() == expected
    assert runtime.accelerators() == ["cuda:0", "cuda:1"]


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cuda:7", "foo"])
def test_a_device_that_is_not_there_is_refused_by_every_command(device, made, answering, frevl, tmp_path):
    given = ["--store", made.store.path, "--run", answering, "--device", device]
    commands = [
        ["score", *given, "--pairs", made.test_file, "--out", tmp_path / "out.jsonl"],
        ["evaluate", *given, "--pairs", made.test_file],
        ["search", *given, "a red square"],
        ["serve", *given, "--port", "0"],
        ["extract", "--store", tmp_path / "s", "--images", made.images, "--encoder", "toy", "--device", device],
    ]
    for command in commands:
        said = frevl(*command)
        assert said.code == 2, command
        assert f"--device: '{device}' cannot be used here" in said.err
    assert not (tmp_path / "s").exists()


@pytest.mark.slow
def test_an_exported_file_runs_on_the_processor_only(made, answering):
    with pytest.raises(UsageError, match="--backend onnx runs on the CPU, found --device 'cuda'"):
        Scorer.open(answering, store=made.store, backend="onnx", device="cuda")
