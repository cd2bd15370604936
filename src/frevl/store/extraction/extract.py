"""`frevl.extract`: embed items into a store, decoding in parallel with the networks; a repeated call resumes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from frevl.data.formats.arrow_tables import ArrowSource
from frevl.data.names import as_list
from frevl.devices import check_device
from frevl.encoders.interface import ImageTower
from frevl.encoders.registry import load_encoder, with_layers
from frevl.encoders.runtime import on_device
from frevl.errors import UsageError
from frevl.machine import processors
from frevl.store.canaries import tower_records
from frevl.store.commits.unfinished import call_of
from frevl.store.extraction.embedder import Embedder, Here
from frevl.store.extraction.inputs import Inputs
from frevl.store.extraction.items import CommitBuffer, ExtractionReport
from frevl.store.extraction.pairs_without_image import reject_pairs_without_image
from frevl.store.extraction.texts import extract_texts
from frevl.store.many_nodes.on_nodes import on_nodes
from frevl.store.pictures.captions import Captions
from frevl.store.pictures.extract_images import extract_images, extract_pictures
from frevl.store.pictures.extract_tars import extract_tars, in_a_tar
from frevl.store.sharding.shares import Shard, Share, begin_part, finish_part, refuse_part
from frevl.store.towers import Tower
from frevl.store.writer import StoreWriter

__all__ = ["ExtractionReport", "extract"]


def extract(
    store: str | Path,
    *,
    images: str | Path | None = None,
    pairs: Any = (),
    columns: str | Sequence[str] | Mapping[str, str] | None = None,
    encoder: str | Sequence[str] = ("packaged",),
    tokens: str = "pooled",
    layers: Sequence[int] = (),
    dtype: str = "float16",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    prune: bool = False,
    check_content: bool = False,
    shard: str | None = None,
    write_pairs: str | Path | None = None,
    commit_rows: int = 1024,
    commit_seconds: float = 5.0,
    workers: int | None = None,
    device: str | None = None,
    ray: str | None = None,
    progress: bool = False,
) -> ExtractionReport:
    """Embed images and texts once and keep them.

    Unchanged items already in the store are not embedded again, and repeating a killed call continues after its last
    commit. A moved or copied file with known content takes over the embeddings. Stored images without a file are
    counted. Unreadable items are recorded as rejects of the store.

    Args:
        store: Folder of the store; created if missing.
        images: Folder of images; an image's id is its path below it, with ``/``. Alternatively a tar (webdataset), a
            folder of tars, or a text file that lists tars: the id is then ``TAR/path inside``.
        pairs: Pairs files, or pairs in memory, whose texts are embedded; one, or a list of several. Without ``images``,
            images inside Parquet, Arrow and Feather files and inside tables in memory are embedded too
            (`frevl.data.formats.arrow_rows`).
        columns: Columns of the pairs files, as in `frevl.data.pairs.read_pairs`.
        encoder: Names for `load_encoder`; towers shared by two encoders are embedded once.
        tokens: ``pooled``, or an image grid ``7x7``, ``4x4``, ``2x2`` with word tokens for texts.
        layers: Hidden layers to concatenate instead of an encoder's own output, -1 for the last; only ``hf:MODEL``
            encoders support this, and the layers become part of the encoder's name.
        dtype: Stored number type, ``float16`` or ``float32``.
        include: Only images whose id, or a folder above, matches one of these shell patterns, such as ``*.jpg``.
        exclude: Skip images that match one of these. Thumbnail folders (``@eaDir``, ``__MACOSX`` and the like) are
            skipped unless ``include`` names them.
        prune: Remove stored images that have no file in the folder. Refused if that would remove all of them.
        check_content: Compare the content of all files, even if size and modification time are unchanged.
        shard: Only this share of the images and texts, such as ``3/8``, into a store of its own: a part. All parts
            merged by `frevl.store.sharding.merging.merge` equal the result of one extraction.
        write_pairs: Pairs file to write: every image of the folder or the tars with the caption, or the label, next to
            it; if a folder has none, the class of an image is the name of its own folder. Captions are embedded too.
        commit_rows: Commit after this many items, or after `commit_seconds`, whichever comes first.
        commit_seconds: Seconds after which to commit.
        workers: Number of decoding threads; None uses one per CPU core. With ``ray``, the number of workers on the
            cluster.
        device: Device for encoders from a model hub: ``cpu``, ``cuda`` (one copy per NVIDIA device), ``cuda:1``; None
            uses all accelerators. The packaged encoders run on the CPU.
        ray: Embed on the nodes of a Ray cluster: ``local`` (a cluster on this machine, started for this call),
            ``auto``, or the address of its head node. Nodes must see the files under the same paths. Only this process
            commits.
        progress: Show progress.

    Returns:
        A report of what was done.

    Raises:
        UsageError: Nothing to embed, an unknown encoder or type, or a missing device.
        InputError: The image folder is missing or has no readable image, or a pairs file cannot be used.
        StoreError: The store cannot be written, or is the part of another shard.
        FingerprintError: The store was made with other encoders or settings under the same name.
    """
    started = time.monotonic()
    shard_of = None if shard is None else Shard.parse(shard)
    if ray is not None and shard_of is not None:
        raise UsageError("--shard is for independent processes; with --ray leave it out")
    if dtype not in ("float16", "float32"):
        raise UsageError(f"The stored type must be 'float16' or 'float32', found '{dtype}'")
    inputs = Inputs.of(images, pairs, columns, include, exclude, leave_out=Path(store))
    inputs.refuse(prune=prune, check_content=check_content, write_pairs=write_pairs)
    encoder = as_list(encoder, "encoder")
    names = dict.fromkeys(with_layers(name, layers) for name in encoder)
    if device is not None:
        check_device(device)
    with on_device(device):
        loaded = [load_encoder(name, tokens=tokens) for name in names]
    inputs.refuse_empty_folder()
    report = ExtractionReport(str(store))
    texts, referring = inputs.read(report)
    tables = inputs.tables_with_images()
    if images is None and not texts and not tables:
        raise UsageError("Nothing to embed: the pairs have no text; give the folder of their images with --images")

    def towers() -> list[Tower]:
        return [tower for one in loaded for tower in tower_records(one, dtype=dtype)]

    embedding: AbstractContextManager[Embedder] = nullcontext(Here(workers or processors()))
    if ray is not None:
        embedding = on_nodes(
            ray, tuple(names), towers(), tokens=tokens, dtype=dtype, device=device, workers=workers, notes=report.notes
        )
        inputs = inputs.absolute()
    sources = [*([] if images is None else [images]), *sorted(inputs.names_of_pairs)]
    # A part says itself whether it is complete.
    asked = {"encoder": list(names), "include": inputs.choice.include, "exclude": inputs.choice.exclude,
             "tokens": [] if tokens == "pooled" else [tokens]}  # fmt: skip
    work = None if shard_of is not None else call_of("frevl extract", sources, asked)
    with (
        embedding as embedder,
        StoreWriter(store, work=work) as writer,
        Captions(None if write_pairs is None else Path(write_pairs)) as captions,
    ):
        if shard_of is None:
            refuse_part(writer.path)
        else:
            part = begin_part(writer.path, shard_of, empty=not writer.store.towers)
        writer.register(towers())
        writer.reject(report.rejects)
        buffer_of = partial(CommitBuffer, writer, rows=commit_rows, seconds=commit_seconds)
        image_share, text_share = Share(shard_of, remember=bool(referring)), Share(shard_of)
        image_towers = list({one.image.name: one.image for one in loaded if one.image}.values())
        outside = _extract_images(
            inputs, tables, image_towers, buffer_of("image", image_towers), report, share=image_share,
            captions=captions, embedder=embedder, prune=prune, check_content=check_content, progress=progress,
        )  # fmt: skip
        other_tars = set(image_share.names) - outside if inputs.tars is not None else set[str]()  # of other shards
        report.rejects += reject_pairs_without_image(
            writer,
            referring,
            [outside, image_share.names],
            inputs.images,
            elsewhere=lambda id_: in_a_tar(id_, other_tars),
        )
        _clear_lines(writer, inputs, report)
        if texts or captions.texts:
            text_towers = list({one.text.name: one.text for one in loaded if one.text}.values())
            # With a shard, the captions of other tars are unknown here: each process takes those of its own.
            own = list(dict.fromkeys([*text_share.own(texts, str), *captions.texts]))
            extract_texts(own, text_towers, buffer_of("text", text_towers), embedder, report, progress=progress)
        if shard_of is not None:
            lists = {"images": image_share.digest(), "texts": text_share.digest()}
            finish_part(writer.path, part, lists=lists, pairs=inputs.names_read, rows=writer.rows())
    report.notes += writer.notes
    report.seconds = time.monotonic() - started
    return report


def _extract_images(
    inputs: Inputs,
    tables: Sequence[ArrowSource],
    towers: Sequence[ImageTower],
    buffer: CommitBuffer,
    report: ExtractionReport,
    *,
    share: Share,
    captions: Captions,
    embedder: Embedder,
    prune: bool,
    check_content: bool,
    progress: bool,
) -> set[str]:
    """Embed the images of a folder, of tars or of tables, and return the ids that the store may still lack."""
    if inputs.tars is not None:
        outside = extract_tars(
            inputs.tars, towers, buffer, report, choice=inputs.choice, share=share, captions=captions,
            embedder=embedder, progress=progress,
        )  # fmt: skip
        report.notes += captions.finish()
        return outside
    if inputs.images is not None:
        outside = extract_images(
            Path(inputs.images), towers, buffer, report, choice=inputs.choice, share=share, captions=captions,
            prune=prune, check_content=check_content, embedder=embedder, progress=progress,
        )  # fmt: skip
        report.notes += captions.finish()
        return outside
    if tables and towers:
        return extract_pictures(
            tables, inputs.columns, towers, buffer, report, share=share, embedder=embedder, progress=progress
        )
    return set()


def _clear_lines(writer: StoreWriter, inputs: Inputs, report: ExtractionReport) -> None:
    """Clear earlier rejects of lines that are now valid."""
    former = {reject.id for reject in writer.store.rejects() if reject.kind == "pair"}
    names = inputs.names_of_pairs
    repaired = {place for place in former if place.rpartition(":")[0] in names}
    writer.clear_rejects("pair", repaired - {reject.id for reject in report.rejects if reject.kind == "pair"})
