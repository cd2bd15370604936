"""The batches of texts: the last bit of an embedding may depend on the others in its batch."""

import json

import numpy as np

from frevl.encoders.toy import ToyTextTower
from frevl.store.extraction import texts as embedding_texts
from frevl.store.extraction.extract import extract
from frevl.store.extraction.items import PendingItem
from frevl.store.extraction.texts import batches as text_batches
from frevl.store.writer import Item

TEXTS = [f"{k:03d}" + "x" * (k % 7) for k in range(23)]


def batches(texts, size=5):
    def pending(row):
        return PendingItem(Item(TEXTS[row], "", len(TEXTS[row])), "append", {})

    lacking = np.array([text in texts for text in TEXTS])
    return [[one.item.id for one in batch] for batch in text_batches(TEXTS, lacking, pending, size)]


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


def test_texts_wait_in_batches_and_tokenizers_get_some_at_a_time(tmp_path, monkeypatch):
    texts = [f"a caption of more than sixteen letters, number {number}" for number in range(40)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps({"image": "a", "text": text}) + "\n" for text in texts))
    monkeypatch.setattr(embedding_texts, "_TEXTS_AT_ONCE", 8)
    asked, waiting, most = [], [], []
    for name in ("unread", "truncated"):
        own = getattr(ToyTextTower, name)
        monkeypatch.setattr(ToyTextTower, name, lambda self, some, own=own: asked.append(len(some)) or own(self, some))
    made, embed = embedding_texts.PendingItem, ToyTextTower.embed
    monkeypatch.setattr(embedding_texts, "PendingItem", lambda *given: waiting.append(1) or made(*given))
    monkeypatch.setattr(ToyTextTower, "embed", lambda self, some: most.append(len(waiting)) or embed(self, some))
    report = extract(pairs=tmp_path / "pairs.jsonl", store=tmp_path / "store", encoder="toy")
    assert report.texts == len(waiting) == 40
    assert max(asked) == 8
    assert sum(asked) == 2 * 40
    assert min(count for count in most if count) <= 8
    again = extract(pairs=tmp_path / "pairs.jsonl", store=tmp_path / "store", encoder="toy")
    assert (again.texts, again.texts_kept, len(waiting)) == (0, 40, 40)
