"""The first stage: projections, their loss, ensembles, and the cosine of a common space."""

import math

import numpy as np
import pytest
import torch

from frevl.errors import UsageError
from frevl.models.retrieval.first_stage import with_alignment
from frevl.models.retrieval.kernel_alignment import fit_alignment
from frevl.models.retrieval.two_tower import LARGEST_SCALE, Cosine, Projection, TwoTower
from frevl.runs.batches import EmbeddedPairs
from frevl.store.towers import Tower
from frevl.training.losses import batch_contrast
from frevl.training.retrieval.two_tower import COMMON_SPACE, cosine_of, has_common_space, narrow_vectors


def tower(name, modality, dim, **identity):
    return Tower(
        name, modality, ("made",), {"dtype": "float16", "tokens": "pooled", **identity}, dim, np.zeros((1, dim))
    )


def test_statistics_leave_out_what_never_varies():
    projection = Projection(inputs=2, hidden=3, width=2, input_dropout=0.0, dropout=0.0)
    projection.standardise(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
    assert projection.mean.tolist() == [2.0, 5.0]
    assert projection.scale.tolist() == [1.0, math.inf]
    found = projection.eval()(torch.tensor([[3.0, 7.0]]))
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found, projection(torch.tensor([[3.0, -7.0]])), msg="a constant must not be read")


def test_the_dot_product_of_several_members_is_their_mean_cosine():
    members = [TwoTower(image_dim=5, text_dim=3, hidden=7, width=11).eval() for _ in range(2)]
    both = TwoTower.of(members)
    image, text = torch.randn(13, 5), torch.randn(13, 3)
    cosines = [(one.image_vectors(image) * one.text_vectors(text)).sum(dim=1) for one in members]
    vectors = both.image_vectors(image), both.text_vectors(text)
    torch.testing.assert_close((vectors[0] * vectors[1]).sum(dim=1), torch.stack(cosines).mean(dim=0))
    torch.testing.assert_close(vectors[0].norm(dim=1), torch.ones(13))
    torch.testing.assert_close(both(image, text)[:, 0], both.scale * torch.stack(cosines).mean(dim=0))


def joined(members=2):
    torch.manual_seed(3)
    return TwoTower.of([TwoTower(image_dim=5, text_dim=3, hidden=7, width=11).eval() for _ in range(members)])


def test_stored_vectors_are_the_projections_of_the_joined_ones():
    both, image, text = joined(), torch.randn(13, 5), torch.randn(13, 3)
    by = torch.linalg.qr(torch.randn(22, 6)).Q.T.contiguous()
    narrow = both.narrowed(by)
    assert (narrow.settings["stored_width"], "stored_width" in both.settings) == (6, False)
    vectors = narrow.image_vectors(image), narrow.text_vectors(text)
    for found, whole in zip(vectors, (both.image_vectors(image), both.text_vectors(text)), strict=True):
        torch.testing.assert_close(found, torch.nn.functional.normalize(whole @ by.T, dim=1))
    torch.testing.assert_close(narrow(image, text)[:, 0], both.scale * (vectors[0] * vectors[1]).sum(dim=1))
    again = TwoTower(**narrow.settings)
    again.load_state_dict(narrow.state_dict())
    torch.testing.assert_close(again.eval()(image, text), narrow(image, text), rtol=0, atol=0.02)
    turn = torch.randn(6, 6)
    turned = narrow.with_text_maps([turn])
    assert narrow.text_blocks == [6]
    expected = torch.nn.functional.normalize(vectors[1] @ turn.T, dim=1)
    torch.testing.assert_close(turned.text_vectors(text), expected)
    torch.testing.assert_close(turned.image_vectors(image), vectors[0])
    torch.testing.assert_close(narrow.text_vectors(text), vectors[1], msg="the network that was turned stays")


def test_projected_vectors_lose_only_what_training_items_do_not_have():
    """Items of few directions keep their dot products, to any width that holds these; narrow enough stays as it is."""
    both, rows = joined(3), torch.arange(2)
    images, texts = torch.randn(2, 5), torch.randn(2, 3)
    pairs = EmbeddedPairs(images[:, None], rows[:, None] >= 0, texts[:, None], rows[:, None] >= 0, rows, rows)
    assert narrow_vectors(both, images, texts, pairs, 33) is both
    narrow = narrow_vectors(both, images, texts, pairs, 4)
    assert narrow.image_vectors(images).shape == (2, 4)
    torch.testing.assert_close(narrow(images, texts), both(images, texts), rtol=0, atol=1e-4)
    tight = narrow_vectors(both, images, texts, pairs, 1)
    torch.testing.assert_close(tight.image_vectors(images).abs(), torch.ones(2, 1))


def test_the_scale_is_bounded():
    dual = TwoTower(image_dim=2, text_dim=2, hidden=2, width=2)
    with torch.no_grad():
        dual.log_scale.fill_(100.0)
    assert dual.scale.item() == LARGEST_SCALE


def test_tokens_are_pooled_and_masked_ones_do_not_count():
    dual = TwoTower(image_dim=5, text_dim=3, hidden=7, width=2).eval()
    tokens = torch.randn(4, 3, 5)
    mask = torch.tensor([[True, True, False]] * 4)
    torch.testing.assert_close(dual.image_vectors(tokens, mask), dual.image_vectors(tokens[:, :2].mean(dim=1)))


def test_an_alignment_adds_its_cosine_to_the_logit():
    image, text, rows = torch.randn(13, 5), torch.randn(13, 3), torch.arange(13)
    alignment = fit_alignment(image, text, rows, rows, seed=0, rank=2)
    aligned = (alignment.image_vectors(image) * alignment.text_vectors(text)).sum(dim=1)
    for own, width in ((TwoTower(image_dim=5, text_dim=3, hidden=7, width=11).eval(), 11),
                       (Cosine(spaces=[[1, 3, 0, 2]], scale=10.0), 2)):  # fmt: skip
        joined = with_alignment(own, alignment, 4.0)
        expected = own(image, text)[:, 0] + 4 * aligned
        torch.testing.assert_close(joined(image, text)[:, 0], expected, rtol=0, atol=0.02)
        vectors = joined.image_vectors(image), joined.text_vectors(text)
        assert vectors[0].shape == (13, width + 2)
        torch.testing.assert_close(vectors[1].norm(dim=1), torch.ones(13))
        assert joined.part_scales(7.0, width + 2).tolist() == pytest.approx([own.scale.item()] * width + [7.0] * 2)
        unweighed = with_alignment(own, alignment, 0.0)
        assert unweighed.image_vectors(image).shape == (13, width)
        assert unweighed.image_parts(image).shape == (13, width + 2)


def test_contrast_by_hand():
    # Two texts of image 0 and one of image 1; all logits 0: each text has one right of two images, image 0 two right of
    # three texts, image 1 one of three.
    loss = batch_contrast(torch.zeros(3, 2), torch.tensor([0, 0, 1]), torch.tensor([4, 5, 6]))
    assert loss.item() == pytest.approx(0.5 * (math.log(2) + math.log(3)))


def test_a_text_of_two_images_is_right_for_both():
    similarity = torch.tensor([[9.0, 9.0, 0.0], [9.0, 9.0, 0.0], [0.0, 0.0, 9.0]])
    places = torch.tensor([0, 1, 2])
    same = batch_contrast(similarity, places, torch.tensor([7, 7, 8]))
    other = batch_contrast(similarity, places, torch.tensor([7, 9, 8]))
    assert same.item() == pytest.approx(math.log(2) * 2 / 3, abs=1e-3), "half the target on each of two equal items"
    torch.testing.assert_close(other, same, msg="which of two equal items is right costs the same")
    apart = torch.tensor([[9.0, -9.0, 0.0], [-9.0, 9.0, 0.0], [0.0, 0.0, 9.0]])
    assert batch_contrast(apart, places, torch.tensor([7, 7, 8])) > 5 > batch_contrast(apart, places, torch.arange(3))


def test_contrast_is_a_slow_twin():
    torch.manual_seed(1)
    similarity, places, texts = torch.randn(7, 3), torch.tensor([0, 1, 2, 0, 1, 2, 0]), torch.arange(7)
    smoothing = 0.1

    def one_way(scores, right):
        total = 0.0
        for row, chosen in zip(scores.tolist(), right, strict=True):
            logs = [value - math.log(sum(math.exp(other) for other in row)) for value in row]
            target = [(1 - smoothing) / len(chosen) * (i in chosen) + smoothing / len(row) for i in range(len(row))]
            total -= sum(t * log for t, log in zip(target, logs, strict=True))
        return total / len(right)

    expected = one_way(similarity, [{int(p)} for p in places]) + one_way(
        similarity.T, [{i for i in range(7) if places[i] == image} for image in range(3)]
    )
    found = batch_contrast(similarity, places, texts, label_smoothing=smoothing)
    assert found.item() == pytest.approx(expected / 2, rel=1e-5)


def test_contrast_refuses_shapes():
    with pytest.raises(UsageError, match=r"image_places and text_ids \(3,\), but got \(2,\) and \(3,\)"):
        batch_contrast(torch.zeros(3, 2), torch.tensor([0, 1]), torch.tensor([0, 1, 2]))


def test_cosine_by_hand():
    cosine = Cosine(spaces=[[1, 3, 0, 2]], scale=10.0, bias=-3.0)
    image, text = torch.tensor([[9.0, 3.0, 4.0]]), torch.tensor([[0.0, 2.0, 9.0]])
    assert cosine(image, text).item() == pytest.approx(10 * 0.8 - 3)
    assert cosine.image_vectors(image).tolist() == [pytest.approx([0.6, 0.8])]


def test_the_common_space_is_found_among_other_towers():
    images = [tower("plain", "image", 5), tower("clip-image", "image", 3, **{COMMON_SPACE: "c", "logit_scale": "20"})]
    texts = [tower("clip-text", "text", 3, **{COMMON_SPACE: "c"}), tower("minilm", "text", 2)]
    cosine = cosine_of(images, texts)
    assert cosine.spaces == [[5, 8, 0, 3]]
    assert cosine.scale.item() == 20
    assert has_common_space(images, texts)
    assert not has_common_space(images[:1], texts)


def test_an_encoder_without_a_common_space_is_refused_with_advice():
    with pytest.raises(
        UsageError, match="'cosine' needs an encoder whose images and texts share a space.*--model dual"
    ):
        cosine_of([tower("a", "image", 3)], [tower("b", "text", 3)])
    with pytest.raises(UsageError, match="have none"):
        cosine_of([tower("a", "image", 3, common_space="x")], [tower("b", "text", 3, common_space="y")])
