"""Words that messages share."""

from frevl.errors import counted, nearest


def test_one_is_singular_and_every_other_number_plural():
    assert counted(1, "test image") == "1 test image"
    assert counted(0, "pair") == "0 pairs"
    assert counted(2000, "pair") == "2,000 pairs"
    assert counted(1, "query", "queries") == "1 query"
    assert counted(3, "query", "queries") == "3 queries"
    assert counted(1, "id is", "ids are") == "1 id is"


def test_a_name_in_another_case_is_the_nearest():
    assert nearest("RED", ["read", "green", "red"]).startswith("Did you mean 'red'?")
