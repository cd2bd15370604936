"""The posterior of a last layer: by pencil, against a numerical Hessian, and its bounds."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

from frevl.models.baselines import Linear, Majority, Mlp
from frevl.models.classification.posterior import known_directions, left_over, pair_doubt, scatter_of
from frevl.models.ensemble import Average
from frevl.models.fusion import Fusion
from frevl.models.kernel_ridge import KernelFusion
from frevl.models.retrieval.reranker import Reranked, Standardised, TermWeights
from frevl.models.retrieval.two_tower import Cosine
from frevl.runs.batches import EmbeddedPairs
from frevl.runs.posterior import fit_posterior


def directions_of(rows, **options):
    return known_directions(scatter_of([rows]), **options)


def test_by_pencil():
    """After n inputs like it 1 / (1 + n) of the prior variance is left, and of a direction never seen all of it."""
    seen = torch.tensor([[1.0, 0, 0]] * 3 + [[0, 1.0, 0]])
    left = left_over(torch.eye(3), directions_of(seen))
    np.testing.assert_allclose(left, [1 / 4, 1 / 2, 1], atol=1e-7)
    between = F.normalize(torch.tensor([[1.0, 1.0, 0]]), dim=1)
    np.testing.assert_allclose(left_over(between, directions_of(seen)), [(1 / 4 + 1 / 2) / 2], atol=1e-7)


def test_a_pair_by_pencil():
    own = torch.tensor([0.0, 1.0, 0.5])
    np.testing.assert_allclose(pair_doubt({"image": own}), own)
    other = torch.tensor([0.0, 1.0, 0.0])
    np.testing.assert_allclose(pair_doubt({"image": own, "text": other}), [0, 0.75, 1 / 3], atol=1e-7)
    with pytest.raises(ValueError, match="expected one or two sides, found 0"):
        pair_doubt({})


def test_equals_the_inverse_of_a_numerical_hessian():
    """The judge: second differences of the negative log posterior of a linear layer, in numpy; Laplace's definition."""
    random = np.random.default_rng(4)
    seen, new = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in random.standard_normal((2, 11, 5)))
    targets, at, step = random.standard_normal((11, 3)), random.standard_normal((5, 3)), 1e-2

    def negative_log_posterior(weights):
        return 0.5 * np.square(seen @ weights - targets).sum() + 0.5 * np.square(weights).sum()

    def second_difference(i, j):
        total = 0.0
        for one, other in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
            moved = at.copy().ravel()
            moved[i] += one * step
            moved[j] += other * step
            total += one * other * negative_log_posterior(moved.reshape(at.shape))
        return total / (4 * step**2)

    hessian = np.array([[second_difference(i, j) for j in range(15)] for i in range(15)])
    jacobian = np.einsum("nd,rs->nrds", new, np.eye(3)).reshape(11, 3, 15)
    covariance = jacobian @ np.linalg.inv(hessian) @ jacobian.transpose(0, 2, 1)
    left = left_over(torch.tensor(new), directions_of(torch.tensor(seen))).numpy()
    np.testing.assert_allclose(covariance[:, range(3), range(3)], np.repeat(left[:, None], 3, 1), atol=1e-6)
    np.testing.assert_allclose(covariance[:, 0, 1], 0, atol=1e-6)


@pytest.mark.parametrize("kind", ["mlp", "fusion"])
def test_of_networks_equals_the_inverse_of_a_numerical_hessian_in_their_last_weights(kind):
    """Second differences through the whole network; each pair weighs as if its hidden units had unit length."""
    torch.manual_seed(0)
    if kind == "mlp":
        network = Mlp(image_dim=5, text_dim=4, outputs=2, hidden=6)
        last, before, inner = "layers.4", "layers.1", network.layers[1]
    else:
        network = Fusion(image_dim=5, text_dim=4, outputs=2, width=8, layers=1, heads=2, ffn_width=8, head_width=6)
        last, before, inner = "head.outer", "head", network.head.inner
    network = network.double().eval()
    seen, new = ((torch.randn(n, 5).double(), torch.randn(n, 4).double()) for n in (9, 4))
    read = []
    network.get_submodule(before).register_forward_pre_hook(
        lambda _, inputs: read.append(F.gelu(F.linear(inputs[0], inner.weight, inner.bias)))
    )
    targets, at, step = torch.randn(9, 2).double(), torch.randn(2, 6).double(), 1e-2
    with torch.no_grad():
        network(*seen)
        shares = 1 / read[0].square().sum(dim=1, keepdim=True)
        network(*new)
        np.testing.assert_allclose(network.last_layer_inputs(*new)["pair"], F.normalize(read[1], dim=1), atol=1e-6)

        def negative_log_posterior(weight):
            logits = functional_call(network, {f"{last}.weight": weight}, seen)
            return float(0.5 * (shares * (logits - targets).square()).sum() + 0.5 * weight.square().sum())

        def second_difference(i, j):
            total = 0.0
            for one, other in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
                moved = at.clone().flatten()
                moved[i] += one * step
                moved[j] += other * step
                total += one * other * negative_log_posterior(moved.view_as(at))
            return total / (4 * step**2)

        hessian = np.array([[second_difference(i, j) for j in range(6)] for i in range(6)])  # of the first output
        rows = network.last_layer_inputs(*new)["pair"].double().numpy()
        left = left_over(torch.tensor(rows), directions_of(network.last_layer_inputs(*seen)["pair"].double()))
    np.testing.assert_allclose((rows @ np.linalg.inv(hessian) * rows).sum(axis=1), left, atol=1e-5)


@pytest.mark.slow
def test_the_variance_of_a_cosine_is_that_of_drawn_vectors():
    """Monte Carlo: vectors off by isotropic errors of squared length a and b; the share of the variance 1 / d."""
    random, d, draws = np.random.default_rng(2), 64, 40_000
    for a, b in ((0.3, 0.05), (1.0, 1.0)):
        g = np.eye(d)[0] + np.sqrt(a / d) * random.standard_normal((draws, d))
        h = np.eye(d)[1] + np.sqrt(b / d) * random.standard_normal((draws, d))
        # BayesVLM's form: the norms are replaced by their expectations.
        cosines = (g * h).sum(axis=1) / np.sqrt((1 + a) * (1 + b))
        found = float(pair_doubt({"image": torch.tensor(a), "text": torch.tensor(b)}))
        assert cosines.var() * d == pytest.approx(found, rel=0.05)


@pytest.mark.parametrize("rows", [0, 1, 7, 40])
def test_few_and_many_and_equal_rows(rows):
    seen = F.normalize(torch.randn(rows, 13), dim=1)
    new = F.normalize(torch.randn(17, 13), dim=1)
    covariance = torch.linalg.inv(seen.double().T @ seen.double() + torch.eye(13))
    exact = (new.double() @ covariance * new.double()).sum(dim=1)
    np.testing.assert_allclose(left_over(new, directions_of(seen)), exact, atol=1e-6)
    same = F.normalize(torch.ones(max(rows, 1), 13), dim=1)
    np.testing.assert_allclose(left_over(same[:1], directions_of(same)), [1 / (1 + max(rows, 1))], atol=1e-6)


def test_fewer_directions_never_make_it_surer():
    seen, new = F.normalize(torch.randn(60, 29), dim=1), F.normalize(torch.randn(31, 29), dim=1)
    exact = left_over(new, directions_of(seen))
    some = left_over(new, directions_of(seen, most=11))
    assert bool((some >= exact - 1e-6).all())
    assert len(directions_of(seen, most=11)) == 11
    # Of inputs in eleven dimensions eleven directions are all there is.
    low = F.normalize(torch.randn(60, 11) @ torch.randn(11, 29), dim=1)
    np.testing.assert_allclose(
        left_over(low, directions_of(low, most=11)), left_over(low, directions_of(low)), atol=1e-5
    )


def test_blocks_change_nothing_and_none_is_refused():
    rows = torch.randn(23, 5)
    np.testing.assert_allclose(
        scatter_of(rows.split(4)), scatter_of([rows]), rtol=1e-5
    )  # float32 products, summed in float64
    with pytest.raises(ValueError, match="a scatter needs rows, found none"):
        scatter_of([])


def embedded(image, text):
    every = torch.arange(len(image))
    masks = [torch.ones(len(one), 1, dtype=torch.bool) for one in (image, text)]
    return EmbeddedPairs(image[:, None], masks[0], text[:, None], masks[1], every, every)


def kernel_of(seen, shares, widths=(0.7, 1.3)):
    """A kernel fusion on some pairs; what it has solved for does not matter to its posterior."""
    network = KernelFusion(
        image_dim=5, text_dim=4, outputs=2, pairs=len(seen[0]), images=len(seen[0]), texts=len(seen[0]), shares=shares
    )
    for statistics, items in zip(network.input_statistics(), seen, strict=True):
        statistics.fit(items)
    network.images.data, network.texts.data = network.normal_image(seen[0]), network.normal_text(seen[1])
    network.image_rows.data = network.text_rows.data = torch.arange(len(seen[0]))
    network.image_width.data, network.text_width.data = torch.tensor(widths[0]), torch.tensor(widths[1])
    return network.eval()


@pytest.mark.parametrize("shares", [(0.2, 0.3, 0.5), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0)])
def test_the_doubt_of_a_kernel_is_the_variance_of_its_gaussian_process(shares):
    """Rasmussen and Williams 2006, equation 2.26, in numpy."""
    torch.manual_seed(0)
    seen, new = ((torch.randn(n, 5), torch.randn(n, 4)) for n in (30, 9))
    network = kernel_of(seen, shares)

    def kernel(one, other):
        parts = []
        for a, b, width, normal in zip(
            one, other, (0.7, 1.3), (network.normal_image, network.normal_text), strict=True
        ):
            a, b = normal(a).double().numpy(), normal(b).double().numpy()
            parts.append(np.exp(-np.square(a[:, None] - b[None]).sum(axis=2) / width))
        return shares[0] * parts[1] + shares[1] * parts[0] + shares[2] * parts[0] * parts[1]

    across = kernel(new, seen)
    expected = 1 - (across @ np.linalg.inv(kernel(seen, seen) + np.eye(30)) * across).sum(axis=1)
    own = fit_posterior(network, embedded(*seen))
    np.testing.assert_allclose(own.doubt(network, embedded(*new)), expected, atol=2e-4)
    far = own.doubt(network, embedded(*(100 * torch.randn(3, dim) for dim in (5, 4))))
    assert far.max() <= 1


def test_more_pairs_than_carry_it_leave_more_doubt_and_never_less(monkeypatch):
    torch.manual_seed(0)
    seen, new = ((torch.randn(n, 5), torch.randn(n, 4)) for n in (300, 50))
    network = kernel_of(seen, (0.2, 0.3, 0.5), widths=(9.0, 9.0))
    exact = fit_posterior(network, embedded(*seen)).doubt(network, embedded(*new))
    monkeypatch.setattr("frevl.models.kernel_ridge._LANDMARKS", 100)
    network = kernel_of(seen, (0.2, 0.3, 0.5), widths=(9.0, 9.0))
    some = fit_posterior(network, embedded(*seen)).doubt(network, embedded(*new))
    assert network.last_layer_inputs(*(one[:2] for one in new))["pair"].shape == (2, 100)
    assert (some > exact - 1e-3).all()
    assert np.corrcoef(some, exact)[0, 1] > 0.9


def test_other_weights_in_the_same_kernel_are_not_taken_for_the_former():
    torch.manual_seed(0)
    one, other = (kernel_of((torch.randn(8, 5), torch.randn(8, 4)), (0.2, 0.3, 0.5)) for _ in range(2))
    pair = torch.randn(3, 5), torch.randn(3, 4)
    before = one.last_layer_inputs(*pair)["pair"]
    one.load_state_dict(other.state_dict())
    torch.testing.assert_close(one.last_layer_inputs(*pair)["pair"], other.last_layer_inputs(*pair)["pair"])
    assert not torch.allclose(before, one.last_layer_inputs(*pair)["pair"])


@pytest.mark.parametrize("soft", [False, True])
def test_the_doubt_of_an_average_is_the_mean_of_its_members_and_their_spread(soft):
    torch.manual_seed(0)
    members = [Linear(image_dim=5, text_dim=4, outputs=3), Mlp(image_dim=5, text_dim=4, outputs=3).eval()]
    torch.nn.init.normal_(members[0].linear.weight)
    calibrations = [{"scale": 2.0, "offset": 0.0, "weight": 3.0}, {"scale": 1.0, "offset": 0.0, "weight": 1.0}]
    average = Average.of(members, calibrations, soft=soft)
    seen, new = (embedded(torch.randn(n, 5), torch.randn(n, 4)) for n in (9, 6))
    found = fit_posterior(average, seen).doubt(average, new)
    own = [fit_posterior(member, seen).doubt(member, new) for member in members]
    inputs = new.inputs(new.image_rows, new.text_rows)
    with torch.no_grad():
        logits = [member(*inputs) * scale for member, scale in zip(members, (2, 1), strict=True)]
    said = [one.sigmoid() if soft else one.softmax(1) for one in logits]
    mean = 0.75 * said[0] + 0.25 * said[1]
    distances = [(one - mean).abs().amax(1) if soft else (one - mean).abs().sum(1) / 2 for one in said]
    doubt, spread = (0.75 * parts[0] + 0.25 * parts[1] for parts in (own, distances))
    torch.testing.assert_close(found, 1 - (1 - doubt) * (1 - spread))
    same = Average.of([members[0]] * 2, calibrations[:1] * 2, soft=soft)
    torch.testing.assert_close(fit_posterior(same, seen).doubt(same, new), own[0])
    without = Average.of([members[0], Majority(outputs=3)], calibrations, soft=soft)
    assert fit_posterior(without, seen) is None


def test_a_reranked_run_has_the_doubt_of_its_reranker_and_without_one_of_its_first_stage():
    torch.manual_seed(0)
    settings = {"image_dim": 5, "text_dim": 5, "outputs": 1, "width": 8, "layers": 1, "heads": 2, "ffn_width": 8}
    fusion = Standardised(fusion={**settings, "head_width": 6}, input_dropout=0.0)
    fusion.standardise(2 + torch.randn(20, 5), torch.randn(20, 5))
    first = Cosine(spaces=[[0, 5, 0, 5]])
    banks = torch.zeros(3, 5), torch.zeros(3, 5)
    network = Reranked(first, *banks, fusion, weights=TermWeights(fusion=1.0), depth=2).eval()
    pair = torch.randn(7, 5), torch.randn(7, 5)
    expected = fusion.fusion.last_layer_inputs(fusion.image_statistics(pair[0]), fusion.text_statistics(pair[1]))
    torch.testing.assert_close(network.last_layer_inputs(*pair), expected)
    alone = Reranked(first, *banks, None, weights=TermWeights(), depth=0).eval()
    torch.testing.assert_close(alone.last_layer_inputs(*pair), first.last_layer_inputs(*pair))


def test_pairs_that_stand_for_several_count_so_often():
    torch.manual_seed(0)
    network = Mlp(image_dim=4, text_dim=3, outputs=1, use_image=True, use_text=True, hidden=8, dropout=0.0).eval()
    seen, new = ((torch.randn(n, 4), torch.randn(n, 3)) for n in (30, 5))
    twice = tuple(torch.cat([one, one]) for one in seen)
    found = fit_posterior(network, embedded(*seen), stand_for=2).doubt(network, embedded(*new))
    torch.testing.assert_close(found, fit_posterior(network, embedded(*twice)).doubt(network, embedded(*new)))
