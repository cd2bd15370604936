"""Texts that a tokenizer cannot read are recognised, whatever its kind."""

import json
import unicodedata

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from frevl.encoders.registry import KNOWN, load_encoder
from frevl.encoders.unreadable_texts import MOSTLY, Pieces, UnreadTexts, pieces_of_encoding, unread_sentence

UNREAD = {
    "Thai": "แมวดำนอนอยู่บนเก้าอี้สีแดง",
    "Khmer": "ឆ្មាខ្មៅកំពុងដេកលើកៅអី",
    "emoji": "🐱🐶",
    "Chinese": "一只黑猫睡在红色的椅子上",
    "Japanese": "コーヒーを飲む",
    "Korean": "빨간 의자에서 자고 있는 고양이",
    "Russian": "чёрная кошка спит на красном стуле",
    "Greek": "μαύρη γάτα κοιμάται",
    "Arabic": "قطة سوداء تنام على كرسي أحمر",
    "Hebrew": "חתול שחור ישן על כיסא אדום",
    "Hindi": "लाल कुर्सी पर काली बिल्ली सो रही है",
    "Georgian": "შავი კატა სძინავს",
    "Amharic": "ጥቁር ድመት",
}
READ = [
    "a black cat sleeps on a red chair",
    "Un élève français à côté d'une forêt déjà brûlée",
    unicodedata.normalize("NFD", "Un élève français à côté d'une forêt déjà brûlée"),
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich",
    "czarny kot śpi na czerwonym krześle",
    "Con mèo đen ngủ trên ghế đỏ",
    "İstanbul'da kırmızı sandalyede uyuyan kedi",
    "Krzysztof Szczęsny and Nguyễn Văn Minh in Reykjavík with Þórdís",
    "#throwbackthursday #catsofinstagram #OOTD #lol @john_doe99 !!!",
    "https://example.com/a?b=c&d=%20",
    "12,345.67 € (50 %) — “quoted”… 3 × 4 = 12, E=mc², 5 °C",
    "BREAKING NEWS: NASA LAUNCHES",
    "if (x != y) { return; }",
    "I love my cat 😀",
    "• one ▪ two ✓ three ★",
    "แมว means cat in the language of Thailand",
    "xkcd",
    "x",
    "",
    "   ",
    "???",
]


@pytest.fixture(scope="module")
def minilm():
    return load_encoder("packaged").text


@pytest.mark.slow
@pytest.mark.parametrize("language", UNREAD)
def test_the_packaged_tower_does_not_read_other_scripts(minilm, language):
    assert minilm.unread([UNREAD[language]])[0] > 0.9


def test_there_are_no_false_alarms(minilm):
    shares = minilm.unread(READ)
    assert shares.dtype == np.float32
    assert {text: float(share) for text, share in zip(READ, shares, strict=True) if share > 0.2} == {}


def test_long_texts_are_judged_by_what_is_read_of_them(minilm):
    long = "a cat on a mat and " * 500
    shares = minilm.unread([long, long + UNREAD["Thai"] * 500, UNREAD["Russian"] * 100, UNREAD["Thai"] + " " + long])
    assert shares[:2].tolist() == [0, 0]
    assert shares[2] == 1
    assert shares[3] < 0.1


def test_the_toy_tower_reads_everything():
    assert load_encoder("toy").text.unread(list(UNREAD.values())).tolist() == [0] * len(UNREAD)


def share(tokenizer, text, unknown=None):
    def pieces_of(texts):
        return [pieces_of_encoding(one, tokenizer.encode(one), unknown) for one in texts]

    return UnreadTexts(pieces_of).shares([text])[0]


def test_letters_that_are_cut_into_bytes_are_unread():
    """Byte-level BPE, as in GPT-2, RoBERTa and CLIP: nothing is unknown, and nothing is known of Thai."""
    letters = pre_tokenizers.ByteLevel.alphabet()
    words = ["the", "dog", "is", "red", "and", "this", "a", "house", "with", "many", "people", "cat"]
    vocabulary = {sign: number for number, sign in enumerate(sorted(letters))}
    merges = []
    for word in words:  # every beginning of a word is a piece
        for end in range(2, len(word) + 1):
            merges.append((word[: end - 1], word[end - 1]))
            vocabulary.setdefault(word[:end], len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocabulary, list(dict.fromkeys(merges))))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    assert share(tokenizer, "the red dog and this house") == 0
    assert share(tokenizer, UNREAD["Thai"]) == share(tokenizer, UNREAD["Russian"]) == 1
    assert share(tokenizer, "the dog 🐱") == pytest.approx(1 / 7)


def test_byte_fallback_is_unread():
    """BPE with byte fallback, as in Gemma and Llama."""
    vocabulary = {"<unk>": 0, **{f"<0x{byte:02X}>": byte + 1 for byte in range(256)}}
    for sign in "abcdefghijklmnopqrstuvwxyz▁":
        vocabulary[sign] = len(vocabulary)
    merges = []
    for word in ("the", "dog", "red", "house", "people", "many", "with", "this", "and", "is"):
        for end in range(2, len(word) + 1):
            merges.append((word[: end - 1], word[end - 1]))
            vocabulary.setdefault(word[:end], len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocabulary, list(dict.fromkeys(merges)), byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    assert share(tokenizer, "the red dog", unknown=0) == 0
    assert share(tokenizer, UNREAD["Khmer"], unknown=0) == 1
    assert share(tokenizer, "the ดำ", unknown=0) == pytest.approx(2 / 5)


def test_a_tokenizer_of_letters_reads_letters():
    """ByT5 and CANINE take every text letter by letter, and were trained to."""
    by_letter = UnreadTexts(
        lambda texts: [Pieces(text, [(place, place + 1, True) for place in range(len(text))]) for text in texts]
    )
    assert by_letter.shares([*UNREAD.values(), *READ]).max() == 0


def test_a_tokenizer_of_many_languages_reads_them():
    by_word = UnreadTexts(
        lambda texts: [
            Pieces(text, [(start, min(start + 3, len(text)), True) for start in range(0, len(text), 3)])
            for text in texts
        ]
    )
    assert by_word.shares([*UNREAD.values(), *READ]).max() == 0


def test_the_sentence():
    assert unread_sentence([], 4, ["a"]) == ""
    expected = "1 of 1,200 texts are mostly unread: the tokenizer of minilm-l6 does not know their letters or words. "
    assert unread_sentence(["แมว\n\x1b[2J"], 1200, ["minilm-l6"]).startswith(f"{expected}The first is 'แมว  [2J'.")
    assert 0 < MOSTLY < 1


def test_the_list_says_languages(frevl, tmp_path):
    said = frevl("encoders", "list", "--json", tmp_path / "e.json")
    assert "languages" in said.out.splitlines()[0]
    rows = {row["name"]: row for row in json.loads((tmp_path / "e.json").read_text())["encoders"]}
    assert rows["packaged"]["languages"] == "English"
    assert rows["hf:google/siglip2-base-patch16-224"]["languages"] == "over 100"
    assert all((one.languages is None) == (one.text_dim is None) for one in KNOWN)
