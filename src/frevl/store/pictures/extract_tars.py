"""Extract images inside tars, and write the captions next to them as pairs."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence

from frevl.encoders.interface import ImageTower
from frevl.errors import ImageError, Reject
from frevl.store.extraction.embedder import GUESSED, Embedder, MakePictures
from frevl.store.extraction.items import (
    IN_A_TABLE,
    CommitBuffer,
    ExtractionReport,
    KnownItems,
    PendingItem,
    StoredItems,
)
from frevl.store.pictures.captions import Captions, holds_caption
from frevl.store.pictures.extract_images import embed_images, tell_guessed
from frevl.store.pictures.files import Choice, PicturesToPrepare, reason_of
from frevl.store.pictures.tar_members import Member, Tar, is_picture, read_members
from frevl.store.sharding.shares import Share
from frevl.store.writer import Item

__all__ = ["TarPictures", "extract_tars", "in_a_tar"]


def in_a_tar(id_: str, tars: Collection[str]) -> bool:
    """Return whether an id belongs to a member of one of these tars."""
    parts = id_.split("/")
    return any("/".join(parts[:count]) in tars for count in range(1, len(parts)))


def extract_tars(
    tars: Sequence[Tar],
    towers: Sequence[ImageTower],
    buffer: CommitBuffer,
    report: ExtractionReport,
    *,
    choice: Choice,
    share: Share,
    captions: Captions,
    embedder: Embedder,
    progress: bool,
) -> set[str]:
    """Embed the images inside tars that the store lacks.

    Every tar is read as a stream: known content is recognised and not embedded again. With a shard, whole tars are
    assigned.

    Returns:
        The ids of images of its share that the store may still lack, and the names of the tars that were read.
    """
    writer = buffer.writer
    former = {reject.id for reject in writer.store.rejects() if reject.kind == "image"}
    stored = StoredItems(writer.store, "image", [one.name for one in towers])
    inside = TarPictures(towers, stored)
    members = inside.pictures(tars, choice, share, captions)
    seen = embed_images(
        ", ".join(tar.name for tar in tars[:3]), "image", inside, members, stored, embedder, buffer, report,
        former=former, may_be_empty=share.partial, progress=progress,
    )  # fmt: skip
    again = seen.former | former.intersection(inside.read)
    writer.clear_rejects("image", again - {reject.id for reject in buffer.rejected})
    if captions.wanted:
        left_out = {reject.id for reject in captions.rejects}
        lines = {reject.id for reject in writer.store.rejects() if reject.kind == "pair"}
        writer.clear_rejects("pair", {id_ for id_ in lines - left_out if inside.has_read(id_)})
        writer.reject(captions.rejects)
        report.rejects += captions.rejects
    report.notes += choice.sentences()
    if inside.repeated:
        report.notes.append(
            f"Images that occur twice in their tar with the same content count once: {len(inside.repeated):,} (the "
            f"first is '{inside.repeated[0]:.200}')."
        )
    tell_guessed(inside.remarks[GUESSED], report)
    return seen.outside | inside.read


class TarPictures(PicturesToPrepare):
    """The images inside some tars, compared with the images of a store. Several threads may prepare them.

    Attributes:
        read: Names of the tars that were read.
        repeated: Ids of images that occur twice in their tar with the same content.
    """

    def __init__(self, towers: Sequence[ImageTower], stored: KnownItems) -> None:
        super().__init__(towers, stored)
        self.read: set[str] = set()
        self.repeated: list[str] = []

    def pictures(
        self, tars: Sequence[Tar], choice: Choice, share: Share, captions: Captions
    ) -> Iterator[tuple[Member, str]]:
        """Read the images of each tar in turn with their hashes; captions next to them are passed on."""
        for tar in share.own(tars, lambda one: one.name):
            self.read.add(tar.name)
            known: dict[str, str] = {}
            for member in read_members(tar, lambda name: is_picture(name) or (captions.wanted and holds_caption(name))):
                if member.id == tar.name:
                    yield member, ""
                elif not is_picture(member.id):
                    captions.add(member)
                elif choice.takes(member.id, "file"):
                    yield from self._once(member, known, captions)
            captions.write()

    def _once(self, member: Member, known: dict[str, str], captions: Captions) -> Iterator[tuple[Member, str]]:
        """Yield an image with its content hash, unless the tar already had one of this name."""
        content_hash = hashlib.sha256(member.content).hexdigest()[:32]
        before = known.get(member.id)
        if member.problem:
            yield member, ""
        elif before is None:
            known[member.id] = content_hash
            captions.picture(member.id)
            yield member, content_hash
        elif before == content_hash:
            self.repeated.append(member.id)
        else:
            yield Member(member.id, problem="the tar has two different images of this name; the first is used"), ""

    def has_read(self, id_: str) -> bool:
        """Return whether a member belongs to one of the tars that were read."""
        return in_a_tar(id_, self.read)

    def id_of(self, picture: tuple[Member, str]) -> str:
        """Return the id of an image."""
        return picture[0].id

    def bytes_of(self, picture: tuple[Member, str]) -> int:
        """Return the image's size in bytes."""
        return len(picture[0].content)

    def is_settled(self, picture: tuple[Member, str]) -> bool:
        """Return whether the store has it unchanged."""
        member, content_hash = picture
        known = None if member.problem else self._stored.get(member.id)
        return known is not None and not known.lacking and (not known.bytes or known.content_hash == content_hash)

    def elsewhere(self) -> MakePictures[tuple[Member, str]]:
        """Return a factory that recreates them on another machine."""
        return TarPictures

    def prepare(self, picture: tuple[Member, str]) -> tuple[str, PendingItem | Reject | None]:
        """Decode one image, unless the store has it unchanged.

        Returns:
            Its id, and what is to be done; None if nothing is.
        """
        member, content_hash = picture
        if member.problem:
            return member.id, Reject("image", member.id, member.problem)
        item = Item(member.id, content_hash, len(member.content), IN_A_TABLE)
        try:
            return item.id, self._work(item, member.content)
        except ImageError as error:
            return item.id, Reject("image", item.id, reason_of(error))

    def _work(self, item: Item, content: bytes) -> PendingItem | None:
        known = self._stored.get(item.id)
        imported = known is not None and not known.bytes  # its content was never seen
        if known is not None and (imported or known.content_hash == item.content_hash):
            if not known.lacking:
                return None
            kept = Item(item.id, known.content_hash, 0) if imported else item
            return PendingItem(kept, "fill", self._inputs(item.id, content, known.lacking))
        taken = self._stored.take_over(item.content_hash, self.is_gone)
        if taken is not None:
            source = taken[0]
            return PendingItem(item, "fill", self._inputs(item.id, content, source.lacking), source.id)
        names = [tower.name for tower in self._towers]
        return PendingItem(item, "append" if known is None else "replace", self._inputs(item.id, content, names))
