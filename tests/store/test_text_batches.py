"""The batches in which texts are embedded: an embedding may depend, in its last bit, on the others of its batch."""

from frevl.store.extraction import _batches
from frevl.store.items import PendingItem
from frevl.store.writer import Item

TEXTS = [f"{k:03d}" + "x" * (k % 7) for k in range(23)]


def batches(texts, size=5):
    work = [PendingItem(Item(text, "", len(text)), "append", {}) for text in texts]
    return [[one.item.id for one in batch] for batch in _batches(TEXTS, work, size)]


def test_batches_hold_texts_of_similar_length():
    whole = batches(TEXTS)
    assert [text for batch in whole for text in batch] == sorted(TEXTS, key=len)
    assert [len(batch) for batch in whole] == [5, 5, 5, 5, 3]


def test_an_extraction_that_was_interrupted_goes_on_with_the_batches_it_would_have_made():
    whole = batches(TEXTS)
    for done in ([0], [0, 1, 2], [1, 4]):  # other workers may have been faster
        left = [text for text in TEXTS if not any(text in whole[number] for number in done)]
        assert batches(left) == [batch for number, batch in enumerate(whole) if number not in done]


def test_what_is_left_of_several_batches_stands_together():
    whole = batches(TEXTS)
    lacking = [whole[0][0], whole[1][1], whole[3][2]]
    assert batches(lacking) == [lacking]
    assert batches([]) == []
