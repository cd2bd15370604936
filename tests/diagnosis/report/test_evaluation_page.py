"""The report of an evaluation: groups first, all numbers as in the JSON, markup as text."""

import copy

import pytest

from frevl.diagnosis.report.evaluation_page import evaluation_findings, write_evaluation_page
from frevl.errors import InputError

HOSTILE = "<script>alert(1)</script>"
GROUP = {
    "groups": {
        HOSTILE: {"n": 41, "accuracy": 61.5, "ci95": [50.5, 70.5]},
        "woman": {"n": 43, "accuracy": 80.5, "ci95": None},
    },
    "worst": HOSTILE,
    "best": "woman",
    "gap": 19.0,
    "gap_ci95": [4.5, 33.0],
    "difference_ci95": [4.5, 33.0],
    "chance": 0.02,
}
RECORD = {
    "task": "classification",
    "n": 84,
    "metrics": {"accuracy": 71.25, "ece": 3.5},
    "ci95": {"accuracy": [61.0, 80.0], "ece": None},
    "slices": {"season": {"winter": {"n": 30, "accuracy": 90.5, "ci95": [80.0, 99.0]},
                          "summer": {"n": 54, "accuracy": 60.5, "ci95": None}}},
    "fairness": {
        "gender": {
            "pictures": {HOSTILE: 41, "woman": 43},
            "left_out": {},
            "metrics": {"accuracy": GROUP},
            "equal_opportunity": {
                "difference": 21.5, "ci95": [1.0, 40.0], "class": "yes", "groups": {HOSTILE: 55.0, "woman": 76.5},
                "classes": {"yes": 21.5}, "classes_left_out": 0,
            },
        }
    },
    "provenance": {"store": "abc", "seed": 0, "command": "frevl evaluate --store /home/me/STORE", "versions": {}},
    "notes": [f"Groups of 'gender' differ in accuracy: '{HOSTILE}' 61.50 % to 'woman' 80.50 %, 19.00 points apart.",
              "12 pairs have no 'gender' and belong to no group."],
}  # fmt: skip
QUERIES = {
    "task": "matching",
    "n": 120,
    "k": 9,
    "metrics": {"max_skew": 0.25, "min_skew": -0.75, "share_gap": 12.5},
    "ci95": {"max_skew": [0.125, 0.5], "min_skew": None, "share_gap": [7.5, 17.5]},
    "groups": {"a": {"pictures": 70, "pool_share": 58.5, "top_share": 70.5},
               "b": {"pictures": 50, "pool_share": 41.5, "top_share": 29.5}},
    "queries": [
        {"query": "a calm one", "max_skew": 0.1, "min_skew": -0.1, "share_gap": 5.0, "top_shares": {"a": 1, "b": 2}},
        {"query": HOSTILE, "max_skew": 0.4, "min_skew": -1.4, "share_gap": 20.0, "top_shares": {"a": 1, "b": 2}},
    ],
    "provenance": {"store": "abc", "seed": 0, "command": "frevl evaluate", "versions": {}},
    "notes": [],
}  # fmt: skip


def written(record, tmp_path):
    write_evaluation_page(record, tmp_path / "new" / "page.html")
    return (tmp_path / "new" / "page.html").read_text()


def test_groups_come_first_with_their_numbers(tmp_path):
    page = written(RECORD, tmp_path)
    assert "<title>Evaluation: Groups of &#39;gender&#39; differ in accuracy" in page
    for shown in ("61.5", "50.5", "70.5", "80.5", "19", "21.5", "76.5", "Chance: 2.0 %", "90.5", "71.25"):
        assert shown in page, shown
    assert page.count("belong to no group") == 1
    assert page.count("19.00 points apart") >= 1
    assert "Does it serve all groups alike?" in page
    assert "Where is it better, and where worse?" in page
    assert "/home/me" not in page


def test_whom_searches_show(tmp_path):
    page = written(QUERIES, tmp_path)
    assert "show groups 12.50 points away from their share of the 120 images" in page
    for shown in ("58.5", "70.5", "MaxSkew@9 is 0.250", "a calm one", "Whom do searches show?"):
        assert shown in page, shown
    by_query = evaluation_findings(QUERIES)[2]
    assert [row["query"] for row in by_query.table] == [HOSTILE, "a calm one"]


@pytest.mark.slow
@pytest.mark.parametrize("record", [RECORD, QUERIES])
def test_markup_stays_text(record, tmp_path):
    page = written(record, tmp_path)
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_a_leak_is_the_headline(tmp_path):
    record = copy.deepcopy(RECORD)
    record["notes"].append("Leak: 3 of 84 test images are training images: the metrics are too good.")
    page = written(record, tmp_path)
    assert "<title>Evaluation: Leak: 3 of 84 test images" in page
    assert page.count("Leak: 3 of 84") == 2  # title and headline
    record["notes"] = ["Another note.", "Chance: 52.50 % is not measurably better than always answering 'no'."]
    write_evaluation_page(record, tmp_path / "chance.html")
    assert "<title>Evaluation: Chance: 52.50 % is not" in (tmp_path / "chance.html").read_text()


def test_without_groups_it_is_a_page_too(tmp_path):
    record = {name: value for name, value in RECORD.items() if name != "fairness"}
    page = written({**record, "notes": [], "slices": {}}, tmp_path)
    assert "accuracy is 71.25 (95 % interval 61.00 to 80.00) on 84 pairs." in page


def test_many_groups_have_a_table_and_no_plot(tmp_path):
    record = copy.deepcopy(RECORD)
    table = record["fairness"]["gender"]["metrics"]["accuracy"]
    table["groups"] |= {f"g{number}": {"n": 20, "accuracy": 70.0, "ci95": None} for number in range(60)}
    assert evaluation_findings(record)[0].plot == {}
    assert "g59" in written(record, tmp_path)


def test_a_page_that_cannot_be_written_is_a_sentence(tmp_path):
    (tmp_path / "new").write_text("a file where the folder should be")
    with pytest.raises(InputError, match="cannot be written"):
        written(RECORD, tmp_path)
