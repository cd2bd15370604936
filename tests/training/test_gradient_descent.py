"""The loop that a first stage and a reranker share: what it steps over, when it stops, what it refuses."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from frevl.errors import TrainingError
from frevl.training.loop import descend
from frevl.training.options import DescentOptions, Session

OPTIONS = DescentOptions(epochs=2, batch_size=3, learning_rate=0.1, weight_decay=0, warm_up=0, gradient_clip=1e9)
SESSION = Session(seed=3, time_limit=None, device="cpu", progress=False)
SETTINGS = {"options": OPTIONS, "session": SESSION, "title": "training x", "remedy": "do this"}


def test_every_row_once_an_epoch_in_an_order_that_follows_from_the_seed():
    seen = []

    def loss_of(rows, _):
        seen.append(rows.tolist())
        return network.weight.square().sum()

    for seed in (3, 3, 4):
        network = nn.Linear(2, 1)
        report = descend(network, loss_of, 7, **{**SETTINGS, "session": replace(SESSION, seed=seed)})
        assert (report.epochs, report.stopped) == (2, "epochs")
    runs = [seen[0:4], seen[4:8], seen[8:12]]
    assert runs[0] == runs[1] != runs[2]
    for epoch in (runs[0][:2], runs[0][2:]):
        assert sorted(row for rows in epoch for row in rows) == list(range(7))
    assert runs[0][:2] != runs[0][2:], "each epoch has its own order"


def test_steps_are_those_of_adamw_by_hand():
    # The first step of AdamW is the learning rate against the sign of the gradient; decay goes before it.
    network = nn.Linear(1, 1)
    with torch.no_grad():
        network.weight.fill_(2.0)
        network.bias.fill_(2.0)
    once = {**SETTINGS, "options": replace(OPTIONS, epochs=1, batch_size=9, weight_decay=0.5)}
    report = descend(network, lambda *_: network.weight.sum() + network.bias.sum(), 9, **once)
    assert network.weight.item() == pytest.approx(2 - 0.1 * 0.5 * 2 - 0.1)
    assert network.bias.item() == pytest.approx(2 - 0.1), "vectors do not decay"
    assert report.metric == 4.0
    descend(network, lambda *_: 0 * network.weight.sum() + network.bias.sum(), 9, decay_vectors=True, **once)
    assert network.bias.item() == pytest.approx(1.9 - 0.1 * 0.5 * 1.9 - 0.1)


def test_a_network_ends_in_evaluation_mode_and_what_is_frozen_stays():
    network = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    network[0].bias.requires_grad_(False)
    frozen = network[0].bias.clone()
    modes = []

    def loss_of(*_):
        modes.append(network.training)
        return network(torch.ones(5, 2)).square().sum()

    descend(network, loss_of, 5, **SETTINGS)
    assert all(modes)
    assert not network.training
    assert torch.equal(network[0].bias, frozen)


def test_time_ends_it_after_one_step_at_least():
    network = nn.Linear(1, 1)
    report = descend(
        network, lambda *_: network.weight.sum(), 9, **{**SETTINGS, "session": replace(SESSION, time_limit=1e-9)}
    )
    assert (report.epochs, report.stopped) == (1, "time")
    assert math.isfinite(report.metric)


def test_a_loss_that_is_not_finite_is_refused_with_place_and_remedy():
    network = nn.Linear(1, 1)
    values = iter([1.0, math.nan])
    with pytest.raises(
        TrainingError, match="training x: expected a finite loss, found nan in epoch 1, batch 2 of 3; do this"
    ):
        descend(network, lambda *_: network.weight.sum() * next(values), 9, **SETTINGS)
