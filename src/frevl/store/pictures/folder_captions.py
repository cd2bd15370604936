"""Pairs of a folder of images: with the captions next to them, or with the names of their folders as classes."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from frevl.errors import ImageError, counted
from frevl.store.extraction.items import ExtractionReport
from frevl.store.pictures.captions import Captions, holds_caption, key_of
from frevl.store.pictures.files import Choice, FolderFile, list_folder, read_regular_file, reason_of
from frevl.store.pictures.tar_members import Member, is_picture
from frevl.store.sharding.shares import Share
from frevl.store.writer import StoreWriter

__all__ = ["folder_captions"]

_LONGEST = 1 << 22  # bytes of a caption or a record, as of a line of a pairs file


def folder_captions(
    folder: Path,
    captions: Captions,
    writer: StoreWriter,
    report: ExtractionReport,
    *,
    choice: Choice,
    share: Share,
    outside: Collection[str],
) -> None:
    """Write a pair for every image of a folder that has a caption, a label or a record next to it.

    Files belong together as the members of a tar do (`frevl.store.pictures.captions`). If no image has any of these,
    and all lie in folders with at least two names, the name of its folder is the class of an image, as in torchvision's
    ``ImageFolder`` and the ``imagefolder`` of Hugging Face's datasets.

    Args:
        folder: The folder.
        captions: Receives images and captions.
        writer: Writer of the store, which records what could not be used.
        report: Receives notes and rejects.
        choice: Selects the images.
        share: The images of which pairs are written.
        outside: Ids of files that the store lacks, because they are no images.
    """
    former = {reject.id for reject in writer.store.rejects() if reject.kind == "pair"}
    again: set[str] = set()
    chosen, beside = Choice(choice.include, choice.exclude), False
    classes: set[str] = set()  # names of the folders with files that are named like images

    def groups() -> Iterator[tuple[list[FolderFile], list[str]]]:
        own = share.apart()
        for files in _of_one_key(list_folder(folder, leave_out=writer.path, choice=Choice(exclude=choice.exclude))):
            texts = [file for file in files if holds_caption(file.id)]
            pictures = [file.id for file in files if not holds_caption(file.id) and chosen.takes(file.id, "file")]
            classes.update(_folder_name(id_) for id_ in pictures if is_picture(id_))
            yield texts if pictures else [], [id_ for id_ in own.own(pictures, str) if id_ not in outside]

    for texts, pictures in groups():
        beside = beside or bool(texts)
        for id_ in pictures:
            captions.picture(id_)
        for file in texts if pictures else ():
            again.update(former & {file.id})
            captions.add(_read(file))
        captions.write()
    if not beside and len(classes) > 1 and "" not in classes:
        captions.without = 0
        for _, pictures in groups():
            for id_ in pictures:
                captions.picture(id_)
                captions.add(Member(f"{key_of(id_)}.cls", _folder_name(id_).encode()))
            captions.write()
        some = ", ".join(f"'{name:.40}'" for name in sorted(classes)[:3])
        report.notes.append(
            "No image has a caption or a label next to it, so the name of its folder is its class: "
            f"{counted(len(classes), 'class', 'classes')}, such as {some}. If these are splits, choose one with "
            "--include."
        )
    left_out = {reject.id for reject in captions.rejects}
    writer.clear_rejects("pair", again - left_out)
    writer.reject(captions.rejects)
    report.rejects += captions.rejects


def _of_one_key(files: Iterable[FolderFile]) -> Iterator[list[FolderFile]]:
    """Yield the files that belong together. A folder is listed by name, but folders in it may lie in between."""
    waiting: list[list[FolderFile]] = []  # of a folder, of one in it, and so on
    for file in files:
        if file.problem:
            continue
        while waiting and not file.id.startswith(_prefix(waiting[-1][0].id)):
            yield waiting.pop()
        if waiting and key_of(waiting[-1][0].id) == key_of(file.id):
            waiting[-1].append(file)
            continue
        if waiting and _prefix(waiting[-1][0].id) == _prefix(file.id):
            yield waiting.pop()
        waiting.append([file])
    yield from reversed(waiting)


def _prefix(id_: str) -> str:
    """Return the folder of a file, with its slash; nothing for the folder of all images."""
    return id_[: id_.rfind("/") + 1]


def _folder_name(id_: str) -> str:
    return id_.rpartition("/")[0].rpartition("/")[2]


def _read(file: FolderFile) -> Member:
    try:
        status = os.stat(file.path)  # noqa: PTH116
        if status.st_size > _LONGEST:
            return Member(file.id, problem=f"expected at most {_LONGEST:,} bytes, found {status.st_size:,}")
        return Member(file.id, read_regular_file(file.path, status))
    except ImageError as error:
        return Member(file.id, problem=reason_of(error))
    except OSError as error:
        return Member(file.id, problem=f"the file cannot be read ({error.strerror or error})")
