"""Kernel ridge regression from images to texts, against numpy and on data with a known answer."""

import numpy as np
import pytest
import torch

from frevl.models.retrieval.kernel_alignment import Alignment, fit_alignment


def world(images=23, texts=3, image_dim=7, text_dim=5, seed=0):
    """Texts whose meaning is a linear map of their image."""
    torch.manual_seed(seed)
    v = torch.randn(images, image_dim)
    rows = torch.arange(images).repeat_interleave(texts)
    t = (v @ torch.randn(image_dim, text_dim))[rows] + 0.1 * torch.randn(images * texts, text_dim)
    return v, t, rows, torch.arange(images * texts)


def test_vectors_equal_numpy():
    v, t, rows, texts = world()
    found = fit_alignment(v, t, rows, texts, seed=0, rank=4, penalty=0.5)
    x, y = v.double().numpy(), t.double().numpy()
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    y = (y - y.mean(axis=0)) / y.std(axis=0)
    spread, directions = np.linalg.eigh(y.T @ y / len(y))
    z = y @ directions[:, ::-1][:, :4] / np.sqrt(spread[::-1][:4])
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    means = z.reshape(23, 3, 4).mean(axis=1)
    shift = means.mean(axis=0)
    distances = ((x[:, None] - x[None]) ** 2).sum(axis=2)
    kernel = np.exp(-distances / (2 * 0.7**2))
    said = kernel @ np.linalg.solve(kernel + 0.5 * np.eye(23), means - shift)
    said /= np.linalg.norm(said, axis=1, keepdims=True)
    wanted = z - shift
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    # The sign of a principal direction is free, but the same for both sides: only cosines are defined.
    cosines = found.image_vectors(v) @ found.text_vectors(t).T
    np.testing.assert_allclose(cosines.numpy(), said @ wanted.T, atol=2e-4)


def test_unseen_images_find_their_texts():
    v, t, rows, texts = world(images=211)
    seen = rows < 199
    found = fit_alignment(v, t, rows[seen], texts[seen], seed=0)
    cosines = found.image_vectors(v[199:]) @ found.text_vectors(t[~seen]).T
    hits = (cosines.argmax(dim=1) // 3 == torch.arange(12)).float().mean()
    assert hits > 0.6, "chance is 0.08"


@pytest.mark.slow
def test_anchors_are_bounded_and_settings_rebuild_it():
    v, t, rows, texts = world()
    t[:, 0] = 5.0  # a dimension that never varies
    found = fit_alignment(v, t, rows, texts, seed=3, most=11)
    assert found.settings["anchors"] == 11
    twin = Alignment(**found.settings)
    twin.load_state_dict(found.state_dict())
    assert torch.isfinite(found.text_vectors(t)).all()
    # Matrices are written in half precision.
    torch.testing.assert_close(found.image_vectors(v), twin.image_vectors(v), rtol=0, atol=2e-3)
    tokens = torch.stack([v, v, torch.full_like(v, 9.0)], dim=1)
    mask = torch.tensor([True, True, False]).expand(len(v), 3)
    torch.testing.assert_close(twin.image_vectors(tokens, mask), twin.image_vectors(v))
