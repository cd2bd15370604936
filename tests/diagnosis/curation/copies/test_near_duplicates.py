"""``frevl curate --drop duplicate``: copies by hash, by embedding and by pixels; what is kept of a group."""

import json

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

import frevl
from blobs import grey, picture, sphere
from frevl.data.pairs import Pairs
from frevl.diagnosis.curation.copies.duplicates import duplicate_filter, plain_text
from frevl.diagnosis.curation.copies.groups import LARGEST_CHAIN, group_copies
from frevl.diagnosis.curation.copies.near import AGREES, TELLS, confirmed_links, embedding_links
from frevl.diagnosis.curation.copies.picture_alignment import Picture, aligned_agreement
from frevl.diagnosis.curation.copies.picture_match import SIDE, agreement, edges_of
from frevl.diagnosis.curation.lines import Lines
from frevl.errors import UsageError
from frevl.training.options import Session
from planted import plant


def test_of_a_group_the_preferred_is_kept_and_of_equal_ones_the_first():
    groups = group_copies(
        [(0, 3), (3, 4), (1, 2), (5, 5)], [(0.5, 1), (0, 7), (0, 7), (0.5, 2), (0.2, 9), (9, 9), (0, 0)]
    )
    assert groups.kept.tolist() == [3, 1, 1, 3, 3, 5, 6]
    assert groups.sizes.tolist() == [3, 2, 2, 3, 3, 1, 1]
    assert groups.cut == groups.longest == 0


def test_a_chain_is_cut_so_that_what_goes_is_linked_to_what_is_kept():
    """Frames of a film: each is like the next, the ends are not alike."""
    frames = 3 * LARGEST_CHAIN
    links = [(frame, frame + 1) for frame in range(frames - 1)]
    groups = group_copies(links, [(0.0,)] * frames)
    assert (np.abs(groups.kept - np.arange(frames)) <= 1).all()
    assert groups.kept.tolist()[:6] == [0, 0, 2, 2, 4, 4]
    assert (groups.cut, groups.longest) == (1, frames)


def test_a_large_group_of_real_copies_is_not_cut():
    many = 2 * LARGEST_CHAIN
    groups = group_copies([(0, one) for one in range(1, many)], [(1.0,), *[(0.0,)] * (many - 1)])
    assert set(groups.kept.tolist()) == {0}
    assert groups.cut == 0


def cut(image, left, top, right, bottom):
    width, height = image.size
    return image.crop((int(width * left), int(height * top), int(width * right), int(height * bottom)))


def with_banner(image):
    copy = image.copy()
    copy.paste((0, 0, 0), (0, int(0.82 * image.height), *image.size))
    return copy


COPIES = {
    "half size": lambda image: image.resize((80, 60)),
    "mirrored": ImageOps.mirror,
    "contrast": lambda image: ImageEnhance.Contrast(image).enhance(1.3),
    "grey": lambda image: image.convert("L").convert("RGB"),
    "a tenth cut off": lambda image: cut(image, 0.05, 0.05, 0.95, 0.95),
    "a tenth cut off on the right": lambda image: cut(image, 0, 0, 0.9, 1),
    "mirrored and cut": lambda image: ImageOps.mirror(cut(image, 0, 0, 0.9, 0.9)),
    "15 % cut off each side": lambda image: cut(image, 0.15, 0.15, 0.85, 0.85),
    "a quarter cut off on the left": lambda image: cut(image, 0.25, 0, 1, 1),
    "a banner": with_banner,
    "a border": lambda image: ImageOps.expand(image, (9, 7), (255, 255, 255)),
    "upside down": lambda image: image.rotate(180),
    "a quarter turn": lambda image: image.rotate(90, expand=True),
    "mirrored, turned and cut": lambda image: ImageOps.mirror(cut(image, 0, 0, 0.9, 0.9)).rotate(-90, expand=True),
    "inverted": ImageOps.invert,
}
FAR = (  # to the toy encoder
    "a border", "a banner", "15 % cut off each side", "a quarter cut off on the left",
    "upside down", "a quarter turn", "mirrored, turned and cut", "inverted",
)  # fmt: skip
CLOSE = [copy for kind, copy in COPIES.items() if kind not in FAR]


@pytest.mark.slow
@pytest.mark.parametrize("kind", COPIES)
def test_copies_agree_and_other_pictures_do_not(kind):
    edges = [edges_of(grey(picture(seed))) for seed in range(7)]
    copies = [edges_of(grey(COPIES[kind](picture(seed)))) for seed in range(7)]
    found = np.array([[agreement(one, other) for other in copies] for one in edges])
    assert found.diagonal().min() > AGREES + (0.05 if kind in FAR[1:4] else 0.1)  # small and equal crops lose 0.2
    assert found[~np.eye(7, dtype=bool)].max() < AGREES - 0.1
    assert agreement(edges[0], copies[0]) == agreement(copies[0], edges[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    "change", [Image.Image.copy, ImageOps.mirror, ImageOps.invert, lambda image: image.rotate(180)]
)
def test_a_part_from_any_place_agrees_and_other_pictures_do_not(change):
    """Crops that lie between the fixed ones, which agree with neither."""
    parts = [(0.08, 0.03, 0.9, 0.87), (0.13, 0.07, 0.96, 0.88), (0.03, 0.12, 0.97, 0.93), (0.05, 0.14, 0.87, 0.99)]
    wholes = [Picture.of(grey(picture(seed))) for seed in range(4)]
    copies = [Picture.of(grey(change(cut(picture(seed), *part)))) for seed, part in enumerate(parts)]
    fixed = [agreement(one.edges, other.edges) for one, other in zip(wholes, copies, strict=True)]
    found = np.array([[aligned_agreement(one, other, enough=1) for other in copies] for one in wholes])
    assert min(fixed) < AGREES
    assert found.diagonal().min() > AGREES + 0.1
    assert found[~np.eye(4, dtype=bool)].max() < AGREES - 0.1
    assert aligned_agreement(copies[0], wholes[0], enough=1) == found[0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("degrees", [-6, 4, 5])
def test_an_image_rotated_by_a_few_degrees_agrees_and_other_pictures_do_not(degrees):
    wholes = [Picture.of(grey(picture(seed))) for seed in range(4)]
    rotated = [picture(seed).rotate(degrees, Image.Resampling.BICUBIC) for seed in range(4)]
    rotated[2:] = [cut(image, 0.09, 0.09, 0.91, 0.91) for image in rotated[2:]]  # the others keep black corners
    copies = [Picture.of(grey(image)) for image in rotated]
    found = np.array([[aligned_agreement(one, other, enough=1) for other in copies] for one in wholes])
    assert found.diagonal().min() > AGREES + 0.05
    assert found[~np.eye(4, dtype=bool)].max() < AGREES - 0.1


def test_a_part_of_two_pictures_that_shows_little_is_no_copy():
    """A pond and a field: the same plain part with one edge, and nothing else in common."""
    pond, field = np.full((2, SIDE, SIDE), 100, np.uint8)
    pond[:, 10:14] = field[:, 10:14] = 140
    random = np.random.default_rng(0)
    pond[78:], field[78:] = random.integers(0, 256, (2, 18, SIDE))
    noise = random.integers(0, 40, (2, SIDE, SIDE)).astype(np.uint8)
    found = aligned_agreement(Picture.of(pond + noise[0]), Picture.of(field + noise[1]), enough=1)
    assert found < AGREES


def test_a_flat_picture_agrees_with_nothing():
    flat = edges_of(np.full((SIDE, SIDE), 128, np.uint8))
    assert agreement(flat, flat) == 0
    assert agreement(flat, edges_of(grey(picture(0)))) == 0


def test_the_graph_of_a_large_set_finds_the_links_that_comparing_all_finds(monkeypatch):
    vectors = sphere(1201, 3)
    near = vectors[:97] + 0.004 * np.random.default_rng(4).standard_normal((97, 61)).astype(np.float32)
    vectors = np.concatenate([vectors, near / np.linalg.norm(near, axis=1, keepdims=True)])
    exact, none = embedding_links(vectors)
    monkeypatch.setattr("frevl.diagnosis.curation.copies.near.MOST_COMPARED", 1000)
    found, index = embedding_links(vectors.astype(np.float16))
    assert none is None
    assert index is not None
    links, others = ({tuple(link) for link in one.links.tolist()} for one in (exact, found))
    assert {(row, 1201 + row) for row in range(97)} <= links & others
    assert len(links ^ others) <= 2
    assert found.gap == pytest.approx(exact.gap, rel=0.02)


def test_the_pixels_are_asked_of_near_neighbours_only():
    vectors = sphere(23, 0)
    pictures = {row: grey(picture(row)) for row in range(22)}  # the last cannot be read
    pictures[7] = grey(ImageOps.mirror(picture(3)))
    pictures[9] = grey(cut(picture(5), 0.05, 0.14, 0.87, 0.97))
    vectors[7], vectors[9] = vectors[3], vectors[5]
    links, readable, enough = confirmed_links(vectors, pictures.get)
    assert links.tolist() == [[3, 7], [5, 9]]
    assert readable.tolist() == [True] * 22 + [False]
    assert enough == AGREES


def shirt(seed):
    """The same outline on white with a small print of its own: what shops have."""
    canvas = Image.new("RGB", (120, 120), "white")
    canvas.paste(picture(1000, (70, 90)), (25, 15))
    canvas.paste(picture(seed, (9, 9)), (50, 50))
    return canvas


@pytest.mark.slow
def test_where_ordinary_pictures_agree_as_much_as_copies_the_pixels_decide_nothing():
    vectors = sphere(40, 0)
    links, readable, enough = confirmed_links(vectors, {row: grey(shirt(row)) for row in range(40)}.get)
    assert enough > TELLS
    assert len(links) == 0
    assert readable.all()


@pytest.fixture(scope="module")
def album(tmp_path_factory):
    """40 images, copies of the first seven, one file twice, two lines for each."""
    folder = tmp_path_factory.mktemp("album")
    images = folder / "images"
    images.mkdir()
    for seed in range(40):
        picture(seed).save(images / f"{seed:02}.png")
    for number, copy in enumerate(CLOSE):
        copy(picture(number)).save(images / f"copy {number}.png")
    (images / "twin.png").write_bytes((images / "20.png").read_bytes())
    rows = [
        {"image": path.name, "text": text} for path in sorted(images.iterdir()) for text in ("a picture", path.stem)
    ]
    again = {"image": "30.png", "text": "a picture"}
    rows += [again, {**again, "text": "A picture"}]
    pairs = folder / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    frevl.extract(folder / "store", images=images, pairs=[pairs], encoder=["toy"])
    return folder


@pytest.mark.slow
def test_lines_of_copies_are_dropped_with_the_name_of_what_is_kept(album):
    found = frevl.curate(album / "store", album / "pairs.jsonl", drop=["duplicate"], images=album / "images")
    verdicts = {}
    for line in found.lines[:-2]:
        verdicts.setdefault(line["image"], line["curate"])
    for number in range(len(CLOSE)):
        pair = (f"{number:02}.png", f"copy {number}.png")
        gone = [name for name in pair if not verdicts[name]["kept"]]
        assert len(gone) == 1, pair
        assert verdicts[gone[0]]["duplicate_of"] == next(name for name in pair if name != gone[0])
        assert verdicts[gone[0]]["copies"] == 2
    assert verdicts["twin.png"]["duplicate_of"] == "20.png"
    assert verdicts["30.png"] == {**verdicts["30.png"], "duplicate_of": None, "copies": 1, "kept": True, "why": []}
    figures = found.filters["duplicate"]
    assert (figures["copies"], figures["same_content"], figures["near"]) == (8, 1, 7)
    assert figures["by"] == "pixels"


@pytest.mark.slow
def test_a_line_that_stands_there_twice_is_kept_once(album):
    found = frevl.curate(album / "store", album / "pairs.jsonl", drop=["duplicate"], images=album / "images")
    again = [line["curate"] for line in found.lines[-2:]]
    assert [one["kept"] for one in again] == [False, False]  # in other case, too
    assert again[0]["duplicate_of"] == "30.png"
    assert found.filters["duplicate"]["repeated_lines"] == 2


def test_pictures_that_are_not_in_the_folder_are_counted_and_compared_by_embedding(album, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    found = frevl.curate(album / "store", album / "pairs.jsonl", drop=["duplicate"], images=empty)
    assert "47 of 47 images cannot be read below" in found.sentence()
    assert found.filters["duplicate"]["by"] == "embedding"
    with pytest.raises(UsageError, match="--images .*none: expected the folder of the images, found nothing"):
        frevl.curate(album / "store", album / "pairs.jsonl", drop=["duplicate"], images=tmp_path / "none")


def test_the_best_matching_copy_is_kept_by_embedding_alone(tmp_path):
    """Near vectors stand for near copies; the filter before says which picture's lines match."""
    from frevl.diagnosis.curation.copies.duplicates import duplicate_filter
    from frevl.diagnosis.curation.lines import Found, Lines
    from frevl.training.options import Session

    world = plant(tmp_path / "store", images=60, near={"near.png": "7.png"}, copies={"same.png": "8.png"})
    pairs = world.pairs(["7.png", "8.png", *[f"{n}.png" for n in range(9, 60)], "near.png", "same.png"],
                        lambda *_: 1, each=2)  # fmt: skip
    session = Session(seed=0, time_limit=None, device="cpu", progress=False)
    lines = Lines(world.store, pairs, "classification", world.store.select_towers("image"), [], session)
    belief = np.full(len(pairs), 0.5)
    belief[[row for row, image in enumerate(pairs.images) if image == "near.png"]] = [0.9, np.nan]
    matched = Found([{} for _ in range(len(pairs))], np.zeros(len(pairs), bool), belief)
    for before, gone in (({}, {"near.png", "same.png"}), ({"match": matched}, {"7.png", "same.png"})):
        found = duplicate_filter(lines, before)
        assert {image for image, flag in zip(pairs.images, found.flagged, strict=True) if flag} == gone
    assert any("by embeddings alone" in note for note in found.notes)


@pytest.mark.slow
def test_the_copy_that_is_kept_has_a_line_that_stays(album, tmp_path):
    """The larger, first copy has a text without words; then the other one is kept, and no image vanishes."""
    first, twin = ({"image": name, "text": "12"} for name in ("20.png", "twin.png"))
    for other, kept in (("a picture", ["twin.png"]), ("34", [])):
        lines = tmp_path / f"{other}.jsonl"
        lines.write_text(f"{json.dumps(first)}\n{json.dumps({**twin, 'text': other})}\n")
        store = tmp_path / f"{other} store"
        frevl.extract(store, images=album / "images", pairs=[lines], encoder=["toy"])
        found = frevl.curate(store, lines, drop=["duplicate", "text"])
        assert [line["image"] for line in found.lines if line["curate"]["kept"]] == kept
        assert ("1 group of copies has no line left" in found.sentence()) is not bool(kept)


def test_texts_alone_are_copies_by_their_words(album, tmp_path):
    texts = tmp_path / "texts.jsonl"
    rows = [{"text": name, "target": str(n % 2)} for n, name in enumerate(["a picture", "00", "01", "02", "03"])]
    texts.write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[1], {**rows[2], "target": "other"}]))
    found = frevl.curate(album / "store", texts, task="classification", drop=["duplicate"])
    assert [line["curate"]["kept"] for line in found.lines] == [True] * 5 + [False, True]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("A dog runs .", "a dog  runs", True),
        ("\u201cA dog\u201d, he said!", "a dog he said", True),
        ("cafe\u0301", "Caf\u00e9", True),
        ("a - b", "a b", True),
        ("\u72d7\u3002", "\u72d7", True),
        ("-5", "5", False),
        ("C++", "C", False),
        ("3.5", "35", False),
        ("?", "!", False),
        ("a dog", "a dot", False),
        ("\u0e2b\u0e21\u0e39", "\u0e2b\u0e21\u0e35", False),  # pig and bear: in Thai, a mark is the vowel
        ("\u0e2b\u0e21\u0e39!", "\u0e2b\u0e21\u0e39", True),
        ("\u092e\u094b\u091f\u0940", "\u092e\u094b\u091f\u093e", False),
    ],
)
def test_texts_that_tell_a_model_nothing_new(one, other, same):
    assert (plain_text(one) == plain_text(other)) == same


def test_a_caption_repeated_in_other_case_goes_and_of_another_image_stays(tmp_path):
    world = plant(tmp_path / "store", images=40, texts=1)
    (text,) = world.texts
    first, second = list(world.images)[:2]
    rows = [(first, text), (first, f" {text.upper()}."), (second, text), (first, f"{text} too")]
    lines = Lines(world.store, Pairs(*([list(column) for column in zip(*rows, strict=True)]), [None] * 4, [{}] * 4,
                                     [str(n) for n in range(4)]), "matching", [], [],
                  Session(seed=0, time_limit=None, device="cpu", progress=False))  # fmt: skip
    found = duplicate_filter(lines, {})
    assert found.flagged.tolist() == [False, True, False, False]
    assert found.figures["repeated_lines"] == 1
