"""Every objective against a pencil and against a slow implementation with loops and ``math``."""

import math
import re

import pytest
import torch

from frevl.errors import UsageError
from frevl.training.losses import binary_loss, class_loss, feature_norm_loss, mixup, soft_target_loss

N, C, D = 11, 7, 5


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def log1p_exp(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def slow_binary(logit: float, target: float) -> float:
    return target * log1p_exp(-logit) + (1 - target) * log1p_exp(logit)


# --- binary cross-entropy --------------------------------------------------------------------------------------------


def test_binary_loss_by_hand() -> None:
    # Logit ln 3 is probability 3/4: a match costs -ln(3/4), a mismatch -ln(1/4).
    logits = torch.tensor([math.log(3), math.log(3)])
    assert binary_loss(logits[:1], torch.tensor([1.0])).item() == pytest.approx(0.2876821)
    assert binary_loss(logits[:1], torch.tensor([0.0])).item() == pytest.approx(1.3862944)
    assert binary_loss(logits, torch.tensor([1.0, 0.0])).item() == pytest.approx(0.8369882)
    # Smoothing by 0.2 turns 1 into 0.9 and 0 into 0.1: 0.9 * 0.2876821 + 0.1 * 1.3862944, and reversed.
    assert binary_loss(logits[:1], torch.tensor([1.0]), label_smoothing=0.2).item() == pytest.approx(0.3975433)
    assert binary_loss(logits[:1], torch.tensor([0.0]), label_smoothing=0.2).item() == pytest.approx(1.2764332)


@pytest.mark.parametrize("shape", [(N,), (N, 1)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_binary_loss_equals_its_slow_twin(shape: tuple[int, ...], smoothing: float) -> None:
    logits, targets = torch.randn(shape, generator=seeded()) * 4, torch.rand(N, generator=seeded(1))
    expected = sum(
        slow_binary(x, t * (1 - smoothing) + smoothing * 0.5)
        for x, t in zip(logits.flatten().tolist(), targets.tolist(), strict=True)
    )
    actual = binary_loss(logits, targets, label_smoothing=smoothing)
    assert actual.shape == ()
    assert actual.item() == pytest.approx(expected / N, rel=1e-5)


# --- softmax cross-entropy -------------------------------------------------------------------------------------------


def test_class_loss_by_hand() -> None:
    # exp of the logits is 1, 2, 5: probabilities 1/8, 2/8, 5/8.
    logits = torch.tensor([[0.0, math.log(2), math.log(5)]])
    assert class_loss(logits, torch.tensor([1])).item() == pytest.approx(math.log(4))
    half = torch.tensor([[0.5, 0.5, 0.0]])
    assert class_loss(logits, half).item() == pytest.approx((math.log(8) + math.log(4)) / 2)
    # Smoothing by 0.3 leaves 0.7 + 0.1 for the right class and 0.1 for each other one.
    smooth = 0.8 * math.log(4) + 0.1 * math.log(8) + 0.1 * math.log(8 / 5)
    assert class_loss(logits, torch.tensor([1]), label_smoothing=0.3).item() == pytest.approx(smooth)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("soft", [False, True])
def test_class_loss_equals_its_slow_twin(smoothing: float, soft: bool) -> None:
    logits = torch.randn(N, C, generator=seeded()) * 3
    distributions = torch.rand(N, C, generator=seeded(1))
    distributions /= distributions.sum(dim=1, keepdim=True)
    numbers = torch.randint(C, (N,), generator=seeded(2))
    expected = 0.0
    for i in range(N):
        row = logits[i].tolist()
        total = math.log(sum(math.exp(x) for x in row))
        for c in range(C):
            target = distributions[i, c].item() if soft else float(numbers[i].item() == c)
            expected += (target * (1 - smoothing) + smoothing / C) * (total - row[c])
    actual = class_loss(logits, distributions if soft else numbers, label_smoothing=smoothing)
    assert actual.item() == pytest.approx(expected / N, rel=1e-5)


# --- soft targets ----------------------------------------------------------------------------------------------------


def test_soft_target_loss_by_hand() -> None:
    # At logit 0 every answer costs ln 2 whatever its target: three answers, summed; two questions, averaged.
    assert soft_target_loss(torch.zeros(2, 3), torch.rand(2, 3)).item() == pytest.approx(3 * math.log(2))
    # Logit ln 3, target 0.6: -0.6 ln(3/4) - 0.4 ln(1/4).
    loss = soft_target_loss(torch.tensor([[math.log(3)]]), torch.tensor([[0.6]]))
    assert loss.item() == pytest.approx(0.6 * 0.2876821 + 0.4 * 1.3862944)


def test_soft_target_loss_equals_its_slow_twin() -> None:
    logits, targets = torch.randn(N, C, generator=seeded()) * 3, torch.rand(N, C, generator=seeded(1))
    expected = sum(slow_binary(logits[i, c].item(), targets[i, c].item()) for i in range(N) for c in range(C))
    assert soft_target_loss(logits, targets).item() == pytest.approx(expected / N, rel=1e-5)


# --- feature norm ----------------------------------------------------------------------------------------------------


def test_feature_norm_loss_by_hand() -> None:
    assert feature_norm_loss(torch.tensor([[3.0, 4.0], [1.0, 0.0]])).item() == 13.0  # (25 + 1) / 2


def test_feature_norm_loss_equals_its_slow_twin() -> None:
    fused = torch.randn(N, D, generator=seeded())
    expected = sum(x * x for row in fused.tolist() for x in row) / N
    assert feature_norm_loss(fused).item() == pytest.approx(expected, rel=1e-5)


# --- extremes --------------------------------------------------------------------------------------------------------

EXTREMES = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4], [-1e4, -1e4, -1e4]])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_task_losses_are_finite_at_extreme_logits(smoothing: float) -> None:
    for loss in (
        lambda x: binary_loss(x[:, 0], torch.tensor([0.0, 1.0, 0.5]), label_smoothing=smoothing),
        lambda x: class_loss(x, torch.tensor([1, 0, 2]), label_smoothing=smoothing),
        lambda x: class_loss(x, torch.tensor([[0.0, 0.5, 0.5]] * 3), label_smoothing=smoothing),
        lambda x: soft_target_loss(x, torch.tensor([[0.0, 1.0, 0.3]] * 3)),
        feature_norm_loss,
    ):
        logits = EXTREMES.clone().requires_grad_()
        value = loss(logits)
        value.backward()
        assert value.isfinite()
        assert value.item() > 1000
        assert logits.grad.isfinite().all()


def test_task_losses_at_extreme_logits_by_hand() -> None:
    assert binary_loss(torch.tensor([1e4, 1e4]), torch.tensor([0.0, 1.0])).item() == 5000.0
    assert class_loss(EXTREMES[:1], torch.tensor([1])).item() == 20000.0
    assert soft_target_loss(EXTREMES[:1], torch.tensor([[0.25, 1.0, 0.0]])).item() == pytest.approx(17500.6931)


# --- wrong use -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: binary_loss(torch.zeros(3, 2), torch.zeros(3)),
            "binary_loss expects logits (n,) or (n, 1) and float targets (n,), "
            "but got logits (3, 2) and torch.float32 targets (3,).",
        ),
        (
            lambda: binary_loss(torch.zeros(3, 1), torch.zeros(3, 1)),
            "binary_loss expects logits (n,) or (n, 1) and float targets (n,), "
            "but got logits (3, 1) and torch.float32 targets (3, 1).",
        ),
        (
            lambda: class_loss(torch.zeros(3, 2), torch.zeros(3)),
            "class_loss expects logits (n, C) and int64 targets (n,) or float targets (n, C), "
            "but got logits (3, 2) and torch.float32 targets (3,).",
        ),
        (
            lambda: soft_target_loss(torch.zeros(3, 2), torch.zeros(3, 1)),
            "soft_target_loss expects logits (n, C) and float targets (n, C), "
            "but got logits (3, 2) and torch.float32 targets (3, 1).",
        ),
        (
            lambda: feature_norm_loss(torch.zeros(3)),
            "feature_norm_loss expects fused features (n, k), but got (3,).",
        ),
        (
            lambda: mixup(torch.zeros(2, 1), torch.zeros(2, 1), torch.tensor([0, 1]), generator=seeded()),
            "mixup needs targets that can be mixed, float (n,) or (n, C), but got torch.int64: turn class numbers "
            "into distributions with torch.nn.functional.one_hot(targets, classes).float().",
        ),
        (
            lambda: mixup(torch.zeros(2, 1), torch.zeros(2, 1), torch.zeros(2), alpha=1.5, generator=seeded()),
            "mixup: alpha must be above 0 and at most 1, but is 1.5.",
        ),
    ],
)
def test_wrong_use_is_explained(call: object, message: str) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        call()
