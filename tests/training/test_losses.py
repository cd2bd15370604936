"""Every objective against a pencil and against a slow implementation with loops and ``math``."""

import math
import re

import pytest
import torch
from torch import Tensor

from frevl.errors import UsageError
from frevl.training.losses import binary_loss, class_loss, contrastive_loss, feature_norm_loss, mixup, soft_target_loss

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


# --- contrastive -----------------------------------------------------------------------------------------------------


def slow_contrastive(
    images: Tensor, texts: Tensor, image_ids: list[int], text_ids: list[int], temperature: float, rows: list[int]
) -> float:
    """Both directions, anchor by anchor, positive by positive, in double precision."""

    def cosine(a: list[float], b: list[float]) -> float:
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))

    v, t = images.double().tolist(), texts.double().tolist()
    total = 0.0
    for anchors, others in ((v, t), (t, v)):
        for i in rows:
            positives = [j for j in rows if image_ids[i] == image_ids[j] or text_ids[i] == text_ids[j]]
            negatives = [j for j in rows if j not in positives]
            against = sum(math.exp(cosine(anchors[i], others[j]) / temperature) for j in negatives)
            costs = []
            for p in positives:
                score = math.exp(cosine(anchors[i], others[p]) / temperature)
                costs.append(-math.log(score / (score + against)))
            total += sum(costs) / len(costs) / 2
    return total / len(rows)


def ids(*numbers: int) -> Tensor:
    return torch.tensor(numbers)


def test_contrastive_loss_by_hand() -> None:
    # Cosines: 1 on the diagonal, 0 next to it. At temperature 1 each anchor costs ln(1 + 1/e).
    same = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    loss = contrastive_loss(same, same, ids(0, 1), ids(0, 1), temperature=1.0)
    assert loss.item() == pytest.approx(0.3132617)
    # Exchanged texts: ln(1 + e).
    loss = contrastive_loss(same, same.flip(0), ids(0, 1), ids(0, 1), temperature=1.0)
    assert loss.item() == pytest.approx(1.3132617)
    # The same image twice: nothing is left to tell apart.
    assert contrastive_loss(same, same, ids(0, 0), ids(0, 1), temperature=1.0).item() == 0.0


def test_contrastive_loss_by_hand_with_a_shared_image() -> None:
    # Rows 0 and 1 share an image, row 2 is alone; the cosines, at temperature 1:
    #            text 0 (1,0)   text 1 (0,1)   text 2 (-1,0)
    # image 0,1 (1,0)     1           0             -1
    # image 2  (-1,0)    -1           0              1
    images = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    texts = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    to_text_01 = (math.log1p(math.exp(-2)) + math.log1p(math.exp(-1))) / 2
    to_text_2 = math.log1p(math.exp(-2) + math.exp(-1))
    to_image_0 = math.log1p(math.exp(-2))
    to_image_1 = math.log(2)
    to_image_2 = math.log1p(2 * math.exp(-2))
    expected = ((2 * to_text_01 + to_text_2) / 3 + (to_image_0 + to_image_1 + to_image_2) / 3) / 2
    loss = contrastive_loss(images, texts, ids(4, 4, 9), ids(0, 1, 2), temperature=1.0)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("masked", [False, True])
def test_contrastive_loss_equals_its_slow_twin(masked: bool) -> None:
    images, texts = torch.randn(N, D, generator=seeded()), torch.randn(N, D, generator=seeded(1))
    image_ids, text_ids = [0, 1, 2, 2, 3, 4, 0, 5, 6, 7, 2], [0, 1, 2, 3, 4, 5, 6, 1, 7, 8, 9]
    rows = [0, 2, 3, 5, 7, 8, 10] if masked else list(range(N))
    matching = torch.tensor([i in rows for i in range(N)]) if masked else None
    for temperature in (0.07, 0.5):
        actual = contrastive_loss(
            images, texts, ids(*image_ids), ids(*text_ids), temperature=temperature, matching=matching
        )
        expected = slow_contrastive(images, texts, image_ids, text_ids, temperature, rows)
        assert actual.item() == pytest.approx(expected, rel=1e-5)


def test_contrastive_loss_without_shared_ids_is_clips() -> None:
    images, texts = torch.randn(N, D, generator=seeded()), torch.randn(N, D, generator=seeded(1))
    logits = torch.nn.functional.normalize(images, dim=1) @ torch.nn.functional.normalize(texts, dim=1).T / 0.07
    cross_entropy, diagonal = torch.nn.functional.cross_entropy, torch.arange(N)
    expected = (cross_entropy(logits, diagonal) + cross_entropy(logits.T, diagonal)) / 2
    actual = contrastive_loss(images, texts, diagonal, diagonal)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("shared", ["image", "text"])
def test_whatever_shares_an_image_or_a_text_is_only_ever_pulled_closer(shared: str) -> None:
    # Unit vectors in the plane, given by their angles. Rows 0 and 1 belong together; the text of row 1 starts
    # between the images 0 and 1 and moves away from both, towards image 2. It must cost more all the way, also
    # where the text is nearer to image 0 than image 0's own text is.
    image_ids = ids(0, 0, 1) if shared == "image" else ids(0, 1, 2)
    text_ids = ids(0, 1, 2) if shared == "image" else ids(0, 0, 1)

    def loss(angle: float) -> float:
        images, texts = torch.tensor([0.0, 0.1, 2.0]).double(), torch.tensor([-1.0, angle, 2.0]).double()
        vectors = [torch.stack([angles.cos(), angles.sin()], dim=1) for angles in (images, texts)]
        return contrastive_loss(*vectors, image_ids, text_ids, temperature=0.5).item()

    costs = [loss(angle) for angle in (0.1, 0.3, 0.5, 0.7, 0.9, 1.1)]
    assert costs == sorted(costs)
    assert costs[0] < costs[1]


@pytest.mark.parametrize(("image_ids", "text_ids"), [(ids(5), ids(3)), (ids(1, 1, 1), ids(0, 1, 2))])
def test_contrastive_loss_without_negatives_is_exactly_zero(image_ids: Tensor, text_ids: Tensor) -> None:
    n = len(image_ids)
    images = torch.randn(n, D, generator=seeded(), requires_grad=True)
    texts = torch.randn(n, D, generator=seeded(1), requires_grad=True)
    loss = contrastive_loss(images, texts, image_ids, text_ids)
    loss.backward()
    assert loss.item() == 0.0
    assert images.grad.tolist() == texts.grad.tolist() == torch.zeros(n, D).tolist()


def test_contrastive_loss_without_matching_rows_is_zero_with_a_gradient_of_zero() -> None:
    images = torch.randn(N, D, generator=seeded(), requires_grad=True)
    texts = torch.randn(N, D, generator=seeded(1), requires_grad=True)
    no_row = torch.zeros(N, dtype=torch.bool)
    loss = contrastive_loss(images, texts, torch.arange(N), torch.arange(N), matching=no_row)
    loss.backward()
    assert loss.item() == 0.0
    assert images.grad.tolist() == texts.grad.tolist() == torch.zeros(N, D).tolist()


def test_rows_that_do_not_match_change_nothing() -> None:
    images = torch.randn(N, D, generator=seeded(), requires_grad=True)
    texts = torch.randn(N, D, generator=seeded(1))
    matching = torch.arange(N) % 3 != 1
    image_ids, text_ids = torch.arange(N) // 2, torch.arange(N)
    loss = contrastive_loss(images, texts, image_ids, text_ids, matching=matching)
    loss.backward()
    alone = contrastive_loss(images.detach()[matching], texts[matching], image_ids[matching], text_ids[matching])
    assert torch.equal(loss.detach(), alone)
    assert images.grad[~matching].abs().max() == 0
    assert images.grad[matching].abs().min() > 0


def test_order_of_the_batch_never_changes_the_contrastive_loss() -> None:
    images, texts = torch.randn(N, D, generator=seeded()), torch.randn(N, D, generator=seeded(1))
    image_ids, text_ids, order = torch.arange(N) // 3, torch.arange(N) % 5, torch.randperm(N, generator=seeded(2))
    torch.testing.assert_close(
        contrastive_loss(images, texts, image_ids, text_ids),
        contrastive_loss(images[order], texts[order], image_ids[order], text_ids[order]),
    )


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


@pytest.mark.parametrize("scale", [1e-20, 1e4, 0.0])
def test_contrastive_loss_is_finite_at_extreme_vectors_and_temperatures(scale: float) -> None:
    vectors = torch.eye(3) - 0.5
    images, texts = (vectors * scale).requires_grad_(), (-vectors * scale).requires_grad_()
    for temperature in (1e-4, 0.07, 1e4):  # cosines over 1e-4 are logits of +-10,000
        loss = contrastive_loss(images, texts, ids(0, 1, 2), ids(0, 1, 2), temperature=temperature)
        loss.backward()
        assert loss.isfinite()
        assert loss.item() >= 0
        assert images.grad.isfinite().all()
        assert texts.grad.isfinite().all()


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
            lambda: contrastive_loss(torch.zeros(3, 2), torch.zeros(3, 2), ids(0, 1, 2), ids(0, 1)),
            "contrastive_loss expects images and texts (n, d) and ids and matching (n,), "
            "but got (3, 2), (3, 2) and (3,), (2,).",
        ),
        (
            lambda: contrastive_loss(torch.zeros(1, 2), torch.zeros(1, 2), ids(0), ids(0), temperature=0.0),
            "contrastive_loss: temperature must be positive, but is 0.0.",
        ),
        (
            lambda: feature_norm_loss(torch.zeros(3)),
            "feature_norm_loss expects fused features (n, k), but got (3,).",
        ),
        (
            lambda: mixup(torch.zeros(2, 1), torch.zeros(2, 1), ids(0, 1), generator=seeded()),
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
