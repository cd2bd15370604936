"""What each strategy chooses, by hand and against a slow version; work never grows with items times items."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from frevl.errors import UsageError
from frevl.runs.labelling.strategies import STRATEGIES, choose

NOTHING = torch.zeros(0, 2)


def on_circle(*degrees):
    angles = torch.tensor(degrees).float().deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def rows(by, items, covered=NOTHING, unsure=None, units=None, *, k=3, per_unit=1):
    unsure = torch.ones(len(items)) if unsure is None else torch.tensor(unsure)
    units = torch.arange(len(items)) if units is None else torch.tensor(units)
    return [one.row for one in choose(by, items, covered, unsure, units, k=k, per_unit=per_unit)]


def test_by_hand():
    items = on_circle(0, 10, 90, 180)
    assert rows("margin", items, unsure=[0.1, 0.9, 0.5, 0.9]) == [1, 3, 2]
    # Farthest from 0 degrees is 180, then 90 (90 away from both), then 10.
    assert rows("cover", items, on_circle(0), k=4) == [3, 2, 1, 0]
    # 180 degrees is the same line as 0, which is known: what is left over is at 90.
    assert rows("doubt", items, on_circle(0, 0), k=1) == [2]
    # Twice as unsure, but nearer than half as far: chords from 0 are 0.174 at 10 and 1.414 at 90.
    assert rows("mixed", items, on_circle(0), unsure=[1.0, 1.0, 0.5, 0.0], k=2) == [2, 1]
    # Nothing is left that is not covered: the least sure comes first.
    assert rows("mixed", on_circle(0, 0, 0), on_circle(0), unsure=[0.1, 0.3, 0.2]) == [1, 2, 0]


def test_value_is_what_was_chosen_by():
    first, second = choose("cover", on_circle(60, 180), on_circle(0), torch.ones(2), torch.arange(2), k=5, per_unit=1)
    assert (first.row, second.row) == (1, 0)
    np.testing.assert_allclose([first.value, second.value], [2, 1], atol=1e-6)


@pytest.mark.parametrize("by", STRATEGIES)
def test_equals_a_slow_version(by):
    random = torch.Generator().manual_seed(3)
    items, covered = (F.normalize(torch.randn(n, 7, generator=random), dim=1) for n in (43, 11))
    unsure = torch.rand(43, generator=random)
    taken = []
    for _ in range(13):
        known = torch.cat([covered, items[taken]])
        distance = torch.cdist(items, known).min(dim=1).values
        precision = torch.eye(7).double() + known.double().T @ known.double()
        doubt = torch.stack([v @ torch.linalg.inv(precision) @ v for v in items.double()])
        values = {"margin": unsure, "cover": distance, "mixed": unsure * distance, "doubt": doubt}[by].clone()
        values[taken] = -1
        taken.append(int(values.argmax()))
    assert rows(by, items, covered, unsure.tolist(), k=13) == taken


@pytest.mark.parametrize("by", STRATEGIES)
def test_so_many_of_a_unit_and_no_more_than_there_are(by):
    items, units = on_circle(0, 5, 10, 90), [0, 0, 0, 1]
    assert sorted(rows(by, items, units=units, k=9)) in ([0, 3], [1, 3], [2, 3])
    assert len(rows(by, items, units=units, k=9, per_unit=2)) == 3
    assert sorted(rows(by, items, units=units, k=9, per_unit=3)) == [0, 1, 2, 3]
    assert rows(by, items[:0], k=9) == []


def test_unknown_way():
    with pytest.raises(UsageError, match="--by marign: there is no such strategy. Did you mean 'margin'"):
        rows("marign", on_circle(0, 1))


class Largest(TorchDispatchMode):
    """Notes the most numbers that any tensor had that was made meanwhile."""

    numbers = 0

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        found = function(*arguments, **(named or {}))
        for one in found if isinstance(found, tuple | list) else (found,):
            if isinstance(one, torch.Tensor):
                self.numbers = max(self.numbers, one.numel())
        return found


@pytest.mark.slow
@pytest.mark.parametrize("by", STRATEGIES)
def test_no_matrix_of_all_items(by):
    items = F.normalize(torch.randn(12_000, 16), dim=1)
    with Largest() as largest:
        assert len(rows(by, items, items[:9_000], k=3)) == 3
    assert 12_000 <= largest.numbers <= 4_096**2 < 12_000 * 9_000
