"""Which files of a folder are images: their order, hidden files, thumbnails, patterns, links and depth."""

import os
import subprocess
from pathlib import Path

import pytest

from frevl.errors import InputError, UsageError
from frevl.store.extraction.extract import extract
from frevl.store.pictures.files import Choice, list_folder
from frevl.store.reader import Store


@pytest.fixture
def images(tmp_path, draw):
    return draw(tmp_path / "images", range(7))


# ---- the folder


def listed(folder, **options):
    return [(file.id, file.problem) for file in list_folder(folder, **options)]


def test_files_are_listed_in_a_fixed_order_without_hidden_ones(tmp_path):
    for name in ("b.jpg", "a/2.png", "a/1.png", "a.jpg", ".hidden/x.jpg", ".DS_Store", ".y.JPG", "a/.z", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [id_ for id_, _ in listed(tmp_path)] == [".y.JPG", "a/1.png", "a/2.png", "a.jpg", "b.jpg", "notes.txt"]


def test_hidden_folders_are_counted(tmp_path):
    for name in (".a/1.jpg", ".a/.b/2.jpg", "c/.d/3.jpg", "c/4.jpg", ".DS_Store", "._5.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    choice = Choice()
    assert [id_ for id_, _ in listed(tmp_path, choice=choice)] == ["c/4.jpg"]
    assert choice.sentences() == [
        "Skipped: 2 hidden folders (with a dot before the name); rename one to embed its images."
    ]


def test_folders_of_thumbnails_are_left_out_and_counted(tmp_path):
    for name in (
        "a.jpg", "@eaDir/a.jpg/SYNOPHOTO_THUMB_XL.jpg", "__MACOSX/._a.jpg", "in/.thumbnails/x.png", "in/@eaDir/y.jpg",
        "in/b.jpg", "._a.jpg",
    ):  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    choice = Choice()
    assert [id_ for id_, _ in listed(tmp_path, choice=choice)] == ["a.jpg", "in/b.jpg"]
    assert choice.sentences() == [
        "Skipped: 4 folders of thumbnails or deleted files (.thumbnails, @eaDir, __MACOSX); --include "
        "'.thumbnails' includes them."
    ]
    wanted = [id_ for id_, _ in listed(tmp_path, choice=Choice(include=["@eaDir"]))]
    assert wanted == ["@eaDir/a.jpg/SYNOPHOTO_THUMB_XL.jpg", "in/@eaDir/y.jpg"]


@pytest.mark.parametrize(
    ("include", "exclude", "found"),
    [
        (["*.jpg"], [], ["a.jpg", "in/b.jpg", "in/deep/d.jpg"]),
        (["in"], [], ["in/b.jpg", "in/c.png", "in/deep/d.jpg"]),
        (["in/"], ["deep"], ["in/b.jpg", "in/c.png"]),
        (["in/*.png", "./a*"], [], ["a.jpg", "in/c.png"]),
        ([], ["*.jpg"], ["in/c.png"]),
        ([], ["in/*"], ["a.jpg"]),
        ([], ["[ab].jpg", "d.*"], ["in/c.png"]),
        (["*.gif"], [], []),
    ],
)
def test_patterns_choose_files(tmp_path, include, exclude, found):
    for name in ("a.jpg", "in/b.jpg", "in/c.png", "in/deep/d.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    choice = Choice(include, exclude)
    assert [id_ for id_, _ in listed(tmp_path, choice=choice)] == found
    (sentence,) = choice.sentences()
    assert sentence.startswith("--include and --exclude left out ")


def test_patterns_hold_for_an_extraction(tmp_path, images):
    report = extract(tmp_path / "s", images=images, encoder="toy", exclude="1*")
    names = sorted(path.name for path in images.iterdir() if not path.name.startswith("1"))
    assert sorted(Store.open(tmp_path / "s").image_ids) == names
    assert "--include and --exclude left out 1 file and 0 folders." in report.notes
    assert report.images_gone == 0
    with pytest.raises(InputError, match="found no file in that folder. --include and --exclude left out 7 files"):
        extract(tmp_path / "t", images=images, encoder="toy", include=["*.bmp"])
    with pytest.raises(UsageError, match="--include and --exclude select files of a folder"):
        extract(tmp_path / "t", pairs=[("a", "b")], encoder="toy", include=["*.bmp"])


def test_linked_folders_are_entered_once_and_real_names_win(tmp_path):
    (tmp_path / "top" / "z").mkdir(parents=True)
    (tmp_path / "top" / "z" / "1.png").touch()
    (tmp_path / "top" / "a").symlink_to("z")  # sorts before the real folder
    (tmp_path / "top" / "z" / "up").symlink_to("..")
    (tmp_path / "outside" / "in").mkdir(parents=True)
    (tmp_path / "outside" / "in" / "2.png").touch()
    (tmp_path / "top" / "link").symlink_to(tmp_path / "outside")
    assert listed(tmp_path / "top") == [
        ("z/1.png", ""),
        ("a", "it is a folder that is read under another name"),
        ("link/in/2.png", ""),
        ("z/up", "it is a folder that is read under another name"),
    ]


def test_a_store_inside_the_folder_is_no_image(tmp_path, images):
    report = extract(images / "store", images=images, encoder=["toy"])
    again = extract(images / "store", images=images, encoder=["toy"])
    assert (report.images, report.rejects, again.images_kept, again.rejects) == (7, [], 7, [])


@pytest.mark.slow
def test_folders_may_lie_deeper_than_python_calls(tmp_path):
    here = os.open(tmp_path, os.O_RDONLY)
    try:
        place = here
        for _ in range(1200):
            os.mkdir("d", dir_fd=place)
            deeper = os.open("d", os.O_RDONLY, dir_fd=place)
            os.close(place)
            place = deeper
        os.close(os.open("1.png", os.O_CREAT, dir_fd=place))
        os.close(place)
        assert listed(tmp_path) == [("d/" * 1200 + "1.png", "")]
    finally:
        subprocess.run(["rm", "-rf", tmp_path / "d"], check=True)  # Python's own way ends at 1,000 folders


@pytest.mark.parametrize(("make", "found"), [(Path.touch, "a file"), (str, "none"), (Path.mkdir, None)])
def test_a_folder_that_is_none(tmp_path, make, found):
    make(tmp_path / "images")
    message = (
        f"expected a folder of images, found {found}" if found else "expected images, found no file in that folder"
    )
    with pytest.raises(InputError, match=f"images: {message}"):
        extract(tmp_path / "s", images=tmp_path / "images", encoder=["toy"])
    assert not (tmp_path / "s").exists()
