"""Copies whose embeddings are far from those of their originals: in frames, on screens, rotated by quarter turns."""

import numpy as np
import pytest
from PIL import Image, ImageOps

from blobs import grey, picture, sphere
from frevl.diagnosis.curation.copies.margins import picture_within
from frevl.diagnosis.curation.copies.near import AGREES, confirmed_links
from frevl.diagnosis.curation.copies.picture_alignment import Picture, aligned_agreement
from frevl.diagnosis.curation.copies.picture_match import SIDE
from frevl.diagnosis.curation.copies.sketches import sketch_of, unit_sketches
from frevl.store.grouping.copies import neighbours_of


def in_a_frame(image, share=0.05, colour="white"):
    return ImageOps.expand(image, round(share * image.height), colour)


def between_bars(image):
    canvas = Image.new("RGB", (image.width, round(1.6 * image.width)))
    canvas.paste(image, (0, (canvas.height - image.height) // 2))
    return canvas


def on_a_screen(image):
    """A bar above, the image over the full width, lines of text below."""
    canvas = Image.new("RGB", (image.width, round(1.7 * image.height)), "white")
    canvas.paste("#202020", (0, 0, canvas.width, 8))
    canvas.paste(image, (0, 14))
    for top in range(image.height + 24, canvas.height - 8, 16):
        canvas.paste("#606060", (6, top, canvas.width - top // 4, top + 5))
    return canvas


FRAMES = {
    "a thin white frame": in_a_frame,
    "a broad black frame": lambda image: in_a_frame(image, 0.15, "black"),
    "bars": between_bars,
    "a screen": on_a_screen,
}


@pytest.mark.slow
@pytest.mark.parametrize("frame", FRAMES)
def test_what_is_in_a_frame_counts_and_not_the_frame(frame):
    """Two frames have the same edges: 28 of 524 photos were dropped as copies of others in the same frame."""
    wholes = [Picture.of(grey(picture(seed))) for seed in range(5)]
    framed = [Picture.of(grey(FRAMES[frame](picture(seed)))) for seed in range(5)]
    turned = [Picture.of(grey(FRAMES[frame](picture(seed).rotate(90, expand=True)))) for seed in range(5)]
    assert all(one.within is not None for one in framed)
    for others in (wholes, framed, turned):
        found = np.array([[aligned_agreement(one, other, enough=1) for other in others] for one in framed])
        assert found.diagonal().min() > AGREES + 0.1
        assert found[~np.eye(5, dtype=bool)].max() < AGREES


def test_a_picture_within_is_found_to_the_pixel_or_not_at_all():
    random = np.random.default_rng(0)
    plain, photo = np.full((SIDE, SIDE), 255, np.uint8), random.integers(0, 256, (SIDE, SIDE)).astype(np.uint8)
    assert picture_within(plain) is None
    assert picture_within(photo) is None
    framed = plain.copy()
    framed[20:70, 10:90] = photo[20:70, 10:90]
    assert picture_within(framed) == (11, 21, 89, 69)  # resizing blurs the outermost lines
    framed[:9] = 30  # a bar above, a line of text below
    framed[80:84, 10:50] = 0
    assert picture_within(framed) == (11, 21, 89, 69)
    text = plain.copy()
    text[10::8, 10:80] = 0  # no line of it is the picture, but the margins go
    assert picture_within(text) == (11, 11, 79, 90)
    thin = plain.copy()
    thin[48, 48] = 0
    assert picture_within(thin) is None  # nothing that is as large as a picture
    one_sided = photo.copy()
    one_sided[:, :12] = 200
    assert picture_within(one_sided) == (13, 0, SIDE, SIDE)


@pytest.mark.parametrize(
    "change",
    [np.fliplr, np.flipud, np.rot90, lambda g: np.rot90(g, 3), np.transpose, lambda g: 255 - g, lambda g: g // 2],
)
def test_sketches_of_turned_and_inverted_pictures_are_equal(change):
    plain = grey(picture(0))
    assert sketch_of(plain) @ sketch_of(change(plain)) > 0.999
    others = unit_sketches(np.stack([sketch_of(grey(picture(seed))) for seed in range(23)]))
    assert (others @ others.T)[~np.eye(23, dtype=bool)].max() < 0.6
    assert sketch_of(plain).shape == (143,)
    assert not sketch_of(np.full((SIDE, SIDE), 7, np.uint8)).any()
    assert not unit_sketches(np.ones((3, 143), np.float32)).any()


@pytest.mark.slow
def test_copies_are_found_whose_embeddings_are_far_apart():
    """The embeddings are drawn, so that pictures alone can tell."""
    vectors = sphere(60, 0)
    pictures = {row: grey(picture(row)) for row in range(60)}
    pictures[41] = grey(picture(3).rotate(90, expand=True))
    pictures[52] = grey(between_bars(picture(5)))
    pictures[58] = np.full((SIDE, SIDE), 9, np.uint8)
    near = neighbours_of(vectors, np.arange(60))[0][:, :8]
    assert 41 not in near[3]
    assert 3 not in near[41]
    assert 52 not in near[5]
    assert 5 not in near[52]
    links, _, enough = confirmed_links(vectors, pictures.get)
    assert links.tolist() == [[3, 41], [5, 52]]
    assert enough == AGREES


@pytest.mark.slow
def test_one_copy_that_is_not_the_nearest_does_not_spoil_what_agrees():
    """A tenth of the images has a copy among its further neighbours: 0.99 was asked for then, and nothing found."""
    vectors = sphere(120, 0)
    pictures = {row: grey(picture(row)) for row in range(120)}
    near = neighbours_of(vectors, np.arange(120))[0]
    taken, copied = set(), []
    for row in range(120):
        other = int(near[row, 6])
        if row not in taken and other not in taken and len(copied) < 6:
            pictures[other] = grey(ImageOps.mirror(picture(row)))
            taken |= {row, other}
            copied.append([min(row, other), max(row, other)])
    links, _, enough = confirmed_links(vectors, pictures.get)
    assert enough == AGREES
    assert links.tolist() == sorted(copied)
