"""Fit the linear probe: in memory or in blocks, with a penalty chosen on development data, within a time limit."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from frevl.models.baselines import Linear, fit_linear
from frevl.runs.batches import logits_of
from frevl.runs.calibration import fit_calibration
from frevl.runs.targets import Answers, class_weights_of
from frevl.training.examples import Examples, with_wrong_texts
from frevl.training.linear.features import FeatureBlocks, all_features, linear_loss, mean_loss, most_in_memory
from frevl.training.options import LinearOptions, Session
from frevl.training.run_folder import Checkpoint

__all__ = ["fit_linear_on"]

# Of a fit under a time limit: how often the features of a pair and a pass over it can be afforded (six penalties of
# some ten steps, with time to spare), the same for features of development pairs, and how many pairs this is timed on.
_FEATURES, _PASSES, _DEVELOPMENT, _TIMED = 6, 100, 40, 512


def fit_linear_on(
    network: Linear, train: Examples, dev: Examples, options: LinearOptions, session: Session, checkpoint: Checkpoint
) -> list[str]:
    """Fit the linear probe with its penalty chosen on development data; return notes for the user.

    It is chosen by the likelihood that is left after calibration: a few hundred pairs rank penalties better so than by
    how many of them are right, and a strong penalty that only makes the probe less sure than it may be costs nothing.
    """
    started, limit = checkpoint.clock.seconds(), session.time_limit
    saved = checkpoint.load()
    if saved is not None:
        network.load_state_dict(saved[0])
        return list(saved[1]["notes"])
    whole = train if isinstance(train.truth, Answers) else with_wrong_texts(train, options.negatives, session.seed)
    examples, dev = (whole, dev) if limit is None else _in_time(network, whole, dev, session.seed, limit)
    notes = [] if len(examples) == len(whole) else [
        f"linear: fitted on {len(examples):,} of {len(whole):,} pairs, as many as the time limit of {limit:g} s allows"
    ]  # fmt: skip
    weights = class_weights_of(examples.truth, int(network.settings["outputs"]), options.class_weight)

    def calibrated_likelihood() -> float:
        logits = logits_of(network, dev.pairs, 1024)
        calibration = fit_calibration(logits, dev.truth, shrink=False)
        return -mean_loss(network, dev, weights, calibration["scale"] * logits + calibration["offset"])

    features: Tensor | FeatureBlocks
    if len(examples) <= most_in_memory(network):
        features, loss = all_features(network, examples), linear_loss(network, examples, weights)
    else:
        features, loss = FeatureBlocks.measured(network, examples, weights), None
    fit_linear(
        network,
        features,
        loss,
        calibrated_likelihood,
        time_limit=None if limit is None else max(0.0, limit - (checkpoint.clock.seconds() - started)),
    )
    checkpoint.save(network.state_dict(), {"seconds": checkpoint.clock.seconds() - started, "notes": notes})
    return notes


def _in_time(network: Linear, train: Examples, dev: Examples, seed: int, limit: float) -> tuple[Examples, Examples]:
    """Drop random pairs until a fit can pass over the others often enough in the time.

    The work on a few pairs is timed. Where the time suffices nothing is left out, and the result is the same as without
    a limit.
    """
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    part = train.select(order[:_TIMED])
    begun = time.monotonic()
    features = torch.cat([network.features(*inputs) for inputs in part.pairs.batches(4096)])
    of_features = (time.monotonic() - begun) / len(part)
    weight = torch.zeros(int(network.settings["outputs"]), features.shape[1], requires_grad=True)
    begun = time.monotonic()
    torch.autograd.backward(linear_loss(network, part)(features @ weight.T))
    of_a_pass = (time.monotonic() - begun) / len(part)
    most = int(limit / (_FEATURES * of_features + _PASSES * of_a_pass))
    if min(most, len(train)) > most_in_memory(network):  # features are then made again on every pass
        most = max(most_in_memory(network), int(limit / (_PASSES * (of_features + of_a_pass))))
    most_dev = int(limit / (_DEVELOPMENT * of_features))
    dev_order = torch.randperm(len(dev), generator=torch.Generator().manual_seed(seed))
    return (
        train if most >= len(train) else train.select(order[: max(_TIMED, most)].sort().values),
        dev if most_dev >= len(dev) else dev.select(dev_order[: max(_TIMED, most_dev)].sort().values),
    )
