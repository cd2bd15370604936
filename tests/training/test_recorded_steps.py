"""Recorded training steps: batches that recur are replayed, others are computed, and the training is the same."""

import logging

import pytest
import torch
from test_training_on_device import made
from torch import nn

from frevl.models.baselines import Linear
from frevl.models.fusion import Fusion
from frevl.training import loop
from frevl.training.fitting import pairwise, recorded_steps
from frevl.training.fitting.recorded_steps import RecordedTerms
from frevl.training.options import FusionOptions, Session

SESSION = Session(seed=0, time_limit=None, device="cpu", progress=False)


class Recorder:
    """Records as a device does: fixed inputs, and gradients in memory that the next replay overwrites."""

    def __init__(self):
        self.recorded, self.replays = [], 0

    def __call__(self, step, inputs):
        self.recorded.append([tuple(one.shape) for one in inputs])
        trained = [parameter for parameter in step.parameters() if parameter.requires_grad]
        found = step(*inputs)
        fixed = torch.autograd.grad(found[0], trained, allow_unused=True)

        class Replay(torch.autograd.Function):
            @staticmethod
            def forward(ctx, *_):
                self.replays += 1
                with torch.enable_grad():
                    ctx.found = step(*inputs)
                return tuple(one.detach() for one in ctx.found)

            @staticmethod
            def backward(ctx, total, *_):
                values = torch.autograd.grad(ctx.found[0], trained, total, allow_unused=True)
                for into, value in zip(fixed, values, strict=True):
                    if into is not None:
                        into.copy_(value)
                return tuple(fixed)

        def replay(*given):
            for into, one in zip(inputs, given, strict=True):
                into.copy_(one)
            return Replay.apply(*trained)

        return replay


@pytest.fixture
def recorder(monkeypatch):
    """Let losses on a CPU be recorded."""
    found = Recorder()
    original = RecordedTerms.__init__
    monkeypatch.setattr(
        RecordedTerms, "__init__", lambda self, network, terms, device: original(self, network, terms, device, found)
    )
    monkeypatch.setattr(pairwise, "is_accelerator", lambda _: True)
    return found


def trained(kind, name, **options):
    """Train for some epochs, and return the weights and the report."""
    torch.manual_seed(0)
    outputs, examples = 3 if kind == "class" else 1, made(kind)
    options = FusionOptions(epochs=6, batch_size=5, dropout=0.0, **options)
    if name == "fusion":
        network = Fusion(image_dim=8, text_dim=5, outputs=outputs, width=8, layers=1, heads=2, dropout=0.0)
        loss_of = pairwise.fusion_loss(network, examples, outputs, options=options, device="cpu")
    else:
        network = Linear(image_dim=8, text_dim=5, outputs=outputs)
        loss_of = pairwise.pair_loss(network, examples, outputs, options=options, device="cpu")
    report = loop.gradient_descent(
        network, loss_of, len(examples), options=options, session=SESSION, title="x", remedy="y"
    )
    return {name: value.clone() for name, value in network.state_dict().items()}, report.metric


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fusion", "linear"])
@pytest.mark.parametrize("kind", ["class", "match"])
def test_replayed_steps_train_the_same_network(name, kind, request):
    mixup = {"mixup_share": 0.5} if (name, kind) == ("fusion", "class") else {}
    weights, loss = trained(kind, name, **mixup)
    recorder = request.getfixturevalue("recorder")
    found, found_loss = trained(kind, name, **mixup)
    assert recorder.replays > 3
    assert found_loss == pytest.approx(loss, rel=1e-5)
    for name in weights:
        torch.testing.assert_close(found[name], weights[name], rtol=1e-4, atol=1e-5)


def test_one_recording_serves_every_share_of_mixup(recorder):
    trained("class", "fusion", mixup_share=1.0)
    assert len(recorder.recorded) == 1
    assert recorder.recorded[0][-2] == (), "the share is an input, not a constant"


def test_shapes_are_recorded_when_they_occur_for_the_third_time_and_only_so_many(monkeypatch):
    monkeypatch.setattr(recorded_steps, "_MOST", 2)
    network, recorder = nn.Linear(2, 1), Recorder()

    def terms(x, absent):
        assert absent is None
        loss = network(x).square().mean()
        return loss, {"task": loss}

    recorded = RecordedTerms(network, terms, "cpu", recorder)
    replayed = []
    for size in (3, 3, 4, 3, 4, 3, 4, 5, 5, 5, 5, 4):
        replays, x = recorder.replays, torch.randn(size, 2)
        total, parts = recorded(x, None)
        torch.testing.assert_close(total, network(x).square().mean())
        assert parts["task"].item() == total.item()
        replayed.append(recorder.replays > replays)
    assert replayed == [False, False, False, True, False, True, True, False, False, False, False, True]
    assert recorder.recorded == [[(3, 2)], [(4, 2)]]


def test_a_network_that_moved_is_recorded_anew():
    network, recorder = nn.Linear(2, 1), Recorder()

    def terms(x):
        loss = network(x).square().mean()
        return loss, {"task": loss}

    recorded = RecordedTerms(network, terms, "cpu", recorder)
    for _ in range(3):
        recorded(torch.ones(4, 2))
    former = network.weight.data  # kept, so that its address is not given out again
    network.weight.data = former.clone()  # as when it goes to another device and back
    for _ in range(3):
        recorded(torch.ones(4, 2))
    assert recorder.recorded == [[(4, 2)]] * 2


def test_a_part_of_a_step_is_not_replayed_onto_the_gradients_of_another():
    # Replayed gradients lie in memory that the next replay overwrites: a sum of two parts would be twice the second.
    network, recorder = nn.Linear(2, 1), Recorder()

    def terms(x):
        loss = network(x).square().mean()
        return loss, {"task": loss}

    recorded = RecordedTerms(network, terms, "cpu", recorder)
    for _ in range(3):
        network.zero_grad(set_to_none=True)
        torch.autograd.backward(recorded(torch.randn(4, 2))[0])
    assert recorder.recorded
    parts = torch.randn(2, 4, 2)
    network.zero_grad(set_to_none=True)
    for part in parts:
        torch.autograd.backward(recorded(part)[0])
    expected = sum(torch.autograd.grad(terms(part)[0], network.weight)[0] for part in parts)
    torch.testing.assert_close(network.weight.grad, expected)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory. Tried"), AssertionError("no hooks"), AssertionError()]
)
def test_a_training_that_cannot_be_recorded_goes_on_without(error, caplog):
    network = nn.Linear(2, 1)

    def refuse(*_):
        raise error

    def terms(x):
        loss = network(x).square().mean()
        return loss, {"task": loss}

    recorded = RecordedTerms(network, terms, "cuda:3", refuse)
    with caplog.at_level(logging.WARNING, "frevl"):
        losses = [recorded(torch.ones(4, 2))[0].item() for _ in range(6)]
    assert losses == [losses[0]] * 6
    assert [record.getMessage() for record in caplog.records] == [
        f"frevl: cuda:3: training steps are not recorded and so may be slower ({str(error)[:120] or 'AssertionError'})."
    ]


def test_a_cpu_records_nothing(monkeypatch):
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", None)
    trained("class", "fusion")
