"""The contrastive term against a pencil, a slow implementation with loops, and numerical gradients."""

import math
import re

import pytest
import torch
from torch import Tensor

from frevl.errors import UsageError
from frevl.training.fitting.contrast import Positives, contrastive_loss

N, D = 11, 5


def loss_of(
    images: Tensor,
    texts: Tensor,
    image_ids: Tensor,
    text_ids: Tensor,
    *,
    temperature: float = 0.07,
    matching: Tensor | None = None,
) -> Tensor:
    """The loss as in a step of training: of rows by their ids, and of those alone that match."""
    rows = None if matching is None else matching.nonzero()[:, 0]
    kept = (images, texts) if rows is None else (images[rows], texts[rows])
    return contrastive_loss(*kept, Positives.of(image_ids, text_ids, rows), temperature=temperature)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


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
    loss = loss_of(same, same, ids(0, 1), ids(0, 1), temperature=1.0)
    assert loss.item() == pytest.approx(0.3132617)
    # Exchanged texts: ln(1 + e).
    loss = loss_of(same, same.flip(0), ids(0, 1), ids(0, 1), temperature=1.0)
    assert loss.item() == pytest.approx(1.3132617)
    # The same image twice: nothing is left to tell apart.
    assert loss_of(same, same, ids(0, 0), ids(0, 1), temperature=1.0).item() == 0.0


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
    loss = loss_of(images, texts, ids(4, 4, 9), ids(0, 1, 2), temperature=1.0)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("masked", [False, True])
def test_contrastive_loss_equals_its_slow_twin(masked: bool) -> None:
    images, texts = torch.randn(N, D, generator=seeded()), torch.randn(N, D, generator=seeded(1))
    image_ids, text_ids = [0, 1, 2, 2, 3, 4, 0, 5, 6, 7, 2], [0, 1, 2, 3, 4, 5, 6, 1, 7, 8, 9]
    rows = [0, 2, 3, 5, 7, 8, 10] if masked else list(range(N))
    matching = torch.tensor([i in rows for i in range(N)]) if masked else None
    for temperature in (0.07, 0.5):
        actual = loss_of(images, texts, ids(*image_ids), ids(*text_ids), temperature=temperature, matching=matching)
        expected = slow_contrastive(images, texts, image_ids, text_ids, temperature, rows)
        assert actual.item() == pytest.approx(expected, rel=1e-5)


def test_contrastive_loss_without_shared_ids_is_clips() -> None:
    images, texts = torch.randn(N, D, generator=seeded()), torch.randn(N, D, generator=seeded(1))
    logits = torch.nn.functional.normalize(images, dim=1) @ torch.nn.functional.normalize(texts, dim=1).T / 0.07
    cross_entropy, diagonal = torch.nn.functional.cross_entropy, torch.arange(N)
    expected = (cross_entropy(logits, diagonal) + cross_entropy(logits.T, diagonal)) / 2
    actual = loss_of(images, texts, diagonal, diagonal)
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
        return loss_of(*vectors, image_ids, text_ids, temperature=0.5).item()

    costs = [loss(angle) for angle in (0.1, 0.3, 0.5, 0.7, 0.9, 1.1)]
    assert costs == sorted(costs)
    assert costs[0] < costs[1]


@pytest.mark.parametrize(("image_ids", "text_ids"), [(ids(5), ids(3)), (ids(1, 1, 1), ids(0, 1, 2))])
def test_contrastive_loss_without_negatives_is_exactly_zero(image_ids: Tensor, text_ids: Tensor) -> None:
    n = len(image_ids)
    images = torch.randn(n, D, generator=seeded(), requires_grad=True)
    texts = torch.randn(n, D, generator=seeded(1), requires_grad=True)
    loss = loss_of(images, texts, image_ids, text_ids)
    loss.backward()
    assert loss.item() == 0.0
    assert images.grad.tolist() == texts.grad.tolist() == torch.zeros(n, D).tolist()


def test_contrastive_loss_without_matching_rows_is_zero_with_a_gradient_of_zero() -> None:
    images = torch.randn(N, D, generator=seeded(), requires_grad=True)
    texts = torch.randn(N, D, generator=seeded(1), requires_grad=True)
    no_row = torch.zeros(N, dtype=torch.bool)
    loss = loss_of(images, texts, torch.arange(N), torch.arange(N), matching=no_row)
    loss.backward()
    assert loss.item() == 0.0
    assert images.grad.tolist() == texts.grad.tolist() == torch.zeros(N, D).tolist()


def test_rows_that_do_not_match_change_nothing() -> None:
    images = torch.randn(N, D, generator=seeded(), requires_grad=True)
    texts = torch.randn(N, D, generator=seeded(1))
    matching = torch.arange(N) % 3 != 1
    image_ids, text_ids = torch.arange(N) // 2, torch.arange(N)
    loss = loss_of(images, texts, image_ids, text_ids, matching=matching)
    loss.backward()
    alone = loss_of(images.detach()[matching], texts[matching], image_ids[matching], text_ids[matching])
    assert torch.equal(loss.detach(), alone)
    assert images.grad[~matching].abs().max() == 0
    assert images.grad[matching].abs().min() > 0


def test_order_of_the_batch_never_changes_the_contrastive_loss() -> None:
    images, texts = torch.randn(N, D, generator=seeded()), torch.randn(N, D, generator=seeded(1))
    image_ids, text_ids, order = torch.arange(N) // 3, torch.arange(N) % 5, torch.randperm(N, generator=seeded(2))
    torch.testing.assert_close(
        loss_of(images, texts, image_ids, text_ids),
        loss_of(images[order], texts[order], image_ids[order], text_ids[order]),
    )


@pytest.mark.parametrize("scale", [1e-20, 1e4, 0.0])
def test_contrastive_loss_is_finite_at_extreme_vectors_and_temperatures(scale: float) -> None:
    vectors = torch.eye(3) - 0.5
    images, texts = (vectors * scale).requires_grad_(), (-vectors * scale).requires_grad_()
    for temperature in (1e-4, 0.07, 1e4):  # cosines over 1e-4 are logits of +-10,000
        loss = loss_of(images, texts, ids(0, 1, 2), ids(0, 1, 2), temperature=temperature)
        loss.backward()
        assert loss.isfinite()
        assert loss.item() >= 0
        assert images.grad.isfinite().all()
        assert texts.grad.isfinite().all()


@pytest.mark.parametrize(
    ("image_ids", "text_ids"),
    [
        ([0, 0, 1, 2, 3, 3, 4, 5, 6], [0, 1, 2, 2, 3, 4, 5, 5, 5]),
        ([9, 1, 9, 1, 9], [0, 1, 2, 3, 4]),
        ([0, 1, 2, 3, 4], [7, 7, 7, 7, 7]),
        ([5, 3, 8], [2, 9, 4]),
        ([3], [3]),
        ([], []),
        ([i // 2 for i in range(300)], [(i + 1) // 2 for i in range(300)]),  # few among many, found by sorting
    ],
)
def test_positives_are_all_pairs_of_rows_that_share_an_image_or_a_text(image_ids, text_ids) -> None:
    n = len(image_ids)
    same = [[image_ids[i] == image_ids[j] or text_ids[i] == text_ids[j] for j in range(n)] for i in range(n)]
    counts = [sum(row) for row in same]
    expected = {i * n + j: (1 / counts[i], 1 / counts[j]) for i in range(n) for j in range(n) if same[i][j]}
    found = Positives.of(torch.tensor(image_ids, dtype=torch.int64), torch.tensor(text_ids, dtype=torch.int64))
    assert len(found.places) == len(expected)
    assert dict(zip(found.places.tolist(), map(tuple, found.shares.T.tolist()), strict=True)) == {
        place: pytest.approx(shares) for place, shares in expected.items()
    }


def test_padded_lists_have_one_of_few_lengths_and_the_same_loss() -> None:
    images, texts = torch.randn(N, D, generator=seeded()), torch.randn(N, D, generator=seeded(1))
    lengths = set()
    for groups in range(1, N + 1):
        shared = (torch.arange(N) % groups, torch.arange(N))
        padded, plain = Positives.of(*shared, padded=True), Positives.of(*shared)
        lengths.add(len(padded.places) - N)
        torch.testing.assert_close(
            contrastive_loss(images, texts, padded, temperature=0.2),
            contrastive_loss(images, texts, plain, temperature=0.2),
        )
    assert lengths == {64, 128}


def test_the_gradient_is_that_of_the_loss() -> None:
    vectors = [torch.randn(9, D, dtype=torch.double, generator=seeded(n), requires_grad=True) for n in (0, 1)]
    image_ids, text_ids = torch.tensor([0, 0, 1, 2, 3, 3, 4, 5, 6]), torch.tensor([0, 1, 2, 2, 3, 4, 5, 5, 5])
    places, shares = Positives.of(image_ids, text_ids, padded=True)

    def loss(v: Tensor, t: Tensor) -> Tensor:
        return contrastive_loss(v, t, Positives(places, shares.double()), temperature=0.3)

    assert torch.autograd.gradcheck(loss, vectors)


def test_in_half_precision_the_loss_is_that_of_single_precision_but_for_the_rounding_of_similarities() -> None:
    vectors = [torch.randn(64, 32, generator=seeded(n)) for n in (0, 1)]
    positives = Positives.of(torch.arange(64) // 2, torch.arange(64))
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        given = [vector.to(dtype, copy=True).requires_grad_() for vector in vectors]
        loss = contrastive_loss(*given, positives, temperature=0.07)
        loss.backward()
        found[dtype] = (loss.item(), torch.cat([one.grad.float() for one in given]))
    single, half = found[torch.float32], found[torch.bfloat16]
    assert half[0] == pytest.approx(single[0], rel=0.02)
    assert torch.nn.functional.cosine_similarity(half[1].flatten(), single[1].flatten(), dim=0) > 0.999


@pytest.mark.parametrize(
    ("shapes", "temperature", "message"),
    [
        (((3, 2), (3, 3)), 1.0, "contrastive_loss expects images and texts (n, d), but got (3, 2) and (3, 3)."),
        (((3,), (3,)), 1.0, "contrastive_loss expects images and texts (n, d), but got (3,) and (3,)."),
        (((1, 2), (1, 2)), 0.0, "contrastive_loss: temperature must be positive, but is 0.0."),
    ],
)
def test_wrong_use_is_refused(shapes, temperature, message) -> None:
    vectors = [torch.zeros(shape) for shape in shapes]
    with pytest.raises(UsageError, match=re.escape(message)):
        contrastive_loss(*vectors, Positives.of(ids(0), ids(0)), temperature=temperature)
