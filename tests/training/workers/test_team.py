"""What workers can do without other processes: their rank, refusals, and the dropout of a shared batch."""

import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from frevl.errors import MissingExtraError, UsageError
from frevl.models.blocks import dropped
from frevl.training.training import train
from frevl.training.workers.distributed import Together
from frevl.training.workers.joining import place_of, workers_asked
from frevl.training.workers.shared_dropout import DropoutOfTheBatch
from frevl.training.workers.team import ALONE, Place

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "MASTER_ADDR": "node1", "MASTER_PORT": "29500"}


def test_a_place_is_read_from_what_torchrun_sets():
    assert place_of({}) is None
    assert place_of({"RANK": "0", "WORLD_SIZE": "1"}) is None
    assert place_of({**TORCHRUN, "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}) == Place(3, 4, 1, 2)
    assert place_of(TORCHRUN) == Place(3, 4, 3, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"MASTER_ADDR": ""}, "WORLD_SIZE is 4, and MASTER_ADDR is not set"),
        ({"RANK": "4"}, "RANK is 4, expected a number below WORLD_SIZE, which is 4"),
        ({"RANK": "-1"}, "RANK is '-1', expected a whole number"),
        ({"WORLD_SIZE": "many"}, "WORLD_SIZE is 'many', expected a whole number"),
    ],
)
def test_a_wrong_place_is_refused_in_words(changes, message):
    with pytest.raises(UsageError, match=message):
        place_of({**TORCHRUN, **changes})


def test_workers_are_those_asked_for_or_those_that_torchrun_has_started(monkeypatch):
    assert [workers_asked(number) for number in (None, 1, 3)] == [1, 1, 3]
    with pytest.raises(UsageError, match="expected at least 1, found 0"):
        workers_asked(0)
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    assert [workers_asked(number) for number in (None, 1, 4)] == [4, 1, 4]
    with pytest.raises(UsageError, match="--workers: found 3, but WORLD_SIZE is 4"):
        workers_asked(3)


@pytest.mark.parametrize("model", ["majority", "linear", "kernel", "cosine"])
def test_models_without_steps_say_that_workers_have_nothing_to_share(made, tmp_path, model):
    with pytest.raises(UsageError, match=rf"gradient descent, which the model '{model}' does not use .found 2"):
        train(made.store, made.train_file, run=tmp_path / "run", task="classification", model=model, workers=2)
    assert not (tmp_path / "run").exists()


def test_without_ray_the_extra_is_named(made, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'frevl\[ray\]'"):
        train(made.store, made.train_file, run=tmp_path / "run", task="classification", workers=2, ray="local")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "drop",
    [lambda x: dropped(x, 0.3), lambda x: F.dropout(x, 0.3), nn.Dropout(0.3), nn.Dropout(0.3).eval()],
    ids=["ours", "function", "module", "module at rest"],
)
@pytest.mark.parametrize("places", [[6, 2, 3], [3, 4, 5], [0], []])
def test_the_dropout_of_some_rows_is_that_of_the_whole_batch(drop, places):
    x, places = torch.rand(7, 5, 3), torch.tensor(places, dtype=torch.int64)
    torch.manual_seed(4)
    whole, after = drop(x), torch.rand(())
    torch.manual_seed(4)
    with DropoutOfTheBatch(places, 7):
        some = drop(x[places])
    assert torch.equal(some, whole[places])
    assert torch.equal(torch.rand(()), after), "and as many random numbers are drawn"


@pytest.fixture
def one_of_two(monkeypatch):
    """Worker 1 of two that always have the same numbers, and the sizes of the messages that they send."""
    sizes = []

    def doubled(values):
        sizes.append(len(values))
        values *= 2

    def gathered(parts, own):
        sizes.append(own.numel())
        parts[0].copy_(own + 100)
        parts[1].copy_(own)

    def sent(values, src):
        assert src == 0
        sizes.append(len(values))
        values += 1

    for name, function in (("all_reduce", doubled), ("all_gather", gathered), ("broadcast", sent)):
        monkeypatch.setattr(torch.distributed, name, function)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *_, **__: None)
    return Together(torch.distributed.HashStore(), Place(1, 2, 1, 2), "gloo"), sizes


def test_parameters_that_no_worker_uses_are_sent_once_and_again_when_they_are_used(one_of_two):
    team, sizes = one_of_two
    used, unused = nn.Parameter(torch.zeros(5, 3)), nn.Parameter(torch.zeros(7))
    for step, expected in enumerate([[15 + 7 + 4], [15 + 4], [15 + 4, 7], [15 + 7 + 4]]):
        del sizes[:]
        used.grad, unused.grad = torch.full((5, 3), 1.0 + step), torch.arange(7.0) if step >= 2 else None
        loss, terms = team.summed([used, unused], torch.tensor(0.5), {"task": torch.tensor(0.25)})
        assert sizes == expected
        assert (loss.item(), terms["task"].item()) == (1.0, 0.5)
        assert torch.equal(used.grad, torch.full((5, 3), 2.0 + 2 * step))
        assert unused.grad is None if step < 2 else torch.equal(unused.grad, 2 * torch.arange(7.0))


def test_only_the_chosen_rows_are_gathered_and_both_kinds_in_one_message(one_of_two):
    team, sizes = one_of_two
    share = team.share(7)  # rows 0 to 3 are worker 0's, 4 to 6 this one's
    one, other = torch.rand(3, 2, requires_grad=True), torch.rand(3, 5)
    first, second = share.both_gathered(one, other, torch.tensor([1, 4, 6]))
    assert sizes == [2 * 7], "at most two rows of a worker"
    assert torch.equal(first[1:], one[[0, 2]])
    assert torch.equal(second[1:], other[[0, 2]])
    assert torch.equal(first[0], one[0] + 100)
    (first * torch.tensor([[5.0], [2.0], [3.0]])).sum().backward()
    assert torch.equal(one.grad, 2 * torch.tensor([[2.0, 2.0], [0.0, 0.0], [3.0, 3.0]])), "counted once by two"
    first, second = share.both_gathered(one, other, torch.tensor([], dtype=torch.int64))
    assert (first.shape, second.shape) == ((0, 2), (0, 5))
    assert len(sizes) == 1, "there is nothing to send"


def test_the_weights_of_a_network_are_sent_in_one_message(one_of_two):
    team, sizes = one_of_two
    network = nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5))
    before = [values.clone() for values in network.parameters()]
    team.aligned(network)
    assert sizes == [15 + 5 + 5 + 5]
    for values, old in zip(network.parameters(), before, strict=True):
        assert torch.equal(values, old + 1)


def test_alone_everything_is_as_it_is():
    rows, share = torch.arange(3), ALONE.share(3)
    for same in (
        share.of(rows),
        share.weighed(rows),
        share.gathered(rows),
        share.gathered_for_own(rows),
        share.counted_once(rows),
        share.first(rows),
    ):
        assert same is rows
    assert share.both_gathered(rows, rows, None) == (rows, rows)
    one, other = share.both_gathered(rows, 10 * rows, torch.tensor([0, 2]))
    assert (one.tolist(), other.tolist()) == ([0, 2], [0, 20])
    assert share.with_partners(rows) == (share, rows)
    assert share.among(rows, 3) is share.of_items(rows, rows) is share
    assert ALONE.agreed(rows) is ALONE.decided(lambda: rows) is rows
    assert ALONE.device("cuda") == "cuda"
