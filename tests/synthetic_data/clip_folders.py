"""Folders of vectors as ``clip-retrieval inference`` writes them."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

DIM = 5


def unit(rows, dim=DIM, seed=0):
    """Random unit vectors, float64."""
    vectors = np.random.default_rng(seed).standard_normal((rows, dim))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def clip_retrieval(folder, sizes=(3, 2), dtype=np.float16, texts=True):
    """Write a folder as ``clip-retrieval inference`` does; returns its image and text vectors."""
    images, captions = unit(sum(sizes), seed=1), unit(sum(sizes), seed=2)
    for name in ("img_emb", "text_emb", "metadata") if texts else ("img_emb", "metadata"):
        (folder / name).mkdir(parents=True)
    start = 0
    for part, size in enumerate(sizes):
        rows = slice(start, start + size)
        np.save(folder / f"img_emb/img_emb_{part}.npy", images[rows].astype(dtype))
        if texts:
            np.save(folder / f"text_emb/text_emb_{part}.npy", captions[rows].astype(dtype))
        table = {
            "image_path": [f"/data/pictures/dir/{i}.jpg" for i in range(start, start + size)],
            **({"caption": [f"caption {i}" for i in range(start, start + size)]} if texts else {}),
            "width": [640 + i for i in range(start, start + size)],
            "exif.make": ["a camera"] * size if part == 0 else [None] * size,
            "boxes": [[1, 2]] * size,
        }
        pq.write_table(pa.table(table), folder / f"metadata/metadata_{part}.parquet")
        start += size
    return images, captions
