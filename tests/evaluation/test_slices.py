"""Which other keys of the pairs become tables of results."""

import json

import numpy as np
import pyarrow as pa
import pytest

from frevl.data.packed.columns import Coded, WithCluster
from frevl.evaluation.slices import group_rows, slice_rows


def listed(groups):
    return {name: rows.tolist() for name, rows in groups.items()}


def test_coded_pairs_form_the_same_groups_without_an_object_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    each = [{"side": side, "n": n} for side in ("left", "right ", "", None) for n in (1, 2.0, "2")] + [{}]
    each += [{"taken": number} for number in range(12)]
    codes = np.random.default_rng(0).integers(0, len(each), 300)
    extras = [each[code] for code in codes.tolist()]
    expected = {key: listed(groups) for key, groups in slice_rows(extras).items()}
    assert set(expected) == {"side", "n", "taken"}
    coded = Coded(codes.astype(np.int32), pa.array([json.dumps(one) for one in each], pa.large_string()), json.loads)
    clusters = Coded.of(codes % 7, [f"cluster {n}" for n in range(7)])
    seen: list[int] = []
    monkeypatch.setattr(Coded, "__getitem__", lambda self, _: seen.append(len(self)))
    for column in (coded, WithCluster(coded, clusters)):
        assert {key: listed(groups) for key, groups in slice_rows(column).items()} == expected
    assert not seen


def test_all_65_question_types_of_vqa_make_a_table():
    extras = [{"question_type": f"type {n % 65}", "answer": f"answer {n % 66}"} for n in range(20 * 65)]
    rows = slice_rows(extras)
    assert list(rows) == ["question_type"]  # 66 groups of 19.7 pairs name items
    assert len(rows["question_type"]) == 65
    assert rows["question_type"]["type 3"].tolist() == list(range(3, 1300, 65))


def test_more_than_200_values_never_make_a_table():
    assert slice_rows([{"name": f"name {n % 201}"} for n in range(201 * 20)]) == {}
    assert len(slice_rows([{"name": f"name {n % 200}"} for n in range(200 * 20)])["name"]) == 200


def test_what_names_an_item_or_holds_pairs_together_makes_no_table():
    extras = [
        {"cluster": str(n % 3), "group": n % 4, "identifier": "1-0" if n % 2 else "1-1", "pair_id": str(n % 5),
         "question_id": n, "part": "ab"[n % 2], "always": "x"}
        for n in range(40)
    ]  # fmt: skip
    assert list(slice_rows(extras)) == ["part"]


def test_empty_cells_and_what_is_no_number_are_no_group_and_one_number_is_one():
    values = ["f", "", "  ", None, float("nan"), " f ", 1, 1.0, "1", True]
    groups = group_rows([{"side": value} for value in values], "side")
    assert listed(groups) == {"1": [6, 7, 8], "True": [9], "f": [0, 5]}
    composed = group_rows([{"side": value} for value in ("caf\u00e9", "cafe\u0301", "new  york", "new york")], "side")
    assert listed(composed) == {"caf\u00e9": [0, 1], "new york": [2, 3]}


def test_numbers_in_a_table_of_text_are_numbers():
    ages = [n % 23 for n in range(60)]
    texts = [{"age": str(n)} for n in ages]
    ranges = listed(group_rows([{"age": n} for n in ages], "age"))
    assert list(ranges) == ["0 to 4", "5 to 9", "10 to 15", "16 to 22"]
    assert listed(group_rows(texts, "age")) == listed(slice_rows(texts)["age"]) == ranges
    lengths = [f"{n / 7:.3f}" for n in range(60)]  # each occurs once, but these are no ids
    assert len(group_rows([{"length": one} for one in lengths], "length")) == 4
    codes = [{"code": f"{n:03d}"} for n in range(12)]  # names that happen to consist of digits
    assert len(group_rows(codes, "code", asked=True)) == 12


def test_whole_numbers_in_text_of_which_most_occur_once_are_ids():
    rows = [{"row": str(n)} for n in range(60)]
    assert slice_rows(rows) == {}
    assert len(group_rows(rows, "row", asked=True)) == 4
    assert list(slice_rows([{"row": n} for n in range(60)])) == ["row"]  # numbers are numbers


def test_numbers_have_one_name_however_they_are_written():
    values = ["1.0", 1, "-2.0", -2.0, "2.10", "2.1", "10.0"]
    groups = group_rows([{"side": value} for value in values], "side")
    assert listed(groups) == {"-2": [2, 3], "1": [0, 1], "10": [6], "2.1": [5], "2.10": [4]}


def test_no_pair_is_lost_where_numbers_share_their_first_six_digits():
    for numbers in ([1_700_000_000 + n for n in range(40)], [1 + n * 1e-9 for n in range(40)]):
        groups = group_rows([{"taken": number} for number in numbers], "taken")
        assert list(listed(groups).values()) == [list(range(start, start + 10)) for start in range(0, 40, 10)]
    assert next(iter(group_rows([{"n": n} for n in range(40)], "n"))) == "0 to 9"
    assert next(iter(group_rows([{"n": 1_700_000_000 + n} for n in range(40)], "n"))) == "1700000000 to 1700000009"
