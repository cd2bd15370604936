"""Files that claim far more than they hold, or that nobody writes by accident: refused with a message."""

import json
import struct
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from frevl.data.formats import parquet_batches
from frevl.data.pairs import read_pairs
from frevl.errors import InputError, PairsError, UsageError
from frevl.store.importing.formats import read_ids, read_table
from frevl.store.importing.layouts import open_parts


def npy(shape, content, descr="<f4", version=1, padding=0):
    header = str({"descr": descr, "fortran_order": False, "shape": shape}).encode() + b" " * padding + b"\n"
    length = struct.pack("<H" if version == 1 else "<I", len(header))
    return b"\x93NUMPY" + bytes([version, 0]) + length + header + content


def blocks_of(path, count):
    """Read a file of so many vectors as `frevl import` does."""
    ids = path.parent / "ids.txt"
    ids.write_text("".join(f"{number}\n" for number in range(count)))
    (part,) = open_parts(path, of="image", ids=ids, id_column=None, vector_column=None, array=None)
    return list(part.blocks(1000))


def refused(path, *words):
    with pytest.raises(InputError) as caught:
        blocks_of(path, 2)
    sentence = str(caught.value)
    assert path.name in sentence
    assert "\n" not in sentence
    for word in words:
        assert word in sentence
    return sentence


@pytest.mark.slow
@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_an_archive_that_claims_more_than_it_holds(tmp_path, compression):
    with zipfile.ZipFile(tmp_path / "v.npz", "w", compression) as archive:
        archive.writestr("a.npy", npy((2, 10**6), bytes(8 << 20)))
    words = {
        zipfile.ZIP_DEFLATED: "needs 8,000,000 bytes, found 8,388,608",
    }
    refused(tmp_path / "v.npz", words.get(compression, "uses a compression that numpy does not"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (npy((2, 10**12), b""), "needs 8,000,000,000,000 bytes, found 0"),
        (npy((10**30, 10**30), b""), "bytes, found 0"),
        (npy((2, 3), bytes(24), padding=100_000, version=2), "cannot be read"),
        (npy((2, 3), bytes(24), descr="|O"), "Python objects, which are never read"),
        (b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1) + b"{" * 100, "cannot be read"),
        (npy((2, 2_000_000), bytes(16_000_000)), "vectors of at most 1,048,576 numbers, found 2,000,000"),
        (b"\x93NUMPY\x01\x00" + struct.pack("<H", 9000) + b"(" * 9000, "cannot be read"),
    ],
)
def test_headers_that_claim_what_is_not_there(tmp_path, content, words):
    (tmp_path / "v.npy").write_bytes(content)
    refused(tmp_path / "v.npy", words)


def test_blocks_of_wide_vectors_are_small(tmp_path):
    np.save(tmp_path / "v.npy", np.ones((40, 300_000), np.float16))
    assert [len(block.vectors) for block in blocks_of(tmp_path / "v.npy", 40)] == [27, 13]  # 64 MiB at 8 bytes a number


@pytest.fixture
def small_measure(monkeypatch):
    """What is harmless whatever the file, and the size of a batch: kilobytes, so that the tests are quick."""
    monkeypatch.setattr(parquet_batches, "_HARMLESS", 100_000)
    monkeypatch.setattr(parquet_batches, "_BATCH_BYTES", 10_000)


@pytest.mark.parametrize("kind", [pa.string(), pa.dictionary(pa.int32(), pa.string())])
def test_a_text_that_every_row_refers_to(tmp_path, small_measure, kind):
    path = tmp_path / "t.parquet"
    texts = pa.array(["x" * 1000] * 5000, kind)
    pq.write_table(pa.table({"image": [f"{n}.png" for n in range(5000)], "text": texts}), path, compression="zstd")
    limit = 200 * path.stat().st_size
    assert limit < 5_000_000
    with pytest.raises(PairsError, match="more than 200 times its size"):
        read_pairs(path)
    with pytest.raises(InputError, match="more than 200 times its size"):
        read_ids(path, id_column="text", usual=())
    # A few of them are no harm, and no batch has more than it should.
    pq.write_table(pa.table({"image": [f"{n}.png" for n in range(50)], "text": texts.slice(0, 50)}), path)
    assert read_pairs(path).texts == ["x" * 1000] * 50
    batches = list(parquet_batches.parquet_batches(path, 1000))
    assert max(batch.nbytes for batch in batches) < 20_000
    assert batches[0].schema.field("text").type == kind
    assert sum(map(len, batches)) == 50


def test_a_list_of_very_many_zeros(tmp_path, small_measure):
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(2_000_000, np.float32)), 1_000_000)
    path = tmp_path / "v.parquet"
    pq.write_table(pa.table({"id": ["a", "b"], "vector": vectors.cast(pa.list_(pa.float32()))}), path)
    with pytest.raises(InputError, match="more than 200 times its size"):
        list(read_table(path)[2](10))


def test_an_arrow_file_that_points_outside_of_itself(tmp_path):
    """Its offsets are wrong: whoever follows them reads memory of others."""
    texts = pa.array(["ab", "cd"])
    for names, reader, error in (
        (("id", "vector"), lambda path: list(read_table(path)[2](10)), InputError),
        (("image", "text"), read_pairs, PairsError),
    ):
        second = pa.array([[1.0, 2.0], [3.0, 4.0]], pa.list_(pa.float32())) if "vector" in names else texts
        batch = pa.RecordBatch.from_arrays([texts, second], names=list(names))
        path = tmp_path / f"{names[0]}.arrow"
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as file:
            file.write_batch(batch)
        right, wrong = struct.pack("<3i", 0, 2, 4), struct.pack("<3i", 0, 2, 1 << 30)
        content = path.read_bytes()
        assert right in content
        path.write_bytes(content.replace(right, wrong))
        with pytest.raises(error, match=f"{names[0]}.arrow"):
            reader(path)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("deep.json", "[" * 100_000, ": the JSON is nested too deep"),
        (
            "deep.jsonl",
            '{"id": ' + "[" * 900 + "]" * 900 + "}\n" + '{"id":' * 100_000,
            ":2: the JSON is nested too deep",
        ),
        (
            "large.json",
            json.dumps([{"id": 10**30}, {"id": 1}]),
            ": the values of 'id' are of different kinds, or too large",
        ),
        ("mixed.json", json.dumps([{"id": {"a": 1}}, {"id": [1]}]), ": the values of 'id' are of different kinds"),
        ("digits.json", "[" + "9" * 10_000 + "]", ": expected JSON, found malformed JSON: Exceeds the limit"),
    ],
)
def test_ids_in_json_that_nobody_means(tmp_path, name, content, words):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=f"{name}{words}"):
        read_ids(tmp_path / name, id_column=None, usual=("id",))


@pytest.mark.parametrize("depth", [900, 100_000])
def test_pairs_that_are_nested_deep(tmp_path, depth):
    (tmp_path / "p.jsonl").write_text(
        '{"image": "a.png", "text": "\\u00e9", "deep": ' + "[" * depth + "]" * depth + "}\n"
        '{"image": "b.png", "text": "b"}\n'
    )
    pairs = read_pairs(tmp_path / "p.jsonl")
    assert pairs.images[-1] == "b.png"
    assert len(pairs) + len(pairs.rejected) == 2


def test_names_of_columns_that_are_very_long(tmp_path):
    (tmp_path / "p.csv").write_text(",".join("x" * 5000 + str(number) for number in range(9)) + "\n")
    with pytest.raises(PairsError, match="expected the columns 'image' and 'text'") as caught:
        read_pairs(tmp_path / "p.csv")
    assert len(str(caught.value)) < 1500


@pytest.fixture
def described(tmp_path):
    """A Parquet file with what most have: several row groups, lists, gaps, dictionaries and statistics."""
    table = pa.table(
        {
            "id": [f"{number}.png" for number in range(9)],
            "vector": [[1.0, 2.0]] * 9,
            "size": [1, None, 3, 4, 5, 6, 7, 8, 9],
            "place": [{"x": 1.5, "seen": True}] * 9,
        }
    )
    for version in ("1.0", "2.0"):
        pq.write_table(table, tmp_path / f"{version}.parquet", row_group_size=4, data_page_version=version)
    return tmp_path


@pytest.mark.parametrize("name", ["1.0.parquet", "2.0.parquet"])
def test_the_description_of_a_table_is_read_as_pyarrow_reads_it(described, name):
    meta = pq.ParquetFile(described / name).metadata
    footer = parquet_batches._footer(described / name)
    types = dict(enumerate(("BOOLEAN", "INT32", "INT64", "INT96", "FLOAT", "DOUBLE", "BYTE_ARRAY")))
    encodings = {0: "PLAIN", 2: "PLAIN_DICTIONARY", 3: "RLE", 8: "RLE_DICTIONARY"}
    assert len(footer[4]) == meta.num_row_groups == 3
    for number, group in enumerate(footer[4]):
        assert group[3] == meta.row_group(number).num_rows
        for place, chunk in enumerate(group[1]):
            column, expected = chunk[3], meta.row_group(number).column(place)
            assert types[column[1]] == expected.physical_type
            assert {encodings[one] for one in column[2]} == set(expected.encodings)
            assert b".".join(column[3]).decode() == expected.path_in_schema
            assert (column[5], column[6]) == (expected.num_values, expected.total_uncompressed_size)
    assert parquet_batches._described(described / name, {"id", "place"})[0] == ["id"]


@pytest.mark.slow
def test_no_byte_of_a_description_ends_the_process(described):
    """pyarrow's own reader of descriptions ends the process over some of these."""
    path = described / "1.0.parquet"
    content = path.read_bytes()
    length = int.from_bytes(content[-8:-4], "little")
    sentences = []
    for place in range(len(content) - 8 - length, len(content)):
        changed = bytearray(content)
        changed[place] ^= 1
        path.write_bytes(changed)
        try:
            for block in read_table(path, vector_column="vector")[2](5):
                block.columns.to_pylist()
        except (InputError, UsageError) as error:
            sentences.append(str(error))
    assert len(sentences) > 100
    assert not any("\n" in sentence for sentence in sentences)


@pytest.mark.parametrize("kind", ["child", "zone"])
def test_names_inside_a_column_that_are_no_text(tmp_path, kind):
    """Found by fuzzing: the columns have names, and what is inside one of them has none."""
    vectors = pa.array([[1.0, 0.0], [0.0, 1.0]], pa.list_(pa.field("nameless", pa.float32())))
    columns = {"id": ["a", "b"], "vector": vectors, "when": pa.array([1, 2], pa.timestamp("s", tz="Europe/Xxxx"))}
    table, path = pa.table(columns), tmp_path / "vectors.arrow"
    with pa.ipc.new_file(path, table.schema) as file:
        file.write_table(table)
    broken = {"child": (b"nameless", b"name\xfeess"), "zone": (b"Europe/Xxxx", b"Europe/\xfexxx")}[kind]
    assert broken[0] in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(*broken))
    with pytest.raises(InputError, match=r"vectors.arrow: .* cannot be read"):
        open_parts(path, of="image", ids=None, id_column="id", vector_column="vector", array=None)
