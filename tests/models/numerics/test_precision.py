"""Half precision on disk: half the size, float32 in memory, unchanged scores."""

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from frevl.models.inputs import stored_in_half
from frevl.models.retrieval.first_stage import with_alignment
from frevl.models.retrieval.kernel_alignment import fit_alignment
from frevl.models.retrieval.two_tower import TwoTower


def test_matrices_are_halved_and_vectors_are_not():
    module = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2))
    stored_in_half(module)
    state = module.state_dict()
    assert {name: value.dtype for name, value in state.items()} == {
        "0.weight": torch.float16, "0.bias": torch.float32, "1.weight": torch.float16, "1.bias": torch.float32,
    }  # fmt: skip
    assert module[0].weight.dtype == torch.float32, "in memory nothing changes"
    module.load_state_dict(state)
    assert module[0].weight.dtype == torch.float32
    assert {name: value.dtype for name, value in nn.ModuleDict({"in": module}).state_dict().items()}["in.0.weight"] == (
        torch.float16
    )


def test_only_own_parameters_where_asked():
    module = nn.Module()
    module.bank, module.inner = nn.Parameter(torch.ones(3, 2)), nn.Linear(2, 2)
    stored_in_half(module, inner=False)
    found = {name: value.dtype for name, value in module.state_dict().items()}
    assert found == {"bank": torch.float16, "inner.weight": torch.float32, "inner.bias": torch.float32}


def test_what_float16_cannot_hold_stays():
    module = nn.Module()
    module.large = nn.Parameter(torch.tensor([[1.0, 70_000.0]]))
    module.endless = nn.Parameter(torch.tensor([[1.0, torch.inf]]))
    module.empty = nn.Parameter(torch.zeros(0, 3))
    stored_in_half(module)
    assert {value.dtype for value in module.state_dict().values()} == {torch.float32}


def test_scores_after_a_file_change_by_less_than_a_thousandth_of_the_scale(tmp_path):
    torch.manual_seed(0)
    images, texts, rows = torch.randn(41, 11), torch.randn(41, 7), torch.arange(41)
    own = TwoTower.of([TwoTower(image_dim=11, text_dim=7, hidden=64, width=32) for _ in range(2)])
    network = with_alignment(own, fit_alignment(images, texts, rows, rows, seed=0), 3.0)
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    twin = TwoTower(**network.settings).eval()
    twin.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    with torch.inference_mode():
        apart = (own(images, texts) + 3 * _aligned(network, images, texts) - twin(images, texts)).abs().max()
    assert 0 < apart < 1e-3 * network.scale.item()


def _aligned(network, images, texts):
    cosines = network.alignment.image_vectors(images) * network.alignment.text_vectors(texts)
    return cosines.sum(dim=1, keepdim=True)
