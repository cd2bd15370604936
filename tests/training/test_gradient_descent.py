"""The one training loop: what it skips, what decays, when it stops, what it keeps, what it refuses."""

import json
import math

import pytest
import torch
from torch import nn

from frevl.errors import TrainingError
from frevl.training.loop import gradient_descent
from frevl.training.options import DescentOptions, Session
from frevl.training.run_folder import Checkpoint, Clock

OPTIONS = {
    "epochs": 2, "batch_size": 3, "learning_rate": 0.1, "final_learning_rate": 1e-4, "weight_decay": 0.0,
    "warm_up": 0.0, "gradient_clip": 1e9,
}  # fmt: skip
SESSION = {"seed": 3, "time_limit": None, "device": "cpu", "progress": False}


def settings(**changes):
    """Return keyword arguments of `gradient_descent`; changes may be options, of the session, or arguments."""
    options, session = ({name: changes.pop(name, kept[name]) for name in kept} for kept in (OPTIONS, SESSION))
    return {
        "options": DescentOptions(**options), "session": Session(**session), "title": "training x",
        "remedy": "do this", **changes,
    }  # fmt: skip


def descend(network, loss_of, count, **changes):
    """Train on a loss without named terms."""
    return gradient_descent(network, lambda *batch: (loss_of(*batch), {}), count, **settings(**changes))


def test_every_row_once_an_epoch_in_an_order_that_follows_from_the_seed():
    seen = []

    def loss_of(rows, _):
        seen.append(rows.tolist())
        return network.weight.square().sum()

    for seed in (3, 3, 4):
        network = nn.Linear(2, 1)
        report = descend(network, loss_of, 7, seed=seed)
        assert (report.epochs, report.stopped) == (2, "epochs")
    runs = [seen[0:6], seen[6:12], seen[12:18]]
    assert runs[0] == runs[1] != runs[2]
    for epoch in (runs[0][:3], runs[0][3:]):
        assert sorted(row for rows in epoch for row in rows) == list(range(7))
    assert runs[0][:3] != runs[0][3:], "each epoch has its own order"


@pytest.mark.parametrize(
    ("count", "batch_size", "sizes"),
    [(7, 3, [3, 2, 2]), (9, 4, [3, 3, 3]), (8, 4, [4, 4]), (2, 5, [2]), (6, 5, [3, 3])],
)
def test_batches_are_of_nearly_equal_size_and_never_larger_than_asked(count, batch_size, sizes):
    # A last batch of one row would weigh that row as much as all rows of another batch, and has no wrong pairs.
    network, seen = nn.Linear(1, 1), []

    def loss_of(rows, _):
        seen.append(len(rows))
        return network.weight.sum()

    descend(network, loss_of, count, epochs=1, batch_size=batch_size)
    assert seen == sizes


def test_steps_are_those_of_adamw_by_hand():
    # The first step of AdamW is the learning rate against the sign of the gradient; decay goes before it.
    network = nn.Linear(1, 1)
    with torch.no_grad():
        network.weight.fill_(2.0)
        network.bias.fill_(2.0)
    report = descend(
        network, lambda *_: network.weight.sum() + network.bias.sum(), 9, epochs=1, batch_size=9, weight_decay=0.5
    )
    assert network.weight.item() == pytest.approx(2 - 0.1 * 0.5 * 2 - 0.1)
    assert network.bias.item() == pytest.approx(2 - 0.1), "biases and the gains of norms do not decay"
    assert report.metric == 4.0


def test_the_learning_rate_ends_where_it_is_asked_to():
    # One row and one batch per epoch: the gradient keeps its sign, so each step of AdamW is the learning rate.
    network, before = nn.Linear(1, 1, bias=False), []

    def loss_of(*_):
        before.append(network.weight.item())
        return network.weight.sum()

    descend(network, loss_of, 1, epochs=3, batch_size=1, learning_rate=0.1, final_learning_rate=0.04)
    steps = [a - b for a, b in zip(before, [*before[1:], network.weight.item()], strict=True)]
    # The rate of a step is that of its beginning: after 0, 1/3 and 2/3 of the way down the cosine.
    expected = [0.04 + 0.06 * 0.5 * (1 + math.cos(math.pi * done)) for done in (0, 1 / 3, 2 / 3)]
    assert steps == pytest.approx(expected, rel=1e-4)


def test_a_network_ends_in_evaluation_mode_and_what_is_frozen_stays():
    network = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    network[0].bias.requires_grad_(False)
    frozen = network[0].bias.clone()
    modes = []

    def loss_of(*_):
        modes.append(network.training)
        return network(torch.ones(5, 2)).square().sum()

    def metric():
        modes.append(network.training)
        return 0.5

    descend(network, loss_of, 5, on_epoch=metric)
    assert modes == [True, True, False] * 2
    assert not network.training
    assert torch.equal(network[0].bias, frozen)


def weights_after_each_epoch(metrics, **changes):
    """Train on made metrics; return the report, the weight that was kept, and the weight after every epoch."""
    network, after, coming = nn.Linear(1, 1, bias=False), [], iter(metrics)

    def metric():
        after.append(network.weight.item())
        return next(coming)

    report = descend(network, lambda *_: network.weight.sum(), 3, on_epoch=metric, **changes)
    return report, network.weight.item(), after


def test_the_best_epoch_is_kept_and_patience_counts_from_it():
    report, kept, after = weights_after_each_epoch([0.3, 0.6, 0.6, 0.5, 0.9], epochs=9, patience=2)
    assert (report.epochs, report.best_epoch, report.metric, report.stopped) == (4, 2, 0.6, "patience")
    assert kept == after[1]


def test_the_last_epoch_is_kept_on_request():
    report, kept, after = weights_after_each_epoch([0.3, 0.6, 0.5], epochs=3, patience=9, keep_last=True)
    assert (report.epochs, report.best_epoch, report.metric, report.stopped) == (3, 3, 0.5, "epochs")
    assert kept == after[2]


def test_a_perfect_metric_ends_it_but_a_loss_of_one_does_not():
    assert weights_after_each_epoch([0.3, 1.0, 0.5], epochs=3)[0].stopped == "perfect"
    network = nn.Linear(1, 1)
    report = descend(network, lambda *_: 0 * network.weight.sum() + 1, 3)
    assert (report.metric, report.stopped) == (1.0, "epochs")


def test_time_ends_it_after_one_step_at_least():
    network = nn.Linear(1, 1)
    report = descend(network, lambda *_: network.weight.sum(), 9, time_limit=1e-9)
    assert (report.epochs, report.stopped) == (1, "time")
    assert math.isfinite(report.metric)


def test_what_the_time_limit_leaves_out_counts_neither_as_trained_nor_in_the_mean(monkeypatch, tmp_path):
    """The mean loss of a cut epoch was divided by all of its steps, and its pairs counted as trained on."""
    clock = iter(range(1000))
    monkeypatch.setattr("frevl.training.loop.time.monotonic", lambda: float(next(clock)))
    network = nn.Linear(1, 1)

    def loss_of(*_):
        loss = network.weight.square().sum() * 0 + 2.5
        return loss, {"task": loss}

    report = gradient_descent(
        network, loss_of, 30, **settings(time_limit=4.0, epochs=1), log_file=tmp_path / "log.jsonl"
    )
    assert (report.epochs, report.stopped) == (1, "time")
    assert 0 < report.passes < 1
    assert report.passes * 10 == round(report.passes * 10), "of ten steps"
    assert json.loads((tmp_path / "log.jsonl").read_text())["losses"] == {"task": 2.5}
    assert descend(network, lambda *_: network.weight.square().sum(), 30, epochs=3).passes == 3


def test_a_time_limit_that_suffices_changes_nothing(monkeypatch):
    weights = []
    for pace in (0.0, 0.1, 0.4):  # seconds a look at the clock
        network, now = nn.Linear(2, 1), iter(range(1, 99))
        with torch.no_grad():
            network.weight.fill_(1.0)
        monkeypatch.setattr("frevl.training.loop.time.monotonic", lambda now=now, pace=pace: pace * next(now))
        report = descend(network, lambda *_, own=network: own.weight.square().sum(), 9, time_limit=9.0, warm_up=0.2)
        assert report.stopped == "epochs"
        weights.append(network.weight.clone())
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[0], weights[2])


def test_a_loss_that_is_not_finite_is_refused_with_place_parts_and_remedy():
    network = nn.Linear(1, 1)
    values = iter([1.0, math.nan])
    with pytest.raises(
        TrainingError, match="training x: expected a finite loss, found nan in epoch 1, batch 2 of 3; do this"
    ):
        descend(network, lambda *_: network.weight.sum() * next(values), 9)

    def loss_of(*_):
        terms = {"task": network.weight.sum() * 0 + 0.5, "contrastive": network.weight.sum() * math.inf}
        return sum(terms.values()), terms

    with torch.no_grad():
        network.weight.fill_(1.0)
    with pytest.raises(TrainingError, match=r"found inf in epoch 1, batch 1 of 3 \(task 0.5, contrastive inf\); do"):
        gradient_descent(network, loss_of, 9, **settings())


class Halved(nn.Module):
    """Its state_dict holds half precision, as that of the two-tower network does, and it has a frozen part."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 5), nn.Dropout(0.5), nn.Linear(5, 1))
        self.shift = nn.Parameter(torch.rand(3), requires_grad=False)
        self.register_state_dict_post_hook(
            lambda _, state, *__: state.update({name: value.half() for name, value in state.items()})
        )

    def forward(self, x):
        return self.layers(x - self.shift)[:, 0]


@pytest.mark.slow
@pytest.mark.parametrize("killed_in", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("measured", [False, True])
def test_an_interrupted_descent_ends_with_the_identical_result(tmp_path, killed_in, measured):
    torch.manual_seed(0)
    x, y = torch.randn(11, 3), torch.randn(11)

    class KilledError(Exception):
        pass

    def trained(checkpoint, log_file, kill=None):
        torch.manual_seed(7)
        network, epochs = Halved(), 0

        def loss_of(rows, random):
            nonlocal epochs
            loss = (network(x[rows]) - y[rows]).square().mean() + torch.rand((), generator=random)
            epochs += 1 / 4
            if epochs == kill:
                raise KilledError
            return loss, {"task": loss}

        metric = (lambda: 1 / (1 + (network(x) - y).square().mean().item())) if measured else None
        place = Checkpoint(tmp_path, checkpoint, Clock())
        report = gradient_descent(
            network, loss_of, 11, on_epoch=metric, checkpoint=place, log_file=log_file, **settings(epochs=5)
        )
        return report, {name: value.clone() for name, value in network.named_parameters()}

    expected, whole = trained("whole", tmp_path / "whole.jsonl")
    with pytest.raises(KilledError):
        trained("parts", tmp_path / "parts.jsonl", kill=killed_in - 0.25)
    with (tmp_path / "parts.jsonl").open("a") as log:
        log.write('{"epoch": "of a kill between the log and the state')
    for _ in range(2):  # the second call finds it finished
        report, parts = trained("parts", tmp_path / "parts.jsonl")
        assert all(torch.equal(whole[name], parts[name]) for name in whole)
        assert (report.epochs, report.best_epoch, report.metric, report.stopped) == (
            expected.epochs, expected.best_epoch, expected.metric, expected.stopped,
        )  # fmt: skip
    logs = [
        [{**json.loads(line), "seconds": 0} for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        for name in ("whole", "parts")
    ]
    assert logs[0] == logs[1]
    assert [entry["epoch"] for entry in logs[0]] == [1, 2, 3, 4, 5]


def test_the_state_of_another_network_is_refused(tmp_path):
    for width, refused in ((2, False), (3, True)):
        network = nn.Linear(width, 1)
        arguments = (network, lambda *_, own=network: own.weight.sum(), 3)
        if refused:
            with pytest.raises(TrainingError, match=r"state.safetensors: the state of .* is damaged \(.*\); delete"):
                descend(*arguments, checkpoint=Checkpoint(tmp_path, "state", Clock()))
        else:
            descend(*arguments, checkpoint=Checkpoint(tmp_path, "state", Clock()))


def test_a_log_that_cannot_be_written_is_said(tmp_path, monkeypatch):
    network = nn.Linear(1, 1)
    for _ in ("read to go on", "appended to"):
        with pytest.raises(TrainingError, match=r"the log of the training cannot be written \(Is a directory\)"):
            descend(network, lambda *_: network.weight.square().sum(), 3, log_file=tmp_path)
        monkeypatch.setattr("frevl.training.loop._keep_lines", lambda *_: None)
