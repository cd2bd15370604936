"""Folders of ``clip-retrieval inference`` that differ from those of its newest version."""

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clip_folders import clip_retrieval
from frevl.errors import InputError, UsageError
from frevl.store.importing.vectors import import_embeddings
from frevl.store.reader import Store

TEXTS = [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]


@pytest.mark.parametrize("kind", TEXTS)
def test_metadata_of_any_type_of_text(tmp_path, kind):
    """pandas since 3 and polars write large strings."""
    images, captions = clip_retrieval(tmp_path / "clip", sizes=(3, 2), dtype=np.float32)
    for path in (tmp_path / "clip/metadata").iterdir():
        table = pq.read_table(path)
        for name in ("image_path", "caption", "exif.make"):
            cast = table[name].cast(pa.string()).cast(kind)
            table = table.set_column(table.column_names.index(name), name, cast)
        pq.write_table(table, path)
    import_embeddings(tmp_path / "clip", store=tmp_path / "s", encoder="e", dtype="float32")
    store = Store.open(tmp_path / "s")
    assert np.allclose(store.read_images([f"/data/pictures/dir/{i}.jpg" for i in range(5)]), images)
    assert np.allclose(store.read_texts([f"caption {i}" for i in range(5)]), captions)
    assert store.matching("image", "exif_make = 'a camera'") == [f"/data/pictures/dir/{i}.jpg" for i in range(3)]


def test_parts_belong_together_by_number_whatever_the_zeros(tmp_path):
    images, _ = clip_retrieval(tmp_path / "clip", sizes=(3, 2), dtype=np.float32)
    for part in (0, 1):
        (tmp_path / f"clip/img_emb/img_emb_{part}.npy").rename(tmp_path / f"clip/img_emb/img_emb_000{part}.npy")
    import_embeddings(tmp_path / "clip", store=tmp_path / "s", encoder="e", dtype="float32")
    found = Store.open(tmp_path / "s").read_images([f"/data/pictures/dir/{i}.jpg" for i in range(5)])
    assert np.allclose(found, images)


@pytest.mark.parametrize("folder", ["img_emb", "text_emb", "metadata"])
def test_two_files_of_one_part_are_refused(tmp_path, folder):
    clip_retrieval(tmp_path / "clip", sizes=(3, 3))
    ending = "parquet" if folder == "metadata" else "npy"
    of_other = tmp_path / f"clip/{folder}/{folder}_1.{ending}"
    shutil.copy(of_other, of_other.with_name(f"old_0.{ending}"))
    with pytest.raises(
        InputError, match=rf"{folder}: .*found (?=.*{folder}_0.{ending})(?=.*old_0.{ending}).*for part 0; move"
    ):
        import_embeddings(tmp_path / "clip", store=tmp_path / "s", encoder="e")


def test_ids_of_a_clip_retrieval_folder_under_another_name(tmp_path):
    images, _ = clip_retrieval(tmp_path / "clip", sizes=(3,), dtype=np.float32)
    path = tmp_path / "clip/metadata/metadata_0.parquet"
    table = pq.read_table(path)
    pq.write_table(table.rename_columns(["url", "TEXT", *table.column_names[2:]]), path)
    arguments = {"store": tmp_path / "s", "encoder": "e", "dtype": "float32"}
    with pytest.raises(UsageError, match="name the column to use with --id-column; there are: url, TEXT, width"):
        import_embeddings(tmp_path / "clip", **arguments)
    with pytest.raises(UsageError, match="--id-column names one; add --of images or --of texts"):
        import_embeddings(tmp_path / "clip", id_column="url", **arguments)
    assert import_embeddings(tmp_path / "clip", id_column="url", of="images", **arguments).images == 3
    found = Store.open(tmp_path / "s").read_images([f"/data/pictures/dir/{i}.jpg" for i in range(3)])
    assert np.allclose(found, images)
    assert import_embeddings(tmp_path / "clip", id_column="TEXT", of="texts", **arguments).texts == 3
