"""Words that messages share."""

import pytest

from frevl.errors import counted, in_bytes, nearest


def test_one_is_singular_and_every_other_number_plural():
    assert counted(1, "test image") == "1 test image"
    assert counted(0, "pair") == "0 pairs"
    assert counted(2000, "pair") == "2,000 pairs"
    assert counted(1, "query", "queries") == "1 query"
    assert counted(3, "query", "queries") == "3 queries"
    assert counted(1, "id is", "ids are") == "1 id is"


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (0, "0 bytes"), (1, "1 byte"), (994, "994 bytes"), (1000, "1 kB"), (40_000_000, "40 MB"), (994e6, "994 MB"),
        (999_000_000, "1.0 GB"), (1_540_000_000, "1.5 GB"), (2.5e12, "2.5 TB"), (4e15, "4,000.0 TB"),
    ],
)  # fmt: skip
def test_no_number_of_bytes_is_shown_as_nothing(number, said):
    assert in_bytes(number) == said


def test_a_name_in_another_case_is_the_nearest():
    assert nearest("RED", ["read", "green", "red"]).startswith("Did you mean 'red'?")


def test_of_many_names_the_nearest_and_the_first_are_shown():
    """A thousand classes filled 30 screens."""
    said = nearest("class  700", [f"class {number}" for number in range(1000)] + ["x" * 2000])
    assert said.startswith("Did you mean 'class 700'? Valid: 'class 0', 'class 1', ")
    assert said.endswith("'class 19' and 981 more.")
    assert nearest("a", [str(number) for number in range(60)]).endswith("'58', '59'.")
    assert nearest("a", ["y" * 2000]) == f"Valid: '{'y' * 60}'."
