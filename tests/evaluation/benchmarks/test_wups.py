"""WUPS through nltk on a small WordNet database written by the test in WordNet's own format."""

import json
import os
import subprocess
import sys

import pytest

from frevl.evaluation.benchmarks.wups import wups

# A chain of nine ideas, n1 above n2 and so on; chair and table below the ninth; dog, of two senses, below n1 and n3.
PARENTS = {f"n{i}": [f"n{i - 1}"] for i in range(2, 10)} | {"n1": []}
PARENTS |= {"chair": ["n9"], "table": ["n9"], "dog%1": ["n1"], "dog%2": ["n3"]}


def write_wordnet(folder):
    """Write the noun files; the other parts of speech are empty."""
    folder.mkdir(parents=True)
    names = list(PARENTS)

    def lines(offsets):
        for name in names:
            pointers = [f"@ {offsets[p]:08d} n 0000" for p in PARENTS[name]]
            pointers += [f"~ {offsets[child]:08d} n 0000" for child in names if name in PARENTS[child]]
            lemma = name.partition("%")[0]
            yield f"{offsets[name]:08d} 03 n 01 {lemma} 0 {len(pointers):03d} {' '.join(pointers)} | made  \n"

    offsets = dict.fromkeys(names, 0)
    at = 0
    for name, line in zip(names, lines(offsets), strict=True):  # every number has a fixed width, so lengths stay
        offsets[name] = at
        at += len(line)
    (folder / "data.noun").write_text("".join(lines(offsets)))
    words = {}
    for name in names:
        words.setdefault(name.partition("%")[0], []).append(offsets[name])
    (folder / "index.noun").write_text(
        "".join(
            f"{word} n {len(at)} 1 @ {len(at)} 0 {' '.join(f'{o:08d}' for o in at)}  \n"
            for word, at in sorted(words.items())
        )
    )
    for part in ("verb", "adj", "adv"):
        (folder / f"data.{part}").write_text("")
        (folder / f"index.{part}").write_text("")
    for part in ("noun", "verb", "adj", "adv"):
        (folder / f"{part}.exc").write_text("tableses table\n" if part == "noun" else "")
    (folder / "lexnames").write_text("".join(f"{number:02d}\tnoun.{number}\t1\n" for number in range(45)))
    (folder / "cntlist.rev").write_text("")
    (folder / "index.sense").write_text("")


def in_a_fresh_process(code, data):
    """Run code with another NLTK_DATA: nltk looks for it once per process."""
    environment = {**os.environ, "NLTK_DATA": str(data), "HOME": str(data)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_similarity_and_wups_from_wordnet_files_by_hand(tmp_path):
    write_wordnet(tmp_path / "corpora" / "wordnet")
    found = in_a_fresh_process(
        """
import json
from frevl.evaluation.benchmarks.wups import wordnet_similarity, wups, wups_available
similarity = wordnet_similarity()
pairs = [("chair", "table"), ("chair", "n9"), ("chair", "n1"), ("dog", "n3"), ("dog", "chair"), ("chair", "nowhere")]
answers = [["table"], ["chair"], ["n9"], ["n1"], ["n5", "chair"], ["nowhere"]]
right = [["chair"]] * len(answers)
print(json.dumps([wups_available(), [similarity(*pair) for pair in pairs], wups(answers, right).tolist()]))
""",
        tmp_path,
    )
    # Wu and Palmer: twice the depth of the nearest common idea by the sum of both depths; n1 has depth 1, chair 10.
    similarities = [18 / 20, 18 / 19, 2 / 11, 6 / 7, 6 / 14, 0]
    assert found[0] is True
    assert found[1] == pytest.approx(similarities)
    # Below 0.9 a tenth counts. n5 has depth 5: 10/15, so {n5, chair} against {chair} is min(0.1 * 10/15 * 1, 1).
    assert found[2] == pytest.approx([0.9, 1, 18 / 19, 0.1 * 2 / 11, 0.1 * 10 / 15, 0])


@pytest.mark.slow
def test_without_the_files_wups_is_said_to_be_absent(tmp_path):
    found = in_a_fresh_process(
        """
import json
from frevl.errors import FrevlError
from frevl.evaluation.benchmarks.wups import wordnet_similarity, wups_available
try:
    wordnet_similarity()
    said = ""
except FrevlError as error:
    said = str(error)
print(json.dumps([wups_available(), said]))
""",
        tmp_path,
    )
    assert found == [
        False,
        "WUPS needs WordNet through nltk, which is not installed. Install it with: pip install nltk && python -m "
        "nltk.downloader wordnet",
    ]


def test_a_sense_is_the_nearest_of_all():
    """The largest similarity over senses is `wordnet_similarity`'s; sets of answers multiply the best of each."""
    table = {("a", "x"): 0.95, ("a", "y"): 0.2, ("b", "x"): 0.5, ("b", "y"): 0.92}
    # answers: 0.95 * 0.92; targets: the same
    assert wups([["a", "b"]], [["x", "y"]], similarity=lambda a, t: table[a, t])[0] == pytest.approx(0.95 * 0.92)
